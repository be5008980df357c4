"""Which devices are at this leaf, what each of them is offered, and how a version fares among them.

Rules:

* a device is attached when it has said hello once; it stays, also when it is away;
* a device in an open wave is offered the version, and goes on being offered it when others join;
* everybody else is offered what ran before, unless the device runs something newer already: nothing goes backwards;
* counts are cumulative, each device once: it is healthy when it runs the version, has fallen back or has refused the
  merge when its counter rose since it was first offered the version;
* a device that refused content is not asked again when the same content comes back under another number: it does not
  answer, so a restored version would wait for it until the end of its wave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nfl_core import metrics
from nfl_core.durable import LOCAL_DISK, Disk, DualRecord
from nfl_core.errors import DurableError, MalformedError
from nfl_core.ids import DeviceId, LeafId, RegionId, VersionId
from nfl_core.wire import device_pb2, sites_pb2
from nfl_ota import wave_members

MAX_COUNTER = 2**40  # 35 years at 1,000 a second; the sum of a million devices fits an int64


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DeviceRecord(_Strict):
    """What a leaf remembers of one device."""

    installed_version: int = 0
    installed_digest: str = ""
    sequence: int = 0
    counters: dict[str, int] = Field(default_factory=dict)
    offered: int = 0
    fallbacks_before: int = 0
    refusals_before: int = 0
    refused: str = ""  # content digest of the last version that it refused to merge


class _State(_Strict):
    sequence: int = 0
    rollout_id: str = ""
    rollout: str = ""  # hex of a RolloutState
    devices: dict[str, DeviceRecord] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a device should run.

    Attributes:
        version: Its number, 0: nothing was published yet.
        target: TUF target path; empty: take nothing now.
        digest: Content digest of its shared tensors.
    """

    version: int
    target: str
    digest: str


class Attendance:
    """The devices of one leaf.

    Args:
        record: Path of the dual record.
        leaf: This leaf.
        region: Its region.
        disk: Where the record is.

    Raises:
        DurableError: The record cannot be read.
    """

    def __init__(self, record: Path, *, leaf: LeafId, region: RegionId, disk: Disk = LOCAL_DISK) -> None:
        self._record = DualRecord(record, disk=disk)
        self._leaf, self._region = leaf, region
        self._state = _load(self._record)
        self._rollout = sites_pb2.RolloutState.FromString(bytes.fromhex(self._state.rollout))
        self._members: frozenset[DeviceId] | None = None
        self._dirty = False
        self._posted: bytes | None = None
        self._posted_totals: bytes | None = None

    @property
    def num_attached(self) -> int:
        """Devices that have said hello."""
        return len(self._state.devices)

    @property
    def rollout_version(self) -> int:
        """The version that is being rolled out, 0 when none is."""
        return int(self._rollout.version)

    def follow(self, rollout: sites_pb2.RolloutState, *, message_id: str) -> bool:
        """Take a rollout's state over, durably; False when it is older than the one that is known.

        Args:
            rollout: Of this leaf's region.
            message_id: Grows from one state to the next.

        Raises:
            MalformedError: It is of another region.
        """
        if rollout.region != self._region:
            raise MalformedError(f"rollout is of region {rollout.region[:64]!r}, expected {self._region}")
        if message_id <= self._state.rollout_id:
            return False
        for known in self._state.devices.values():
            if self._fate(known) == "merge-refused":
                known.refused = self._rollout.digest
        self._state.rollout_id, self._state.rollout = message_id, rollout.SerializeToString(deterministic=True).hex()
        self._rollout, self._members, self._dirty = rollout, None, True
        self.flush()
        return True

    def hello(self, device: DeviceId, request: device_pb2.HelloRequest, *, is_served: bool) -> Offer:
        """Take note of a device and return what it should run.

        Args:
            device: Who calls, from its certificate.
            request: What it says.
            is_served: Whether the cache holds the version that is being rolled out.
        """
        known = self._known(device)
        seen = (int(request.installed_version), request.installed_digest[:64])
        if seen != (known.installed_version, known.installed_digest):
            known.installed_version, known.installed_digest = seen
            self._dirty = True
        return self._offer(device, known, is_served=is_served)

    def report(self, device: DeviceId, request: device_pb2.ReportRequest) -> None:
        """Take a device's counters; a repeated or old report changes nothing.

        Raises:
            MalformedError: A counter is not pinned or out of range.
        """
        for name, value in request.counters.items():
            if name not in metrics.DEVICE_COUNTERS:
                raise MalformedError(f"counter {name[:80]!r} is not one that a device may report")
            if not 0 <= value <= MAX_COUNTER:
                raise MalformedError(f"counter {name} is {value}, expected 0 to {MAX_COUNTER}")
        known = self._known(device)
        if request.sequence <= known.sequence:
            return
        known.sequence, known.installed_version = int(request.sequence), int(request.installed_version)
        known.counters = {name: int(value) for name, value in request.counters.items()}
        self._dirty = True

    def news(self, *, with_counters: bool) -> tuple[str, sites_pb2.HealthCounts] | None:
        """Return message id and counts when they changed since they were last returned, durably numbered; else None.

        Args:
            with_counters: Whether a change of counters alone is news; counters change all the time.

        Raises:
            StorageFullError: The number cannot be stored; the next call tries again.
        """
        if not self._rollout.version:
            return None
        counts = self._counts()
        text = counts.SerializeToString(deterministic=True)
        for name, total in _totals(self._state.devices).items():
            counts.counters[name] = total
        totals = counts.SerializeToString(deterministic=True)
        if text == self._posted and (not with_counters or totals == self._posted_totals):
            return None
        self._state.sequence += 1
        self._dirty = True
        self.flush()
        self._posted, self._posted_totals = text, totals
        counts.sequence = self._state.sequence
        return f"health-{self._state.sequence:012d}-{self._leaf}"[:80], counts

    def flush(self) -> None:
        """Make what changed durable. Raises StorageFullError."""
        if self._dirty:
            self._record.store(self._state.model_dump_json().encode())
            self._dirty = False

    def _offer(self, device: DeviceId, known: DeviceRecord, *, is_served: bool) -> Offer:
        rollout = self._rollout
        previous = Offer(
            version=int(rollout.previous_version), target=rollout.previous_target, digest=rollout.previous_digest
        )
        if not rollout.version or rollout.halted or not is_served or not self._is_member(device, known):
            newer = known.installed_version > previous.version
            return Offer(version=previous.version, target="" if newer else previous.target, digest=previous.digest)
        if known.offered != rollout.version:
            known.offered = int(rollout.version)
            known.fallbacks_before = known.counters.get(metrics.DEVICE_FALLBACKS, 0)
            known.refusals_before = known.counters.get(metrics.DEVICE_MERGES_REFUSED, 0)
            self._dirty = True
        return Offer(version=int(rollout.version), target=rollout.bundle_target, digest=rollout.digest)

    def _known(self, device: DeviceId) -> DeviceRecord:
        """Return a device's record; a new device may belong to the wave that is open."""
        if device not in self._state.devices:
            self._state.devices[device] = DeviceRecord()
            self._members, self._dirty = None, True
        return self._state.devices[device]

    def _is_member(self, device: DeviceId, known: DeviceRecord) -> bool:
        if known.offered == self._rollout.version:
            return True
        if self._members is None:
            devices = [DeviceId(name) for name in self._state.devices]
            self._members = (
                wave_members(devices, VersionId(int(self._rollout.version)), self._rollout.wave_fraction)
                if self._rollout.wave_fraction > 0
                else frozenset()
            )
        return device in self._members

    def _counts(self) -> sites_pb2.HealthCounts:
        rollout = self._rollout
        counts = sites_pb2.HealthCounts(
            leaf=self._leaf, region=self._region, version=rollout.version, attached=len(self._state.devices)
        )
        for known in self._state.devices.values():
            counts.installed += self._runs(known)
            fate = self._fate(known)
            counts.healthy += fate == "healthy"
            counts.fallen_back += fate == "fallen-back"
            counts.merge_refused += fate == "merge-refused"
        return counts

    def _runs(self, known: DeviceRecord) -> bool:
        # By version, not by content: the same tensors in another bundle may come with a graph that fails.
        return known.installed_version == self._rollout.version

    def _fate(self, known: DeviceRecord) -> str:
        """Return what became of the version on a device: healthy, fallen-back, merge-refused, or nothing yet."""
        if not self._rollout.version or known.offered != self._rollout.version:
            return ""
        if known.counters.get(metrics.DEVICE_FALLBACKS, 0) > known.fallbacks_before:
            return "fallen-back"
        if self._runs(known):
            return "healthy"
        refused_now = known.counters.get(metrics.DEVICE_MERGES_REFUSED, 0) > known.refusals_before
        return "merge-refused" if refused_now or known.refused == self._rollout.digest else ""


def _totals(devices: Mapping[str, DeviceRecord]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for known in devices.values():
        for name, value in known.counters.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def _load(record: DualRecord) -> _State:
    payload = record.load()
    if payload is None:
        return _State()
    try:
        return _State.model_validate_json(payload)
    except ValidationError as error:
        raise DurableError(
            f"the leaf's record of devices cannot be understood: {error.error_count()} faults"
        ) from error
