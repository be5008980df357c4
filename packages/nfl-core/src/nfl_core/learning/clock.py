"""When a level steps: logical clocks that count observed batches, never seconds.

A level of period C steps when it has gathered C batches. Pure and serialisable, so a device that loses power in the
middle of a chunk goes on with the batch after the last one it saved.

    >>> clock = LevelClock((("fast", 1), ("slow", 4)))
    >>> [clock.tick() for _ in range(4)][2:]
    [(('fast', 1),), (('fast', 1), ('slow', 4))]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nfl_core.errors import LearningError


class LevelClock:
    """Counts the batches that each level has gathered since its last step.

    Args:
        periods: (level name, period >= 1), fastest first.
    """

    def __init__(self, periods: tuple[tuple[str, int], ...]) -> None:
        self._periods = dict(periods)
        self._gathered = dict.fromkeys(self._periods, 0)
        self.num_ticks = 0

    def tick(self, *, held: frozenset[str] = frozenset()) -> tuple[tuple[str, int], ...]:
        """Count one batch; return (level, batches gathered) for the levels that are due, fastest first.

        They start a new chunk. Held levels count nothing.
        """
        self.num_ticks += 1
        self._gathered = {name: gathered + (name not in held) for name, gathered in self._gathered.items()}
        return self._take(name for name, gathered in self._gathered.items() if gathered == self._periods[name])

    def flush(self, *, held: frozenset[str] = frozenset()) -> tuple[tuple[str, int], ...]:
        """Return (level, batches gathered) for the levels in the middle of a chunk; they start a new one.

        Chunks of held levels stay open.
        """
        return self._take(name for name, gathered in self._gathered.items() if gathered and name not in held)

    def _take(self, names: Iterable[str]) -> tuple[tuple[str, int], ...]:
        due = tuple((name, self._gathered[name]) for name in names)
        self._gathered.update((name, 0) for name, _ in due)
        return due

    def gathered(self, name: str) -> int:
        """Return how many batches level `name` has gathered since its last step."""
        return self._gathered[name]

    def to_json(self) -> dict[str, int]:
        """Return the counters as a flat JSON object; a level's name is preceded by `level.`."""
        return {"ticks": self.num_ticks, **{f"level.{name}": gathered for name, gathered in self._gathered.items()}}

    def load_json(self, counters: Mapping[str, int]) -> None:
        """Take over counters that `to_json` returned.

        Raises:
            LearningError: They belong to other levels or cannot have been reached with these periods.
        """
        expected = {"ticks", *(f"level.{name}" for name in self._periods)}
        if set(counters) != expected:
            raise LearningError(f"clock has counters {sorted(counters)}, expected {sorted(expected)}")
        for name, period in self._periods.items():
            if not 0 <= counters[f"level.{name}"] < period:
                raise LearningError(f"level {name!r} has gathered {counters[f'level.{name}']} batches of {period}")
        if counters["ticks"] < 0:
            raise LearningError(f"clock stands at {counters['ticks']} ticks, expected >= 0")
        self.num_ticks = counters["ticks"]
        self._gathered = {name: counters[f"level.{name}"] for name in self._periods}
