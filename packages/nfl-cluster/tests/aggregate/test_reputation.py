"""Who is always there when a batch is odd. Worlds are simulated: honest devices differ by device and by round."""

from __future__ import annotations

import numpy as np
import pytest

from nfl_cluster.aggregate.reputation import Observation, ReputationState, Settings, observe
from nfl_core.errors import ConfigError, DurableError

NUM_DEVICES = 20
STATED_BOUND = 0.01  # of honest devices within 60 rounds, in the module's docstring


def _play(
    seed: int, *, batch_size: int, num_bad: int = 0, gap: float = 0.0, rounds: int = 60, shuffled: bool = True
) -> dict[int, int]:
    """Return device -> round of its first quarantine; bad devices are the first ones, odd by `gap` deviations."""
    generator, state, found = np.random.default_rng(seed), ReputationState(), dict[int, int]()
    habits_DF = generator.normal(size=(NUM_DEVICES, 2))
    habits_DF[:num_bad, 0] += gap
    for number in range(rounds):
        away = state.quarantined()
        present = [device for device in range(NUM_DEVICES) if str(device) not in away]
        order = generator.permutation(present).tolist() if shuffled else present
        batches = []
        for at in range(0, len(order), batch_size):
            roster = order[at : at + batch_size]
            figures_F = (habits_DF[roster] + generator.normal(size=(len(roster), 2))).mean(axis=0)
            batches.append(Observation(members=tuple(map(str, roster)), figures=tuple(map(float, figures_F))))
        state, changes = observe(state, batches, settings=Settings())
        for change in changes:
            if change.deviations is not None:
                found.setdefault(int(change.device), number + 1)
    return found


def test_honest_devices_are_quarantined_less_often_than_stated() -> None:
    worlds = [_play(seed, batch_size=size) for size in (2, 4) for seed in range(8)]
    num_wrong = sum(map(len, worlds))
    # 16 worlds of 20 devices and 60 rounds: 320 devices; the bound allows 3.2, two deviations of chance another 3.6.
    assert num_wrong <= STATED_BOUND * NUM_DEVICES * len(worlds) + 3.6


@pytest.mark.parametrize(("batch_size", "within"), [(2, 15), (4, 25)])
def test_a_persistent_attacker_is_found_although_most_batches_are_bad(batch_size: int, within: int) -> None:
    worlds = [_play(seed, batch_size=batch_size, num_bad=4, gap=12.0, rounds=within) for seed in range(5)]
    found = [device for world in worlds for device in world]
    assert sum(device < 4 for device in found) >= 19  # of 20
    assert sum(device >= 4 for device in found) <= 1  # of 80


def test_rosters_that_never_change_give_the_attacker_s_neighbours_the_blame_too() -> None:
    worlds = [_play(seed, batch_size=4, num_bad=1, gap=60.0, rounds=12, shuffled=False) for seed in range(3)]
    first = [{device for device, found in world.items() if found == min(world.values())} for world in worlds]
    assert all(found >= {0, 1, 2, 3} for found in first)
    worlds = [_play(seed, batch_size=4, num_bad=1, gap=60.0, rounds=12) for seed in range(3)]
    assert all(set(world) == {0} for world in worlds)


def test_quarantine_ends_and_the_second_one_is_twice_as_long() -> None:
    generator, state, spells = np.random.default_rng(1), ReputationState(), []
    for _ in range(150):
        away = state.quarantined()
        order = [str(d) for d in generator.permutation(NUM_DEVICES) if str(d) not in away]
        rosters = [order[at : at + 2] for at in range(0, len(order), 2)]
        batches = [
            Observation(members=tuple(r), figures=(10.0 * ("0" in r) + float(generator.normal()),)) for r in rosters
        ]
        before, (state, changes) = state.round, observe(state, batches, settings=Settings(hold=10))
        spells += [
            change.until - before - 1 for change in changes if change.device == "0" and change.deviations is not None
        ]
    assert spells[:2] == [10, 20]
    assert state.marks["0"].strikes == len(spells)


def test_no_more_than_the_agreed_fraction_is_ever_in_quarantine() -> None:
    generator, state = np.random.default_rng(2), ReputationState()
    for _ in range(40):
        order = [d for d in generator.permutation(NUM_DEVICES).tolist() if str(d) not in state.quarantined()]
        rosters = [order[at : at + 2] for at in range(0, len(order), 2)]
        batches = [
            Observation(members=tuple(map(str, r)), figures=(float(np.mean([30.0 * (d < 6) for d in r])),))
            for r in rosters
        ]
        state, _ = observe(state, batches, settings=Settings(max_fraction=0.1))
        assert len(state.quarantined()) <= 2


def test_nobody_is_judged_before_there_are_more_batches_than_devices() -> None:
    state = ReputationState()
    for _ in range(2):
        batches = [Observation(members=(f"{d}", f"{d + 1}"), figures=(50.0 * (d == 0),)) for d in range(0, 20, 2)]
        state, changes = observe(state, batches, settings=Settings())
        assert not changes
        assert not state.odd


def test_the_same_rounds_give_the_same_bytes_and_the_state_comes_back() -> None:
    batches = [Observation(members=("a", "b"), figures=(0.1, 1.0)), Observation(members=("c",), figures=(0.2, 1.5))]
    one, other = (observe(ReputationState(), batches, settings=Settings())[0] for _ in range(2))
    assert one.encode() == other.encode()
    assert ReputationState.decode(one.encode()) == one
    with pytest.raises(DurableError, match="cannot be read"):
        ReputationState.decode(b"{}x")


def test_what_is_no_observation_is_left_out_or_refused() -> None:
    nothing = [
        Observation(members=(), figures=(1.0,)),
        Observation(members=("a",), figures=(float("nan"),)),
    ]
    state, _ = observe(ReputationState(), nothing, settings=Settings())
    assert (state.round, state.rounds) == (1, ())
    mixed = [Observation(members=("a",), figures=(1.0,)), Observation(members=("b",), figures=(1.0, 2.0))]
    with pytest.raises(ConfigError, match="different numbers of figures"):
        observe(ReputationState(), mixed, settings=Settings())
    with pytest.raises(ConfigError, match="out of range"):
        Settings(max_fraction=0.5)
