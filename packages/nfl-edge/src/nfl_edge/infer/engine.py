"""What every inference engine offers.

Shape legend: B batch, C channels, H height, W width, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """One inference: `logits_BK` float32 [B, K] and `features_BD` float32 [B, D]."""

    logits_BK: NDArray[np.float32]
    features_BD: NDArray[np.float32]


class Engine(Protocol):
    """A graph with tensors in it, ready to run. May be used from several threads at once."""

    @property
    def num_classes(self) -> int:
        """K."""

    def run(self, x_BCHW: NDArray[np.float32]) -> Outputs:
        """Infer a batch, float32 [B, C, H, W]. Raises EngineError."""

    def swap_private(self, private: Mapping[str, NDArray[np.float32]]) -> None:
        """Run with these private tensors from the next inference on, without rebuilding. Raises EngineError."""
