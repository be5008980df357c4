"""The server's optimiser step: the slowest level of the nest, with a memory of its own.

A mean over many owners moves less than one of them would, and alike from version to version. A velocity makes up for
that: with momentum m a steady direction is taken up to 1 / (1 - m) times as far.

Shape legend: P values of the shared vector.

Source: FedAvgM, Hsu, Qi and Brown 2019 (arXiv:1909.06335), with Nesterov's look ahead as in DiLoCo, Douillard et al.
2023 (arXiv:2311.08105). With momentum 0 and rate 1 it is federated averaging.
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
    """Move shared values by an averaged displacement d: velocity v = m v + d, values + rate (d + m v).

    Args:
        current_P: What runs now, float32 [P].
        displacement_P: The mean of what owners moved, float32 [P].
        velocity_P: From the last step, float32 [P]; None: zeros.
        learning_rate: > 0.
        momentum: In [0, 1).

    Returns:
        New values and new velocity, float32 [P] each.
    """
    kept = np.float32(momentum)
    velocity_P = displacement_P if velocity_P is None else kept * velocity_P + displacement_P
    step_P = displacement_P + kept * velocity_P
    return (current_P + np.float32(learning_rate) * step_P).astype(np.float32), velocity_P.astype(np.float32)
