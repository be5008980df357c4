"""Count what happens, and keep a journal of it on the device.

Counters have the pinned names of `nfl_core.metrics` and are all that is ever reported. The journal stays on the device:
one JSON object a line with `at` (UTC, ISO 8601), `event`, and figures. It is for people and for tests; nothing reads it
to decide, so a line lost to a power cut does no harm.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from nfl_core.durable import DualRecord
from nfl_core.metrics import DEVICE_COUNTERS

_LOG = logging.getLogger(__name__)
Figure = str | int | float | bool | None | list[str] | list[float]


def utc_now() -> datetime:
    """Return the present time, UTC."""
    return datetime.now(timezone.utc)


class Counters:
    """Cumulative counters that survive a restart.

    Args:
        record: Path of the durable record.
    """

    def __init__(self, record: Path) -> None:
        self._record = DualRecord(record)
        payload = self._record.load()
        stored = {} if payload is None else json.loads(payload)
        self._saved = dict(stored)
        self._values = {name: int(stored.get(name, 0)) for name in DEVICE_COUNTERS}

    def add(self, name: str, amount: int = 1) -> None:
        """Add to a counter. Raises KeyError for a name that is not pinned: nothing else may ever be reported."""
        self._values[name] += amount

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def snapshot(self) -> dict[str, int]:
        """Return all counters that are not zero."""
        return {name: value for name, value in self._values.items() if value}

    def save(self) -> None:
        """Make the present values durable; write nothing when nothing changed. Raises DurableError."""
        if self._values == self._saved:
            return
        self._saved = dict(self._values)
        self._record.store(json.dumps(self._values, sort_keys=True).encode())


class EventJournal:
    """Appends lines to a journal.

    Args:
        path: The file; its folder exists.
        clock: Present time, UTC.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._path = path
        self._clock = clock

    def write(self, event: str, **figures: Figure) -> None:
        """Append one event. A line that cannot be written is logged instead: a full disk must not stop a device."""
        line = json.dumps(
            {"at": self._clock().isoformat(timespec="milliseconds"), "event": event, **figures}, allow_nan=False
        )
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(line + "\n")
        except OSError as error:
            _LOG.error("cannot write the journal %s (%s): %s", self._path, error, line)


def read_events(path: Path) -> list[Mapping[str, Figure]]:
    """Return the events of a journal, oldest first; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
