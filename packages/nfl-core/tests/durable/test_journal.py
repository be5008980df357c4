from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.durable import Journal, read_journal
from nfl_core.durable.simulated import SimulatedDisk
from nfl_core.errors import DurableError, NotFoundError

PATH = Path("/journal")
RECORDS = [b"first", b"", b"third" * 100, b"last"]


def written(records: list[bytes]) -> bytes:
    disk = SimulatedDisk()
    journal = Journal(PATH, disk=disk)
    for record in records:
        journal.append(record)
    return disk.files()[PATH]


def opened(content: bytes) -> Journal:
    return Journal(PATH, disk=SimulatedDisk(files={PATH: content}))


def test_appended_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert (list(journal), len(journal)) == ([], 0)
    for record in RECORDS:
        journal.append(record)
    assert list(journal) == RECORDS
    again = Journal(tmp_path / "journal")
    assert (list(again), len(again)) == (RECORDS, len(RECORDS))


@given(st.data())
def test_torn_tail_is_cut_off_and_work_goes_on(data: st.DataObject) -> None:
    content = written(RECORDS)
    whole = len(written(RECORDS[:-1]))
    cut = data.draw(st.integers(whole, len(content) - 1))  # of the last record
    filler = data.draw(st.sampled_from([b"", b"\0" * (len(content) - cut)]))
    disk = SimulatedDisk(files={PATH: content[:cut] + filler})
    journal = Journal(PATH, disk=disk)
    assert list(journal) == RECORDS[:-1]
    assert disk.files()[PATH] == content[:whole]
    journal.append(b"next")
    assert list(Journal(PATH, disk=disk)) == [*RECORDS[:-1], b"next"]


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_corrupt_middle_is_refused_and_left_alone(place: int, bit: int) -> None:
    content = bytearray(written(RECORDS))
    content[place % len(written(RECORDS[:-1]))] ^= 1 << bit
    disk = SimulatedDisk(files={PATH: bytes(content)})
    with pytest.raises(DurableError, match="damaged at byte"):
        Journal(PATH, disk=disk)
    assert disk.files()[PATH] == bytes(content)


def test_removed_record_is_refused() -> None:
    first, second = len(written(RECORDS[:1])), len(written(RECORDS[:2]))
    content = written(RECORDS)
    with pytest.raises(DurableError, match="damaged at byte"):
        opened(content[:first] + content[second:])


def test_payload_that_looks_like_a_record_cannot_block_a_journal() -> None:
    """A device that sends a journal as its contribution must not keep its leaf from starting after a power cut."""
    inner = written(RECORDS)
    outer = written([b"before", inner])
    assert list(opened(outer)) == [b"before", inner]
    start = len(outer) - len(inner) - 20
    assert list(opened(outer[:start] + bytes(20) + inner)) == [b"before"], "a torn head, with the payload behind it"


@given(place=st.integers(0, 15), bit=st.integers(0, 7))
def test_damaged_head_is_refused(place: int, bit: int) -> None:
    content = bytearray(written(RECORDS))
    content[place] ^= 1 << bit
    with pytest.raises(DurableError, match="damaged at byte 0"):
        opened(bytes(content))


@pytest.mark.parametrize("content", [b"", b"NFLJ", b"something else"])
def test_file_that_is_no_journal_is_refused_and_left_alone(content: bytes) -> None:
    disk = SimulatedDisk(files={PATH: content})
    with pytest.raises(DurableError, match="damaged at byte 0"):
        Journal(PATH, disk=disk)
    assert disk.files() == {PATH: content}


def test_reader_sees_whole_records_and_changes_nothing() -> None:
    content = written(RECORDS)
    disk = SimulatedDisk(files={PATH: content[:-1]})
    assert read_journal(PATH, disk=disk) == RECORDS[:-1]
    assert disk.files()[PATH] == content[:-1]
    with pytest.raises(NotFoundError):
        read_journal(PATH.with_name("nothing"), disk=disk)


def test_replace_forgets_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for record in RECORDS:
        journal.append(record)
    journal.replace([b"kept"])
    journal.append(b"new")
    assert list(journal) == list(Journal(tmp_path / "journal")) == [b"kept", b"new"]


def test_file_that_shrinks_behind_our_back_is_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(b"one")
    (tmp_path / "journal").write_bytes(b"")
    with pytest.raises(DurableError, match="damaged at byte 0"):
        list(journal)
