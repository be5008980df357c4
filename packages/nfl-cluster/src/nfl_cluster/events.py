"""A service's journal of what happened: one JSON object a line, for people, the demo, `nfl status` and reports.

Nothing reads it to decide anything. Numbered lines let a service write those again that a crash kept from the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from nfl_core.errors import DurableError, StorageFullError

Figure: TypeAlias = str | int | float | bool | list[str] | dict[str, str] | dict[str, float] | None
_NO_SPACE = 28  # errno.ENOSPC


class EventJournal:
    """Appends lines to a journal.

    Args:
        path: The file; its folder exists.
        clock: Present time, UTC.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._path = path
        self._clock = clock
        self._mend()

    def entry(self, event: str, **figures: Figure) -> dict[str, Figure]:
        """Return the line of an event as an object, not yet written."""
        return {"at": self._clock().isoformat(timespec="milliseconds"), "event": event, **figures}

    def write(self, event: str, **figures: Figure) -> None:
        """Append one event. Raises DurableError."""
        self.append([self.entry(event, **figures)])

    def append(self, entries: list[dict[str, Figure]]) -> None:
        """Append objects that `entry` made.

        Raises:
            StorageFullError: The disk is full.
            DurableError: The file cannot be written.
        """
        lines = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            kind = StorageFullError if error.errno == _NO_SPACE else DurableError
            raise kind(f"cannot write the journal {self._path}: {error}") from error

    def last_number(self) -> int:
        """Return the largest `seq` in the file, 0 when there is none."""
        numbers = [int(str(event["seq"])) for event in read_events(self._path) if "seq" in event]
        return max(numbers, default=0)

    def _mend(self) -> None:
        """Cut a torn last line off, so that the next one does not join it."""
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(self._path, whole)


def read_events(path: Path) -> list[Mapping[str, Figure]]:
    """Return the events of a journal, oldest first; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
