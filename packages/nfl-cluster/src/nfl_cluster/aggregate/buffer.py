"""The root's buffer: what a batch is when it is uncovered, and how much it counts.

Shape legend: P values of the shared vector.

Rules:

* a batch counts with its weight, less the further its base is behind: 1 / sqrt(1 + s) after s versions;
* a batch more than `max_staleness` versions behind, or whose base was rolled back, counts nothing.

Source: staleness weight after Nguyen et al. 2022, FedBuff, section 4.
"""

from __future__ import annotations

import math
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
        num: Contributions in it, >= 1.
    """

    batch_id: BatchId
    region: RegionId
    mean_P: NDArray[np.float32]
    weight: int
    staleness: int
    num: int = 1

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
