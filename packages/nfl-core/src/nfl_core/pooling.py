"""Learn from the sums alone whether regions differ: how much of a regional mean is the region, and how much is chance.

A regional level may be shared within its region only, or with everybody. What a region's own mean is worth shows in how
far the regional means lie apart, against how far chance alone would set them, which the scatter inside regions tells:

    own share = 1 - (scatter of a regional mean by chance) / (scatter of the regional means), held to [0, 1]
    region's step = common mean + own share * (regional mean - common mean)

Displacements tell whether regions differ only while their models are alike: later each region has its own way, and what
is left looks like chance. So what was once found to be a region's own stays its own: callers keep the largest share.

Where regions are alike the own share is near 0 and the level learns from the whole fleet; where they differ it goes
to 1.

Shape legend: P values, U units (devices, or batches of devices, of which only the sum was opened).

Source: the positive-part shrinkage of James and Stein 1961 with the variance estimated inside groups (Efron and Morris
1973), one share for all P values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfl_core.errors import DeltaError

FloatVector = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """A device or a batch: its mean displacement [P], finite, and its weight, > 0."""

    mean_P: FloatVector
    weight: float


def can_tell(regions: Mapping[str, Sequence[Unit]]) -> bool:
    """Whether chance can be told from difference: two regions have units, and one of them has two."""
    filled = [units for units in regions.values() if units]
    return len(filled) > 1 and any(len(units) > 1 for units in filled)


def own_share(regions: Mapping[str, Sequence[Unit]]) -> float:
    """Return how much of a regional mean is the region's own, 0 to 1.

    Where nothing can be told (see `can_tell`) regions keep their own, 1.

    Args:
        regions: Units by region; a region without units counts for nothing.

    Raises:
        DeltaError: A weight is not above 0.
    """
    filled = [units for units in regions.values() if units]
    if any(unit.weight <= 0 for units in filled for unit in units):
        raise DeltaError("a unit has a weight that is not above 0")
    chances = [_scatter_of_mean(units) for units in filled if len(units) > 1]
    if len(filled) < 2 or not chances:
        return 1.0
    means = [_mean(units) for units in filled]
    common_P = np.mean(means, axis=0)
    apart = sum(float(np.sum((mean_P - common_P) ** 2)) for mean_P in means) / (len(means) - 1)
    return float(np.clip(1.0 - np.mean(chances) / apart, 0.0, 1.0)) if apart > 0 else 0.0


def pool(regions: Mapping[str, Sequence[Unit]], *, least: float = 0.0) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Return each region's step, float64 [P], and the own share that made it, at least the largest so far, `least`.

    A region without units takes of the common mean what is not regions' own.

    Raises:
        DeltaError: Nobody has a unit, or a weight is not above 0.
    """
    everybody = [unit for units in regions.values() for unit in units]
    if not everybody:
        raise DeltaError("no region has a unit, expected at least one")
    share = max(least, own_share(regions))
    common_P = _mean(everybody)
    steps = {
        region: common_P + share * (_mean(units) - common_P) if units else (1.0 - share) * common_P
        for region, units in regions.items()
    }
    return steps, share


def _mean(units: Sequence[Unit]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum([unit.weight * unit.mean_P.astype(np.float64) for unit in units], axis=0)
    return total / sum(unit.weight for unit in units)


def _scatter_of_mean(units: Sequence[Unit]) -> float:
    """Expected squared distance of the weighted mean from its truth, from the units' own scatter."""
    mean_P, weights = _mean(units), np.array([unit.weight for unit in units])
    shares = weights / weights.sum()
    squared = [float(np.sum((unit.mean_P.astype(np.float64) - mean_P) ** 2)) for unit in units]
    # With equal weights this is the sample variance over U; the divisor makes it unbiased for unequal ones.
    variance = float(shares @ squared) / (1.0 - float(shares @ shares))
    return variance * float(shares @ shares)
