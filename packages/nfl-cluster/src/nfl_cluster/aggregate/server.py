"""The server's optimiser step: the slowest level of the nest.

Shape legend: P values of the shared vector.

Source: FedAvgM, Hsu, Qi and Brown 2019 (arXiv:1909.06335); with momentum 0 and rate 1 it is federated averaging.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def server_step(
    current_P: NDArray[np.float32],
    displacement_P: NDArray[np.float32],
    velocity_P: NDArray[np.float32] | None,
    *,
    learning_rate: float,
    momentum: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Move shared values by an averaged displacement.

    Args:
        current_P: What runs now, float32 [P].
        displacement_P: From `combine_batches`, float32 [P].
        velocity_P: From the last step, float32 [P]; None: zeros.
        learning_rate: > 0.
        momentum: In [0, 1).

    Returns:
        New values and new velocity, float32 [P] each.
    """
    velocity_P = displacement_P if velocity_P is None else np.float32(momentum) * velocity_P + displacement_P
    return (current_P + np.float32(learning_rate) * velocity_P).astype(np.float32), velocity_P.astype(np.float32)
