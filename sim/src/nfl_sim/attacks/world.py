"""The world of the attack campaign: Fashion-MNIST among 20 owners, as torch samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.learning import Samples
from nfl_sim.attacks.fleet import OwnerSamples
from nfl_sim.data.fashion import DataSet, load_images
from nfl_sim.data.owners import share_out

NUM_OWNERS, CONCENTRATION, IMAGES_PER_OWNER = 20, 0.5, 300  # 8,000 images with the test quarter: facts of docs/adr/0003


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Owners, the root's shadow samples, and what its gates would be judged on."""

    owners: tuple[OwnerSamples, ...]
    shadow: Samples
    heldout: Samples


def make_world(cache: Path, *, seed: int) -> World:
    """Share the images out. Raises ContentError or ConfigError like `load_images` and `share_out`."""
    data = load_images(cache)
    shares = share_out(
        data,
        num_owners=NUM_OWNERS,
        concentration=CONCENTRATION,
        images_per_owner=IMAGES_PER_OWNER,
        generator=np.random.default_rng(seed),
    )
    owners = tuple(
        OwnerSamples(train=_rows(data, o.train), holdout=_rows(data, o.holdout), test=_rows(data, o.test))
        for o in shares.owners
    )
    return World(owners=owners, shadow=_rows(data, shares.shadow), heldout=_rows(data, shares.heldout))


def _rows(data: DataSet, rows: NDArray[np.int64]) -> Samples:
    x_NCHW = torch.from_numpy(data.x_NCHW[rows].astype(np.float32) / np.float32(255))
    return Samples(x=x_NCHW, y=torch.from_numpy(data.y_N[rows].astype(np.int64)))
