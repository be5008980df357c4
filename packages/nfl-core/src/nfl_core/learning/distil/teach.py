"""The one loop that teaches, over a `NestedLearner`; killed anywhere, it goes on after its last whole epoch.

Shape legend: N samples, B batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from nfl_core.durable import DualRecord
from nfl_core.errors import LearningError
from nfl_core.ids import canonical_json, digest_of
from nfl_core.learning.distil.errors import (
    DistilError,
    EmptyProxyError,
    InputShapeError,
    OtherRunError,
    TeacherAnswerError,
)
from nfl_core.learning.distil.lessons import CHUNK, UNLABELLED, Lessons
from nfl_core.learning.distil.objective import DistilObjective, DistilSettings
from nfl_core.learning.distil.teacher import same_task
from nfl_core.learning.learner import LearnerState, NestedLearner
from nfl_core.learning.model import FloatArray, NestedModel, load_state, state_of
from nfl_core.learning.settings import LearningSettings
from nfl_core.levels import Level, NestedSpec, Scope
from nfl_core.tensors import read_tensors, write_tensors

MAX_CHECKPOINT_BYTES = 4 * 1024**3
_SPEC = NestedSpec.of([Level(name="taught", params=("*",), scope=Scope.GLOBAL, optimizer="adam")])
Part = Literal["all", "head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """Progress after one epoch.

    Attributes:
        epoch: Counted from 1.
        num_epochs: Of the whole run.
        loss: Mean objective of the epoch, each batch before its step.
    """

    epoch: int
    num_epochs: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilReport:
    """What teaching did.

    Attributes:
        num_steps: Of all epochs, earlier runs included.
        num_resumed: Epochs that were done already.
        losses: Mean objective of each epoch.
        agreement: Fraction of the lessons for which student and teacher name the same class.
        cpu_s: CPU seconds of this process.
    """

    num_steps: int
    num_resumed: int
    losses: tuple[float, ...]
    agreement: float
    cpu_s: float


def teach(
    student: NestedModel,
    lessons: Lessons,
    *,
    settings: DistilSettings,
    seed: int,
    part: Part = "all",
    record: DualRecord | None = None,
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
    cpu_clock: Callable[[], float] = time.process_time,
) -> DistilReport:
    """Teach a student, in exactly `settings.epochs` passes over the lessons.

    Args:
        student: Trained in place; its private head stays as it is.
        lessons: What to learn; see `ask`.
        settings: How.
        seed: Of the order of samples and their shifts.
        part: `head` leaves the features as they are and computes them once.
        record: Where the run is kept after every epoch; a run that was killed goes on from there.
        on_epoch: Told after every epoch of this run.
        cpu_clock: Seconds, monotonic.

    Raises:
        ClassCountError: The student has other classes than the teacher.
        InputShapeError: The student takes other inputs, or they are no images and shall be shifted.
        TeacherAnswerError: Hints are asked for and the teacher shows no features.
        EmptyProxyError: Only labels shall teach and none is known.
        OtherRunError: `record` holds another run.
        DistilError: The loss is not finite any more; the student is as it was.
        DurableError: `record` cannot be read or written.
    """
    _check(student, lessons, settings, part=part)
    started = cpu_clock()
    identity = _identity(state_of(student), lessons, settings, seed=seed, part=part)
    pupil = copy.deepcopy(student)  # so that whatever ends this early leaves the student as it was
    run = _restore(pupil, record, identity) or _Run()
    num_resumed = len(run.losses)
    objective = DistilObjective(lessons, settings, z_ND=_features(pupil, lessons.x) if part == "head" else None)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(num_resumed, settings.epochs):
        learner = _learner(pupil, settings, epoch=epoch, objective=objective, generator=generator)
        if run.learner is not None:
            learner.load_state_dict(run.learner)
        loss = _epoch(learner, lessons.x, settings, number=epoch + 1)
        run = _Run(losses=(*run.losses, loss), learner=learner.state_dict())
        if record is not None:
            record.store(run.encode(identity, state_of(pupil)))
        on_epoch(EpochReport(epoch=epoch + 1, num_epochs=settings.epochs, loss=loss))
    load_state(student, state_of(pupil))
    return DistilReport(
        num_steps=settings.epochs * math.ceil(len(lessons.x) / settings.batch_size),
        num_resumed=num_resumed,
        losses=run.losses,
        agreement=_agreement(student, lessons),
        cpu_s=cpu_clock() - started,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run between two epochs."""

    losses: tuple[float, ...] = ()
    learner: LearnerState | None = None

    def encode(self, identity: str, state: dict[str, FloatArray]) -> bytes:
        assert self.learner is not None
        about = json.dumps({"identity": identity, "losses": self.losses, "learner": self.learner.text}).encode()
        arrays: dict[str, npt.NDArray[np.generic]] = {"about": np.frombuffer(about, np.uint8)}
        arrays |= {f"model.{name}": array for name, array in state.items()}
        arrays |= {f"learner.{name}": array for name, array in self.learner.arrays.items()}
        return write_tensors(arrays)


def _restore(pupil: NestedModel, record: DualRecord | None, identity: str) -> _Run | None:
    """Put the pupil where the kept run stands; None when nothing is kept."""
    payload = record.load() if record is not None else None
    if payload is None:
        return None
    arrays = read_tensors(payload, None, max_bytes=MAX_CHECKPOINT_BYTES)
    if "about" not in arrays:
        raise OtherRunError("what is kept is no run at all")
    about = json.loads(arrays["about"].tobytes())
    if about["identity"] != identity:
        raise OtherRunError(f"the kept run is {about['identity'][:12]}, this one is {identity[:12]}")
    load_state(pupil, _below("model.", arrays))
    learner = LearnerState(arrays=_below("learner.", arrays), text=about["learner"])
    return _Run(losses=tuple(about["losses"]), learner=learner)


def _below(prefix: str, arrays: dict[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
    return {name.removeprefix(prefix): a.astype(np.float32) for name, a in arrays.items() if name.startswith(prefix)}


def _identity(
    state: dict[str, FloatArray], lessons: Lessons, settings: DistilSettings, *, seed: int, part: Part
) -> str:
    """Return a digest of all that decides the result."""
    data = [lessons.x, lessons.logits_NK, lessons.y, *(() if lessons.features_ND is None else (lessons.features_ND,))]
    digests = [digest_of(tensor.contiguous().numpy().tobytes()) for tensor in data]
    about = {"settings": {name: str(value) for name, value in asdict(settings).items()}, "seed": seed, "part": part}
    return digest_of(canonical_json({**about, "student": digest_of(write_tensors(state)), "lessons": digests}))


def _learner(
    student: NestedModel,
    settings: DistilSettings,
    *,
    epoch: int,
    objective: DistilObjective,
    generator: torch.Generator,
) -> NestedLearner:
    """Return a learner with the rate of this epoch; what it remembers is loaded into it."""
    numbers = LearningSettings(learning_rate=settings.learning_rate_of(epoch), batch_size=settings.batch_size)
    return NestedLearner(student, spec=_SPEC, settings=numbers, generator=generator, objective=objective)


def _epoch(learner: NestedLearner, x: Tensor, settings: DistilSettings, *, number: int) -> float:
    """Pass once over the lessons and return the mean loss. Raises DistilError when it is not finite."""
    no_prior = torch.zeros(learner.module.num_classes)
    losses = []
    try:
        for rows in torch.split(torch.randperm(len(x), generator=learner.generator), settings.batch_size):
            batch = x[rows]
            if settings.max_shift and x.dim() == 4:
                batch = _shifted(batch, most=settings.max_shift, generator=learner.generator)
            losses.append(learner.observe(batch, rows, prior=no_prior))
    except LearningError as error:
        raise DistilError(f"epoch {number}: {error.message}", hint=error.hint) from error
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss) or not all(bool(torch.isfinite(p).all()) for p in learner.module.parameters()):
        raise DistilError(f"epoch {number}: loss {loss} or weights not finite", hint="lower the learning rate")
    return loss


def _shifted(x_BCHW: Tensor, *, most: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to `most` pixels both ways; zeros come in."""
    num, _, high, wide = x_BCHW.shape
    down_B, right_B = torch.randint(0, 2 * most + 1, (2, num), generator=generator)
    rows_BH1 = (down_B[:, None] + torch.arange(high))[:, :, None]
    columns_B1W = (right_B[:, None] + torch.arange(wide))[:, None, :]
    moved_BHWC = pad(x_BCHW, (most,) * 4)[torch.arange(num)[:, None, None], :, rows_BH1, columns_B1W]
    return moved_BHWC.permute(0, 3, 1, 2).contiguous()


def _check(student: NestedModel, lessons: Lessons, settings: DistilSettings, *, part: Part) -> None:
    same_task("the student", student.num_classes, student.input_shape, of=lessons, called="the teacher")
    if settings.hint_weight and (lessons.features_ND is None or part == "head"):
        why = "the teacher shows no features" if lessons.features_ND is None else "the features stay as they are"
        raise TeacherAnswerError(f"hint_weight is {settings.hint_weight}, but {why}", hint="set hint_weight to 0")
    if not settings.teacher_weight and not settings.hint_weight and not bool((lessons.y != UNLABELLED).any()):
        raise EmptyProxyError("only labels shall teach and none is known", hint="give labels, or listen to the teacher")
    if settings.max_shift and part == "all" and lessons.x.dim() != 4:
        raise InputShapeError(f"inputs are {list(lessons.x.shape[1:])}, expected [C, H, W] to shift them")


def _features(student: NestedModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([student.features(part) for part in torch.split(x, CHUNK)])


def _agreement(student: NestedModel, lessons: Lessons) -> float:
    with torch.no_grad():
        said = torch.cat([student.generic(student.features(part)).argmax(1) for part in torch.split(lessons.x, CHUNK)])
    return float((said == lessons.logits_NK.argmax(1)).to(torch.float32).mean())
