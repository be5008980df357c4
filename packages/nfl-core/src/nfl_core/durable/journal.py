"""A list that only grows, and loses nothing that was acknowledged."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from nfl_core.durable.disk import LOCAL_DISK, Disk, named
from nfl_core.durable.files import read_file, write_file
from nfl_core.errors import DurableError

_LOG = logging.getLogger(__name__)


class Journal:
    """An append-only list of payloads in one file.

    Every append is durable when it returns. Opening cuts off what an interrupted append left at the end, and refuses a
    file that is damaged before its end: that does not come from a power cut.

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
        with named(path, "read"):
            content = disk.read(path)
        if content is None:
            write_file(path, b"", disk=disk)
            content = b""
        payloads, self._num_bytes = self._parse(content)
        self._count = len(payloads)
        # True while the file may be longer than the records that were acknowledged.
        self._dirty = len(content) > self._num_bytes
        if self._dirty:
            _LOG.warning(
                "%s ends in %d bytes of an interrupted append; they are cut off", path, len(content) - self._num_bytes
            )
            with named(path, "repair"):
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
            raise DurableError(f"{self._path} holds {num_bytes} bytes of records, expected {self._num_bytes}")
        yield from payloads

    def append(self, payload: bytes) -> None:
        """Add a payload; when this returns it survives a power cut.

        Raises:
            StorageFullError: The disk is full; the journal is as it was.
            DurableError: The file cannot be written for another reason; the journal is as it was.
        """
        frame = self._encode(self._count, payload)
        with named(self._path, "append to"):
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
