from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nfl_core.errors import DurableError
from nfl_core.ids import ContributionId, new_contribution_id
from nfl_core.wire.limits import MAX_CONTRIBUTION_BYTES
from nfl_edge.outbox import Entry, Outbox


def entry(body: bytes = b"sealed", contribution_id: ContributionId | None = None) -> Entry:
    return Entry(contribution_id=contribution_id or new_contribution_id(), body=body)


def test_an_entry_survives_a_restart_byte_for_byte(tmp_path: Path) -> None:
    one = entry(os.urandom(1000))
    Outbox(tmp_path).put(one)
    assert Outbox(tmp_path).oldest() == one
    assert one.sha256 == hashlib.sha256(one.body).hexdigest()


def test_oldest_first_and_removal_is_final(tmp_path: Path) -> None:
    box = Outbox(tmp_path)
    entries = [entry(bytes([number])) for number in range(3)]
    for number, one in enumerate(entries):
        box.put(one)
        os.utime(tmp_path / f"{one.contribution_id}.frame", ns=(number, number))
    for number, one in enumerate(entries):
        assert len(box) == 3 - number
        assert box.oldest() == one
        box.remove(one.contribution_id)
    assert box.oldest() is None


def test_putting_twice_is_the_same_as_once_and_another_body_is_refused(tmp_path: Path) -> None:
    box, one = Outbox(tmp_path), entry()
    box.put(one)
    box.put(one)
    assert len(box) == 1
    with pytest.raises(DurableError, match="another body"):
        box.put(entry(b"other", one.contribution_id))


def test_what_a_power_cut_left_of_a_write_is_no_entry(tmp_path: Path) -> None:
    (tmp_path / f".{new_contribution_id()}.frame.tmp").write_bytes(b"half")
    assert Outbox(tmp_path).oldest() is None
    assert len(Outbox(tmp_path)) == 0


def test_a_body_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DurableError, match="at most"):
        Outbox(tmp_path).put(entry(bytes(MAX_CONTRIBUTION_BYTES + 1)))
