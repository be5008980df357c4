"""A disk in memory that can lose power: the worst that POSIX allows, for tests and campaigns.

Model, per file: what was not synced may be lost, torn at any byte, filled with zeros, or mixed by sectors with what was
there; an append does not touch the synced bytes before it. Per folder: names that were not synced may be lost, but in
the order in which they were made (a journalling file system), and a renamed file whose content was not synced may be
torn under its new name.

    >>> disk = SimulatedDisk(power_lasts=3)
    >>> try:
    ...     write_file(Path("/state"), b"new", disk=disk)
    ... except PowerCutError:
    ...     disk = disk.after_power_cut(random.Random(7))
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

SECTOR_BYTES = 512


class PowerCutError(BaseException):
    """The power is gone. Not an `Exception`: no handler in the product may survive it."""


class SimulatedDisk:
    """Implements `Disk` in memory.

    Args:
        power_lasts: Number of operations that still happen; the one after them raises `PowerCutError`. None: for ever.
        files: Content to start from, durable.
    """

    def __init__(self, *, power_lasts: int | None = None, files: dict[Path, bytes] | None = None) -> None:
        self.power_lasts = power_lasts
        self.num_operations = 0
        self._now: dict[int, bytes] = {}  # file number -> content that a reader sees
        self._safe: dict[int, bytes] = {}  # file number -> content that a power cut leaves
        self._untouched: dict[int, int] = {}  # file number -> leading bytes that no unsynced change touches
        self._names: dict[Path, int] = {}
        self._safe_names: dict[Path, int] = {}
        self._pending: list[tuple[Path, Callable[[dict[Path, int]], None]]] = []  # changes of names, oldest first
        for path, data in (files or {}).items():
            number = self._new_file(data)
            self._settle(number)
            self._names[path] = self._safe_names[path] = number

    def files(self) -> dict[Path, bytes]:
        """Return what a reader sees now."""
        return {path: self._now[number] for path, number in self._names.items()}

    def read(self, path: Path) -> bytes | None:
        """Return the content, None when there is no such file."""
        return self._now[self._names[path]] if path in self._names else None

    def write(self, path: Path, data: bytes, *, mode: int) -> None:
        """Create or empty the file and write `data`; not yet durable."""
        del mode
        self._operate()
        if path not in self._names:
            number = self._new_file(b"")
            self._change(path, lambda names: names.update({path: number}))
        self._now[self._names[path]] = data
        self._untouched[self._names[path]] = 0

    def append(self, path: Path, data: bytes) -> None:
        """Write `data` behind the end of an existing file; not yet durable."""
        self._operate()
        self._now[self._number(path)] += data

    def truncate(self, path: Path, num_bytes: int) -> None:
        """Cut the file to its first `num_bytes`; not yet durable."""
        self._operate()
        number = self._number(path)
        self._now[number] = self._now[number][:num_bytes]
        self._untouched[number] = min(self._untouched[number], num_bytes)

    def sync(self, path: Path) -> None:
        """Make the content of the file durable."""
        self._operate()
        self._settle(self._number(path))

    def rename(self, source: Path, target: Path) -> None:
        """Give the file a new name, atomically; not yet durable."""
        self._operate()
        self._number(source)
        self._change(target, lambda names: names.update({target: names.pop(source)}) if source in names else None)

    def remove(self, path: Path) -> None:
        """Remove the file if it is there."""
        self._operate()
        self._change(path, lambda names: _forget(names, path))

    def sync_folder(self, path: Path) -> None:
        """Make the names in the folder durable."""
        self._operate()
        for _, change in [pending for pending in self._pending if pending[0].parent == path]:
            change(self._safe_names)
        self._pending = [pending for pending in self._pending if pending[0].parent != path]

    def after_power_cut(self, rng: random.Random, *, power_lasts: int | None = None) -> SimulatedDisk:
        """Return the disk that is found when the power comes back.

        Args:
            rng: Decides what is lost and torn.
            power_lasts: For the new disk.
        """
        names = dict(self._safe_names)
        for _, change in self._pending[: rng.randint(0, len(self._pending))]:
            change(names)
        files = {}
        for path, number in names.items():
            keep = self._untouched[number]
            old, new = self._safe[number], self._now[number]
            files[path] = old[:keep] + torn(old[keep:], new[keep:], rng)
        return SimulatedDisk(power_lasts=power_lasts, files=files)

    def _operate(self) -> None:
        if self.power_lasts is not None and self.num_operations >= self.power_lasts:
            raise PowerCutError
        self.num_operations += 1

    def _new_file(self, data: bytes) -> int:
        number = len(self._now)
        self._now[number], self._safe[number], self._untouched[number] = data, b"", 0
        return number

    def _settle(self, number: int) -> None:
        self._safe[number] = self._now[number]
        self._untouched[number] = len(self._now[number])

    def _change(self, path: Path, change: Callable[[dict[Path, int]], None]) -> None:
        change(self._names)
        self._pending.append((path, change))

    def _number(self, path: Path) -> int:
        if path not in self._names:
            raise FileNotFoundError(2, "No such file", str(path))
        return self._names[path]


def _forget(names: dict[Path, int], path: Path) -> None:
    names.pop(path, None)


def torn(old: bytes, new: bytes, rng: random.Random) -> bytes:
    """Return what a power cut may leave of a file whose synced content is `old` and whose last content is `new`."""
    if old == new:
        return old
    cut = rng.randint(0, len(new))
    sectors = [
        (new if rng.random() < 0.5 else old.ljust(len(new), b"\0"))[start : start + SECTOR_BYTES]
        for start in range(0, len(new), SECTOR_BYTES)
    ]
    return rng.choice([old, new, b"", new[:cut], new[:cut].ljust(len(new), b"\0"), b"".join(sectors)[: len(new)]])
