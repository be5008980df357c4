"""The demo's folder: taken over when its demo has ended, refused while one runs."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from nfl_sim.demo.run import DemoRunsError, take_over


def test_a_demo_that_runs_is_named_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    take_over(folder)
    (folder / "report.json").write_text("{}")
    with pytest.raises(DemoRunsError, match=str(os.getpid())):
        take_over(folder)
    assert (folder / "report.json").exists()


def test_what_an_ended_demo_left_is_replaced_and_the_data_stay(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    take_over(folder)
    (folder / "old").write_text("old")
    (tmp_path / "data").mkdir()
    # Another process has this number now: it was born at another time.
    (folder / "pid").write_text(f"{os.getpid()} {psutil.Process().create_time() - 1000}")
    take_over(folder)
    assert [path.name for path in folder.iterdir()] == ["pid"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "demo"]


def test_a_torn_pid_file_does_not_lock_the_folder_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "pid").write_text("garbage")
    take_over(folder)
    assert (folder / "pid").read_text().startswith(str(os.getpid()))
