"""The root's files: one durable record, journaled events, and arrays that are written before the record names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from nfl_cluster.brain.state import RootState
from nfl_cluster.events import EventJournal, Figure
from nfl_core.durable import DualRecord, make_folder, read_file, remove_file, write_file
from nfl_core.errors import DurableError, NotFoundError
from nfl_core.tensors import read_tensors, write_tensors

MAX_ARRAY_BYTES = 1024 * 1024 * 1024
MAX_FINISHED = 20_000  # batch ids; mail that old is dropped by the mailbox already


class RootStore:
    """Durable state of the root.

    Args:
        folder: `root/state`.
        clock: Now, aware; for the times of events.

    Raises:
        DurableError: The state cannot be read.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        self._folder = folder
        for name in ("halves", "batches", "candidates", "momentum", "policies", "graphs"):
            make_folder(folder / name)
        self._record = DualRecord(folder / "root")
        self._events = EventJournal(folder / "events.jsonl", clock)
        self.state = self._load()
        last = self._events.last_number()
        missed = [dict(event) for event in self.state.events if _number_of(event) > last]
        if missed:  # a crash came between the record and its events
            self._events.append(missed)
        self._fresh: list[dict[str, Figure]] = []
        self._stored = self._encode()

    def tell(self, event: str, **figures: Figure) -> None:
        """Note an event; it is written with the next commit, once."""
        self.state.event_number += 1
        self._fresh.append({**self._events.entry(event, **figures), "seq": self.state.event_number})

    def commit(self) -> None:
        """Make the state durable if it changed, then write its events.

        Raises:
            StorageFullError: The disk is full; the state of before stands.
            DurableError: It cannot be written.
        """
        state = self.state
        if len(state.finished) > 2 * MAX_FINISHED:
            state.finished = dict(list(state.finished.items())[-MAX_FINISHED:])
        if self._fresh:
            state.events = [dict(event) for event in self._fresh]
        payload = self._encode()
        if payload != self._stored:
            self._record.store(payload)
            self._stored = payload
        if self._fresh:
            self._events.append(self._fresh)
            self._fresh = []

    def path(self, *parts: str) -> Path:
        """Return a path below the folder."""
        return self._folder.joinpath(*parts)

    def put(self, data: bytes, *parts: str) -> None:
        """Write a file. Raises StorageFullError or DurableError."""
        path = self.path(*parts)
        make_folder(path.parent)
        write_file(path, data)

    def get(self, *parts: str) -> bytes | None:
        """Return a file's content, None when there is none. Raises DurableError."""
        try:
            return read_file(self.path(*parts))
        except NotFoundError:
            return None

    def remove(self, *parts: str) -> None:
        """Remove a file if it is there. Raises DurableError."""
        if self.path(*parts).exists():
            remove_file(self.path(*parts))

    def put_arrays(self, arrays: Mapping[str, NDArray[np.generic]], *parts: str) -> None:
        """Write named arrays. Raises StorageFullError or DurableError."""
        self.put(write_tensors(arrays), *parts)

    def get_arrays(self, *parts: str) -> dict[str, NDArray[np.generic]]:
        """Return named arrays.

        Raises:
            NotFoundError: There is no such file.
            TensorFileError: It was damaged.
        """
        return read_tensors(read_file(self.path(*parts)), None, max_bytes=MAX_ARRAY_BYTES)

    def _encode(self) -> bytes:
        return self.state.model_dump_json().encode()

    def _load(self) -> RootState:
        payload = self._record.load()
        if payload is None:
            return RootState()
        try:
            return RootState.model_validate_json(payload)
        except ValidationError as error:
            raise DurableError(f"the root's state cannot be understood: {error.error_count()} faults") from error


def _number_of(event: Mapping[str, object]) -> int:
    return int(str(event.get("seq", 0)))
