"""A disk that can lose power after any operation, and what it may hold then.

The model: data are lost, torn or zeroed unless the file was synced; names are as they were unless their folder was
synced, and changes of names may reach the disk in part, in order or out of it. A rename is atomic. Nothing else is
promised. It is not `nfl_core.durable.simulated` on purpose: it remembers every point of a run, so that each outcome can
be tried and not only drawn, it reorders names, and it can lie about syncing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 64  # bytes that a torn write keeps or loses together; small, as the files of the test are


@dataclass
class Inode:
    data: bytes = b""
    durable: bytes = b""


@dataclass
class SimulatedDisk:
    """`nfl_core.durable.Disk` in memory. `history` gets a copy of the disk after every operation."""

    inodes: dict = field(default_factory=dict)
    names: dict = field(default_factory=dict)
    durable_names: dict = field(default_factory=dict)
    pending: list = field(default_factory=list)
    ignores_sync: bool = False
    ignores_folder_sync: bool = False
    history: list | None = None

    def read(self, path):
        inode = self.names.get(path)
        return None if inode is None else self.inodes[inode].data

    def write(self, path, data, *, mode):
        if path not in self.names:
            number = len(self.inodes)
            self.inodes[number] = Inode()
            self.names[path] = number
            self.pending.append((path.parent, {path: number}))
        # A write is two operations: the file is emptied first, and power may go between.
        self.inodes[self.names[path]].data = b""
        self._done()
        self.inodes[self.names[path]].data = data
        self._done()

    def append(self, path, data):
        self.inodes[self.names[path]].data += data
        self._done()

    def truncate(self, path, num_bytes):
        inode = self.inodes[self.names[path]]
        inode.data = inode.data[:num_bytes]
        self._done()

    def sync(self, path):
        if not self.ignores_sync:
            inode = self.inodes[self.names[path]]
            inode.durable = inode.data
        self._done()

    def rename(self, source, target):
        number = self.names.pop(source)
        self.names[target] = number
        self.pending.append((target.parent, {source: None, target: number}))
        self._done()

    def remove(self, path):
        if self.names.pop(path, None) is not None:
            self.pending.append((path.parent, {path: None}))
            self._done()

    def sync_folder(self, path):
        if not self.ignores_folder_sync:
            for folder, change in self.pending:
                if folder == path:
                    _apply(self.durable_names, change)
            self.pending = [(folder, change) for folder, change in self.pending if folder != path]
        self._done()

    def settle(self):
        """Let enough time pass for the operating system to write everything back by itself."""
        for inode in self.inodes.values():
            inode.durable = inode.data
        self.durable_names, self.pending = dict(self.names), []

    def crashed(self, kept, choose):
        """Return the disk after the power came back.

        Args:
            kept: Indices of pending changes of names that reached the disk.
            choose: (durable, volatile) -> bytes of a file whose data were not synced.
        """
        names = dict(self.durable_names)
        for index in sorted(kept):
            _apply(names, self.pending[index][1])
        after = SimulatedDisk(ignores_sync=self.ignores_sync, ignores_folder_sync=self.ignores_folder_sync)
        places = {number: place for place, number in enumerate(dict.fromkeys(names.values()))}
        for number, place in places.items():
            inode = self.inodes[number]
            data = inode.data if inode.data == inode.durable else choose(inode.durable, inode.data)
            after.inodes[place] = Inode(data, data)
        after.names = {path: places[number] for path, number in names.items()}
        after.durable_names = dict(after.names)
        return after

    def _done(self):
        if self.history is not None:
            self.history.append(self.copy())

    def copy(self):
        history, self.history = self.history, None
        try:
            return copy.deepcopy(self)
        finally:
            self.history = history


def _apply(names, change):
    for path, number in change.items():
        if number is None:
            names.pop(path, None)
        else:
            names[path] = number


def data_choices(random):
    """Return named ways in which unsynced data may be found."""

    def torn(durable, data):
        cut = random.randint(0, len(data))
        return data[:cut]

    def sectors(durable, data):
        padded = durable.ljust(len(data), b"\0")
        places = range(0, len(data), SECTOR)
        return b"".join((data if random.random() < 0.5 else padded)[at : min(at + SECTOR, len(data))] for at in places)

    return {
        "lost": lambda durable, data: durable,
        "whole": lambda durable, data: data,
        "empty": lambda durable, data: b"",
        "zeroed": lambda durable, data: bytes(len(data)),
        "torn": torn,
        "sectors": sectors,
    }


def folder() -> Path:
    return Path("/device/slots")
