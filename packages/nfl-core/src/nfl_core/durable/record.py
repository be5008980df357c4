"""One small value that survives power cuts and torn writes."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

from nfl_core.durable.disk import LOCAL_DISK, Disk, named
from nfl_core.durable.files import write_file
from nfl_core.errors import DurableError

_LOG = logging.getLogger(__name__)


class DualRecord:
    """One small value in two files, of which the newest valid one counts.

    A store replaces the older file alone, so the newest valid record is never at risk, not even on a disk that tears
    writes.

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
        with named(self._paths[0], "read"):
            contents = [self._disk.read(path) for path in self._paths]
        valid = []
        for place, content in enumerate(contents):
            record = None if content is None else self._decode(content)
            if record is not None:
                valid.append((record[0], place, record[1]))
            elif content is not None:
                _LOG.warning("%s is damaged; the other copy is used if it is whole", self._paths[place])
        if not valid and any(content is not None for content in contents):
            raise DurableError(f"no valid record in {self._paths[0]} and {self._paths[1].name}, expected one")
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
