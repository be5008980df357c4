"""Rollout of a version in waves: when the next wave opens, when the rollout halts and rolls back. Pure.

`RolloutMachine` holds a state and takes events; each answers with actions that the caller carries out. Rules:

* a wave opens the next one when it has soaked for `min_soak_s`, and every device in it has reported or its deadline has
  passed; a wave that is past its deadline with fewer than `min_reports` waits: nothing is opened blindly, and devices
  that are away hold up nobody once enough have reported;
* when of at least `min_reports` reports more than `max_failure_fraction` are failures (devices that fell back), or more
  than `max_refusal_fraction` are refused merges, the rollout halts and rolls back to the version before;
* that also holds after the last wave: late reports count until the next version starts;
* reports about another version change nothing;
* the state is JSON: a process that starts again goes on from it, and `resume` repeats the last decision. Store the
  state before the actions are carried out, and carry them out so that doing so twice does no harm.

    >>> machine = RolloutMachine(RolloutSettings(waves=(0.2, 1.0)))
    >>> machine.start(VersionId(5), previous=VersionId(4), now=at)
    (OpenWave(version=5, index=0, fraction=0.2),)
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, TypeAlias

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from nfl_core.errors import DurableError
from nfl_core.ids import DeviceId, VersionId, canonical_json
from nfl_ota.errors import RolloutError


class RolloutSettings(BaseModel):
    """The policy of a rollout.

    Attributes:
        waves: Fraction of the devices that a wave reaches, counted from the start; growing, the last is 1.
        min_soak_s: Shortest time of a wave.
        wave_deadline_s: After it a wave waits no more for devices that have not reported.
        max_failure_fraction: Of the reports.
        max_refusal_fraction: Of the reports; some devices rightly refuse a merge that would not suit their owner.
        min_reports: Before these nothing is decided.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    waves: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.01, 0.05, 0.25, 1.0), min_length=1)
    min_soak_s: float = Field(default=3600.0, ge=0, allow_inf_nan=False)
    wave_deadline_s: float = Field(default=86400.0, gt=0, allow_inf_nan=False)
    max_failure_fraction: float = Field(default=0.2, ge=0, le=1)
    max_refusal_fraction: float = Field(default=0.5, ge=0, le=1)
    min_reports: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _growing(self) -> Self:
        if list(self.waves) != sorted(set(self.waves)) or self.waves[-1] != 1.0:
            raise ValueError(f"waves are {self.waves}, expected growing fractions that end in 1.0")
        return self


class HealthTotals(BaseModel):
    """What devices reported about a version, summed over the fleet; each device counts once, in its newest report.

    Attributes:
        version: That the numbers are about.
        attached: Devices of the fleet, whatever they run.
        healthy: Devices that confirmed the version.
        fallen_back: Devices that gave it up.
        merge_refused: Devices that refused to merge it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = Field(ge=1)
    attached: int = Field(ge=0)
    healthy: int = Field(default=0, ge=0)
    fallen_back: int = Field(default=0, ge=0)
    merge_refused: int = Field(default=0, ge=0)

    @property
    def num_reports(self) -> int:
        """Devices that have decided about the version."""
        return self.healthy + self.fallen_back + self.merge_refused


class Phase(str, Enum):
    """Where a rollout stands."""

    IDLE = "idle"
    RUNNING = "running"
    HALTED = "halted"
    COMPLETE = "complete"


class RolloutState(BaseModel):
    """All that a rollout remembers.

    Attributes:
        phase: Where it stands.
        version: Being rolled out.
        previous: What the devices ran before; None for the first version.
        wave: Index of the newest open wave.
        opened_at: When that wave opened.
        totals: Newest numbers about the version.
        why: Reason of a halt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    phase: Phase = Phase.IDLE
    version: int | None = None
    previous: int | None = None
    wave: int = Field(default=0, ge=0)
    opened_at: AwareDatetime | None = None
    totals: HealthTotals | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWave:
    """Offer the version to this fraction of the devices.

    Attributes:
        version: To offer.
        index: Of the wave, from 0.
        fraction: Of all devices, those of earlier waves included.
    """

    version: VersionId
    index: int
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Offer the version to nobody any more.

    Attributes:
        version: That failed.
        reason: Why, with the figures.
    """

    version: VersionId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack:
    """Publish the content of `to` under a new, higher number.

    Attributes:
        version: That failed.
        to: Version whose content comes back.
    """

    version: VersionId
    to: VersionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """Every wave is through.

    Attributes:
        version: That all devices are offered.
    """

    version: VersionId


Action: TypeAlias = OpenWave | Halt | RollBack | Complete


class RolloutMachine:
    """One fleet's rollout.

    Args:
        settings: The policy.
        state: To go on from; None: idle.
    """

    def __init__(self, settings: RolloutSettings, state: RolloutState | None = None) -> None:
        self._settings = settings
        self._state = state or RolloutState()

    @property
    def state(self) -> RolloutState:
        """What it remembers now."""
        return self._state

    @property
    def fraction(self) -> float:
        """Fraction of the devices that are offered the version now; 0 when none are."""
        if self._state.phase in (Phase.IDLE, Phase.HALTED):
            return 0.0
        # A restart with fewer waves in the policy must not reach back beyond its last one.
        return self._settings.waves[min(self._state.wave, len(self._settings.waves) - 1)]

    def start(self, version: VersionId, *, previous: VersionId | None, now: datetime) -> tuple[Action, ...]:
        """Begin to roll a version out; a rollout that is halted or complete is over with that.

        Args:
            version: New.
            previous: What devices run now and would go back to.
            now: Aware.

        Raises:
            RolloutError: Another rollout is running, or `version` is not above it and `previous`.
        """
        if self._state.phase is Phase.RUNNING:
            raise RolloutError(f"version {self._state.version} is being rolled out, version {version} has to wait")
        floor = max(previous or 0, self._state.version or 0)
        if version <= floor:
            raise RolloutError(f"version {version} is not above {floor}")
        self._state = RolloutState(phase=Phase.RUNNING, version=version, previous=previous, opened_at=now)
        return (self._wave(),)

    def on_health(self, totals: HealthTotals) -> tuple[Action, ...]:
        """Take the newest numbers in; halt if they are bad enough."""
        if self._state.phase not in (Phase.RUNNING, Phase.COMPLETE) or totals.version != self._state.version:
            return ()
        self._state = self._state.model_copy(update={"totals": totals})
        why = self._verdict(totals)
        return () if why is None else self._halt(why)

    def on_tick(self, now: datetime) -> tuple[Action, ...]:
        """Let time pass; open the next wave, or complete, when the present one is through.

        Args:
            now: Aware. A clock that was set back only prolongs the wave.
        """
        state = self._state
        if state.phase is not Phase.RUNNING or state.opened_at is None or state.totals is None:
            return ()
        age = now - state.opened_at
        due = age >= timedelta(seconds=self._settings.wave_deadline_s)
        expected = wave_size(state.totals.attached, self.fraction)
        enough = state.totals.num_reports >= (
            self._settings.min_reports if due else max(expected, self._settings.min_reports)
        )
        if age < timedelta(seconds=self._settings.min_soak_s) or not enough:
            return ()
        if state.wave + 1 >= len(self._settings.waves):
            self._state = state.model_copy(update={"phase": Phase.COMPLETE})
            return (Complete(version=self._version),)
        self._state = state.model_copy(update={"wave": state.wave + 1, "opened_at": now})
        return (self._wave(),)

    def halt(self, reason: str) -> tuple[Action, ...]:
        """Halt and roll back because somebody says so.

        Raises:
            RolloutError: Nothing is being rolled out.
        """
        if self._state.phase not in (Phase.RUNNING, Phase.COMPLETE):
            raise RolloutError(f"the rollout is {self._state.phase.value}, there is nothing to halt")
        return self._halt(reason)

    def resume(self) -> tuple[Action, ...]:
        """Repeat the last decision, after a restart that may have come before it was carried out."""
        match self._state.phase:
            case Phase.RUNNING:
                return (self._wave(),)
            case Phase.HALTED:
                return self._halted()
            case Phase.COMPLETE:
                return (self._wave(), Complete(version=self._version))
            case _:
                return ()

    def is_overdue(self, now: datetime) -> bool:
        """Whether the present wave is past its deadline and waits for reports: somebody should look at it."""
        opened_at = self._state.opened_at
        late = opened_at is not None and now - opened_at >= timedelta(seconds=self._settings.wave_deadline_s)
        return late and self._state.phase is Phase.RUNNING

    def to_json(self) -> bytes:
        """Return the state, to be stored durably before actions are carried out."""
        return canonical_json(self._state.model_dump(mode="json"))

    @classmethod
    def from_json(cls, settings: RolloutSettings, data: bytes) -> Self:
        """Go on from a stored state.

        Raises:
            DurableError: `data` is not a stored state.
        """
        try:
            return cls(settings, RolloutState.model_validate_json(data))
        except ValidationError as error:
            raise DurableError(
                f"the state of the rollout cannot be understood: {error.error_count()} faults"
            ) from error

    @property
    def _version(self) -> VersionId:
        return VersionId(self._state.version or 0)  # every phase but idle has one

    def _wave(self) -> OpenWave:
        return OpenWave(version=self._version, index=self._state.wave, fraction=self.fraction)

    def _verdict(self, totals: HealthTotals) -> str | None:
        num = totals.num_reports
        if num < self._settings.min_reports:
            return None
        # A device that falls back was harmed: halt on the first reports. One that refuses a merge runs on unharmed, so
        # its vote waits for the rest of the wave.
        wave = max(num, wave_size(totals.attached, self.fraction))
        for what, count, among, limit in (
            ("fell back", totals.fallen_back, num, self._settings.max_failure_fraction),
            ("refused the merge", totals.merge_refused, wave, self._settings.max_refusal_fraction),
        ):
            if count > limit * among:
                return f"{count} of {among} devices {what}, more than {limit:.0%} of them"
        return None

    def _halt(self, why: str) -> tuple[Action, ...]:
        self._state = self._state.model_copy(update={"phase": Phase.HALTED, "why": why})
        return self._halted()

    def _halted(self) -> tuple[Action, ...]:
        halt = Halt(version=self._version, reason=self._state.why)
        if self._state.previous is None:
            return (halt,)
        return (halt, RollBack(version=self._version, to=VersionId(self._state.previous)))


def wave_size(num_devices: int, fraction: float) -> int:
    """Return how many of so many devices a wave reaches: at least one, if there is one.

    Args:
        num_devices: >= 0.
        fraction: In (0, 1].
    """
    # 0.1 * 30 is a little above 3 in binary fractions; it must not reach a fourth device.
    return min(num_devices, max(1, math.ceil(fraction * num_devices - 1e-9)))


def wave_members(device_ids: Collection[DeviceId], version: VersionId, fraction: float) -> frozenset[DeviceId]:
    """Choose the devices of a wave: the same ones everywhere, others for every version, growing with the fraction.

    Args:
        device_ids: All devices.
        version: Being rolled out.
        fraction: In (0, 1].
    """
    key = f"nfl/v1/wave/{version}".encode()
    order = sorted(device_ids, key=lambda device: (hmac.new(key, device.encode(), hashlib.sha256).digest(), device))
    return frozenset(order[: wave_size(len(order), fraction)])
