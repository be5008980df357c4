"""Learned scope: how much of its regional levels a region keeps to itself, read off the batches alone.

Level by level, the scatter of batches inside regions tells how far regional means would lie apart by chance. What lies
farther apart is the region's own; the rest comes from the whole fleet. See `nfl_core.pooling` and docs/adr/0007.

Shape legend: n batches, P values of the shared vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nfl_cluster.aggregate.buffer import Measured
from nfl_core.ids import RegionId
from nfl_core.levels import Scope
from nfl_core.pooling import Unit, can_tell, own_share
from nfl_core.schema import TensorSchema


def pool_regions(
    own: Mapping[RegionId, NDArray[np.float32]],
    common_P: NDArray[np.float32],
    *,
    batches: Sequence[Measured],
    weights_n: NDArray[np.float64],
    schema: TensorSchema,
    remembered: Mapping[str, float],
) -> tuple[dict[RegionId, NDArray[np.float32]], dict[str, float]]:
    """Draw regional values towards the whole fleet's, as far as regions are alike.

    Args:
        own: Each region's displacement, float32 [P]; regional values are those of its own batches, 0 without any.
        common_P: The regional values' displacement over all batches, float32 [P].
        batches: What both were made of.
        weights_n: How much each batch counted, >= 0.
        schema: Says which values make a level.
        remembered: The largest share of each regional level so far: what was once a region's own stays its own.

    Returns:
        The displacements, and by regional level the largest share so far that is a region's own, 0 to 1. Where the
        batches tell nothing, each region keeps its own this time, and nothing is remembered of it.
    """
    pooled = {region: moved_P.copy() for region, moved_P in own.items()}
    shares: dict[str, float] = {}
    counting = [number for number in range(len(batches)) if weights_n[number] > 0]
    for level in dict.fromkeys(tensor.level for tensor in schema.shared if tensor.scope is Scope.REGION):
        spans = [schema.slice_of(tensor.name) for tensor in schema.shared if tensor.level == level]
        units: dict[str, list[Unit]] = {}
        for number in counting:
            part_P = np.concatenate([batches[number].mean_P[span] for span in spans])
            units.setdefault(batches[number].region, []).append(Unit(mean_P=part_P, weight=float(weights_n[number])))
        least = remembered.get(level, 0.0)
        share = max(least, own_share(units))
        shares[level] = share if can_tell(units) else least
        for moved_P in pooled.values():
            for span in spans:
                # A region without a batch stands at 0, so of the common step it takes what is not regions' own.
                moved_P[span] = common_P[span] * np.float32(1.0 - share) + moved_P[span] * np.float32(share)
    return pooled, shares
