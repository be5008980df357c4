"""The one way to survive a power cut: whole files, dual records and journals that read back as they were written.

Rules:

* bytes are flushed before the name that makes them visible, and the folder after it: a reader finds old or new, never half;
* a `DualRecord` never touches its newest valid record; a `Journal` forgets at most the append that had not returned;
* what cannot come from a power cut (a corrupt middle, no valid record) is refused, never repaired by guessing;
* a full disk is a `StorageFullError`, and the old content stays readable.

One process writes a file at a time; that is the caller's care.

    >>> record = DualRecord(Path("state/floor"))
    >>> record.store(b"version 7")
    >>> record.load()
    b'version 7'

Source: the order write, fsync, rename, fsync of the folder after Pillai et al. 2014, "All File Systems Are Not Created Equal".
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from nfl_core.errors import DurableError, NotFoundError, StorageFullError

_LOG = logging.getLogger(__name__)
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


def write_file(path: Path, data: bytes, *, mode: int = PRIVATE_MODE, disk: Disk = LOCAL_DISK) -> None:
    """Make `data` the whole content of a file, durably and at once.

    Args:
        path: In a folder that exists (see `make_folder`).
        data: New content.
        mode: Permissions of the file, before the umask.
        disk: Where to write.

    Raises:
        StorageFullError: The disk is full; the old content stands.
        DurableError: The file cannot be written for another reason; the old content stands.
    """
    # One fixed name: what a power cut leaves behind is overwritten by the next write instead of piling up.
    temporary = path.with_name(f".{path.name}.tmp")
    with _named(path, "write"):
        try:
            disk.write(temporary, data, mode=mode)
            disk.sync(temporary)
            disk.rename(temporary, path)
        except OSError:
            disk.remove(temporary)
            raise
        disk.sync_folder(path.parent)


def read_file(path: Path, *, disk: Disk = LOCAL_DISK) -> bytes:
    """Return the content of a file.

    Raises:
        NotFoundError: There is no such file.
        DurableError: It cannot be read.
    """
    with _named(path, "read"):
        data = disk.read(path)
    if data is None:
        raise NotFoundError(f"no file {path}")
    return data


def remove_file(path: Path, *, disk: Disk = LOCAL_DISK) -> None:
    """Remove a file if it is there, durably.

    Raises:
        DurableError: It cannot be removed.
    """
    with _named(path, "remove"):
        disk.remove(path)
        disk.sync_folder(path.parent)


def make_folder(path: Path, *, mode: int = 0o700) -> None:
    """Make a folder and the folders above it, durably; do nothing when it is there.

    Raises:
        StorageFullError: The disk is full.
        DurableError: It cannot be made.
    """
    with _named(path, "make"):
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            folder.mkdir(mode=mode, exist_ok=True)
            LOCAL_DISK.sync_folder(folder.parent)


class DualRecord:
    """One small value in two files, of which the newest valid one counts.

    A store replaces the older file alone, so the newest valid record is never at risk, not even on a disk that tears writes.

    Args:
        path: NAME; the files are NAME.0 and NAME.1.
        disk: Where they are.
    """

    _HEADER = struct.Struct("<4sQII")  # magic, sequence, length, CRC-32 of everything else
    _MAGIC = b"NFLR"

    def __init__(self, path: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self._paths = (path.with_name(f"{path.name}.0"), path.with_name(f"{path.name}.1"))
        self._disk = disk

    def load(self) -> bytes | None:
        """Return the newest valid payload, None when nothing was ever stored.

        Raises:
            DurableError: Files are there and none is valid.
        """
        newest = self._newest()
        return None if newest is None else newest[2]

    def store(self, payload: bytes) -> None:
        """Make `payload` the value; when this returns it survives a power cut.

        Raises:
            StorageFullError: The disk is full; the old value stands.
            DurableError: The old value cannot be read, or the new one not be written.
        """
        newest = self._newest()
        sequence, place = (1, 0) if newest is None else (newest[0] + 1, 1 - newest[1])
        write_file(self._paths[place], self._encode(sequence, payload), disk=self._disk)

    def _newest(self) -> tuple[int, int, bytes] | None:
        """Return (sequence, which file, payload) of the newest valid record."""
        with _named(self._paths[0], "read"):
            contents = [self._disk.read(path) for path in self._paths]
        valid = []
        for place, content in enumerate(contents):
            record = None if content is None else self._decode(content)
            if record is not None:
                valid.append((record[0], place, record[1]))
            elif content is not None:
                _LOG.warning("%s is damaged; the other copy is used if it is whole", self._paths[place])
        if not valid and any(content is not None for content in contents):
            raise DurableError(f"no valid record in {self._paths[0]} and {self._paths[1].name}: both copies are damaged or missing")
        return max(valid) if valid else None

    def _encode(self, sequence: int, payload: bytes) -> bytes:
        check = zlib.crc32(payload, zlib.crc32(self._HEADER.pack(self._MAGIC, sequence, len(payload), 0)))
        return self._HEADER.pack(self._MAGIC, sequence, len(payload), check) + payload

    def _decode(self, content: bytes) -> tuple[int, bytes] | None:
        if len(content) < self._HEADER.size:
            return None
        _, sequence, _, _ = self._HEADER.unpack_from(content)
        payload = content[self._HEADER.size :]
        return (sequence, payload) if content == self._encode(sequence, payload) else None


class Journal:
    """An append-only list of payloads in one file.

    Every append is durable when it returns. Opening cuts off what an interrupted append left at the end, and refuses a file
    that is damaged before its end: that does not come from a power cut.

    Args:
        path: The file; made when it is missing, in a folder that exists.
        disk: Where it is.

    Raises:
        DurableError: The file is corrupt in its middle, or cannot be made or read.
        StorageFullError: The disk is full.
    """

    _HEADER = struct.Struct("<4sIII")  # magic, index, length, CRC-32 of everything else
    _MAGIC = b"NFLJ"

    def __init__(self, path: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self._path = path
        self._disk = disk
        with _named(path, "read"):
            content = disk.read(path)
        if content is None:
            write_file(path, b"", disk=disk)
            content = b""
        payloads, self._num_bytes = self._parse(content)
        self._count = len(payloads)
        # True while the file may be longer than the records that were acknowledged.
        self._dirty = len(content) > self._num_bytes
        if self._dirty:
            _LOG.warning("%s ends in %d bytes of an interrupted append; they are cut off", path, len(content) - self._num_bytes)
            with _named(path, "repair"):
                self._repair()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        """Yield the payloads, oldest first.

        Raises:
            DurableError: The file was damaged or removed since it was opened.
        """
        payloads, num_bytes = self._parse(read_file(self._path, disk=self._disk)[: self._num_bytes])
        if num_bytes != self._num_bytes:
            raise DurableError(f"{self._path} holds {num_bytes} bytes of valid records, expected {self._num_bytes}: it was changed")
        yield from payloads

    def append(self, payload: bytes) -> None:
        """Add a payload; when this returns it survives a power cut.

        Raises:
            StorageFullError: The disk is full; the journal is as it was.
            DurableError: The file cannot be written for another reason; the journal is as it was.
        """
        frame = self._encode(self._count, payload)
        with _named(self._path, "append to"):
            if self._dirty:
                self._repair()
            self._dirty = True
            try:
                self._disk.append(self._path, frame)
                self._disk.sync(self._path)
            except OSError:
                self._repair()
                raise
        self._dirty = False
        self._count += 1
        self._num_bytes += len(frame)

    def replace(self, payloads: Iterable[bytes]) -> None:
        """Make `payloads` the whole content at once, for instance to forget what is no longer needed.

        Raises:
            StorageFullError: The disk is full; the journal is as it was.
            DurableError: The file cannot be written for another reason; the journal is as it was.
        """
        frames = [self._encode(index, payload) for index, payload in enumerate(payloads)]
        content = b"".join(frames)
        write_file(self._path, content, disk=self._disk)
        self._count, self._num_bytes, self._dirty = len(frames), len(content), False

    def _repair(self) -> None:
        self._disk.truncate(self._path, self._num_bytes)
        self._disk.sync(self._path)
        self._dirty = False

    def _encode(self, index: int, payload: bytes) -> bytes:
        check = zlib.crc32(payload, zlib.crc32(self._HEADER.pack(self._MAGIC, index, len(payload), 0)))
        return self._HEADER.pack(self._MAGIC, index, len(payload), check) + payload

    def _parse(self, content: bytes) -> tuple[list[bytes], int]:
        """Return the payloads of the valid records, and how many bytes they take.

        Raises:
            DurableError: A valid record stands behind an invalid one.
        """
        payloads: list[bytes] = []
        offset = 0
        while (payload := self._frame_at(content, offset, len(payloads))) is not None:
            payloads.append(payload)
            offset += self._HEADER.size + len(payload)
        # An append returns before the next begins: a power cut can damage one record, the last. So a whole record
        # behind a damaged one means that something else damaged the file.
        later = content.find(self._MAGIC, offset + 1)
        while later >= 0:
            if self._frame_at(content, later, None) is not None:
                raise DurableError(f"{self._path} is damaged at byte {offset} and holds whole records behind it")
            later = content.find(self._MAGIC, later + 1)
        return payloads, offset

    def _frame_at(self, content: bytes, offset: int, index: int | None) -> bytes | None:
        """Return the payload of the valid record at `offset` (of that index, or of any), None when there is none."""
        if len(content) - offset < self._HEADER.size:
            return None
        magic, found, length, check = self._HEADER.unpack_from(content, offset)
        start = offset + self._HEADER.size
        if magic != self._MAGIC or (index is not None and found != index) or length > len(content) - start:
            return None
        payload = content[start : start + length]
        expected = zlib.crc32(payload, zlib.crc32(self._HEADER.pack(magic, found, length, 0)))
        return payload if check == expected else None


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path, verb: str) -> Iterator[None]:
    """Turn errors of the operating system into ours, naming the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(f"cannot {verb} {path}: {error.strerror or error}") from error
        raise DurableError(
            f"cannot {verb} {path}: {error.strerror or error}", hint="check the permissions and the health of the disk"
        ) from error
