"""Refitting the fast level after a merge, on features computed once.

New shared levels move the features under the private head. A few steps of the head alone win 2 to 4 points back
(docs/adr/0003) and cost almost nothing, because the shared levels stand still and their outputs can be cached.

Shape legend: N samples, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nfl_core.errors import LearningError
from nfl_core.learning.model import NestedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCache:
    """Outputs of the shared levels for some samples; stale as soon as these levels change.

    Attributes:
        z: Features, float32 [N, D].
        generic: Logits of the shared head, float32 [N, K].
        y: Labels, int64 [N].
    """

    z: Tensor
    generic: Tensor
    y: Tensor


def cache_features(module: NestedModel, x: Tensor, y: Tensor) -> FeatureCache:
    """Run the shared levels once over `x`, float32 [N, *input_shape], with labels `y`, int64 [N]."""
    with torch.no_grad():
        z = module.features(x)
        return FeatureCache(z=z, generic=module.generic(z), y=y)


def refit(
    module: NestedModel,
    cache: FeatureCache,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    parameters: Sequence[Tensor] | None = None,
) -> None:
    """Take steps of gradient descent on CE(generic(z) + private(z), y), one head alone.

    Args:
        module: Only its private head changes, or only `parameters`.
        cache: Made by `cache_features` with the shared levels that `module` has now.
        num_steps: Steps, >= 0; each draws its samples with replacement.
        batch_size: Samples a step, >= 1.
        learning_rate: Step size, > 0.
        generator: Draws the samples.
        parameters: Of the head that is fitted instead of the private one, for methods whose generic head is private.

    Raises:
        LearningError: There is nothing to learn from.
    """
    if not len(cache.y):
        raise LearningError("refit got no samples, expected at least one")
    fitted = list(module.private.parameters()) if parameters is None else list(parameters)
    if not fitted:
        return  # a model without private part has nothing to refit
    picks = torch.randint(len(cache.y), (num_steps, batch_size), generator=generator)
    for pick in picks:
        generic = cache.generic[pick] if parameters is None else module.generic(cache.z[pick])
        loss = cross_entropy(generic + module.residual(cache.z[pick]), cache.y[pick])
        gradients = torch.autograd.grad(loss, fitted)
        with torch.no_grad():
            for parameter, gradient in zip(fitted, gradients, strict=True):
                parameter.add_(gradient, alpha=-learning_rate)
