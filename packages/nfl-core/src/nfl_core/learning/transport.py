"""How displacements travel in a cohort, and what they weigh: whole float32, or few bits with error feedback.

What a product's device sends passes `nfl_secure.egress`, which uses the same quantiser; here it is without masks, so
that a method's bytes and accuracy can be measured together.

Shape legend: P values of the tensors that are sent.

Source: error feedback after Seide et al. 2014 and Karimireddy et al. 2019 (arXiv:1901.09847).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from nfl_core.codec.entropy import compress
from nfl_core.codec.quantise import MIN_SCALE, modulus_bits, pack, qmax, quantise
from nfl_core.learning.model import FloatArray

_RADIX, _PER_BYTE = 3, 5  # five ternary values are one byte (3^5 = 243)


class Transport(Protocol):
    """Carries one owner's displacement to the server."""

    def send(self, moved: Mapping[str, FloatArray], *, place: int) -> tuple[dict[str, FloatArray], int]:
        """Return what arrives and how many bytes it took; `place` is the owner's."""
        ...

    def summed(self, mean: Mapping[str, FloatArray]) -> None:
        """Take note of the mean that everybody got; the next scales may follow from it."""
        ...


class Whole:
    """Everything arrives as it was: four bytes a value."""

    def send(self, moved: Mapping[str, FloatArray], *, place: int) -> tuple[dict[str, FloatArray], int]:  # noqa: ARG002
        """Return the displacement itself."""
        return dict(moved), sum(array.nbytes for array in moved.values())

    def summed(self, mean: Mapping[str, FloatArray]) -> None:
        """Do nothing."""


class FewBits:
    """Quantise in a scale that all owners share, and carry the rest over to the next time.

    The first scale of a tensor is `num_deviations` root mean squares of the first displacement that is sent; afterwards
    it follows the norm of the mean, which is all that a sealed sum shows.

    Args:
        bits: Of one value, 2 to 8.
        num_deviations: Where the scale stands, > 0.
        feedback: Whether what could not be sent is kept for the next time.
        sealed_batch: Contributions of a sealed batch: values are packed with room for their sum, and cannot be
            compressed. None: unsealed, packed tightly and compressed.
    """

    def __init__(
        self, *, bits: int = 2, num_deviations: float = 2.5, feedback: bool = True, sealed_batch: int | None = None
    ) -> None:
        qmax(bits)
        self._bits, self._deviations, self._feedback, self._sealed = bits, num_deviations, feedback, sealed_batch
        self._scales: dict[str, float] = {}
        self._norms: dict[str, float] = {}
        self._kept: dict[tuple[int, str], FloatArray] = {}

    def send(self, moved: Mapping[str, FloatArray], *, place: int) -> tuple[dict[str, FloatArray], int]:
        """Return what arrives, whole steps of the common scale, and its bytes."""
        arrived: dict[str, FloatArray] = {}
        counts = []
        for name, array in moved.items():
            scale = self._scales.setdefault(name, max(MIN_SCALE, self._deviations * _rms(array)))
            q_P, kept_P = quantise(
                array.ravel(),
                np.full(array.size, scale, np.float32),
                self._bits,
                residual_P=self._kept.get((place, name)) if self._feedback else None,
            )
            self._kept[place, name] = kept_P
            step = np.float32(scale) / np.float32(qmax(self._bits))
            arrived[name] = (q_P.astype(np.float32) * step).reshape(array.shape)
            counts.append(q_P)
        return arrived, self._bytes(np.concatenate(counts))

    def summed(self, mean: Mapping[str, FloatArray]) -> None:
        """Let each scale follow the root of what the norm of its mean changed, by 1.4 at most."""
        for name, array in mean.items():
            norm, before = _rms(array), self._norms.get(name, 0.0)
            if before > 0 and norm > 0:
                # The mean shrinks faster than its parts where owners pull apart, hence the root (docs/adr/0007).
                self._scales[name] = max(MIN_SCALE, self._scales[name] * min(2.0, max(0.5, norm / before)) ** 0.5)
            self._norms[name] = norm

    def _bytes(self, q_P: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> int:
        if self._sealed is not None:
            k = modulus_bits(self._bits, self._sealed)
            return len(pack((q_P.astype(np.int64) % (1 << k)).astype(np.uint32), k))
        symbols_P = (q_P + qmax(self._bits)).astype(np.uint8)
        if self._bits == 2:
            padded = np.pad(symbols_P, (0, -len(symbols_P) % _PER_BYTE)).reshape(-1, _PER_BYTE)
            symbols_P = (padded @ (_RADIX ** np.arange(_PER_BYTE))).astype(np.uint8)
        return len(compress(symbols_P.tobytes()))


def _rms(array: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
