from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.codec.quantise import (
    dequantise_mean,
    expand_scales,
    modulus_bits,
    pack,
    packed_bytes,
    qmax,
    quantise,
    unpack,
)
from nfl_core.errors import DeltaError, FrameError


@given(k=st.integers(1, 32), n=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_pack_and_unpack_are_exact(k: int, n: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**k, n, dtype=np.uint64).astype(np.uint32)
    data = pack(values, k)
    assert len(data) == packed_bytes(n, k) == -(-n * k // 8)
    np.testing.assert_array_equal(unpack(data, k, n), values)


@pytest.mark.parametrize("k", range(2, 25))
def test_packed_layout_is_a_little_endian_bit_string(k: int) -> None:
    """The layout is part of the wire format: compare with the definition, one big number."""
    values = np.random.default_rng(k).integers(0, 2**k, 100).astype(np.uint32)
    number = sum(int(value) << (k * place) for place, value in enumerate(values))
    assert pack(values, k) == number.to_bytes(packed_bytes(100, k), "little")


@pytest.mark.parametrize(("value", "k"), [(32, 5), (-1, 5), (2**32, 32)])
def test_value_that_does_not_fit_is_refused(value: int, k: int) -> None:
    with pytest.raises(FrameError, match="outside 0 to"):
        pack(np.array([0, value]), k)


@pytest.mark.parametrize("q", [np.zeros((2, 2), np.uint32), np.zeros(2, np.float32)])
def test_only_integer_vectors_are_packed(q: np.ndarray) -> None:
    with pytest.raises(FrameError, match="expected a vector of integers"):
        pack(q, 5)


@pytest.mark.parametrize("k", [0, 33, -1])
def test_width_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(FrameError, match="expected 1 to 32"):
        pack(np.zeros(1, np.uint32), k)
    with pytest.raises(FrameError, match="expected 1 to 32"):
        unpack(b"", k, 0)


@given(k=st.integers(2, 24), n=st.integers(1, 50))
def test_cut_or_padded_values_are_refused(k: int, n: int) -> None:
    data = pack(np.zeros(n, np.uint32), k)
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(FrameError, match=f"expected {len(data)}"):
            unpack(wrong, k, n)


def test_set_spare_bits_are_refused() -> None:
    data = bytearray(pack(np.zeros(3, np.uint32), 5))
    data[-1] |= 0x80
    with pytest.raises(FrameError, match="spare bits"):
        unpack(bytes(data), 5, 3)


def test_negative_count_is_refused() -> None:
    with pytest.raises(FrameError):
        unpack(b"", 5, -1)


def test_a_million_values_pack_in_tens_of_milliseconds() -> None:
    values = np.random.default_rng(0).integers(0, 32, 1_000_000).astype(np.uint32)

    def seconds() -> float:
        start = time.perf_counter()
        unpack(pack(values, 5), 5, values.size)
        return time.perf_counter() - start

    # Some 10 ms on an idle core; a value-by-value loop takes seconds.
    assert min(seconds() for _ in range(5)) < 0.25


floats = st.floats(-10, 10, width=32)


@given(st.lists(st.lists(floats, min_size=6, max_size=6), min_size=1, max_size=12), st.sampled_from([2, 3, 4, 8, 16]))
def test_error_feedback_loses_nothing(rounds: list[list[float]], bits: int) -> None:
    """Sum of what was sent and the last residual is the sum of what went in."""
    scales_P = np.float32([0.5, 0.5, 1, 1, 4, 4])
    step_P = scales_P / qmax(bits)
    residual_P = np.zeros(6, np.float32)
    sent_P = np.zeros(6)
    for values in rounds:
        q_P, residual_P = quantise(np.float32(values), scales_P, bits, residual_P=residual_P)
        assert q_P.dtype == np.int32
        assert np.abs(q_P).max() <= qmax(bits)
        sent_P += q_P * step_P.astype(np.float64)
    # Values up to 10 pile up over 12 rounds; each round rounds twice in float32.
    np.testing.assert_allclose(
        sent_P + residual_P, np.sum(np.float32(rounds), axis=0, dtype=np.float64), atol=len(rounds) * 120 * 2**-22
    )


@given(st.lists(floats, min_size=1, max_size=20), st.sampled_from([2, 4, 8, 16]))
def test_value_inside_the_scale_is_off_by_half_a_step_at_most(values: list[float], bits: int) -> None:
    x_P = np.float32(values)
    scales_P = np.full_like(x_P, 10)
    q_P, residual_P = quantise(x_P, scales_P, bits)
    assert np.abs(residual_P).max() <= 10 / qmax(bits) / 2 * (1 + 1e-5)
    np.testing.assert_allclose(dequantise_mean(q_P, 1, scales_P=scales_P, bits=bits), x_P - residual_P, atol=1e-5)


def test_two_bits_are_ternary() -> None:
    q_P, residual_P = quantise(np.float32([-9, -0.6, -0.4, 0, 0.4, 0.6, 9]), np.ones(7, np.float32), 2)
    assert q_P.tolist() == [-1, -1, 0, 0, 0, 1, 1]
    assert residual_P[-1] == pytest.approx(8)  # clipped, kept for later


@given(bits=st.integers(2, 16), batch=st.integers(1, 4096))
def test_modulus_has_room_for_every_batch_and_is_tight(bits: int, batch: int) -> None:
    k = modulus_bits(bits, batch)
    assert 2 * qmax(bits) * batch + 1 <= 2**k
    assert batch < 2**k
    assert k == bits + int(np.ceil(np.log2(batch)))


def test_modulus_for_five_of_eight_devices_is_five_bits() -> None:
    assert modulus_bits(2, 8) == 5


@pytest.mark.parametrize(("bits", "batch"), [(1, 8), (17, 8), (16, 2**17), (2, 0)])
def test_impossible_modulus_is_refused(bits: int, batch: int) -> None:
    with pytest.raises(DeltaError):
        modulus_bits(bits, batch)


def test_scales_are_repeated_over_their_tensors() -> None:
    assert expand_scales((1.0, 2.0), (2, 3)).tolist() == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "scales", [(1.0,), (1.0, -1.0), (1.0, float("inf")), (1.0, 1e-60), (1.0, 1e60), (1.0, float("nan"))]
)
def test_bad_scales_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(DeltaError):
        expand_scales(scales, (2, 3))


def test_quantise_refuses_nonsense() -> None:
    ones_P = np.ones(3, np.float32)
    with pytest.raises(DeltaError, match="same shape"):
        quantise(ones_P, np.ones(2, np.float32), 2)
    with pytest.raises(DeltaError, match="same shape"):
        quantise(ones_P, ones_P, 2, residual_P=np.ones(2, np.float32))
    with pytest.raises(DeltaError, match="not finite"):
        quantise(np.float32([3e38, 0, 0]), ones_P, 2, residual_P=np.float32([3e38, 0, 0]))
    assert quantise(np.float32([3e38, -3e38, 0]), np.full(3, 1e-30, np.float32), 2)[0].tolist() == [1, -1, 0]
    with pytest.raises(DeltaError, match="not finite"):
        quantise(np.float32([1, np.nan, 1]), ones_P, 2)
    with pytest.raises(DeltaError, match="weight of a sum is 0"):
        dequantise_mean(np.ones(3, np.int64), 0, scales_P=ones_P, bits=2)
    with pytest.raises(DeltaError, match="expected the same"):
        dequantise_mean(np.ones(2, np.int64), 1, scales_P=ones_P, bits=2)
