"""Properties of the robust rules, whatever the vectors are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nfl_cluster.aggregate.robust import RULES, TooFewBatchesError, rules
from nfl_core.errors import DeltaError

ROBUST = sorted(name for name, rule in RULES.items() if rule.is_robust)
# `norm-bound` is the mean of vectors that were bounded before; alone it is not bounded by anything.
BY_ITSELF = sorted(set(ROBUST) - {"norm-bound"})
ROUNDING = 1e-9  # of float64 sums in another order, values of some tens


@st.composite
def vectors(draw: st.DrawFn, *, least: int = 3) -> NDArray[np.float64]:
    n, seed = draw(st.integers(least, 12)), draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).normal(size=(n, draw(st.integers(1, 40))))


@settings(max_examples=25)
@given(x_nP=vectors(), name=st.sampled_from(sorted(RULES)), seed=st.integers(0, 99))
def test_the_order_of_vectors_does_not_matter(x_nP: NDArray[np.float64], name: str, seed: int) -> None:
    generator, num_bad = np.random.default_rng(seed), RULES[name].most(len(x_nP))
    if name.endswith("krum"):
        num_bad = max(0, num_bad - 1)  # with one neighbour each, two mutual neighbours tie, and the first one wins
    weights, order = generator.integers(1, 5, len(x_nP)).astype(float), generator.permutation(len(x_nP))
    one = RULES[name].combine(x_nP, weights, num_bad=num_bad)
    np.testing.assert_allclose(RULES[name].combine(x_nP[order], weights[order], num_bad=num_bad), one, atol=ROUNDING)


@settings(max_examples=25)
@given(x_nP=vectors(), name=st.sampled_from(sorted(RULES)))
def test_equal_vectors_are_their_own_middle(x_nP: NDArray[np.float64], name: str) -> None:
    same_nP = np.repeat(x_nP[:1], len(x_nP), axis=0)
    result = RULES[name].combine(same_nP, np.ones(len(x_nP)), num_bad=RULES[name].most(len(x_nP)))
    np.testing.assert_allclose(result, x_nP[0], atol=ROUNDING)


@settings(max_examples=40)
@given(x_nP=vectors(least=5), name=st.sampled_from(BY_ITSELF), size=st.sampled_from([1e2, 1e4, 1e6]))
def test_as_many_attackers_as_it_stands_cannot_carry_it_away(x_nP: NDArray[np.float64], name: str, size: float) -> None:
    num_bad = RULES[name].most(len(x_nP))
    bad_nP = x_nP.copy()
    bad_nP[:num_bad] = size
    honest_nP = x_nP[num_bad:]
    result = RULES[name].combine(bad_nP, np.ones(len(x_nP)), num_bad=num_bad)
    spread = np.linalg.norm(honest_nP - honest_nP.mean(axis=0), axis=1).max() + 1e-3
    # However far the attackers are: the bound knows the honest alone. With f just below half the constant is some tens.
    assert np.linalg.norm(result - honest_nP.mean(axis=0)) <= 30 * spread


def test_one_attacker_carries_the_mean_anywhere() -> None:
    x_nP = np.zeros((9, 5))
    x_nP[0] = 1e6
    assert np.linalg.norm(RULES["mean"].combine(x_nP, np.ones(9), num_bad=0)) > 1e5


@settings(max_examples=25)
@given(x_nP=vectors(), name=st.sampled_from(["mean", "norm-bound", "median", "trimmed-mean"]))
def test_without_attackers_a_weight_counts_like_as_many_vectors(x_nP: NDArray[np.float64], name: str) -> None:
    repeated_nP = np.repeat(x_nP, np.arange(1, len(x_nP) + 1), axis=0)
    ours = RULES[name].combine(x_nP, np.arange(1.0, len(x_nP) + 1), num_bad=0)
    theirs = RULES[name].combine(repeated_nP, np.ones(len(repeated_nP)), num_bad=0)
    np.testing.assert_allclose(ours, theirs, atol=ROUNDING)


def test_the_geometric_median_heeds_weights() -> None:
    x_nP = np.float64([[0.0], [0.0], [1.0]])
    ours = RULES["geometric-median"].combine(x_nP, np.float64([1, 1, 5]), num_bad=1)
    assert ours[0] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", ROBUST)
def test_too_many_attackers_are_refused_by_name(name: str) -> None:
    assert [RULES[name].most(n) for n in (1, 2, 3, 4, 5, 9)] == [0, 0, 1, 1, 2, 4]
    with pytest.raises(TooFewBatchesError, match=f"rule {name} stands 1 bad of 4 vectors, 2 may be bad") as caught:
        RULES[name].combine(np.zeros((4, 2)), np.ones(4), num_bad=2)
    assert "4f + 1" in caught.value.hint


def test_the_mean_stands_nobody() -> None:
    with pytest.raises(TooFewBatchesError):
        RULES["mean"].combine(np.zeros((9, 2)), np.ones(9), num_bad=1)


@pytest.mark.parametrize(
    ("rows", "weights"),
    [
        (np.zeros((0, 2)), np.zeros(0)),
        ([np.zeros(2), np.zeros(3)], np.ones(2)),
        (np.zeros((2, 2)), np.ones(3)),
        (np.zeros((2, 2)), np.float64([1, 0])),
        (np.float64([[1, np.nan], [0, 0]]), np.ones(2)),
        (np.float64([[1, np.inf], [0, 0]]), np.ones(2)),
    ],
)
def test_what_is_no_set_of_vectors_is_refused(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
    with pytest.raises(DeltaError):
        RULES["median"].combine(rows, weights, num_bad=0)


@pytest.mark.parametrize("name", sorted(RULES))
def test_reading_in_blocks_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x_nP, weights = np.random.default_rng(3).normal(size=(9, 50)), np.ones(9)
    whole = RULES[name].combine(x_nP, weights, num_bad=RULES[name].most(9))
    monkeypatch.setattr(rules, "BLOCK", 7)
    np.testing.assert_allclose(RULES[name].combine(x_nP, weights, num_bad=RULES[name].most(9)), whole, atol=ROUNDING)


def test_dnc_drops_colluders_that_look_alike() -> None:
    generator = np.random.default_rng(0)
    x_nP = generator.normal(size=(9, 400))
    x_nP[:2] = 2.0 + 0.1 * generator.normal(size=(2, 400))
    scores = rules.spectral_scores(x_nP)
    assert set(np.argsort(scores)[-2:]) == {0, 1}


def test_dnc_drops_long_vectors_first_and_as_many_as_before() -> None:
    """Three long ones that look like the rest: no direction gives them away, their length does."""
    generator = np.random.default_rng(0)
    common_P, x_nP = generator.normal(size=400), generator.normal(size=(10, 400))
    x_nP[7:] = 1.3 * x_nP[7:] * np.linalg.norm(x_nP[:7], axis=1).mean() / np.linalg.norm(x_nP[7:], axis=1)[:, None]
    rows = x_nP + 0.01 * common_P
    combined_P = RULES["dnc"].combine(rows, np.ones(10), num_bad=2)
    np.testing.assert_allclose(combined_P, rows[:7].mean(axis=0), atol=ROUNDING)
    assert not np.allclose(
        RULES["dnc"].combine(rows, np.ones(10), num_bad=1), rows[:7].mean(axis=0)
    )  # two go, not three
    np.testing.assert_allclose(RULES["dnc"].combine(rows, np.ones(10), num_bad=0), rows.mean(axis=0))


def test_centred_clipping_starts_from_the_centre_it_is_given() -> None:
    rows, centre = np.full((3, 2), 10.0), np.float64([9.0, 10.0])
    moved = rules.centred_clipping(rows, np.ones(3), radius=0.25, centre=centre)
    np.testing.assert_allclose(moved, [9.25, 10.0])
