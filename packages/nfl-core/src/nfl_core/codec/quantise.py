"""From displacements to small integers in a shared scale, and from integers to bytes.

Shape legend: P values of the shared vector, T shared tensors.

Rules:

* one scale a tensor, the same for every device of a round: integers of all devices add up in any order;
* step = scale / qmax, qmax = 2**(bits - 1) - 1, nearest rounding, clipped to +-qmax; two bits are ternary;
* error feedback: what a device could not send, it keeps and adds next time, so nothing is lost over time;
* value i of a packed vector stands in bits [i k, (i + 1) k) of a little-endian bit string; spare last bits are zero.

    >>> q_P, residual_P = quantise(np.float32([0.25, -0.75]), np.float32([1, 1]), 2)
    >>> q_P.tolist(), residual_P.tolist()
    ([0, -1], [0.25, 0.25])

Source: error feedback after Seide et al. 2014 and Karimireddy et al. 2019 (arXiv:1901.09847).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nfl_core.errors import DeltaError, FrameError

MIN_BITS, MAX_BITS = 2, 16
MAX_MODULUS_BITS = 32  # packed values are uint32
MIN_SCALE, MAX_SCALE = 1e-30, 1e30  # a step and what error feedback piles up stay normal float32

_GROUP = 8  # values of one packing step: 8 values of k bits fill k bytes exactly


def qmax(bits: int) -> int:
    """Return the largest quantised magnitude, 2**(bits - 1) - 1.

    Raises:
        DeltaError: `bits` is not in 2 to 16.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise DeltaError(f"quantisation has {bits} bits, expected {MIN_BITS} to {MAX_BITS}")
    return int(2 ** (bits - 1) - 1)


def modulus_bits(bits: int, max_weighted_batch: int) -> int:
    """Return the bits of one masked value: `bits` and room for the largest weighted batch.

    Args:
        bits: Of one quantised value.
        max_weighted_batch: Largest contributions of a batch times largest weight, >= 1.

    Returns:
        bits + ceil(log2(max_weighted_batch)). Every sum of counts lies in [-2**(k-1), 2**(k-1)) and every sum of
        weights in [0, 2**k), so both come back exactly from their residue.

    Raises:
        DeltaError: The result would not fit in 32 bits, or an argument is out of range.
    """
    qmax(bits)
    if max_weighted_batch < 1:
        raise DeltaError(f"largest weighted batch is {max_weighted_batch}, expected at least 1")
    result = bits + (max_weighted_batch - 1).bit_length()
    if result > MAX_MODULUS_BITS:
        raise DeltaError(f"{bits} bits and a weighted batch of {max_weighted_batch} need {result}, expected at most 32")
    return result


def expand_scales(scales: Sequence[float], sizes: Sequence[int]) -> NDArray[np.float32]:
    """Repeat one scale a tensor to one a value.

    Args:
        scales: T scales, each in `MIN_SCALE` to `MAX_SCALE`.
        sizes: Number of values of each of the T tensors.

    Returns:
        float32 [P].

    Raises:
        DeltaError: The lengths differ or a scale is out of range.
    """
    if len(scales) != len(sizes):
        raise DeltaError(f"{len(scales)} scales for {len(sizes)} shared tensors, expected one each")
    scales_T = np.asarray(scales, dtype=np.float64)
    if not ((scales_T >= MIN_SCALE) & (scales_T <= MAX_SCALE)).all():
        raise DeltaError(f"scales are {list(scales)[:5]}, expected every one in {MIN_SCALE} to {MAX_SCALE}")
    return np.repeat(scales_T.astype(np.float32), np.asarray(sizes, dtype=np.int64))


def quantise(
    x_P: NDArray[np.float32],
    scales_P: NDArray[np.float32],
    bits: int,
    *,
    residual_P: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Round values to whole steps, carrying what was not sent.

    Args:
        x_P: float32 [P], finite.
        scales_P: float32 [P], > 0 (see `expand_scales`).
        bits: 2 to 16.
        residual_P: float32 [P], what earlier calls could not send; None: nothing.

    Returns:
        q_P int32 [P] in -qmax to qmax, and the new residual_P float32 [P]: q * step + new residual = x + old residual,
        up to one float32 rounding.

    Raises:
        DeltaError: Shapes differ, a value is not finite, or `bits` is out of range.
    """
    largest = qmax(bits)
    if x_P.shape != scales_P.shape or (residual_P is not None and residual_P.shape != x_P.shape):
        raise DeltaError(f"values have shape {x_P.shape}, scales {scales_P.shape}, expected the same shape for all")
    step_P = scales_P / np.float32(largest)
    with np.errstate(over="ignore"):  # what overflows is not finite, or far beyond the clip
        wanted_P = x_P.astype(np.float32) if residual_P is None else (x_P + residual_P).astype(np.float32)
        steps_P = wanted_P / step_P
    if not np.isfinite(wanted_P).all():
        raise DeltaError("a value is not finite, expected finite displacements")
    q_P = np.clip(np.rint(steps_P), -largest, largest)
    return q_P.astype(np.int32), (wanted_P - q_P * step_P).astype(np.float32)


def dequantise_mean(
    sum_P: NDArray[np.int64] | NDArray[np.int32], weight: int, *, scales_P: NDArray[np.float32], bits: int
) -> NDArray[np.float32]:
    """Return the weighted mean displacement of summed counts.

    Args:
        sum_P: [P], sum over contributions of weight * q.
        weight: Sum of the weights, >= 1.
        scales_P: float32 [P].
        bits: Of one quantised value.

    Returns:
        float32 [P], sum * step / weight.

    Raises:
        DeltaError: `weight` is below 1, shapes differ or `bits` is out of range.
    """
    largest = qmax(bits)
    if weight < 1:
        raise DeltaError(f"the weight of a sum is {weight}, expected at least 1")
    if sum_P.shape != scales_P.shape:
        raise DeltaError(f"a sum has shape {sum_P.shape}, scales {scales_P.shape}, expected the same")
    return (sum_P.astype(np.float64) * (scales_P.astype(np.float64) / largest / weight)).astype(np.float32)


def packed_bytes(num_values: int, k: int) -> int:
    """Return the length in bytes of `num_values` packed values of `k` bits."""
    return (num_values * k + 7) // 8


def pack(q: NDArray[np.unsignedinteger] | NDArray[np.signedinteger], k: int) -> bytes:
    """Pack non-negative integers into k bits each.

    Args:
        q: One dimension, every value in [0, 2**k).
        k: 1 to 32.

    Returns:
        ceil(len(q) * k / 8) bytes.

    Raises:
        FrameError: `k` is out of range, or a value does not fit.
    """
    _check_width(k)
    if q.ndim != 1 or q.dtype.kind not in "iu":
        raise FrameError(f"values to pack have {q.ndim} dimensions and type {q.dtype}, expected a vector of integers")
    if q.size and (int(q.min()) < 0 or int(q.max()) >> k):
        raise FrameError(f"a value to pack is outside 0 to 2**{k} - 1")
    num_groups = -(-q.size // _GROUP)
    values = np.zeros((num_groups, _GROUP), np.uint64)
    values.reshape(-1)[: q.size] = q
    words = np.zeros((num_groups, -(-_GROUP * k // 64)), "<u8")
    for place, word, shift in _layout(k):
        words[:, word] |= values[:, place] << np.uint64(shift)
        if shift + k > 64:
            words[:, word + 1] |= values[:, place] >> np.uint64(64 - shift)
    return words.view(np.uint8)[:, :k].tobytes()[: packed_bytes(q.size, k)]


def unpack(data: bytes, k: int, n: int) -> NDArray[np.uint32]:
    """Take packed integers apart.

    Args:
        data: What `pack` made of `n` values.
        k: 1 to 32.
        n: Number of values, >= 0.

    Returns:
        uint32 [n].

    Raises:
        FrameError: `data` is cut or padded, or a spare bit at its end is set.
    """
    _check_width(k)
    if n < 0 or len(data) != packed_bytes(n, k):
        raise FrameError(f"{n} values of {k} bits come in {len(data)} bytes, expected {packed_bytes(max(n, 0), k)}")
    num_groups = -(-n // _GROUP)
    padded = np.zeros(num_groups * k, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    octets = np.zeros((num_groups, 8 * -(-_GROUP * k // 64)), np.uint8)
    octets[:, :k] = padded.reshape(num_groups, k)
    words = octets.view("<u8")
    mask = np.uint64(2**k - 1)
    values = np.empty((num_groups, _GROUP), np.uint32)
    for place, word, shift in _layout(k):
        bits = words[:, word] >> np.uint64(shift)
        if shift + k > 64:
            bits |= words[:, word + 1] << np.uint64(64 - shift)
        values[:, place] = bits & mask
    flat = values.reshape(-1)
    spare = n * k % 8
    if flat[n:].any() or (spare and data[-1] >> spare):
        raise FrameError("packed values end in set spare bits, expected zeros")
    return flat[:n].copy()


def _check_width(k: int) -> None:
    if not 1 <= k <= MAX_MODULUS_BITS:
        raise FrameError(f"packed values have {k} bits, expected 1 to {MAX_MODULUS_BITS}")


def _layout(k: int) -> list[tuple[int, int, int]]:
    """Return (place in the group, 64-bit word, shift in the word) of each of the 8 values of a group."""
    return [(place, place * k // 64, place * k % 64) for place in range(_GROUP)]
