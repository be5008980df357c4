"""The root's buffer: how much a batch counts, and how batches become one displacement per scope.

Shape legend: P values of the shared vector.

Rules:

* a batch counts with its weight, less the further its base is behind: 1 / sqrt(1 + s) after s versions;
* a batch more than `max_staleness` versions behind, or whose base was rolled back, counts nothing;
* global levels are averaged over all batches, a region's levels over the batches of that region alone.

Source: staleness weight after Nguyen et al. 2022, FedBuff, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfl_core.ids import BatchId, RegionId
from nfl_core.levels import Scope
from nfl_core.schema import TensorSchema


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """A batch, uncovered.

    Attributes:
        batch_id: Its id.
        region: Of its leaf.
        mean_P: Weighted mean displacement, float32 [P].
        weight: Sum of the weights of its contributions, >= 1.
        staleness: Versions that its base is behind, >= 0.
    """

    batch_id: BatchId
    region: RegionId
    mean_P: NDArray[np.float32]
    weight: int
    staleness: int

    @property
    def influence(self) -> float:
        """How much it counts."""
        return self.weight * staleness_weight(self.staleness)


def staleness_weight(staleness: int) -> float:
    """Return 1 / sqrt(1 + staleness), staleness >= 0."""
    return 1.0 / math.sqrt(1 + staleness)


def scope_mask(schema: TensorSchema, scope: Scope) -> NDArray[np.bool_]:
    """Return which values of the shared vector belong to a scope, bool [P]."""
    mask_P = np.zeros(schema.num_shared, dtype=np.bool_)
    for place in schema.slices(scope):
        mask_P[place] = True
    return mask_P


def fold(
    batches: Sequence[Measured], *, schema: TensorSchema, regions: Sequence[RegionId]
) -> Mapping[RegionId, NDArray[np.float32]]:
    """Average batches into one displacement for each region.

    Args:
        batches: Non-empty; every `mean_P` has the schema's length.
        schema: Says which values are regional.
        regions: Every region of the fleet.

    Returns:
        float32 [P] a region: global values are the same in all, regional ones are 0 where the region has no batch.
    """
    is_global_P = scope_mask(schema, Scope.GLOBAL)
    shared_P = _mean(batches, schema.num_shared)
    result = {}
    for region in regions:
        own_P = _mean([batch for batch in batches if batch.region == region], schema.num_shared)
        result[region] = np.where(is_global_P, shared_P, own_P).astype(np.float32)
    return result


def _mean(batches: Sequence[Measured], num_values: int) -> NDArray[np.float64]:
    total_P = np.zeros(num_values, np.float64)
    for batch in batches:
        total_P += batch.influence * batch.mean_P.astype(np.float64)
    influence = sum(batch.influence for batch in batches)
    return total_P / influence if influence else total_P
