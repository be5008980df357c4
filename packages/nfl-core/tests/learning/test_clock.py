from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfl_core.errors import LearningError
from nfl_core.learning import LevelClock

PERIODS = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(
    lambda p: tuple((f"level-{i}", c) for i, c in enumerate(p))
)


@settings(deadline=None)  # a busy machine is no fault of the clock
@given(periods=PERIODS, num=st.integers(0, 40), flushes=st.sets(st.integers(0, 40)))
def test_every_batch_is_applied_exactly_once_by_every_level(
    periods: tuple[tuple[str, int], ...], num: int, flushes: set[int]
) -> None:
    clock = LevelClock(periods)
    applied = {name: 0 for name, _ in periods}
    for i in range(num):
        for name, count in clock.tick():
            assert count == dict(periods)[name]
            applied[name] += count
        if i in flushes:
            for name, count in clock.flush():
                assert 0 < count < dict(periods)[name]
                applied[name] += count
    for name, count in clock.flush():
        applied[name] += count
    assert set(applied.values()) == {num}
    assert clock.flush() == ()


@settings(deadline=None)
@given(periods=PERIODS, before=st.integers(0, 20), after=st.integers(1, 20))
def test_a_clock_goes_on_where_it_was_saved(periods: tuple[tuple[str, int], ...], before: int, after: int) -> None:
    clock, again = LevelClock(periods), LevelClock(periods)
    for _ in range(before):
        clock.tick()
    again.load_json(clock.to_json())
    assert [clock.tick() for _ in range(after)] == [again.tick() for _ in range(after)]
    assert again.num_ticks == before + after


def test_a_held_level_counts_nothing_and_keeps_its_open_chunk() -> None:
    clock = LevelClock((("fast", 1), ("slow", 3)))
    clock.tick()
    held = frozenset({"slow"})
    assert [clock.tick(held=held) for _ in range(5)] == [(("fast", 1),)] * 5
    assert clock.flush(held=held) == ()
    assert clock.gathered("slow") == 1
    clock.tick()
    assert clock.tick() == (("fast", 1), ("slow", 3))
    assert clock.num_ticks == 8


@pytest.mark.parametrize(
    "counters",
    [
        {"ticks": 1},
        {"ticks": 1, "level.other": 0},
        {"ticks": 1, "level.slow": 4},
        {"ticks": 1, "level.slow": -1},
        {"ticks": -1, "level.slow": 0},
    ],
)
def test_counters_that_cannot_be_are_refused_and_change_nothing(counters: dict[str, int]) -> None:
    clock = LevelClock((("slow", 4),))
    clock.tick()
    with pytest.raises(LearningError, match=r"counters|gathered|ticks"):
        clock.load_json(counters)
    assert clock.to_json() == {"ticks": 1, "level.slow": 1}
