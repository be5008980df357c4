from __future__ import annotations

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.errors import ConfigError
from nfl_ota import Observation, Outcome, Probation, ProbationLimits, ProbationSettings
from nfl_ota.health import binomial_tail


def run(settings, *observations):
    probation = Probation(settings)
    return [probation.observe(observation).outcome for observation in observations][-1], probation.verdict.reason


def fine(correct=None, latency_ms=1.0):
    return Observation(latency_ms=latency_ms, finite=True, correct=correct)


def test_a_healthy_version_passes_after_exactly_so_many_inferences():
    probation = Probation(ProbationSettings(num_inferences=3))
    assert [probation.observe(fine()).outcome for _ in range(3)] == [Outcome.PENDING, Outcome.PENDING, Outcome.HEALTHY]


def test_one_output_that_is_not_finite_fails_at_once():
    outcome, why = run(ProbationSettings(), fine(), Observation(latency_ms=1, finite=False))
    assert outcome is Outcome.FAILED
    assert why.startswith("not-finite")


def test_nothing_changes_a_verdict():
    probation = Probation(ProbationSettings(num_inferences=2))
    probation.observe(Observation(latency_ms=1, finite=False))
    assert probation.observe(fine()).outcome is Outcome.FAILED


def test_too_many_late_inferences_fail_as_soon_as_that_is_certain():
    probation = Probation(ProbationSettings(num_inferences=8, latency_budget_ms=30, max_late_fraction=0.5))
    outcomes = [probation.observe(fine(latency_ms=31)).outcome for _ in range(5)]
    assert outcomes == [Outcome.PENDING] * 4 + [Outcome.FAILED]
    assert probation.verdict.reason.startswith("latency: 5 of 8")


def test_some_late_inferences_are_allowed():
    observations = [fine(latency_ms=99)] * 4 + [fine()] * 4
    assert run(ProbationSettings(num_inferences=8), *observations)[0] is Outcome.HEALTHY


def test_a_latency_that_is_no_number_counts_as_late():
    settings = ProbationSettings(num_inferences=1, max_late_fraction=0.0)
    assert run(settings, fine(latency_ms=math.nan))[0] is Outcome.FAILED


def test_a_much_worse_version_fails_by_accuracy():
    settings = ProbationSettings(num_inferences=8, reference_accuracy=0.85, max_accuracy_drop=0.15)
    outcome, why = run(settings, *[fine(correct=index == 0) for index in range(8)])
    assert outcome is Outcome.FAILED
    assert why.startswith("accuracy: 1 of 8")


def test_bad_luck_in_few_inferences_does_not_fail_a_good_version():
    settings = ProbationSettings(num_inferences=8, reference_accuracy=0.85, max_accuracy_drop=0.15)
    assert run(settings, *[fine(correct=index < 5) for index in range(8)])[0] is Outcome.HEALTHY


def test_accuracy_is_not_judged_without_a_reference_or_without_answers():
    assert run(ProbationSettings(num_inferences=2), fine(correct=False), fine(correct=False))[0] is Outcome.HEALTHY
    assert run(ProbationSettings(num_inferences=2, reference_accuracy=1.0), fine(), fine())[0] is Outcome.HEALTHY


def test_good_versions_are_seldom_refused_and_bad_ones_seldom_pass():
    """The rule's error rates, exactly, for the defaults: 8 inferences, reference 0.85, allowed drop 0.15."""
    settings = ProbationSettings(num_inferences=8, reference_accuracy=0.85, max_accuracy_drop=0.15)
    failing = [
        run(settings, *[fine(correct=index < hits) for index in range(8)])[0] is Outcome.FAILED for hits in range(9)
    ]
    worst = max(hits for hits in range(9) if failing[hits])
    assert failing == [hits <= worst for hits in range(9)]
    assert binomial_tail(worst, num=8, chance=0.85) < 0.003  # as good as before, refused
    assert binomial_tail(worst, num=8, chance=0.70) < 0.05  # exactly as bad as allowed, refused
    assert binomial_tail(worst, num=8, chance=0.10) > 0.95  # guesses, refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_budget_ms": 0},
        {"num_inferences": 0},
        {"max_accuracy_drop": 1.1},
        {"max_late_fraction": 1.0},
        {"reference_accuracy": -0.1},
        {"latency_budget_ms": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        ProbationSettings(**wrong)


def test_settings_come_from_the_signed_manifest():
    limits = ProbationLimits(latency_budget_ms=12, num_inferences=3, max_accuracy_drop=0.2, max_late_fraction=0.1)
    settings = ProbationSettings.of(limits, reference_accuracy=0.5)
    assert settings == ProbationSettings(
        latency_budget_ms=12, num_inferences=3, max_accuracy_drop=0.2, max_late_fraction=0.1, reference_accuracy=0.5
    )


@given(num=st.integers(1, 40), chance=st.floats(0, 1))
def test_the_binomial_tail_is_a_distribution(num, chance):
    exact = list(
        accumulate(math.comb(num, hits) * chance**hits * (1 - chance) ** (num - hits) for hits in range(num + 1))
    )
    for hits in range(num + 1):
        assert binomial_tail(hits, num=num, chance=chance) == pytest.approx(exact[hits], abs=1e-9)


def test_the_binomial_tail_survives_many_trials():
    assert binomial_tail(50_000, num=100_000, chance=0.5) == pytest.approx(0.5, abs=0.01)


@given(
    st.lists(
        st.builds(
            Observation, latency_ms=st.floats(0, 60), finite=st.booleans(), correct=st.sampled_from([None, True, False])
        )
    )
)
def test_a_verdict_stays_and_comes_in_time(observations):
    probation = Probation(ProbationSettings(num_inferences=5, reference_accuracy=0.9))
    outcomes = [probation.observe(observation).outcome for observation in observations]
    decided = [outcome for outcome in outcomes if outcome is not Outcome.PENDING]
    assert len(set(decided)) <= 1
    assert len(outcomes) - len(decided) <= 4
