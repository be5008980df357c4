"""Teach downwards on labelled images: a wide model of the cluster teaches what devices run.

Every student of one seed starts from the same weights and takes the same number of steps, so that the figures differ by
what taught it alone. All accuracies are those of the shared answer on the same test images.

Shape legend: N samples, B batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.learning import (
    NestedModel,
    create_model,
)
from nfl_core.learning.distil import (
    UNLABELLED,
    DistilSettings,
    EpochReport,
    Lessons,
    ModelTeacher,
    ask,
    teach,
)
from nfl_sim.data import DataSet
from nfl_sim.teaching.wide import WideCnn, wide_cnn

STUDENT, NUM_CLASSES, SHAPE = "small-cnn", 10, (1, 28, 28)
FEW_FRACTION = 0.1  # of the labels, for the students that have few
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything; `SMALL` is a minute or two of one core, `FULL` three at a seed.

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
    num_train=4000,
    num_test=4000,
    teacher_epochs=10,
    student_epochs=14,
    augments=False,
    num_owners=8,
    num_proxy=1200,
)
FULL = Size(num_train=16000, num_test=10000, teacher_epochs=10, student_epochs=10, augments=False, num_owners=20)


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
        return accuracy_of(module, self.x_test, self.y_test)


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
    teach(teacher, labels_alone(x, y), settings=settings, seed=seed, on_epoch=_told(say))
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
        "alone_few_labels": (labels_alone(split.x[known], split.y[known]), longer),
        "alone": (labels_alone(split.x, split.y), alone),
    }
    found = {"teacher": split.accuracy(teacher)}
    for name, (lessons, how) in courses.items():
        student = create_model(STUDENT, num_classes=NUM_CLASSES, input_shape=SHAPE, seed=seed)
        report = teach(student, lessons, settings=how, seed=seed)
        found[name] = split.accuracy(student)
        say(f"seed {seed}: {name} {100 * found[name]:.2f} %, {report.num_steps} steps, {report.cpu_s:.0f} CPU s")
    return found


def accuracy_of(module: NestedModel, x: NDArray[np.float32], y_N: NDArray[np.int64]) -> float:
    """Return the fraction of the images that the shared answer gets right."""
    said_N = ask(ModelTeacher(module), x).logits_NK.argmax(dim=1).numpy()
    return float((said_N == y_N).mean())


def mirrored(x_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the images and behind them their mirror images, float32 [2 N, C, H, W]."""
    return np.ascontiguousarray(np.concatenate([x_NCHW, x_NCHW[..., ::-1]]))


def _told(say: Say) -> Callable[[EpochReport], None]:
    return lambda one: say(f"teacher: epoch {one.epoch} of {one.num_epochs}, loss {one.loss:.3f}")


def labels_alone(x: NDArray[np.float32], y: NDArray[np.int64]) -> Lessons:
    """Return images with their labels and a teacher that says nothing."""
    silent = torch.zeros(len(x), NUM_CLASSES)
    return Lessons(x=torch.from_numpy(x), logits_NK=silent, y=torch.from_numpy(np.ascontiguousarray(y)))
