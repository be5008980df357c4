"""A list that only grows, and loses nothing that was acknowledged.

File: `"NFLJ" | marker, 8 random bytes | CRC-32`, then records of `marker | index u32 | length u32 | CRC-32 | payload`.
Nobody who can put a payload into a journal knows its marker, so no payload can pass for a record.
"""

from __future__ import annotations

import logging
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nfl_core.durable.disk import LOCAL_DISK, Disk, named
from nfl_core.durable.files import read_file, write_file
from nfl_core.errors import DurableError

_LOG = logging.getLogger(__name__)

_HEAD = struct.Struct("<4s8sI")
_RECORD = struct.Struct("<8sIII")
_MAGIC = b"NFLJ"
_MARKER_BYTES = 8


class Journal:
    """An append-only list of payloads in one file, opened by its one writer.

    Every append is durable when it returns. Opening cuts off what an interrupted append left at the end, and refuses a
    file that is damaged before its end: that does not come from a power cut. Others read with `read_journal`.

    Args:
        path: The file; made when it is missing, in a folder that exists.
        disk: Where it is.

    Raises:
        DurableError: The file is corrupt before its end, or cannot be made or read.
        StorageFullError: The disk is full.
    """

    def __init__(self, path: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self._path = path
        self._disk = disk
        with named(path, "read"):
            content = disk.read(path)
        if content is None:
            content = _head(secrets.token_bytes(_MARKER_BYTES))
            write_file(path, content, disk=disk)
        found = _parse(path, content)
        self._marker, self._count, self._num_bytes = found.marker, len(found.payloads), found.num_bytes
        # True while the file may be longer than the records that were acknowledged.
        self._dirty = len(content) > self._num_bytes
        if self._dirty:
            _LOG.warning("%s ends in an interrupted append of %d bytes", path, len(content) - self._num_bytes)
            with named(path, "repair"):
                self._repair()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        """Yield the payloads, oldest first.

        Raises:
            DurableError: The file was damaged or removed since it was opened.
        """
        found = _parse(self._path, read_file(self._path, disk=self._disk)[: self._num_bytes])
        if found.num_bytes != self._num_bytes:
            raise DurableError(f"{self._path} holds {found.num_bytes} bytes of records, expected {self._num_bytes}")
        yield from found.payloads

    def append(self, payload: bytes) -> None:
        """Add a payload; when this returns it survives a power cut.

        Raises:
            StorageFullError: The disk is full; the journal is as it was.
            DurableError: The file cannot be written for another reason; the journal is as it was.
        """
        record = _record(self._marker, self._count, payload)
        with named(self._path, "append to"):
            if self._dirty:
                self._repair()
            self._dirty = True
            try:
                self._disk.append(self._path, record)
                self._disk.sync(self._path)
            except OSError:
                self._repair()
                raise
        self._dirty = False
        self._count += 1
        self._num_bytes += len(record)

    def replace(self, payloads: Iterable[bytes]) -> None:
        """Make `payloads` the whole content at once, for instance to forget what is no longer needed.

        Raises:
            StorageFullError: The disk is full; the journal is as it was.
            DurableError: The file cannot be written for another reason; the journal is as it was.
        """
        records = [_record(self._marker, index, payload) for index, payload in enumerate(payloads)]
        content = b"".join([_head(self._marker), *records])
        write_file(self._path, content, disk=self._disk)
        self._count, self._num_bytes, self._dirty = len(records), len(content), False

    def _repair(self) -> None:
        self._disk.truncate(self._path, self._num_bytes)
        self._disk.sync(self._path)
        self._dirty = False


def read_journal(path: Path, *, disk: Disk = LOCAL_DISK) -> list[bytes]:
    """Return the payloads of a journal that another process may be writing; change nothing.

    Raises:
        NotFoundError: There is no such file.
        DurableError: The file is corrupt before its end, or cannot be read.
    """
    return _parse(path, read_file(path, disk=disk)).payloads


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    marker: bytes
    payloads: list[bytes]
    num_bytes: int  # of head and whole records


def _head(marker: bytes) -> bytes:
    return _HEAD.pack(_MAGIC, marker, zlib.crc32(_MAGIC + marker))


def _record(marker: bytes, index: int, payload: bytes) -> bytes:
    check = zlib.crc32(payload, zlib.crc32(_RECORD.pack(marker, index, len(payload), 0)))
    return _RECORD.pack(marker, index, len(payload), check) + payload


def _parse(path: Path, content: bytes) -> _Found:
    """Find the whole records.

    Raises:
        DurableError: The head is damaged, or a whole record stands behind a damaged one.
    """
    marker = content[len(_MAGIC) : len(_MAGIC) + _MARKER_BYTES]
    if content[: _HEAD.size] != _head(marker.ljust(_MARKER_BYTES, b"\0")):
        raise DurableError(f"{path} is damaged at byte 0, expected the head of a journal")
    payloads: list[bytes] = []
    offset = _HEAD.size
    while (payload := _payload_at(content, offset, marker, len(payloads))) is not None:
        payloads.append(payload)
        offset += _RECORD.size + len(payload)
    # An append returns before the next begins: a power cut can damage one record, the last. So a whole record behind a
    # damaged one means that something else damaged the file.
    later = content.find(marker, offset + 1)
    while later >= 0:
        if _payload_at(content, later, marker, None) is not None:
            raise DurableError(f"{path} is damaged at byte {offset} and holds whole records behind it")
        later = content.find(marker, later + 1)
    return _Found(marker=marker, payloads=payloads, num_bytes=offset)


def _payload_at(content: bytes, offset: int, marker: bytes, index: int | None) -> bytes | None:
    """Return the payload of the whole record at `offset` (of that index, or of any), None when there is none."""
    if len(content) - offset < _RECORD.size:
        return None
    found_marker, found_index, length, _ = _RECORD.unpack_from(content, offset)
    start = offset + _RECORD.size
    if found_marker != marker or (index is not None and found_index != index) or length > len(content) - start:
        return None
    payload = content[start : start + length]
    return payload if content[offset : start + length] == _record(marker, found_index, payload) else None
