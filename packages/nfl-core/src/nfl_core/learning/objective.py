"""What the levels are trained on, and how a model is scored.

The joint objective has two parts. The shared levels see a balanced risk: the generic head is trained with the owner's
label prior added to its logits, so that it need not learn how often this owner meets each class. The private residual
head is trained on the owner's own risk on top of the generic logits, whose gradient is stopped; the features see both.

Source: balanced and personal risk after FedRoD (Chen and Chao, arXiv:2107.00778); that the body sees both is our
choice, measured in docs/adr/0003.

Shape legend: B batch, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nfl_core.errors import LearningError
from nfl_core.learning.model import NestedModel

PRIOR_SMOOTHING = 0.5  # Jeffreys: an unseen class keeps a finite logarithm


class Objective(Protocol):
    """A differentiable loss of one batch."""

    def __call__(self, module: NestedModel, x: Tensor, y: Tensor, prior: Tensor) -> Tensor:
        """Return a scalar; `x` float32 [B, ...], `y` int64 [B], `prior` float32 [K] logarithms."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well a model answers.

    Attributes:
        loss: Mean cross-entropy, nats, >= 0; infinite when the model answers with a value that is not finite.
        accuracy: Fraction answered right, 0 to 1.
    """

    loss: float
    accuracy: float


def label_prior(y: Tensor, *, num_classes: int) -> Tensor:
    """Return the logarithm of the smoothed label frequencies, float32 [K].

    Args:
        y: int64 [N], N >= 1, values 0 to num_classes - 1.
        num_classes: K.

    Raises:
        LearningError: No labels, or a label out of range.
    """
    if not len(y) or int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise LearningError(f"got {len(y)} labels, expected at least one and all within 0 to {num_classes - 1}")
    counts_K = torch.bincount(y, minlength=num_classes).to(torch.float32)
    return torch.log((counts_K + PRIOR_SMOOTHING) / (len(y) + PRIOR_SMOOTHING * num_classes))


def joint_loss(module: NestedModel, x: Tensor, y: Tensor, prior: Tensor) -> Tensor:
    """Return CE(generic + prior, y) + CE(stopgrad(generic) + residual, y), the default objective."""
    z = module.features(x)
    generic = module.generic(z)
    return cross_entropy(generic + prior, y) + cross_entropy(generic.detach() + module.residual(z), y)


def separate_loss(module: NestedModel, x: Tensor, y: Tensor, prior: Tensor) -> Tensor:
    """Return the joint loss whose personal part does not reach the features: FedRoD's (arXiv:2107.00778)."""
    z = module.features(x)
    generic = module.generic(z)
    return cross_entropy(generic + prior, y) + cross_entropy(generic.detach() + module.residual(z.detach()), y)


def plain_loss(module: NestedModel, x: Tensor, y: Tensor, prior: Tensor) -> Tensor:  # noqa: ARG001 - an Objective
    """Return CE(generic, y): an ordinary network without private head, for the baselines."""
    return cross_entropy(module.generic(module.features(x)), y)


def score(module: NestedModel, x: Tensor, y: Tensor) -> Score:
    """Score the personal answers of `module`; with a zero private head these are the generic ones.

    Args:
        module: Not changed.
        x: float32 [N, *input_shape], N >= 1.
        y: int64 [N].

    Raises:
        LearningError: No samples.
    """
    with torch.inference_mode():
        return score_logits(module(x), y)


def score_logits(logits_BK: Tensor, y: Tensor) -> Score:
    """Score logits, float32 [B, K], against labels, int64 [B].

    Raises:
        LearningError: No samples.
    """
    if not len(y):
        raise LearningError("got no samples to score, expected at least one")
    loss = float(cross_entropy(logits_BK, y)) if bool(torch.isfinite(logits_BK).all()) else float("inf")
    return Score(loss=loss, accuracy=float((logits_BK.argmax(1) == y).to(torch.float32).mean()))
