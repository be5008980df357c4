"""Drives `nfl_ota.rollout` from the counts that leaves report. Pure: the caller stores and carries out.

Rules:

* what a leaf reports is cumulative, so only its newest report counts, and none is added twice;
* the first version and a rolled back one go to everybody at once: there is nothing better to wait with.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from nfl_core.config import RolloutSection
from nfl_core.ids import VersionId
from nfl_core.wire import sites_pb2
from nfl_ota import HealthTotals, Phase, RolloutMachine, RolloutSettings, RolloutState
from nfl_ota.rollout import Action

MAX_REFUSAL_FRACTION = 0.5  # some owners rightly refuse; when most do, the version is at fault


class LeafHealth(BaseModel):
    """The newest report of one leaf."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sequence: int
    version: int
    attached: int
    installed: int
    healthy: int
    fallen_back: int
    merge_refused: int
    counters: dict[str, int] = Field(default_factory=dict)


class DriverState(BaseModel):
    """All that the driver remembers.

    Attributes:
        machine: Of the rollout.
        is_at_once: Whether this version goes to everybody at once.
        leaves: Newest report by leaf.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    machine: RolloutState = RolloutState()
    is_at_once: bool = True
    leaves: dict[str, LeafHealth] = Field(default_factory=dict)


class RolloutDriver:
    """One fleet's rollout, fed by its leaves.

    Args:
        section: The policy.
        state: To go on from.
    """

    def __init__(self, section: RolloutSection, state: DriverState) -> None:
        self._section = section
        self._leaves = dict(state.leaves)
        self._is_at_once = state.is_at_once
        self._machine = RolloutMachine(self._settings(), state.machine)

    @property
    def state(self) -> DriverState:
        """What it remembers now."""
        return DriverState(machine=self._machine.state, is_at_once=self._is_at_once, leaves=self._leaves)

    @property
    def fraction(self) -> float:
        """Fraction of the devices that are offered the version now."""
        return self._machine.fraction

    @property
    def phase(self) -> Phase:
        """Where the rollout stands."""
        return self._machine.state.phase

    @property
    def version(self) -> int:
        """The version it is about, 0 when there is none."""
        return self._machine.state.version or 0

    def start(
        self, version: VersionId, *, previous: VersionId | None, at_once: bool, now: datetime
    ) -> tuple[Action, ...]:
        """Begin a rollout. Raises RolloutError while another one runs."""
        self._is_at_once = at_once
        self._machine = RolloutMachine(self._settings(), self._machine.state)
        return self._machine.start(version, previous=previous, now=now)

    def on_health(self, counts: sites_pb2.HealthCounts) -> tuple[Action, ...]:
        """Take a leaf's report; an old one changes nothing."""
        known = self._leaves.get(counts.leaf)
        if known is not None and counts.sequence <= known.sequence:
            return ()
        self._leaves[counts.leaf] = LeafHealth(
            sequence=counts.sequence,
            version=counts.version,
            attached=counts.attached,
            installed=counts.installed,
            healthy=counts.healthy,
            fallen_back=counts.fallen_back,
            merge_refused=counts.merge_refused,
            counters=dict(counts.counters),
        )
        return self._machine.on_health(self._totals())

    def on_tick(self, now: datetime) -> tuple[Action, ...]:
        """Let time pass."""
        return self._machine.on_tick(now)

    def halt(self, reason: str) -> tuple[Action, ...]:
        """Halt because somebody says so. Raises RolloutError when nothing is being rolled out."""
        return self._machine.halt(reason)

    def _totals(self) -> HealthTotals:
        version = self.version
        about = [leaf for leaf in self._leaves.values() if leaf.version == version]
        return HealthTotals(
            version=version,
            attached=sum(leaf.attached for leaf in self._leaves.values()),
            healthy=sum(leaf.healthy for leaf in about),
            fallen_back=sum(leaf.fallen_back for leaf in about),
            merge_refused=sum(leaf.merge_refused for leaf in about),
        )

    def _settings(self) -> RolloutSettings:
        section = self._section
        return RolloutSettings(
            waves=(1.0,) if self._is_at_once else section.waves,
            min_soak_s=section.min_soak_s,
            wave_deadline_s=section.wave_deadline_s,
            max_failure_fraction=section.max_failure_fraction,
            max_refusal_fraction=MAX_REFUSAL_FRACTION,
            min_reports=section.min_reports,
        )
