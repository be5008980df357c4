"""Who owns which samples: the published partitions of PFLlib, and the same with few samples.

Both join the training and test images, share each class out among owners, and cut each owner's part 75 / 25 into
training and test.

Source: `dataset_utils.separate_data` of PFLlib (Zhang et al., JMLR 26(50), 2025): "dir" and "pat", unbalanced.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfl_core.errors import ConfigError

TRAIN_FRACTION = 0.75
MAX_DRAWS = 5000
Rows = NDArray[np.int64]


def dirichlet(
    y_N: Rows, *, num_owners: int, concentration: float, least: int, generator: np.random.Generator
) -> list[Rows]:
    """Share each class out by a Dirichlet draw; who has a fair share already gets no more.

    Args:
        y_N: Labels.
        num_owners: At least 1.
        concentration: Of the distribution, > 0; infinity shares evenly at random.
        least: Samples that every owner has at least; PFLlib: 40. Draws are repeated until this holds.
        generator: Decides everything.

    Raises:
        ConfigError: No draw gave every owner enough.
    """
    if np.isinf(concentration):
        return np.array_split(generator.permutation(len(y_N)), num_owners)
    for _ in range(MAX_DRAWS):
        owned: list[list[Rows]] = [[] for _ in range(num_owners)]
        for label in np.unique(y_N):
            rows = generator.permutation(np.flatnonzero(y_N == label))
            full = np.array([sum(map(len, parts)) >= len(y_N) / num_owners for parts in owned])
            shares = np.where(full, 0.0, generator.dirichlet([concentration] * num_owners))
            if not shares.sum() > 0:
                break
            cuts = (np.cumsum(shares / shares.sum())[:-1] * len(rows)).astype(int)
            for parts, part in zip(owned, np.split(rows, cuts), strict=True):
                parts.append(part)
        else:
            parts_of = [np.concatenate(parts) for parts in owned]
            if min(map(len, parts_of)) >= least:
                return parts_of
    raise ConfigError(f"none of {MAX_DRAWS} draws gave each of {num_owners} owners {least} samples")


def pathological(
    y_N: Rows, *, num_owners: int, classes_per_owner: int, least: int, generator: np.random.Generator
) -> list[Rows]:
    """Give each owner samples of so many classes, in unequal numbers.

    Raises:
        ConfigError: A class has too few samples for its owners.
    """
    classes = np.unique(y_N)
    owned: list[list[Rows]] = [[] for _ in range(num_owners)]
    sharers = int(np.ceil(num_owners / len(classes) * classes_per_owner))
    for label in classes:
        rows = generator.permutation(np.flatnonzero(y_N == label))
        takers = [place for place, parts in enumerate(owned) if len(parts) < classes_per_owner][:sharers]
        fair = len(rows) / len(takers)
        low = int(max(fair / 10, least / len(classes)))
        if low >= fair:
            raise ConfigError(f"class {label} has {len(rows)} samples for {len(takers)} owners of at least {low}")
        cuts = np.cumsum(generator.integers(low, int(fair), len(takers) - 1))
        for place, part in zip(takers, np.split(rows, cuts), strict=True):
            owned[place].append(part)
    return [np.concatenate(parts) for parts in owned]


def halves(rows: Rows, *, generator: np.random.Generator) -> tuple[Rows, Rows]:
    """Cut an owner's rows at random into training and test, 75 / 25."""
    rows = generator.permutation(rows)
    cut = int(TRAIN_FRACTION * len(rows))
    return rows[:cut], rows[cut:]
