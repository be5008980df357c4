"""Scenes of the learning benchmark: data, owners, model and budget; the same for every method.

A scene's name is its identity in results: changing what it means needs a new name. All share one budget: every method
takes the same number of passes over the same samples, in batches of one size, and is scored on the same test samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfl_core.errors import NotFoundError
from nfl_core.learning import LearningSettings, Owner, Samples
from nfl_sim.data.fashion import DataSet, load_images
from nfl_sim.learning.partition import Rows, dirichlet, halves, pathological

NUM_OWNERS, NUM_CLASSES, NUM_REGIONS = 20, 10, 4
FEW_IMAGES = 8000  # some 300 training images an owner: a device, not a data centre
LEAST_IMAGES = 40  # PFLlib's bound: ten images to test on
RENAMED_BY = 3  # labels move on by this in each region
_DEVICE = LearningSettings(learning_rate=0.05, batch_size=32, epochs_per_update=2)
_PUBLISHED = LearningSettings(learning_rate=0.1, batch_size=64, epochs_per_update=1, refit_passes=15.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One setting.

    Attributes:
        title: For tables.
        concentration: Of the Dirichlet distribution; infinite: everybody alike; 0: two classes an owner.
        num_images: Drawn from the 70,000, or all of them.
        shift: How regions differ: "none", "rotated", "renamed" or "lighting".
        model: Entry point of the group `nfl.models`.
        rounds: Versions.
        settings: Of every learner.
        server_learning_rate: Of every server.
        long: Made for many rounds: every round sees the training images mirrored and shifted anew, and the learning
            rate falls as half a cosine; for every method.
    """

    title: str
    concentration: float
    num_images: int = FEW_IMAGES
    shift: str = "none"
    model: str = "small-cnn"
    rounds: int = 10
    settings: LearningSettings = _DEVICE
    server_learning_rate: float = 1.0
    long: bool = False

    def owners(self, cache: Path, *, seed: int) -> tuple[Owner, ...]:
        """Return the owners that this seed draws; `cache` keeps the images. Raises ConfigError."""
        data = load_images(cache)
        generator = np.random.default_rng(seed)
        rows_N = generator.permutation(len(data.y_N))[: self.num_images]
        y_N = data.y_N[rows_N]
        least = LEAST_IMAGES
        if self.concentration:
            parts = dirichlet(
                y_N, num_owners=NUM_OWNERS, concentration=self.concentration, least=least, generator=generator
            )
        else:
            parts = pathological(y_N, num_owners=NUM_OWNERS, classes_per_owner=2, least=least, generator=generator)
        owners = []
        for place, part in enumerate(parts):
            region = place % NUM_REGIONS
            train, test = (
                self._samples(data, rows_N[rows], region=region) for rows in halves(part, generator=generator)
            )
            owners.append(Owner(region=f"region-{region}", train=train, test=test))
        return tuple(owners)

    def _samples(self, data: DataSet, rows: Rows, *, region: int) -> Samples:
        x = torch.from_numpy(data.x_NCHW[rows].astype(np.float32) / np.float32(255))
        return SHIFTS[self.shift](x, torch.from_numpy(data.y_N[rows]), region)


def _same(x: Tensor, y: Tensor, region: int) -> Samples:  # noqa: ARG001 - one of the shifts
    return Samples(x=x, y=y)


def _rotated(x: Tensor, y: Tensor, region: int) -> Samples:
    return Samples(x=torch.rot90(x, region, (2, 3)).contiguous(), y=y)


def _renamed(x: Tensor, y: Tensor, region: int) -> Samples:
    return Samples(x=x, y=(y + RENAMED_BY * region) % NUM_CLASSES)


def _lighting(x: Tensor, y: Tensor, region: int) -> Samples:
    gain, offset = ((1.0, 0.0), (0.45, 0.4), (0.7, 0.0), (0.3, 0.6))[region % 4]
    return Samples(x=(gain * x + offset).contiguous(), y=y)


SHIFTS: Mapping[str, Callable[[Tensor, Tensor, int], Samples]] = {
    "none": _same,
    "rotated": _rotated,
    "renamed": _renamed,
    "lighting": _lighting,
}


def _published(title: str, *, concentration: float) -> Scene:
    return Scene(
        title=title,
        concentration=concentration,
        num_images=70_000,
        model="published-cnn",
        rounds=40,
        settings=_PUBLISHED,
        long=True,
    )


SCENES: Mapping[str, Scene] = {
    "dir-0.05": Scene(title="Dirichlet 0.05", concentration=0.05),
    "dir-0.1": Scene(title="Dirichlet 0.1", concentration=0.1),
    "dir-0.5": Scene(title="Dirichlet 0.5", concentration=0.5),
    "dir-5": Scene(title="Dirichlet 5", concentration=5.0),
    "iid": Scene(title="all alike", concentration=float("inf")),
    "rotated": Scene(title="regions rotated", concentration=0.5, shift="rotated"),
    "renamed": Scene(title="labels renamed", concentration=0.5, shift="renamed"),
    "lighting": Scene(title="lighting differs", concentration=0.5, shift="lighting"),
    "published-dir": _published("PFLlib, Dirichlet 0.1", concentration=0.1),
    "published-2": _published("PFLlib, 2 classes", concentration=0.0),
}


def scene_of(name: str) -> Scene:
    """Return the scene of that name. Raises NotFoundError."""
    if name not in SCENES:
        raise NotFoundError(f"no scene {name!r}, there are {', '.join(SCENES)}")
    return SCENES[name]
