"""Buffer, robust rule and server step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nfl_cluster.aggregate.buffer import Measured, staleness_weight
from nfl_cluster.aggregate.robust import bound_norms, combine_batches
from nfl_core.config import DEFAULT_LEVELS
from nfl_core.ids import BatchId, RegionId
from nfl_core.levels import NestedSpec, Scope
from nfl_core.schema import TensorSchema

SCHEMA = TensorSchema.of({"body.w": (40,), "middle.w": (20,), "private.w": (3,)}, NestedSpec(DEFAULT_LEVELS))
NORTH, SOUTH = RegionId("north"), RegionId("south")
BODY, MIDDLE = SCHEMA.slice_of("body.w"), SCHEMA.slice_of("middle.w")


def _batch(name: str, value: float, *, region: RegionId = NORTH, weight: int = 1, staleness: int = 0) -> Measured:
    mean_P = np.full(SCHEMA.num_shared, value, np.float32)
    return Measured(batch_id=BatchId(name), region=region, mean_P=mean_P, weight=weight, staleness=staleness)


def fold(batches: list[Measured], *, regions: list[RegionId]) -> Mapping[RegionId, NDArray[np.float32]]:
    return combine_batches(
        batches, schema=SCHEMA, regions=regions, rule="mean", max_attacker_fraction=0.0, remembered={}
    ).moved


def test_global_values_average_over_all_and_regional_ones_over_their_region() -> None:
    moved = fold([_batch("a", 1.0), _batch("b", 3.0, region=SOUTH)], regions=[NORTH, SOUTH])
    assert moved[NORTH][BODY].tolist() == moved[SOUTH][BODY].tolist() == [2.0] * 40
    assert moved[NORTH][MIDDLE].tolist() == [1.0] * 20
    assert moved[SOUTH][MIDDLE].tolist() == [3.0] * 20


def test_a_region_without_a_batch_keeps_its_level() -> None:
    moved = fold([_batch("a", 1.0)], regions=[NORTH, SOUTH])
    assert not moved[SOUTH][MIDDLE].any()
    assert moved[SOUTH][BODY].all()


def test_a_stale_batch_counts_less() -> None:
    moved = fold([_batch("a", 0.0), _batch("b", 1.0, staleness=3)], regions=[NORTH])
    assert moved[NORTH][0] == pytest.approx(0.5 / 1.5)
    assert staleness_weight(3) == 0.5


@given(st.permutations(range(4)))
def test_the_order_of_batches_does_not_matter(order: list[int]) -> None:
    batches = [_batch(str(number), float(number), weight=number + 1, staleness=number) for number in range(4)]
    one = fold(batches, regions=[NORTH])[NORTH]
    other = fold([batches[index] for index in order], regions=[NORTH])[NORTH]
    np.testing.assert_allclose(one, other, rtol=1e-6)  # one float32 rounding of a float64 sum


def test_a_poisoned_batch_is_bounded_and_keeps_its_direction() -> None:
    honest = [_batch(name, 0.1) for name in "abc"]
    verdict = bound_norms([*honest, _batch("bad", -5.0)], schema=SCHEMA, remembered={})
    assert {(part.batch_id, part.scope) for part in verdict.bounded} == {("bad", Scope.REGION), ("bad", Scope.GLOBAL)}
    bad = verdict.batches[-1].mean_P
    assert np.linalg.norm(bad[BODY]) == pytest.approx(1.5 * 0.1 * math.sqrt(40), rel=1e-5)
    assert (bad < 0).all()
    assert [batch.mean_P.tolist() for batch in verdict.batches[:3]] == [batch.mean_P.tolist() for batch in honest]


def test_the_bound_remembers_and_cannot_be_raised_by_one_attacker() -> None:
    norms: dict[str, tuple[float, ...]] = {}
    for _ in range(6):
        verdict = bound_norms([*(_batch(n, 0.1) for n in "abc"), _batch("bad", 50.0)], schema=SCHEMA, remembered=norms)
        norms = dict(verdict.norms)
    assert verdict.bounded[0].bound == pytest.approx(1.5 * 0.1 * math.sqrt(20), rel=1e-5)


def test_with_two_norms_there_is_nothing_to_compare_with() -> None:
    assert not bound_norms([_batch("a", 0.1), _batch("b", 9.0)], schema=SCHEMA, remembered={}).bounded


def _noisy(name: str, region: RegionId, *, centre: float, seed: int) -> Measured:
    generator = np.random.default_rng(seed)
    mean_P = (centre + generator.normal(size=SCHEMA.num_shared)).astype(np.float32)
    return Measured(batch_id=BatchId(name), region=region, mean_P=mean_P, weight=1, staleness=0)


@pytest.mark.parametrize(("apart", "low", "high"), [(0.0, 0.0, 0.6), (10.0, 0.95, 1.0)])
def test_a_learned_scope_pools_regions_that_are_alike(apart: float, low: float, high: float) -> None:
    batches = [_noisy(f"n{i}", NORTH, centre=0.0, seed=i) for i in range(4)]
    batches += [_noisy(f"s{i}", SOUTH, centre=apart, seed=10 + i) for i in range(4)]
    apart_moved = fold(batches, regions=[NORTH, SOUTH])
    outcome = combine_batches(
        batches,
        schema=SCHEMA,
        regions=[NORTH, SOUTH, RegionId("empty")],
        rule="mean",
        max_attacker_fraction=0.0,
        remembered={},
        own_shares={},
    )
    share = outcome.own_shares["skill"]
    assert low <= share <= high
    common = np.mean([batch.mean_P[MIDDLE] for batch in batches], axis=0)
    for region in (NORTH, SOUTH):
        expected = common + share * (apart_moved[region][MIDDLE] - common)
        np.testing.assert_allclose(
            outcome.moved[region][MIDDLE], expected, atol=1e-5
        )  # a few float32 roundings near 10
        assert outcome.moved[region][BODY].tobytes() == apart_moved[region][BODY].tobytes()
    empty = outcome.moved[RegionId("empty")]
    np.testing.assert_allclose(empty[MIDDLE], (1 - share) * common, atol=1e-5)


def test_what_was_once_a_regions_own_stays_so_and_one_batch_a_region_tells_nothing() -> None:
    def own_share(batches: list[Measured], remembered: dict[str, float]) -> float:
        rules = {"rule": "mean", "max_attacker_fraction": 0.0, "remembered": {}, "own_shares": remembered}
        return combine_batches(batches, schema=SCHEMA, regions=[NORTH, SOUTH], **rules).own_shares["skill"]

    alike = [_noisy(f"{r}{i}", r, centre=0.0, seed=s + i) for r, s in ((NORTH, 0), (SOUTH, 10)) for i in range(4)]
    assert own_share(alike, {}) < 0.7
    assert own_share(alike, {"skill": 0.7}) == 0.7
    assert own_share([alike[0], alike[4]], {"skill": 0.2}) == 0.2
    apart = [alike[0], alike[1], _noisy("s", SOUTH, centre=9.0, seed=3)]
    assert own_share(apart, {"skill": 0.2}) > 0.9
