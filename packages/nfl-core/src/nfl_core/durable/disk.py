"""The few operations on files that durability is made of, and what their failures are called."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from nfl_core.errors import DurableError, StorageFullError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PRIVATE_MODE = 0o600  # state may hold keys and weights of the owner


class Disk(Protocol):
    """The few operations on files that durability is made of. A simulation of power cuts implements them too."""

    def read(self, path: Path) -> bytes | None:
        """Return the content, None when there is no such file."""

    def write(self, path: Path, data: bytes, *, mode: int) -> None:
        """Create or empty the file and write `data`; not yet durable."""

    def append(self, path: Path, data: bytes) -> None:
        """Write `data` behind the end of an existing file; not yet durable."""

    def truncate(self, path: Path, num_bytes: int) -> None:
        """Cut the file to its first `num_bytes`; not yet durable."""

    def sync(self, path: Path) -> None:
        """Make the content of the file durable."""

    def rename(self, source: Path, target: Path) -> None:
        """Give the file a new name, atomically; not yet durable."""

    def remove(self, path: Path) -> None:
        """Remove the file if it is there."""

    def sync_folder(self, path: Path) -> None:
        """Make the names in the folder durable."""


class LocalDisk:
    """The operating system's files."""

    def read(self, path: Path) -> bytes | None:
        """Return the content, None when there is no such file."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, path: Path, data: bytes, *, mode: int) -> None:
        """Create or empty the file and write `data`; not yet durable."""
        self._write(path, data, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)

    def append(self, path: Path, data: bytes) -> None:
        """Write `data` behind the end of an existing file; not yet durable."""
        self._write(path, data, os.O_WRONLY | os.O_APPEND, PRIVATE_MODE)

    def truncate(self, path: Path, num_bytes: int) -> None:
        """Cut the file to its first `num_bytes`; not yet durable."""
        os.truncate(path, num_bytes)

    def sync(self, path: Path) -> None:
        """Make the content of the file durable."""
        _fsync(path, os.O_RDWR)

    def rename(self, source: Path, target: Path) -> None:
        """Give the file a new name, atomically; not yet durable."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove the file if it is there."""
        path.unlink(missing_ok=True)

    def sync_folder(self, path: Path) -> None:
        """Make the names in the folder durable."""
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)

    def _write(self, path: Path, data: bytes, flags: int, mode: int) -> None:
        descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)


LOCAL_DISK: Disk = LocalDisk()


@contextmanager
def named(path: Path, verb: str) -> Iterator[None]:
    """Turn errors of the operating system into ours, naming the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(f"cannot {verb} {path}: {error.strerror or error}") from error
        raise DurableError(
            f"cannot {verb} {path}: {error.strerror or error}", hint="check the permissions and the health of the disk"
        ) from error


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
