"""A full disk: an error that says so, nothing half-written, the old content readable, and work goes on later."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfl_core.durable import DualRecord, Journal, read_file, write_file
from nfl_core.errors import StorageFullError

FULL_BYTES = 64 * 1024
BIG = b"x" * (2 * FULL_BYTES)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system; the file-size limit is tested instead")
    folder = tmp_path / "small disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES}", "nfl-test", folder], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip(f"mount is not allowed here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Path]:
    """Limit the size of files of this process to 64 KiB; the kernel then answers as a full disk does, with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, hard))
    try:
        yield tmp_path
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["tmpfs", "limit"])
def small_disk(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("full_disk" if request.param == "tmpfs" else "limited")
    return folder


def test_whole_file_keeps_its_old_content(small_disk: Path) -> None:
    path = small_disk / "state"
    write_file(path, b"old")
    with pytest.raises(StorageFullError, match=r"cannot write .*state") as caught:
        write_file(path, BIG)
    assert caught.value.code == "durable.disk-full"
    assert "free some space" in caught.value.hint
    assert read_file(path) == b"old"
    assert list(small_disk.iterdir()) == [path], "nothing half-written may stay"
    write_file(path, b"new")
    assert read_file(path) == b"new"


def test_dual_record_keeps_its_value(small_disk: Path) -> None:
    record = DualRecord(small_disk / "floor")
    record.store(b"6")
    record.store(b"7")
    with pytest.raises(StorageFullError):
        record.store(BIG)
    assert record.load() == b"7"
    assert sorted(path.name for path in small_disk.iterdir()) == ["floor.0", "floor.1"]
    record.store(b"8")
    assert record.load() == b"8"


def test_journal_keeps_what_was_acknowledged(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    journal.append(b"one")
    num_bytes = (small_disk / "journal").stat().st_size
    with pytest.raises(StorageFullError):
        journal.append(BIG)
    assert (small_disk / "journal").stat().st_size == num_bytes, "a part of the append may not stay"
    assert list(journal) == [b"one"]
    journal.append(b"two")
    assert list(Journal(small_disk / "journal")) == [b"one", b"two"]


def test_journal_fills_the_disk_to_the_brim_and_loses_nothing(full_disk: Path) -> None:
    journal = Journal(full_disk / "journal")
    appended: list[bytes] = []

    def fill() -> None:
        for number in range(1000):
            journal.append(b"%04d" % number * 300)
            appended.append(b"%04d" % number * 300)

    with pytest.raises(StorageFullError):
        fill()
    assert appended
    assert list(Journal(full_disk / "journal")) == appended
