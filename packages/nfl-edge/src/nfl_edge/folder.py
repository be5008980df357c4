"""Know where a device keeps what: one folder a device, nothing outside of it.

>>> DeviceFolder(Path("robot-7")).outbox
PosixPath('robot-7/outbox')
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from nfl_edge.errors import DeviceBusyError, DeviceFolderError

SETTINGS_FILE = "device.json"


@dataclass(frozen=True, slots=True)
class DeviceFolder:
    """Paths below the folder of one device."""

    root: Path

    @property
    def name(self) -> str:
        """Name of the folder, for logs before the device's identity is read."""
        return self.root.name

    @property
    def settings(self) -> Path:
        """What the root said at enrolment."""
        return self.root / SETTINGS_FILE

    @property
    def keys(self) -> Path:
        """Private keys and certificates, mode 0600."""
        return self.root / "keys"

    @property
    def trusted_root(self) -> Path:
        """First TUF root metadata, pinned at enrolment."""
        return self.root / "root.json"

    @property
    def samples(self) -> Path:
        """What the device sensed; never read by anything but its own trainer and engine."""
        return self.root / "samples.safetensors"

    @property
    def state(self) -> Path:
        """Durable records: agent, checkpoints, floor, egress."""
        return self.root / "state"

    @property
    def checkpoints(self) -> Path:
        """Content-addressed checkpoints."""
        return self.root / "state" / "checkpoints"

    @property
    def slots(self) -> Path:
        """Bundles: A, B, factory."""
        return self.root / "slots"

    @property
    def cache(self) -> Path:
        """Metadata and chunks that were fetched, and the beginnings of cut downloads."""
        return self.root / "cache"

    @property
    def outbox(self) -> Path:
        """Contributions without a receipt."""
        return self.root / "outbox"

    @property
    def events(self) -> Path:
        """Journal of what happened, one JSON object a line."""
        return self.root / "journal" / "events.jsonl"

    def make(self) -> None:
        """Create the folders that are missing, readable by the owner alone. Raises DeviceFolderError."""
        try:
            for path in (
                self.root,
                self.state,
                self.checkpoints,
                self.slots,
                self.cache,
                self.outbox,
                self.events.parent,
            ):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DeviceFolderError(f"cannot make the folders of a device in {self.root}: {error}") from error


def lock_device(folder: DeviceFolder) -> int:
    """Take a device for this process alone; the lock ends with the process, however it ends.

    Returns:
        A file descriptor; closing it gives the device free.

    Raises:
        DeviceBusyError: Another process has it.
        DeviceFolderError: The folder cannot be written.
    """
    folder.make()
    try:
        descriptor = os.open(folder.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceFolderError(f"cannot lock {folder.root}: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DeviceBusyError(f"device {folder.name} is run by another process") from error
    return descriptor
