"""A teacher of a cluster's size, and what teaching is worth on a data set: downwards and upwards.

    data = load_images(cache)
    split = Split.of(data, size=SMALL)
    taught = downwards(split, make_teacher(split, size=SMALL, seed=0), size=SMALL, seed=0)
    fused = upwards(data, split, size=SMALL, seed=0)

Every student of one seed starts from the same weights and takes the same number of steps, so that the figures differ by
what taught it alone. All accuracies are those of the shared answer on the same test images.

Shape legend: N samples, B batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nfl_core.errors import ConfigError
from nfl_core.learning import (
    FourRooms,
    LearningSettings,
    NestedLearner,
    NestedModel,
    create_model,
    default_spec,
    label_prior,
    load_state,
    micro_update,
    state_of,
)
from nfl_core.learning.distil import (
    UNLABELLED,
    DistilSettings,
    Ensemble,
    EpochReport,
    Lessons,
    ModelTeacher,
    ask,
    teach,
)
from nfl_sim.data import DataSet, share_out

HIDDEN = 384
STUDENT, NUM_CLASSES, SHAPE = "small-cnn", 10, (1, 28, 28)
FEW_FRACTION = 0.1  # of the labels, for the students that have few
BATCH = 512  # of scoring
Say = Callable[[str], None]


class WideCnn(FourRooms):
    """1.03 million parameters for 28 x 28 grey images: what a cluster can run and most devices cannot."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) != 3 or min(input_shape) < 1 or num_classes < 2:
            raise ConfigError(f"wide-cnn got {num_classes} classes of shape {input_shape}, expected >= 2 of (C, H, W)")
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], 32, 5, stride=2, padding=2),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.GroupNorm(8, 128),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, stride=2, padding=1),
            nn.GroupNorm(8, 128),
            nn.ReLU(),
            nn.Flatten(),
        )
        super().__init__(body, num_classes=num_classes, input_shape=input_shape, hidden=HIDDEN)


def wide_cnn(num_classes: int, input_shape: tuple[int, ...]) -> WideCnn:
    """Make the model; the entry point `wide-cnn` of the group `nfl.models`.

    Raises:
        ConfigError: Fewer than two classes, or a shape that is not (channels, height, width).
    """
    return WideCnn(num_classes=num_classes, input_shape=input_shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything; `SMALL` is minutes on one core, `FULL` most of an hour.

    Attributes:
        num_train: Images of the cluster: labelled for the teacher, proxy data for the student.
        num_test: Images that score everything.
        teacher_epochs: Passes of the teacher over them.
        student_epochs: The same of every student.
        augments: Whether the teacher also sees mirrored and moved images; students see them as they are.
        num_owners: Owners of the way up.
        images_per_owner: Their training images, on average.
        rounds: Federated averaging before the last local update.
        local_epochs: Passes of an owner over its images in a round.
        num_proxy: Unlabelled images of the way up.
        proxy_epochs: Passes over them.
        concentration: Of the Dirichlet shares.
    """

    num_train: int
    num_test: int
    teacher_epochs: int
    student_epochs: int
    augments: bool
    num_owners: int
    images_per_owner: int = 300
    rounds: int = 3
    local_epochs: int = 5
    num_proxy: int = 4000
    proxy_epochs: int = 8
    concentration: float = 0.5


SMALL = Size(
    num_train=6000,
    num_test=4000,
    teacher_epochs=10,
    student_epochs=14,
    augments=False,
    num_owners=10,
    num_proxy=2500,
)
FULL = Size(num_train=60000, num_test=10000, teacher_epochs=4, student_epochs=8, augments=True, num_owners=20)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Images that nobody shares: x float32 [N, 1, 28, 28] in 0 to 1, y int64 [N].

    Attributes:
        x: Of the cluster, or of the owners' pool.
        y: Their labels.
        x_test: Seen by nobody.
        y_test: Their labels.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]

    @classmethod
    def of(cls, data: DataSet, *, size: Size) -> Split:
        """Take the first images to learn from and the last to test with, as the data set's authors do."""
        num_test = min(size.num_test, len(data.y_N) // 5)
        x_NCHW = data.x_NCHW.astype(np.float32) / np.float32(255)
        rest = len(data.y_N) - num_test
        num_train = min(size.num_train, rest)
        return cls(x=x_NCHW[:num_train], y=data.y_N[:num_train], x_test=x_NCHW[rest:], y_test=data.y_N[rest:])

    def accuracy(self, module: NestedModel) -> float:
        """Return the fraction of the test images that the shared answer gets right."""
        teacher = ModelTeacher(module)
        parts = range(0, len(self.x_test), BATCH)
        said = np.concatenate([teacher.answer(self.x_test[at : at + BATCH]).logits_NK.argmax(1) for at in parts])
        return float((said == self.y_test).mean())


def make_teacher(split: Split, *, size: Size, seed: int, say: Say = lambda _: None) -> WideCnn:
    """Return a wide model that learned all labels of the split, by the same loop without a teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = wide_cnn(NUM_CLASSES, SHAPE)
    x, y = (mirrored(split.x), np.tile(split.y, 2)) if size.augments else (split.x, split.y)
    settings = DistilSettings(
        epochs=size.teacher_epochs,
        batch_size=128 if size.augments else 64,
        teacher_weight=0,
        max_shift=2 if size.augments else 0,
    )
    teach(teacher, _labels_alone(x, y), settings=settings, seed=seed, on_epoch=_told(say))
    return teacher


def downwards(
    split: Split, teacher: NestedModel, *, size: Size, seed: int, say: Say = lambda _: None
) -> dict[str, float]:
    """Return the accuracy of the teacher and of four students: taught or alone, with all labels or with few.

    Args:
        split: The teacher learned all its labels.
        teacher: Answers about every image.
        size: How long.
        seed: Of the students' weights, their order of samples and which labels are known.
        say: Takes a line of progress.
    """
    known = np.random.default_rng(seed).permutation(len(split.y))[: round(FEW_FRACTION * len(split.y))]
    few = np.full_like(split.y, UNLABELLED)
    few[known] = split.y[known]
    answers = ask(ModelTeacher(teacher), split.x, y=split.y)
    settings = DistilSettings(epochs=size.student_epochs)
    alone = replace(settings, teacher_weight=0.0)
    longer = replace(alone, epochs=round(settings.epochs / FEW_FRACTION))  # fewer images, as many steps
    courses = {
        "taught": (answers, settings),
        "taught_few_labels": (replace(answers, y=torch.from_numpy(few)), settings),
        "alone_few_labels": (_labels_alone(split.x[known], split.y[known]), longer),
        "alone": (_labels_alone(split.x, split.y), alone),
    }
    found = {"teacher": split.accuracy(teacher)}
    for name, (lessons, how) in courses.items():
        student = create_model(STUDENT, num_classes=NUM_CLASSES, input_shape=SHAPE, seed=seed)
        report = teach(student, lessons, settings=how, seed=seed)
        found[name] = split.accuracy(student)
        say(f"seed {seed}: {name} {100 * found[name]:.2f} %, {report.num_steps} steps, {report.cpu_s:.0f} CPU s")
    return found


def upwards(data: DataSet, split: Split, *, size: Size, seed: int, say: Say = lambda _: None) -> dict[str, float]:
    """Return the accuracy of the owners' students, of their average, and of what their ensemble teaches.

    A few rounds of federated averaging make the version that all owners start from. `average` is what one more round
    would publish; `fused` starts there and is taught by the ensemble on unlabelled images. `teacher` is a wide model
    that learned as many labelled images as one owner has, `teacher_taught` the same after the ensemble taught it.
    """
    students, weights, average, x_proxy = _fleet(data, split, size=size, seed=seed)
    ensemble = Ensemble([ModelTeacher(one) for one in students], weights=weights)
    lessons = ask(ensemble, x_proxy)
    settings = DistilSettings(epochs=size.proxy_epochs, learning_rate=1e-3, max_shift=0)
    fused = copy.deepcopy(average)
    teach(fused, lessons, settings=settings, seed=seed)
    few = replace(split, x=split.x[: size.images_per_owner], y=split.y[: size.images_per_owner])
    large = make_teacher(few, size=replace(size, teacher_epochs=20), seed=seed)
    found = {
        "mean_student": float(np.mean([split.accuracy(one) for one in students])),
        "average": split.accuracy(average),
        "ensemble": float((ask(ensemble, split.x_test).logits_NK.argmax(1).numpy() == split.y_test).mean()),
        "fused": split.accuracy(fused),
        "teacher": split.accuracy(large),
    }
    teach(large, lessons, settings=settings, seed=seed)
    found["teacher_taught"] = split.accuracy(large)
    say(f"seed {seed}: " + ", ".join(f"{name} {100 * value:.2f} %" for name, value in found.items()))
    return found


def mirrored(x_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the images and behind them their mirror images, float32 [2 N, C, H, W]."""
    return np.ascontiguousarray(np.concatenate([x_NCHW, x_NCHW[..., ::-1]]))


def _told(say: Say) -> Callable[[EpochReport], None]:
    return lambda one: say(f"teacher: epoch {one.epoch} of {one.num_epochs}, loss {one.loss:.3f}")


def _labels_alone(x: NDArray[np.float32], y: NDArray[np.int64]) -> Lessons:
    silent = torch.zeros(len(x), NUM_CLASSES)
    return Lessons(x=torch.from_numpy(x), logits_NK=silent, y=torch.from_numpy(np.ascontiguousarray(y)))


def _fleet(
    data: DataSet, split: Split, *, size: Size, seed: int
) -> tuple[list[NestedModel], list[float], NestedModel, NDArray[np.float32]]:
    """Return the owners' students, how much each counts, their average, and unlabelled images that nobody owns."""
    pool = DataSet(name=data.name, source=data.source, x_NCHW=data.x_NCHW[: len(split.y)], y_N=data.y_N[: len(split.y)])
    shares = share_out(
        pool,
        num_owners=size.num_owners,
        concentration=size.concentration,
        images_per_owner=size.images_per_owner,
        generator=np.random.default_rng(seed),
        num_heldout=size.num_proxy,
    )
    rows = [np.concatenate([owner.train, owner.holdout]) for owner in shares.owners]
    weights = [float(len(mine)) for mine in rows]
    average = create_model(STUDENT, num_classes=NUM_CLASSES, input_shape=SHAPE, seed=seed)
    students: list[NestedModel] = []
    for number in range(size.rounds + 1):
        students = [copy.deepcopy(average) for _ in rows]
        for place, (student, mine) in enumerate(zip(students, rows, strict=True)):
            _learn(student, split, mine, epochs=size.local_epochs, seed=(seed * 100 + number) * len(rows) + place)
        load_state(average, _mean(students, weights))
    return students, weights, average, split.x[shares.heldout]


def _learn(student: NestedModel, split: Split, rows: NDArray[np.int64], *, epochs: int, seed: int) -> None:
    x, y = torch.from_numpy(split.x[rows]), torch.from_numpy(split.y[rows])
    generator = torch.Generator().manual_seed(seed)
    learner = NestedLearner(student, spec=default_spec(), settings=LearningSettings(), generator=generator)
    micro_update(learner, x, y, prior=label_prior(y, num_classes=NUM_CLASSES), epochs=epochs, refit_steps=0)


def _mean(students: Sequence[NestedModel], weights: Sequence[float]) -> dict[str, NDArray[np.float32]]:
    states, shares = [state_of(one) for one in students], np.asarray(weights, np.float32) / np.float32(sum(weights))
    return {
        name: np.sum(
            [share * state[name] for share, state in zip(shares, states, strict=True)], axis=0, dtype=np.float32
        )
        for name in states[0]
    }
