"""Whole files and folders that survive a power cut."""

from __future__ import annotations

from pathlib import Path

from nfl_core.durable.disk import LOCAL_DISK, PRIVATE_MODE, Disk, named
from nfl_core.errors import NotFoundError


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
    with named(path, "write"):
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
    with named(path, "read"):
        data = disk.read(path)
    if data is None:
        raise NotFoundError(f"no file {path}")
    return data


def remove_file(path: Path, *, disk: Disk = LOCAL_DISK) -> None:
    """Remove a file if it is there, durably.

    Raises:
        DurableError: It cannot be removed.
    """
    with named(path, "remove"):
        disk.remove(path)
        disk.sync_folder(path.parent)


def make_folder(path: Path, *, mode: int = 0o700) -> None:
    """Make a folder and the folders above it, durably; do nothing when it is there.

    Raises:
        StorageFullError: The disk is full.
        DurableError: It cannot be made.
    """
    with named(path, "make"):
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            folder.mkdir(mode=mode, exist_ok=True)
            LOCAL_DISK.sync_folder(folder.parent)
