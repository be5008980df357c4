from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nfl_core.delta import Delta, flatten_displacement
from nfl_core.errors import DeltaError
from nfl_core.ids import Digest, digest_of
from nfl_core.schema import TensorSchema

BASE = digest_of(b"base")
SCALES = (0.5, 0.25, 1.0, 2.0)
Displacement = dict[str, NDArray[np.float32]]


def displacement_of(schema: TensorSchema, seed: int = 0) -> Displacement:
    return schema.unflatten(np.random.default_rng(seed).standard_normal(schema.num_shared, dtype=np.float32))


def build(schema: TensorSchema, seed: int = 0, *, bits: int = 4, weight: int = 1, base: Digest = BASE) -> Delta:
    delta, _ = Delta.build(schema, displacement_of(schema, seed), base=base, scales=SCALES, bits=bits, weight=weight)
    return delta


seeds = st.integers(0, 2**32)
weights = st.integers(1, 100)


@given(
    a=st.tuples(seeds, weights),
    b=st.tuples(seeds, weights),
    c=st.tuples(seeds, weights),
    bits=st.sampled_from([2, 4, 8, 16]),
)
def test_addition_is_associative_and_commutative(
    schema: TensorSchema, a: tuple[int, int], b: tuple[int, int], c: tuple[int, int], bits: int
) -> None:
    one, two, three = (build(schema, seed, bits=bits, weight=weight) for seed, weight in (a, b, c))
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)


@given(st.lists(st.tuples(seeds, weights), min_size=1, max_size=6), st.sampled_from([2, 4, 8]))
def test_mean_is_the_weighted_mean_of_the_parts(schema: TensorSchema, parts: list[tuple[int, int]], bits: int) -> None:
    deltas = [build(schema, seed, bits=bits, weight=weight) for seed, weight in parts]
    total = sum(deltas[1:], deltas[0])
    expected_P = np.average(
        [delta.mean().astype(np.float64) for delta in deltas], axis=0, weights=[w for _, w in parts]
    )
    # One float32 rounding of each mean, |mean| <= the largest scale.
    np.testing.assert_allclose(total.mean(), expected_P, atol=max(SCALES) * 2**-22, rtol=0)


def test_residual_of_one_build_goes_into_the_next(schema: TensorSchema) -> None:
    moved = displacement_of(schema)
    first, residual_P = Delta.build(schema, moved, base=BASE, scales=SCALES, bits=2)
    second, _ = Delta.build(schema, moved, base=BASE, scales=SCALES, bits=2, residual_P=residual_P)
    assert first != second


def with_private(moved: Displacement) -> Displacement:
    return moved | {"private.w": np.zeros((2, 5), np.float32)}


def with_unknown(moved: Displacement) -> Displacement:
    return moved | {"tail.w": np.zeros(3, np.float32)}


def with_missing(moved: Displacement) -> Displacement:
    return {name: array for name, array in moved.items() if name != "head.w"}


def with_shape(moved: Displacement) -> Displacement:
    return moved | {"body.w": moved["body.w"].T}


def with_type(moved: Displacement) -> Displacement:
    return moved | {"body.w": moved["body.w"].astype(np.float64)}  # type: ignore[dict-item]


def with_nan(moved: Displacement) -> Displacement:
    return moved | {"body.b": np.float32([0, np.nan, 0, 0])}


def with_infinity(moved: Displacement) -> Displacement:
    return moved | {"body.b": np.float32([0, 0, -np.inf, 0])}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_private, r"'private\.w' is private"),
        (with_unknown, r"'tail\.w' is unknown"),
        (with_missing, r"'head\.w' is missing"),
        (with_shape, r"'body\.w' is float32 of shape \(4, 3\), expected float32 of \(3, 4\)"),
        (with_type, r"'body\.w' is float64"),
        (with_nan, r"'body\.b' holds a value that is not finite"),
        (with_infinity, r"'body\.b' holds a value that is not finite"),
    ],
)
def test_bad_tensor_makes_no_delta(
    schema: TensorSchema, damage: Callable[[Displacement], Displacement], message: str
) -> None:
    damaged = damage(displacement_of(schema))
    with pytest.raises(DeltaError, match=message):
        flatten_displacement(schema, damaged)
    with pytest.raises(DeltaError, match=message):
        Delta.build(schema, damaged, base=BASE, scales=SCALES, bits=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": SCALES[:-1]}, "3 scales for 4"),
        ({"scales": (*SCALES[:-1], 0.0)}, "expected every one in"),
        ({"scales": (*SCALES[:-1], float("nan"))}, "expected every one in"),
        ({"bits": 1}, "1 bits"),
        ({"bits": 17}, "17 bits"),
        ({"weight": 0}, "weight of a delta is 0"),
        ({"weight": 2**31}, "32 bits"),
    ],
)
def test_bad_number_makes_no_delta(schema: TensorSchema, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"base": BASE, "scales": SCALES, "bits": 4} | change
    with pytest.raises(DeltaError, match=message):
        Delta.build(schema, displacement_of(schema), **arguments)  # type: ignore[arg-type]


def test_count_beyond_what_the_weight_allows_is_refused(schema: TensorSchema) -> None:
    counts_P = np.zeros(schema.num_shared, np.int32)
    counts_P[3] = 8
    with pytest.raises(DeltaError, match=r"beyond \+-7"):
        Delta(schema=schema, base=BASE, counts_P=counts_P, weight=1, scales=SCALES, bits=4)
    with pytest.raises(DeltaError, match="int64"):
        Delta(schema=schema, base=BASE, counts_P=counts_P.astype(np.int64), weight=1, scales=SCALES, bits=4)  # type: ignore[arg-type]


def test_different_deltas_do_not_add(schema: TensorSchema) -> None:
    delta = build(schema)
    others = [
        build(schema, base=digest_of(b"other")),
        build(schema, bits=2),
        Delta.build(schema, displacement_of(schema), base=BASE, scales=(1.0, 1.0, 1.0, 1.0), bits=4)[0],
    ]
    for other, what in zip(others, ("base", "bits", "scales"), strict=True):
        with pytest.raises(DeltaError, match=f"differ in {what}"):
            _ = delta + other
