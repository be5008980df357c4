"""What a student learns from: inputs, and what its teacher answered about them.

Shape legend: N samples, B batch, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nfl_core.durable import Journal
from nfl_core.ids import canonical_json
from nfl_core.learning.distil.errors import (
    ClassCountError,
    EmptyProxyError,
    InputShapeError,
    OtherRunError,
    TeacherAnswerError,
)
from nfl_core.learning.distil.teacher import Answer, Teacher, checked
from nfl_core.learning.model import FloatArray
from nfl_core.tensors import read_tensors, write_tensors

UNLABELLED = -1
CHUNK = 256  # samples a teacher answers at once; part of what is kept, so it is no setting


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lessons:
    """Inputs and what a teacher says about them.

    Attributes:
        x: float32 [N, *input_shape].
        logits_NK: float32, finite.
        y: int64 [N], `UNLABELLED` where nobody knows.
        features_ND: float32, or None.

    Raises:
        EmptyProxyError: There are none.
        TeacherAnswerError: An answer is not finite, or there are not as many as inputs.
        ClassCountError: A label is not a class of the teacher.
    """

    x: Tensor
    logits_NK: Tensor
    y: Tensor
    features_ND: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.x):
            raise EmptyProxyError("the proxy data hold no samples, expected at least one")
        shows = () if self.features_ND is None else (self.features_ND,)
        answers = (self.logits_NK, *shows)
        if any(len(a) != len(self.x) or a.dim() != 2 or not bool(torch.isfinite(a).all()) for a in answers):
            raise TeacherAnswerError(
                f"answers of shape {[list(a.shape) for a in answers]} to {len(self.x)} inputs, "
                "expected finite ones, one row an input"
            )
        if self.y.shape != (len(self.x),) or int(self.y.min()) < UNLABELLED or int(self.y.max()) >= self.num_classes:
            raise ClassCountError(
                f"{list(self.y.shape)} labels from {int(self.y.min())} to {int(self.y.max())} for {len(self.x)} inputs "
                f"of a teacher with {self.num_classes} classes"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return self.logits_NK.shape[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x.shape[1:])


def ask(
    teacher: Teacher,
    x: FloatArray,
    *,
    y: npt.NDArray[np.int64] | None = None,
    kept: Journal | None = None,
    identity: str = "",
    on_chunk: Callable[[int, int], None] = lambda *_: None,
) -> Lessons:
    """Have a teacher answer about inputs.

    Args:
        teacher: Asked about at most `CHUNK` samples at once.
        x: float32 [N, *input_shape].
        y: int64 [N], `UNLABELLED` where nobody knows; None: nobody knows any.
        kept: Where answers are kept, so that a killed run does not ask again.
        identity: Of teacher and inputs together, for instance a digest; guards `kept`.
        on_chunk: Told how many of how many samples are answered.

    Raises:
        EmptyProxyError: There are no inputs.
        InputShapeError: They are not what the teacher takes.
        TeacherAnswerError: An answer is not finite or misshaped.
        ClassCountError: A label is no class of the teacher.
        OtherRunError: `kept` holds answers to something else.
        DurableError: `kept` cannot be read or written.
    """
    if not len(x):
        raise EmptyProxyError("the proxy data hold no samples, expected at least one")
    if tuple(x.shape[1:]) != tuple(teacher.input_shape):
        raise InputShapeError(f"inputs are {list(x.shape[1:])}, the teacher takes {list(teacher.input_shape)}")
    answers: list[Answer] = []
    remembered = _remembered(kept, identity)
    for start in range(0, len(x), CHUNK):
        part = np.ascontiguousarray(x[start : start + CHUNK], np.float32)
        answer = next(remembered, None)
        if answer is None:
            answer = checked(teacher.answer(part), len(part), teacher.num_classes)
            if kept is not None:
                kept.append(_encoded(answer))
        answers.append(checked(answer, len(part), teacher.num_classes))
        on_chunk(start + len(part), len(x))
    hints = [a.features_ND for a in answers if a.features_ND is not None]
    labels = np.full(len(x), UNLABELLED, np.int64) if y is None else y
    return Lessons(
        x=torch.from_numpy(np.ascontiguousarray(x, np.float32)),
        logits_NK=torch.from_numpy(np.concatenate([a.logits_NK for a in answers])),
        y=torch.from_numpy(np.ascontiguousarray(labels, np.int64)),
        features_ND=torch.from_numpy(np.concatenate(hints)) if len(hints) == len(answers) else None,
    )


def _remembered(kept: Journal | None, identity: str) -> Iterator[Answer]:
    if kept is None:
        return
    about = canonical_json({"identity": identity, "chunk": CHUNK})
    if not len(kept):
        kept.append(about)
        return
    entries = iter(list(kept))
    if next(entries) != about:
        raise OtherRunError("the kept answers are another teacher's, or to other inputs")
    for entry in entries:
        arrays = {name: a.astype(np.float32) for name, a in read_tensors(entry, None, max_bytes=len(entry)).items()}
        yield Answer(logits_NK=arrays["logits"], features_ND=arrays.get("features"))


def _encoded(answer: Answer) -> bytes:
    shown = {} if answer.features_ND is None else {"features": answer.features_ND}
    return write_tensors({"logits": answer.logits_NK, **shown})
