"""What of a wish leaves a device: the egress range in small, for attackers and honest devices alike.

A device that lies still sends integers that are masked, added and uncovered as a sum, and the root refuses a batch in
which any value is beyond what its weight allows (`nfl_secure.secagg.unmask`). So beyond plus or minus one full step of
the shared scale nothing arrives: with some 50,000 values, a device that goes further meets honest neighbours at their
own limit somewhere, and its batch is dropped by name. (It can go further at a few values and be lucky; not modelled.)

`Channel(bits=None)` is the control without quantiser and clip: what arrives is what was wished.

Shape legend: P shared values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfl_core.codec.quantise import dequantise_mean, quantise


class Channel:
    """One device's way out.

    Args:
        bits: Of a value, 2 to 16; None: nothing is clipped or rounded.
    """

    def __init__(self, *, bits: int | None) -> None:
        self._bits = bits
        self._residual_P: NDArray[np.float32] | None = None

    def send(
        self, wished_P: NDArray[np.float32] | NDArray[np.float64], scales_P: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return what arrives, float32 [P].

        Args:
            wished_P: [P].
            scales_P: float32 [P], of the round.

        Raises:
            DeltaError: A value is not finite: the gate refuses it, and nothing leaves.
        """
        x_P = np.asarray(wished_P, np.float64)
        if self._bits is None:
            return x_P.astype(np.float32)
        # Infinity is no large number here: it must meet the quantiser's check, not the clip.
        clipped_P = np.where(np.isfinite(x_P), np.clip(x_P, -scales_P, scales_P), np.nan).astype(np.float32)
        q_P, self._residual_P = quantise(clipped_P, scales_P, self._bits, residual_P=self._residual_P)
        return dequantise_mean(q_P, 1, scales_P=scales_P, bits=self._bits)
