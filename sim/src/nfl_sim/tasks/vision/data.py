"""Fashion-MNIST shared out among twenty owners: each class by its own Dirichlet draw, nothing to two owners.

The owners are drawn, not natural: this is the setting that published methods are compared in. The other tasks have
owners that the data came with.

Shape legend: N samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.errors import ContentError
from nfl_core.learning import Samples
from nfl_core.tensors import to_input
from nfl_sim.data import DataSet, load_images, share_out
from nfl_sim.data.fashion import PACKAGE, PUBLIC_ADDRESS
from nfl_sim.tasks.task import TaskData, TaskOwner

NUM_OWNERS, CONCENTRATION, IMAGES_PER_OWNER = 20, 0.5, 150
REGION = "all"  # a Dirichlet draw makes no regions


def fashion(cache: Path) -> DataSet:
    """Return Fashion-MNIST, kept in `cache`/fashion-mnist, and nothing else in its place.

    Raises:
        ContentError: It is out of reach.
        StorageFullError: The cache's disk is full.
    """
    data = load_images(cache / "fashion-mnist")
    if data.name != "fashion-mnist":
        raise ContentError(
            "Fashion-MNIST is in no source",
            hint=f"install the Debian package {PACKAGE}, or get the four files of {PUBLIC_ADDRESS} and set NFL_DATA",
        )
    return data


def load(cache: Path, generator: np.random.Generator) -> TaskData:
    """Return twenty owners of some 150 images each to learn from and judge with. Raises as `fashion` does."""
    data = fashion(cache)
    return owners_of(data, data.x_NCHW, images_per_owner=IMAGES_PER_OWNER, generator=generator)


def owners_of(
    data: DataSet,
    inputs: NDArray[np.uint8] | NDArray[np.float32],
    *,
    images_per_owner: int,
    generator: np.random.Generator,
    num_owners: int = NUM_OWNERS,
) -> TaskData:
    """Share rows out and return what stands for them in `inputs`: pixels, or features of the same images.

    Args:
        data: Labels.
        inputs: uint8 pixels or float32 features, [N, C, H, W], row by row those of `data`.
        images_per_owner: Mean number to learn from and judge with.
        generator: Draws who owns what.
        num_owners: At least 1.

    Raises:
        ConfigError: No draw gives every owner enough.
    """
    shares = share_out(
        data,
        num_owners=num_owners,
        concentration=CONCENTRATION,
        images_per_owner=images_per_owner,
        generator=generator,
        num_heldout=0,
        num_shadow=0,
    )

    def samples(rows: NDArray[np.int64]) -> Samples:
        return Samples(x=torch.from_numpy(to_input(inputs[rows])), y=torch.from_numpy(data.y_N[rows]))

    return TaskData(
        owners=tuple(
            TaskOwner(
                name=f"owner-{place}",
                region=REGION,
                train=samples(owner.train),
                holdout=samples(owner.holdout),
                test=samples(owner.test),
            )
            for place, owner in enumerate(shares.owners)
        )
    )
