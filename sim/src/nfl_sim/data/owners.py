"""Share a data set out among owners: each class by its own Dirichlet draw, nothing to two owners.

    shares = share_out(load_images(cache), num_owners=20, concentration=0.5, images_per_owner=300, generator=generator)

Source: Hsu et al., Measuring the Effects of Non-Identical Data Distribution, arXiv:1909.06335 (Dirichlet shares).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ConfigError
from nfl_core.tensors import write_tensors
from nfl_sim.data.fashion import DataSet

NUM_CLASSES = 10
ENOUGH_IMAGES = 200  # so 50 test images: with 10, the accuracy of the worst owner would be noise
LEAST_IMAGES = 20  # fewer cannot be learned from at all
MAX_DRAWS = 200  # with 20 owners, 8,000 images and concentration 0.5, 29 % of the draws are enough for everybody
TEST_FRACTION, HOLDOUT_FRACTION = 0.25, 0.15  # of all; of what is left to the device


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerData:
    """Rows of the data set, int64 index arrays: what one owner learns from, judges merges with, is tested on."""

    train: NDArray[np.int64]
    holdout: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Rows of the owners, and of the root: held out for gates, and for its shadow updates."""

    owners: tuple[OwnerData, ...]
    heldout: NDArray[np.int64]
    shadow: NDArray[np.int64]


def share_out(
    data: DataSet,
    *,
    num_owners: int,
    concentration: float,
    images_per_owner: int,
    generator: np.random.Generator,
    num_heldout: int = 1000,
    num_shadow: int = 300,
) -> Shares:
    """Draw who owns what.

    Args:
        data: The data set.
        num_owners: At least 1.
        concentration: Of the Dirichlet distribution, > 0; small: few classes an owner.
        images_per_owner: Mean number of training images an owner (train and holdout).
        generator: Decides everything.
        num_heldout: Rows of the root for gates.
        num_shadow: Rows of the root for shadow updates.

    Raises:
        ConfigError: Numbers out of range, or no draw gave every owner something to learn from.
    """
    wanted = round(num_owners * images_per_owner / (1 - TEST_FRACTION))
    total = len(data.y_N)
    if num_owners < 1 or concentration <= 0 or images_per_owner < 1:
        raise ConfigError(
            f"{num_owners} owners, concentration {concentration}, {images_per_owner} images; expected all above 0"
        )
    scale = min(1.0, total / (wanted + num_heldout + num_shadow))  # a small data set gives everybody less
    wanted, num_heldout, num_shadow = (int(number * scale) for number in (wanted, num_heldout, num_shadow))
    rows = generator.permutation(total)
    heldout, shadow = rows[:num_heldout], rows[num_heldout : num_heldout + num_shadow]
    pool = rows[num_heldout + num_shadow : num_heldout + num_shadow + wanted]
    enough, best = min(ENOUGH_IMAGES, len(pool) // num_owners // 2), list[NDArray[np.int64]]()
    for _ in range(MAX_DRAWS):
        parts = _dirichlet(pool, data.y_N, num_owners, concentration, generator)
        best = max(best, parts, key=_smallest)
        if _smallest(best) >= enough:
            break
    if _smallest(best) < LEAST_IMAGES:
        raise ConfigError(
            f"the best of {MAX_DRAWS} draws leaves one of {num_owners} owners {_smallest(best)} of {len(pool)} images, "
            f"expected {LEAST_IMAGES}; use fewer owners or a larger concentration"
        )
    return Shares(owners=tuple(_split(part, generator) for part in best), heldout=heldout, shadow=shadow)


def write_owner(path: Path, data: DataSet, owner: OwnerData) -> None:
    """Write an owner's samples: `train`, `holdout`, `test`; x uint8 [N,1,28,28], y int64 [N]. Raises DurableError."""
    splits = {"train": owner.train, "holdout": owner.holdout, "test": owner.test}
    arrays: dict[str, NDArray[np.generic]] = {
        f"{name}.{axis}": values[rows]
        for name, rows in splits.items()
        for axis, values in (("x", data.x_NCHW), ("y", data.y_N))
    }
    _write(path, arrays)


def write_shadow(path: Path, data: DataSet, rows: NDArray[np.int64]) -> None:
    """Write rows for the root (x uint8 [N,1,28,28], y int64 [N]). Raises DurableError."""
    _write(path, {"x": data.x_NCHW[rows], "y": data.y_N[rows]})


def _write(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    make_folder(path.parent)
    write_file(path, write_tensors({name: np.ascontiguousarray(values) for name, values in arrays.items()}))


def _dirichlet(
    pool: NDArray[np.int64],
    y_N: NDArray[np.int64],
    num_owners: int,
    concentration: float,
    generator: np.random.Generator,
) -> list[NDArray[np.int64]]:
    owned: list[list[NDArray[np.int64]]] = [[] for _ in range(num_owners)]
    for label in range(NUM_CLASSES):
        rows = generator.permutation(pool[y_N[pool] == label])
        shares = generator.dirichlet([concentration] * num_owners)
        full = np.array([sum(map(len, parts)) >= len(pool) / num_owners for parts in owned])
        shares = np.where(full, 0, shares)  # who has a fair share already gets no more, as in PFLlib's partition
        shares = shares / shares.sum() if shares.sum() else np.full(num_owners, 1 / num_owners)
        for parts, part in zip(owned, np.split(rows, (np.cumsum(shares)[:-1] * len(rows)).astype(int)), strict=True):
            parts.append(part)
    return [np.concatenate(parts) for parts in owned]


def _smallest(parts: list[NDArray[np.int64]]) -> int:
    return min(map(len, parts), default=-1)


def _split(rows: NDArray[np.int64], generator: np.random.Generator) -> OwnerData:
    rows = generator.permutation(rows)
    num_test = round(TEST_FRACTION * len(rows))
    num_holdout = max(1, round(HOLDOUT_FRACTION * (len(rows) - num_test)))
    return OwnerData(
        test=rows[:num_test], holdout=rows[num_test : num_test + num_holdout], train=rows[num_test + num_holdout :]
    )
