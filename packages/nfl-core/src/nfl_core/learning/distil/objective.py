"""How a student is taught, and what it minimises.

Shape legend: B batch, D features, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize

from nfl_core.errors import ConfigError
from nfl_core.learning.distil.lessons import UNLABELLED, Lessons
from nfl_core.learning.model import NestedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilSettings:
    """How a student is taught.

    Attributes:
        temperature: Softens both answers, 1 to 10; 2 to 4 is usual.
        epochs: Passes over the lessons, >= 1; the loop never runs longer.
        batch_size: Samples a step, >= 1.
        learning_rate: Of the first epoch, > 0; falls to zero along half a cosine, a step an epoch.
        teacher_weight: Of T^2 KL, >= 0; 0 teaches by labels alone.
        label_weight: Of CE, >= 0; an unlabelled sample counts as a loss of zero.
        hint_weight: Of the likeness of features, >= 0; more than 0 needs a teacher that shows them.
        max_shift: Pixels by which an image is moved at random in each direction, >= 0; no matter for a head alone.

    Raises:
        ConfigError: A number is out of range.
    """

    temperature: float = 3.0
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    teacher_weight: float = 1.0
    label_weight: float = 1.0
    hint_weight: float = 0.0
    max_shift: int = 0

    def __post_init__(self) -> None:
        weights = (self.teacher_weight, self.label_weight, self.hint_weight)
        sound = 1 <= self.temperature <= 10 and 0 < self.learning_rate < math.inf and self.max_shift >= 0
        if not sound or min(self.epochs, self.batch_size) < 1 or not 0 <= min(weights) <= sum(weights) < math.inf:
            raise ConfigError(f"distillation settings out of range: {self}")
        if not sum(weights):
            raise ConfigError("teacher, label and hint weight are all 0, expected something to learn from")

    def learning_rate_of(self, epoch: int) -> float:
        """Return the rate of an epoch, counted from 0; never zero."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch + 0.5) / self.epochs))


def soft_loss(logits_BK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over the batch, a scalar.

    Source: Hinton et al., arXiv:1503.02531; T^2 keeps the gradient's size as T grows.
    """
    told_BK = log_softmax(teacher_BK / temperature, dim=1)
    said_BK = log_softmax(logits_BK / temperature, dim=1)
    return temperature**2 * kl_div(said_BK, told_BK, reduction="batchmean", log_target=True)


def likeness_loss(z_BD: Tensor, hint_BD: Tensor) -> Tensor:
    """Return how far the likeness of every two samples differs between two sets of features, a scalar.

    The widths may differ. Source: Tung and Mori, arXiv:1907.09682, Eq. 4.
    """
    ours_BB, theirs_BB = (normalize(a.flatten(1) @ a.flatten(1).T, dim=1) for a in (z_BD, hint_BD))
    return (ours_BB - theirs_BB).square().sum() / len(z_BD) ** 2


class DistilObjective:
    """The loss of a batch; what the learner hands on as `y` are rows of the lessons.

    Args:
        lessons: What the teacher said.
        settings: Weights and temperature.
        z_ND: Features of the lessons where they stand still; None: computed from the inputs.
    """

    def __init__(self, lessons: Lessons, settings: DistilSettings, *, z_ND: Tensor | None = None) -> None:
        self._lessons, self._settings, self._z_ND = lessons, settings, z_ND

    def __call__(self, module: NestedModel, x: Tensor, y: Tensor, prior: Tensor) -> Tensor:  # noqa: ARG002 - an Objective
        """Return the mean loss, a scalar, of inputs `x` that are the rows `y`, int64 [B], of the lessons."""
        lessons, settings = self._lessons, self._settings
        z_BD = module.features(x) if self._z_ND is None else self._z_ND[y]
        logits_BK = module.generic(z_BD)
        loss = logits_BK.new_zeros(())
        if settings.teacher_weight:
            told = soft_loss(logits_BK, lessons.logits_NK[y], temperature=settings.temperature)
            loss = loss + settings.teacher_weight * told
        if settings.label_weight:
            known = cross_entropy(logits_BK, lessons.y[y], ignore_index=UNLABELLED, reduction="sum") / len(y)
            loss = loss + settings.label_weight * known
        if settings.hint_weight and lessons.features_ND is not None:
            loss = loss + settings.hint_weight * likeness_loss(z_BD, lessons.features_ND[y])
        return loss
