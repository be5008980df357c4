from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.durable import DualRecord
from nfl_core.durable.simulated import SimulatedDisk
from nfl_core.errors import DurableError


def test_nothing_stored_is_none(tmp_path: Path) -> None:
    assert DualRecord(tmp_path / "floor").load() is None


def test_newest_value_is_found_by_another_process(tmp_path: Path) -> None:
    for number in range(5):
        DualRecord(tmp_path / "floor").store(b"%d" % number)
        assert DualRecord(tmp_path / "floor").load() == b"%d" % number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["floor.0", "floor.1"]


def test_record_is_for_its_owner_alone(tmp_path: Path) -> None:
    DualRecord(tmp_path / "floor").store(b"1")
    assert (tmp_path / "floor.0").stat().st_mode & 0o777 == 0o600


@given(payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=4), place=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(payloads: list[bytes], place: int, bit: int) -> None:
    path = Path("/floor")
    disk = SimulatedDisk()
    for payload in payloads:
        DualRecord(path, disk=disk).store(payload)
    files = disk.files()
    newest = path.with_name(f"floor.{(len(payloads) - 1) % 2}")
    content = bytearray(files[newest])
    content[place % len(content)] ^= 1 << bit
    damaged = SimulatedDisk(files=files | {newest: bytes(content)})
    if len(payloads) > 1:
        assert DualRecord(path, disk=damaged).load() == payloads[-2]
    else:
        with pytest.raises(DurableError, match="no valid record"):
            DualRecord(path, disk=damaged).load()


def test_two_damaged_copies_are_refused_and_stay_as_they_are(tmp_path: Path) -> None:
    record = DualRecord(tmp_path / "floor")
    for number in range(2):
        record.store(b"%d" % number)
    for name in ("floor.0", "floor.1"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"x")
    before = [(tmp_path / name).read_bytes() for name in ("floor.0", "floor.1")]
    with pytest.raises(DurableError, match="no valid record"):
        record.load()
    with pytest.raises(DurableError, match="no valid record"):
        record.store(b"reset")  # must not hide the damage, for instance of an anti-rollback floor
    assert [(tmp_path / name).read_bytes() for name in ("floor.0", "floor.1")] == before


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DurableError, match=r"floor\.0"):
        DualRecord(tmp_path / "missing" / "floor").store(b"1")
