from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nfl_core.errors import DurableError
from nfl_ota import (
    Complete,
    Halt,
    HealthTotals,
    OpenWave,
    Phase,
    RollBack,
    RolloutError,
    RolloutMachine,
    RolloutSettings,
    wave_members,
    wave_size,
)

START = datetime(2026, 3, 1, tzinfo=timezone.utc)
SETTINGS = RolloutSettings(waves=(0.2, 0.5, 1.0), min_soak_s=10, wave_deadline_s=60, min_reports=2)


class Play:
    """One rollout of version 5 over 20 devices."""

    def __init__(self, worlds, settings=SETTINGS, previous=4):
        self.at = worlds.START
        self.machine = RolloutMachine(settings)
        self.opening = self.machine.start(5, previous=previous, now=self.at)

    def wait(self, seconds):
        self.at += timedelta(seconds=seconds)
        return self.machine.on_tick(self.at)

    def health(self, version=5, **totals):
        return self.machine.on_health(HealthTotals(version=version, attached=20, **totals))


@pytest.fixture
def play(worlds):
    return Play(worlds)


def test_a_good_version_goes_through_all_waves(play):
    assert play.opening == (OpenWave(version=5, index=0, fraction=0.2),)
    assert play.health(healthy=4) == ()
    assert play.wait(9) == ()
    assert play.wait(1) == (OpenWave(version=5, index=1, fraction=0.5),)
    assert play.health(healthy=10) == ()
    assert play.wait(10) == (OpenWave(version=5, index=2, fraction=1.0),)
    play.health(healthy=20)
    assert play.wait(10) == (Complete(version=5),)
    assert play.wait(1000) == ()
    assert play.machine.fraction == 1.0


def test_a_wave_waits_for_all_its_devices_until_the_deadline(play):
    play.health(healthy=3)
    assert play.wait(59) == ()
    assert play.wait(1) == (OpenWave(version=5, index=1, fraction=0.5),)


def test_devices_that_are_offline_hold_up_nobody_after_the_deadline(play):
    play.health(healthy=2)
    assert play.wait(60) == (OpenWave(version=5, index=1, fraction=0.5),)


def test_nothing_is_opened_blindly(play):
    assert play.wait(10_000) == ()
    play.health(healthy=1)
    assert play.wait(10_000) == ()
    assert play.machine.is_overdue(play.at)
    play.health(healthy=2)
    assert play.wait(0) == (OpenWave(version=5, index=1, fraction=0.5),)
    assert not play.machine.is_overdue(play.at)


def test_failures_halt_and_roll_back(play):
    assert play.health(fallen_back=1) == ()
    actions = play.health(healthy=1, fallen_back=1)
    assert actions == (
        Halt(version=5, reason="1 of 2 devices fell back, more than 20% of them"),
        RollBack(version=5, to=4),
    )
    assert play.machine.state.phase is Phase.HALTED
    assert play.machine.fraction == 0.0
    assert play.wait(10_000) == ()
    assert play.health(fallen_back=4) == ()


def test_failures_up_to_the_limit_are_borne(play):
    assert play.health(healthy=8, fallen_back=2) == ()
    assert play.health(healthy=7, fallen_back=2) != ()


def test_refused_merges_have_a_limit_of_their_own(play):
    assert play.health(healthy=2, merge_refused=2) == ()
    actions = play.health(healthy=1, merge_refused=3)
    assert actions[0] == Halt(version=5, reason="3 of 4 devices refused the merge, more than 50% of them")


def test_early_refusals_wait_for_the_rest_of_the_wave(play):
    assert play.health(healthy=1, merge_refused=2) == ()  # two of the wave's four may refuse


def test_devices_that_fall_back_do_not_wait_for_the_rest_of_the_wave(play):
    assert play.health(healthy=1, fallen_back=1)[0] == Halt(
        version=5, reason="1 of 2 devices fell back, more than 20% of them"
    )


def test_the_first_version_halts_without_anything_to_go_back_to(worlds):
    play = Play(worlds, previous=None)
    assert play.health(fallen_back=2) == (Halt(version=5, reason="2 of 2 devices fell back, more than 20% of them"),)


def test_reports_about_another_version_change_nothing(play):
    assert play.health(version=4, fallen_back=20) == ()
    assert play.health(version=6, fallen_back=20) == ()
    assert play.machine.state.totals is None


def test_late_reports_still_roll_back_a_complete_rollout(worlds):
    play = Play(worlds, RolloutSettings(waves=(1.0,), min_soak_s=0, wave_deadline_s=1, min_reports=1))
    play.health(healthy=5)
    assert play.wait(1) == (Complete(version=5),)
    assert play.health(healthy=10, fallen_back=5)[-1] == RollBack(version=5, to=4)


def test_the_restoring_version_rolls_out_like_any_other(play):
    play.health(fallen_back=2)
    assert play.machine.start(6, previous=4, now=play.at) == (OpenWave(version=6, index=0, fraction=0.2),)
    assert play.health(version=5, fallen_back=9) == ()


def test_one_rollout_at_a_time_and_numbers_only_grow(play):
    with pytest.raises(RolloutError, match="has to wait"):
        play.machine.start(6, previous=5, now=play.at)
    play.machine.halt("the operator says so")
    with pytest.raises(RolloutError, match="not above 5"):
        play.machine.start(5, previous=4, now=play.at)
    with pytest.raises(RolloutError, match="nothing to halt"):
        play.machine.halt("again")


def test_the_operator_can_halt(play):
    assert play.machine.halt("smoke") == (Halt(version=5, reason="smoke"), RollBack(version=5, to=4))


def test_a_clock_that_was_set_back_only_prolongs_a_wave(play):
    play.health(healthy=4)
    assert play.wait(-3600) == ()
    assert play.wait(3610) != ()


@pytest.mark.parametrize("after", ["start", "wave", "halt", "complete"])
def test_a_restart_goes_on_and_repeats_the_last_decision(worlds, after):
    play = Play(worlds, RolloutSettings(waves=(0.2, 1.0), min_soak_s=1, wave_deadline_s=60))
    last = play.opening
    if after in ("wave", "complete"):
        play.health(healthy=4)
        last = play.wait(1)
    if after == "complete":
        play.health(healthy=20)
        last = play.wait(1)
    if after == "halt":
        last = play.health(fallen_back=1)
    again = RolloutMachine.from_json(play.machine._settings, play.machine.to_json())
    assert again.state == play.machine.state
    assert again.resume()[-len(last) :] == last
    assert again.state == play.machine.state


def test_an_idle_machine_does_nothing(worlds):
    machine = RolloutMachine(SETTINGS)
    assert machine.on_tick(worlds.START) == machine.resume() == ()
    assert machine.on_health(HealthTotals(version=1, attached=1, fallen_back=1)) == ()
    assert machine.fraction == 0.0


def test_a_state_that_is_none_is_refused():
    with pytest.raises(DurableError):
        RolloutMachine.from_json(SETTINGS, b'{"phase":"dancing"}')


@pytest.mark.parametrize("waves", [(), (0.5,), (0.5, 0.2, 1.0), (0.0, 1.0), (1.0, 1.0), (0.5, 1.5)])
def test_waves_that_do_not_grow_to_all_are_refused(waves):
    with pytest.raises(ValidationError):
        RolloutSettings(waves=waves)


DEVICES = [f"robot-{number}" for number in range(40)]


@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0), st.integers(1, 10**6))
def test_waves_grow_and_never_are_empty(one, other, version):
    small, large = sorted((one, other))
    assert wave_members(DEVICES, version, small) <= wave_members(DEVICES, version, large)
    assert len(wave_members(DEVICES, version, small)) == wave_size(len(DEVICES), small) >= 1
    assert wave_members(DEVICES, version, 1.0) == set(DEVICES)


def test_every_version_has_other_canaries_and_everybody_agrees_who():
    members = [wave_members(DEVICES, version, 0.1) for version in range(1, 30)]
    assert len(set(members)) > 20
    assert len(frozenset().union(*members)) > 30
    assert wave_members(DEVICES[::-1], 3, 0.1) == wave_members(DEVICES, 3, 0.1)


def test_sizes_of_waves():
    assert [wave_size(num, 0.1) for num in (0, 1, 10, 11, 30)] == [0, 1, 1, 2, 3]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["tick", "health", "restart"]), st.integers(0, 100), st.integers(0, 20), st.integers(0, 20)
        ),
        max_size=40,
    )
)
def test_whatever_happens_a_bad_version_reaches_no_further_wave(events):
    """After a halt nothing opens; before it, no wave opens while the known failures are above the limit."""
    machine = RolloutMachine(SETTINGS)
    machine.start(5, previous=4, now=START)
    at, halted = START, False
    for kind, seconds, healthy, fallen_back in events:
        at += timedelta(seconds=seconds)
        if kind == "restart":
            machine = RolloutMachine.from_json(SETTINGS, machine.to_json())
            continue
        actions = machine.on_tick(at) if kind == "tick" else machine.on_health(
            HealthTotals(version=5, attached=20, healthy=healthy, fallen_back=fallen_back)
        )  # fmt: skip
        assert not (halted and actions)
        for action in actions:
            halted |= isinstance(action, Halt)
            if isinstance(action, OpenWave):
                totals = machine.state.totals
                assert totals.num_reports >= 2
                assert totals.fallen_back <= 0.2 * totals.num_reports
