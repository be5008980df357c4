from __future__ import annotations

import os
from pathlib import Path

import pytest

from nfl_core.durable import make_folder, read_file, remove_file, write_file
from nfl_core.errors import DurableError, NotFoundError


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    write_file(path, b"old")
    write_file(path, b"new", mode=0o644)
    assert read_file(path) == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_leftover_of_a_power_cut_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".f.tmp").write_bytes(b"torn")
    write_file(tmp_path / "f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        read_file(tmp_path / "nothing")


def test_folder_in_the_way_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "inside").write_bytes(b"1")
    with pytest.raises(DurableError, match=r"cannot write .*f"):
        write_file(tmp_path / "f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_make_folder_makes_all_above_and_is_happy_twice(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b c")
    assert (tmp_path / "a" / "b c").is_dir()
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(DurableError, match="cannot make"):
        make_folder(tmp_path / "plain" / "below")


def test_remove_is_happy_twice(tmp_path: Path) -> None:
    write_file(tmp_path / "f", b"1")
    for _ in range(2):
        remove_file(tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    write_file(tmp_path / "f", b"x" * 100)
    assert read_file(tmp_path / "f") == b"x" * 100
