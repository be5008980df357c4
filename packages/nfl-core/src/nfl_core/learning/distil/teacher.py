"""Who can teach: a model, an ensemble of a fleet's students, or whatever a package offers.

Shape legend: B batch, N samples, M members, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from nfl_core.errors import ConfigError
from nfl_core.learning.distil.errors import ClassCountError, EmptyProxyError, InputShapeError, TeacherAnswerError
from nfl_core.learning.model import FloatArray, NestedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a teacher says.

    Attributes:
        logits_NK: float32.
        features_ND: float32, or None when the teacher shows none.
    """

    logits_NK: FloatArray
    features_ND: FloatArray | None = None


class Teacher(Protocol):
    """Whoever can answer: a model, a graph, an ensemble. Entry points of the group `nfl.teachers` make one."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    def answer(self, x: FloatArray) -> Answer:
        """Answer about float32 [B, *input_shape]."""


class ModelTeacher:
    """A nested model as a teacher: its shared answer and its features.

    Args:
        module: Not changed.
    """

    def __init__(self, module: NestedModel) -> None:
        self._module = module
        self.num_classes, self.input_shape = module.num_classes, module.input_shape

    def answer(self, x: FloatArray) -> Answer:
        """Answer about float32 [B, *input_shape]."""
        with torch.no_grad():
            z_BD = self._module.features(torch.from_numpy(x))
            return Answer(logits_NK=self._module.generic(z_BD).numpy(), features_ND=z_BD.flatten(1).numpy())


class Ensemble:
    """Several teachers as one, which may differ in everything but the classes and the inputs.

    Args:
        members: At least one.
        weights: How much each counts, >= 0, in sum > 0; None: evenly.
        mean: Of `logits` (FedDF), or of `probabilities`, whose logarithm is the answer.

    Raises:
        EmptyProxyError: Nobody is in it.
        ClassCountError: Two members have different classes.
        InputShapeError: Two members take different inputs.
        ConfigError: The weights do not fit.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        *,
        weights: Sequence[float] | None = None,
        mean: Literal["logits", "probabilities"] = "logits",
    ) -> None:
        if not members:
            raise EmptyProxyError("an ensemble has no members", hint="name at least one student of the fleet")
        self._members, self._mean = tuple(members), mean
        self.num_classes, self.input_shape = members[0].num_classes, tuple(members[0].input_shape)
        for place, member in enumerate(members):
            same_task(f"member {place}", member.num_classes, member.input_shape, of=self, called="member 0")
        given = np.ones(len(members)) if weights is None else np.asarray(weights, np.float64)
        if given.shape != (len(members),) or not np.isfinite(given).all() or given.min() < 0 or given.sum() <= 0:
            raise ConfigError(
                f"weights of {len(members)} members are {given.tolist()}, expected as many, >= 0, sum > 0"
            )
        self._weights_M = (given / given.sum()).astype(np.float32)

    def answer(self, x: FloatArray) -> Answer:
        """Answer about float32 [B, *input_shape]. Raises TeacherAnswerError when a member's answer is no good."""
        total_BK = np.zeros((len(x), self.num_classes), np.float32)
        for weight, member in zip(self._weights_M, self._members, strict=True):
            logits_BK = checked(member.answer(x), len(x), self.num_classes).logits_NK
            total_BK += weight * (logits_BK if self._mean == "logits" else _softmax(logits_BK))
        if self._mean == "probabilities":
            total_BK = np.log(np.maximum(total_BK, np.finfo(np.float32).tiny))
        return Answer(logits_NK=total_BK)


class _Task(Protocol):
    @property
    def num_classes(self) -> int: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...


def same_task(who: str, num_classes: int, input_shape: tuple[int, ...], *, of: _Task, called: str) -> None:
    """Check that two parties work on the same task. Raises ClassCountError or InputShapeError."""
    if num_classes != of.num_classes:
        raise ClassCountError(f"{who} has {num_classes} classes, {called} has {of.num_classes}")
    if tuple(input_shape) != tuple(of.input_shape):
        raise InputShapeError(f"{who} takes {list(input_shape)}, {called} takes {list(of.input_shape)}")


def checked(answer: Answer, num: int, num_classes: int) -> Answer:
    """Return an answer about `num` samples that is float32, finite and shaped. Raises TeacherAnswerError."""
    for what, array in (("logits", answer.logits_NK), ("features", answer.features_ND)):
        if array is None:
            continue
        wide = num_classes if what == "logits" else array.shape[-1]
        if array.shape != (num, wide) or array.dtype != np.float32:
            raise TeacherAnswerError(
                f"a teacher's {what} are {array.dtype}{list(array.shape)}, expected float32[{num}, {wide}]"
            )
        if not np.isfinite(array).all():
            raise TeacherAnswerError(f"a teacher's {what} hold {int((~np.isfinite(array)).sum())} values not finite")
    return answer


def _softmax(logits_BK: FloatArray) -> FloatArray:
    odds_BK = np.exp(logits_BK - logits_BK.max(axis=1, keepdims=True))
    found: FloatArray = odds_BK / odds_BK.sum(axis=1, keepdims=True)
    return found
