"""The anti-rollback floor: the highest of everything that this device has accepted, kept through power cuts.

python-tuf finds out that metadata are old by comparing them with its local copies. A power cut can zero those, and then
a replay of old metadata is accepted. The floor is a second memory, in a dual record, that is asked on every refresh.
Rules:

* no role, and no bundle version, below the floor; the floor never sinks by itself;
* the root role's floor never goes away; any other number is bound to the keys that signed it: when the root replaces
  those keys, numbers that a thief drove up with the old ones count no more (recovery from a fast-forward attack);
* time never runs backwards: expiry is judged by the later of the clock and the last refresh that succeeded.

    >>> floor = Floor(Path("state/floor"))
    >>> floor.check(FloorState(bundle=Mark(number=2, keys="ab")))
    Traceback (most recent call last):
    ...
    nfl_core.errors.RollbackError: bundle has number 2, the floor of this device is 3
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from nfl_core.durable import LOCAL_DISK, Disk, DualRecord
from nfl_core.errors import DurableError, RollbackError
from nfl_core.ids import canonical_json

_MARKS = ("root", "timestamp", "snapshot", "targets", "bundle")


class Mark(BaseModel):
    """A number and the keys that vouched for it.

    Attributes:
        number: Version of a role or of a bundle.
        keys: Fingerprint of the role's keys; empty for the root role, whose floor no rotation lifts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    number: int = Field(default=0, ge=0)
    keys: str = ""


class FloorState(BaseModel):
    """The highest numbers seen. A mark with number 0 says nothing.

    Attributes:
        root: Of the root role.
        timestamp: Of the timestamp role.
        snapshot: Of the snapshot role.
        targets: Of the targets role.
        bundle: Bundle version.
        seen_at: Latest time at which a refresh succeeded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    root: Mark = Mark()
    timestamp: Mark = Mark()
    snapshot: Mark = Mark()
    targets: Mark = Mark()
    bundle: Mark = Mark()
    seen_at: AwareDatetime | None = None

    def mark(self, name: str) -> Mark:
        """Return the mark of that name."""
        marks = {
            "root": self.root,
            "timestamp": self.timestamp,
            "snapshot": self.snapshot,
            "targets": self.targets,
            "bundle": self.bundle,
        }
        return marks[name]

    def refuses(self, seen: FloorState) -> str | None:
        """Say why `seen` is below this floor; None when it is not. Pure."""
        for name in _MARKS:
            have, got = self.mark(name), seen.mark(name)
            if got.number and got.keys == have.keys and got.number < have.number:
                return f"{name} has number {got.number}, the floor of this device is {have.number}"
        return None

    def raised(self, seen: FloorState) -> FloorState:
        """Return the floor after `seen` was accepted. Pure."""
        marks = {name: seen.mark(name) if seen.mark(name).number else self.mark(name) for name in _MARKS}
        times = [at for at in (self.seen_at, seen.seen_at) if at is not None]
        return FloorState(seen_at=max(times) if times else None).model_copy(update=marks)


class Floor:
    """The floor of one device on disk.

    Args:
        path: Of the dual record; its folder exists.
        disk: Where it is.

    Raises:
        DurableError: The floor cannot be read; a device without its floor updates no more.
    """

    def __init__(self, path: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self._record = DualRecord(path, disk=disk)
        payload = self._record.load()
        try:
            self._state = FloorState() if payload is None else FloorState.model_validate_json(payload)
        except ValidationError as error:
            raise DurableError(f"the floor at {path} cannot be understood: {error.error_count()} faults") from error

    @property
    def state(self) -> FloorState:
        """The highest numbers seen."""
        return self._state

    def check(self, seen: FloorState) -> None:
        """Raise when `seen` is below the floor.

        Raises:
            RollbackError: A number is.
        """
        if (why := self._state.refuses(seen)) is not None:
            raise RollbackError(
                why, hint="the server offers an older state than this device has seen; nothing was changed"
            )

    def raise_to(self, seen: FloorState) -> None:
        """Check `seen` and make it the floor, durably; write nothing when nothing changes.

        Raises:
            RollbackError: `seen` is below the floor.
            StorageFullError: The disk is full; the old floor stands.
            DurableError: The floor cannot be written.
        """
        self.check(seen)
        state = self._state.raised(seen)
        if state != self._state:
            self._record.store(canonical_json(state.model_dump(mode="json")))
            self._state = state

    def now(self, clock: datetime) -> datetime:
        """Return the later of the clock and the last refresh that succeeded."""
        return clock if self._state.seen_at is None else max(clock, self._state.seen_at)
