"""Batches to one displacement a region, by each rule; what is named when a rule cannot keep its promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nfl_cluster.aggregate.buffer import Measured
from nfl_cluster.aggregate.robust import RULES, SHADOW_TRUST, Outcome, agreement, combine_batches, score_batches
from nfl_core.config import DEFAULT_LEVELS, RootSection
from nfl_core.errors import ConfigError, DeltaError
from nfl_core.ids import BatchId, RegionId
from nfl_core.levels import NestedSpec, Scope
from nfl_core.schema import TensorSchema

SCHEMA = TensorSchema.of({"body.w": (40,), "middle.w": (20,), "private.w": (3,)}, NestedSpec(DEFAULT_LEVELS))
NORTH, SOUTH = RegionId("north"), RegionId("south")
BODY, MIDDLE = SCHEMA.slice_of("body.w"), SCHEMA.slice_of("middle.w")
UP = np.ones(SCHEMA.num_shared, np.float32)
NAMES = [*sorted(RULES), SHADOW_TRUST]


def _batch(
    name: str, value: float, *, region: RegionId = NORTH, num: int = 1, staleness: int = 0, noise: float = 0.0
) -> Measured:
    generator = np.random.default_rng(sum(map(ord, name)))
    mean_P = value + noise * generator.normal(size=SCHEMA.num_shared)
    return Measured(
        batch_id=BatchId(name),
        region=region,
        mean_P=mean_P.astype(np.float32),
        weight=num,
        staleness=staleness,
        num=num,
    )


def _combine(
    batches: list[Measured], rule: str, *, fraction: float = 0.2, shadow_P: NDArray[np.float32] | None = UP
) -> Outcome:
    return combine_batches(
        batches,
        schema=SCHEMA,
        regions=[NORTH, SOUTH],
        rule=rule,
        max_attacker_fraction=fraction,
        remembered={},
        shadow_P=shadow_P,
    )


def test_the_config_offers_rules_that_exist() -> None:
    offered = RootSection.model_fields["robust"].annotation.__args__  # type: ignore[union-attr]
    assert set(offered) <= set(NAMES)


@pytest.mark.parametrize("rule", NAMES)
def test_equal_batches_move_the_fleet_by_what_they_say(rule: str) -> None:
    outcome = _combine([_batch(name, 0.5) for name in "abcde"], rule, fraction=0.2)
    np.testing.assert_allclose(outcome.moved[NORTH], 0.5, rtol=1e-6)
    np.testing.assert_allclose(outcome.moved[SOUTH][BODY], 0.5, rtol=1e-6)
    assert not outcome.moved[SOUTH][MIDDLE].any()  # nobody there said anything


@pytest.mark.parametrize("rule", sorted({"dnc", "nnm-trimmed-mean", "median", "trimmed-mean", "geometric-median"}))
def test_a_bad_batch_within_the_norm_is_outvoted_where_the_bound_lets_it_pass(rule: str) -> None:
    batches = [*(_batch(name, 1.0, noise=0.1) for name in "abcd"), _batch("bad", -1.0)]
    assert not _combine(batches, rule).bounded
    assert _combine(batches, "norm-bound").moved[NORTH].mean() == pytest.approx(0.6, abs=0.05)
    assert _combine(batches, rule).moved[NORTH].mean() > 0.85


def test_a_shadow_outvotes_a_majority() -> None:
    batches = [_batch("good", 1.0), *(_batch(f"bad{number}", -1.0) for number in range(4))]
    outcome = _combine(batches, SHADOW_TRUST)
    np.testing.assert_allclose(outcome.moved[NORTH], 1.0, rtol=1e-6)
    assert not outcome.degraded
    assert _combine(batches, "dnc").moved[NORTH].mean() < 0


def test_without_a_shadow_the_bound_is_what_is_left_and_that_is_said() -> None:
    batches = [_batch(name, 1.0) for name in "abc"]
    outcome = _combine(batches, SHADOW_TRUST, shadow_P=None)
    np.testing.assert_allclose(outcome.moved[NORTH], 1.0, rtol=1e-6)
    assert "no shadow update" in outcome.degraded[0].why


def test_where_no_batch_agrees_with_the_shadow_nothing_moves_and_that_is_said() -> None:
    outcome = _combine([_batch(name, -1.0) for name in "abc"], SHADOW_TRUST)
    assert not outcome.moved[NORTH].any()
    assert "none of 3 batches agrees" in outcome.degraded[0].why


@pytest.mark.parametrize("rule", sorted({"dnc", "geometric-median", "norm-bound"}))
def test_two_batches_of_a_region_are_averaged_and_that_is_said(rule: str) -> None:
    batches = [
        *(_batch(name, 1.0, num=5) for name in "abc"),
        _batch("d", 0.5, region=SOUTH, num=5),
        _batch("e", 1.5, region=SOUTH, num=5),
    ]
    outcome = _combine(batches, rule, fraction=0.1)
    assert outcome.moved[SOUTH][MIDDLE] == pytest.approx(1.0, abs=0.05)
    said = {(less.scope, less.region): less.why for less in outcome.degraded}
    assert said == {(Scope.REGION, SOUTH): "1 of 2 batches of region south may be bad, they are averaged"}


def test_more_bad_batches_than_a_rule_stands_are_said() -> None:
    outcome = _combine([_batch(name, 1.0, num=5) for name in "abcd"], "dnc", fraction=0.2)
    assert "4 of 4 batches of all regions may be bad, the rule stands 1" in {less.why for less in outcome.degraded}


@pytest.mark.parametrize("rule", ["mean", "norm-bound", "geometric-median", SHADOW_TRUST])
def test_weight_and_staleness_count(rule: str) -> None:
    batches = [
        _batch("a", 1.0, num=4, noise=0.2),
        _batch("b", 1.0, num=4, noise=0.2),
        _batch("c", 1.4, num=4, staleness=8),
    ]
    with_stale = _combine(batches, rule, fraction=0.0).moved[NORTH].mean()
    batches[2] = _batch("c", 1.4, num=4)
    assert _combine(batches, rule, fraction=0.0).moved[NORTH].mean() > with_stale + 1e-4


def test_the_plain_mean_bounds_nothing_and_keeps_what_was_remembered() -> None:
    outcome = combine_batches(
        [_batch("a", 1.0), _batch("b", 1.0), _batch("bad", 100.0)],
        schema=SCHEMA,
        regions=[NORTH],
        rule="mean",
        max_attacker_fraction=0.0,
        remembered={"global": (1.0, 2.0)},
    )
    assert (outcome.norms, outcome.bounded) == ({"global": (1.0, 2.0)}, ())
    assert outcome.moved[NORTH].mean() == pytest.approx(34.0)


def test_an_unknown_rule_and_a_batch_that_is_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="robust rule 'averge' is unknown"):
        _combine([_batch("a", 1.0)], "averge")
    with pytest.raises(DeltaError, match="not finite"):
        _combine([_batch("a", float("nan")), _batch("b", 1.0)], "norm-bound")


def test_scores_are_means_over_devices() -> None:
    one, other = _batch("a", 1.0, noise=1.0), _batch("b", -3.0, noise=1.0)
    mean_P = ((one.mean_P + other.mean_P) / 2).astype(np.float32)
    both = Measured(batch_id=BatchId("ab"), region=NORTH, mean_P=mean_P, weight=2, staleness=0, num=2)
    first, second, third = score_batches([one, other, both], UP)
    assert third.against == pytest.approx((first.against + second.against) / 2, abs=1e-6)
    assert first.against < 0 < second.against


def test_agreement_is_a_cosine_and_never_below_zero() -> None:
    batches = [_batch("a", 2.0), _batch("b", -1.0), _batch("c", 0.0)]
    np.testing.assert_allclose(agreement(batches, UP), [1.0, 0.0, 0.0], atol=1e-9)
    with pytest.raises(DeltaError, match="does not fit"):
        agreement(batches, UP[:-1])
