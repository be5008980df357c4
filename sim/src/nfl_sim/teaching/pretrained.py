"""A published network teaches where labels are few: EfficientNet-Lite0 under a probe that knows one image in ten.

    images = embed_images(cache, data, size=PRETRAINED_SMALL)      # computed once; kept in `cache`
    found = few_labels(images, size=PRETRAINED_SMALL, seed=0)

The network has seen ImageNet and no clothes; the probe reads its features with the few labels that there are. It then
answers about all images, and the student learns from its answers alone. The student alone has the same few labels.

Shape legend: N images, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_cluster.teachers import read_heldout
from nfl_core.cli.console import default_home
from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ConfigError, TensorFileError
from nfl_core.learning import create_model
from nfl_core.learning.distil import UNLABELLED, DistilSettings, Lessons, teach
from nfl_core.tensors import read_tensors, write_tensors
from nfl_sim.data import DataSet
from nfl_sim.data.efficientnet import NUM_GRID, embed, load_network
from nfl_sim.probe import ProbeTeacher, fit_probe
from nfl_sim.tasks.features.data import some_of
from nfl_sim.teaching.images import FEW_FRACTION, NUM_CLASSES, SHAPE, STUDENT, Say, accuracy_of, labels_alone

PIXELS = 96  # a side, to which images are enlarged
MAX_BYTES = 1 << 28  # of kept features
LABELLED = "NFL_LABELLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedSize:
    """How much of everything.

    Attributes:
        num_train: Images to learn from, with a label or without.
        num_test: Images that score.
        epochs: Passes of a student over all that it is taught with.
    """

    num_train: int
    num_test: int
    epochs: int


PRETRAINED_SMALL = PretrainedSize(num_train=3000, num_test=1000, epochs=20)
PRETRAINED_FULL = PretrainedSize(num_train=10000, num_test=2000, epochs=20)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddedImages:
    """Images and what EfficientNet-Lite0 sees in them.

    Attributes:
        x: float32 [N, 1, 28, 28] in 0 to 1; the last ones score.
        y_N: Their labels.
        z_ND: float32.
    """

    x: NDArray[np.float32]
    y_N: NDArray[np.int64]
    z_ND: NDArray[np.float32]


def embed_images(cache: Path, data: DataSet, *, size: PretrainedSize, say: Say = lambda _: None) -> EmbeddedImages:
    """Compute the features of some images.

    Raises:
        ContentError: The weights of EfficientNet-Lite0 are out of reach.
        StorageFullError: The cache's disk is full.
    """
    some = some_of(data, num_images=size.num_train + size.num_test)
    num = len(some.y_N)
    path = cache / f"efficientnet-lite0-grid-{data.name}-{num}-{PIXELS}.safetensors"
    try:
        expected = {"z": ((num, NUM_GRID), "float32")}
        z_ND = read_tensors(path.read_bytes(), expected, max_bytes=MAX_BYTES)["z"].astype(np.float32, copy=False)
    except (FileNotFoundError, TensorFileError):
        z_ND = embed(load_network(cache, say=say), some.x_NCHW, size=PIXELS, level="grid", say=say)
        make_folder(cache)
        write_file(path, write_tensors({"z": z_ND}))
    return EmbeddedImages(x=some.x_NCHW.astype(np.float32) / np.float32(255), y_N=some.y_N, z_ND=z_ND)


def few_labels(
    images: EmbeddedImages, *, size: PretrainedSize, seed: int, say: Say = lambda _: None
) -> dict[str, float]:
    """Return the accuracy of the teacher and of students: taught, alone with the same few labels, alone with all.

    Args:
        images: As many as `size` says.
        size: How long.
        seed: Of which labels are known, the student's weights and the order of its lessons.
        say: Takes a line of progress.
    """
    x, y_N, z_ND = images.x[: size.num_train], images.y_N[: size.num_train], images.z_ND[: size.num_train]
    known = np.random.default_rng(seed).permutation(len(y_N))[: round(FEW_FRACTION * len(y_N))]
    probe = fit_probe(z_ND[known], y_N[known])
    taught = Lessons(
        x=torch.from_numpy(x), logits_NK=torch.from_numpy(probe.logits(z_ND)), y=torch.full((len(x),), UNLABELLED)
    )
    # Without labels, softening and shifts: each cost a point or more, the teacher being surer than a few labels.
    settings = DistilSettings(epochs=size.epochs, temperature=1.0, label_weight=0.0)
    alone = replace(settings, teacher_weight=0.0, label_weight=1.0)
    longer = replace(alone, epochs=round(size.epochs / FEW_FRACTION))  # fewer images, as many steps
    courses = {
        "taught": (taught, settings),
        "alone": (labels_alone(x[known], y_N[known]), longer),
        "alone_all_labels": (labels_alone(x, y_N), alone),
    }
    x_test, y_test_N = images.x[size.num_train :], images.y_N[size.num_train :]
    told = probe.logits(images.z_ND[size.num_train :]).argmax(1)
    found = {"teacher": float((told == y_test_N).mean())}
    for name, (lessons, how) in courses.items():
        student = create_model(STUDENT, num_classes=NUM_CLASSES, input_shape=SHAPE, seed=seed)
        report = teach(student, lessons, settings=how, seed=seed)
        found[name] = accuracy_of(student, x_test, y_test_N)
        say(f"seed {seed}: few labels, {name} {100 * found[name]:.2f} %, {report.cpu_s:.0f} CPU s")
    return found


def efficientnet_lite0(num_classes: int, input_shape: tuple[int, ...]) -> ProbeTeacher:
    """Make the teacher; the entry point `efficientnet-lite0` of the group `nfl.teachers`.

    The samples with a label, from which the probe learns, stand in the file that the environment's `NFL_LABELLED`
    names: `x` and `y` as in proxy data. The weights are kept below the home of nfl.

    Raises:
        ConfigError: No file is named, or its classes are others.
        ContentError: The weights are out of reach.
        NflError: The file cannot be read; see `nfl_cluster.teachers.read_heldout`.
    """
    named = os.environ.get(LABELLED)
    if not named:
        raise ConfigError(
            "the teacher efficientnet-lite0 has no labelled samples to learn the task from",
            hint=f"set {LABELLED} to a safetensors file with x and y, a few samples of each class",
        )
    x, y_N = read_heldout(Path(named), input_shape=input_shape)
    images_NCHW = np.rint(x * 255).astype(np.uint8)
    teacher = ProbeTeacher.fit(load_network(default_home() / "data"), images_NCHW, y_N, size=PIXELS)
    if teacher.num_classes != num_classes:
        raise ConfigError(f"{named} has {teacher.num_classes} classes, expected {num_classes}")
    return teacher
