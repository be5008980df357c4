"""The one way to survive a power cut: whole files, dual records and journals that read back as they were written.

Rules:

* bytes are flushed before the name that makes them visible, and the folder after it: a reader finds old or new;
* a `DualRecord` never touches its newest valid record; a `Journal` forgets at most the append that had not returned;
* what cannot come from a power cut (a corrupt middle, no valid record) is refused, never repaired by guessing;
* a full disk is a `StorageFullError`, and the old content stays readable.

One process writes a file at a time; that is the caller's care.

    >>> record = DualRecord(Path("state/floor"))
    >>> record.store(b"version 7")
    >>> record.load()
    b'version 7'

Source: the order write, fsync, rename, fsync of the folder after Pillai et al. 2014, "All File Systems Are Not Created
Equal".
"""

from nfl_core.durable.disk import LOCAL_DISK, PRIVATE_MODE, Disk, LocalDisk
from nfl_core.durable.files import make_folder, read_file, remove_file, write_file
from nfl_core.durable.journal import Journal, read_journal
from nfl_core.durable.record import DualRecord

__all__ = [
    "LOCAL_DISK",
    "PRIVATE_MODE",
    "Disk",
    "DualRecord",
    "Journal",
    "LocalDisk",
    "make_folder",
    "read_file",
    "read_journal",
    "remove_file",
    "write_file",
]
