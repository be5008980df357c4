"""Which devices are always there when a batch is odd: scores over rounds, quarantine, release. Pure.

A sealed batch shows its mean and who is in it, never who did what. But rosters change from round to round, and the
figures of `score_batches` are means over devices. So the figures of many batches are a system of linear equations in
one unknown a device, and even where most batches are bad, most devices are good: their unknowns tell what is normal.

Rules:

* figures stand next to the median batch of their round, as `score_batches` gives them; a round counts `DECAY` less
  with each that comes after it;
* nobody is judged before there are more batches than devices: until then many answers fit equally well;
* a device is put into quarantine when one of its unknowns is more than `threshold` robust deviations above the median
  of all devices, for two rounds running; never more than `max_fraction` of the devices at once, the oddest first;
* after `hold` rounds it is released, is judged by what it did since, and a second quarantine is twice as long;
* a robust deviation of few devices is itself uncertain, so the threshold grows by 1 + 4 / number of devices.

With honest devices that differ, from each other and by round, by normal amounts, one in a hundred is put into
quarantine within 60 rounds at the default threshold; the tests hold it to that. Where they differ by lognormal amounts
it is one in seven (simulated, 20 devices, 15 seeds): an honest device with a rare world looks like an attacker.

    >>> state = ReputationState()
    >>> state, changes = observe(state, [Observation(members=("a", "b"), figures=(0.1, 1.0))], settings=Settings())
    >>> changes
    ()

Source: our own; the idea is group testing with a linear model (Dorfman 1943), the robust z-score that of Iglewicz and
Hoaglin 1993.

Shape legend: B batches, D devices, F figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nfl_core.errors import ConfigError, DurableError

DECAY = 0.93  # a round; half of a device's past is forgotten after ten
WINDOW = 40  # rounds; what is older weighs below 6 %
RIDGE = 0.01  # keeps two devices that were always together apart: each is given half
TO_DEVIATION = 1.4826  # of the median absolute deviation, for normal numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """When a device is put into quarantine.

    Attributes:
        threshold: Robust deviations above the others, > 0.
        hold: Rounds in quarantine, >= 1; twice as many each further time.
        max_fraction: Of the devices that may be in quarantine at once, in [0, 0.5).
    """

    threshold: float = 4.0
    hold: int = 20
    max_fraction: float = 0.25

    def __post_init__(self) -> None:
        """Check the ranges. Raises ConfigError."""
        if self.threshold <= 0 or self.hold < 1 or not 0 <= self.max_fraction < 0.5:
            raise ConfigError(f"reputation settings out of range: {self}")


class Observation(BaseModel):
    """One batch: who was in it, and its figures, each a mean over them; 0 is usual, large is bad."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: tuple[str, ...]
    figures: tuple[float, ...]


class Mark(BaseModel):
    """What is held against a device.

    Attributes:
        since: Round in which it was put into quarantine last.
        until: First round in which it may be in a roster again.
        strikes: How often it was put there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: int
    until: int
    strikes: int


class ReputationState(BaseModel):
    """All that is remembered; `encode` and `decode` for a durable record.

    Attributes:
        round: Rounds seen so far.
        rounds: The last of them, oldest first, with their numbers.
        odd: Devices that were above the threshold in the last round.
        marks: By device.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int = 0
    rounds: tuple[tuple[int, tuple[Observation, ...]], ...] = ()
    odd: tuple[str, ...] = ()
    marks: dict[str, Mark] = {}

    def quarantined(self) -> frozenset[str]:
        """Return the devices that are not to be in the next round's rosters."""
        return frozenset(name for name, mark in self.marks.items() if self.round < mark.until)

    def encode(self) -> bytes:
        """Return the bytes of a durable record."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes) -> ReputationState:
        """Return what `encode` was called on. Raises DurableError."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise DurableError(f"reputation cannot be read: {error.error_count()} faults") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A device went into quarantine (`deviations` says how odd it is) or was released (None)."""

    device: str
    until: int
    deviations: float | None


def observe(
    state: ReputationState, batches: Sequence[Observation], *, settings: Settings
) -> tuple[ReputationState, tuple[Change, ...]]:
    """Take the batches of one round into account and judge.

    Args:
        state: Before.
        batches: Of the round; may be empty. Batches without members or with figures that are not finite are left out.
        settings: When to act.

    Returns:
        The state after, and who went into or out of quarantine.

    Raises:
        ConfigError: Batches have different numbers of figures.
    """
    usable = tuple(batch for batch in batches if batch.members and np.isfinite(batch.figures).all())
    kept = ((*state.rounds, (state.round, usable)) if usable else state.rounds)[-WINDOW:]
    if len({len(batch.figures) for _, round_ in kept for batch in round_}) > 1:
        raise ConfigError("batches have different numbers of figures, expected the same for all")
    deviations = _deviations(kept, now=state.round, marks=state.marks)
    limit = settings.threshold * (1 + 4 / max(1, len(deviations)))
    odd = {name: value for name, value in deviations.items() if value > limit}
    now, marks, inside = state.round + 1, dict(state.marks), state.quarantined()
    changes = [Change(device=name, until=now, deviations=None) for name in sorted(inside) if marks[name].until <= now]
    everybody = {name for _, round_ in kept for batch in round_ for name in batch.members}
    places = math.floor(settings.max_fraction * len(everybody)) - sum(marks[name].until > now for name in inside)
    for name in sorted(odd, key=lambda name: (-odd[name], name)):
        if places > 0 and name in state.odd and name not in inside:
            strikes = marks[name].strikes + 1 if name in marks else 1
            marks[name] = Mark(since=now, until=now + settings.hold * 2 ** (strikes - 1), strikes=strikes)
            changes.append(Change(device=name, until=marks[name].until, deviations=odd[name]))
            places -= 1
    return ReputationState(round=now, rounds=kept, odd=tuple(sorted(odd)), marks=marks), tuple(changes)


def _deviations(
    rounds: Sequence[tuple[int, tuple[Observation, ...]]], *, now: int, marks: dict[str, Mark]
) -> dict[str, float]:
    """Return by how many robust deviations each device is above the others, in its worst figure.

    What a device did before its last quarantine is an unknown of its own: it was judged for that already, and it must
    not be put down to those who were with it.
    """
    keys = sorted(
        {_key(name, number, marks) for number, round_ in rounds for batch in round_ for name in batch.members}
    )
    num_batches = sum(len(round_) for _, round_ in rounds)
    place = {key: column for column, key in enumerate(keys)}
    judged = [place[key] for key in keys if not key[1]]
    if len(judged) < 3 or num_batches <= len(keys):
        return {}
    shares_BD, weights_B = np.zeros((num_batches, len(keys))), np.zeros(num_batches)
    figures_BF: list[NDArray[np.float64]] = []
    for number, round_ in rounds:
        for batch in round_:
            row = len(figures_BF)
            shares_BD[row, [place[_key(name, number, marks)] for name in batch.members]] = 1 / len(batch.members)
            weights_B[row] = DECAY ** (now - number)
            figures_BF.append(np.asarray(batch.figures))
    worst_D = _robust_z(_solve(shares_BD, np.array(figures_BF), weights_B)[judged]).max(axis=1)
    return {keys[column][0]: float(worst) for column, worst in zip(judged, worst_D, strict=True)}


def _key(name: str, number: int, marks: dict[str, Mark]) -> tuple[str, bool]:
    """Return a device's name and whether a round lies before its last quarantine."""
    return name, name in marks and number < marks[name].since


def _solve(
    shares_BD: NDArray[np.float64], figures_BF: NDArray[np.float64], weights_B: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what each device adds to the figures, [D, F]: weighted least squares, held to small answers."""
    weighted_BD = weights_B[:, None] * shares_BD
    normal_DD = shares_BD.T @ weighted_BD + RIDGE * np.eye(shares_BD.shape[1])
    return np.asarray(np.linalg.solve(normal_DD, weighted_BD.T @ figures_BF))


def _robust_z(parts_DF: NDArray[np.float64]) -> NDArray[np.float64]:
    apart_DF = parts_DF - np.median(parts_DF, axis=0)
    spread_F = TO_DEVIATION * np.median(np.abs(apart_DF), axis=0)
    return np.asarray(apart_DF / np.maximum(spread_F, 1e-9))
