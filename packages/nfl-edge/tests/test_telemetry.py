from __future__ import annotations

import logging
from datetime import datetime, timezone
from pathlib import Path

import pytest

from nfl_core import metrics
from nfl_edge.telemetry import Counters, EventJournal, read_events


def test_counters_survive_a_restart_and_take_pinned_names_alone(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "counters")
    counters.add(metrics.DEVICE_FALLBACKS, 2)
    counters.save()
    assert Counters(tmp_path / "counters").snapshot() == {metrics.DEVICE_FALLBACKS: 2}
    assert counters[metrics.DEVICE_FALLBACKS] == 2
    with pytest.raises(KeyError):
        counters.add("pixels_of_the_owner")


def test_counters_write_only_what_changed(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "counters")
    counters.add(metrics.DEVICE_FETCHES)
    counters.save()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    counters.save()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_the_journal_reads_back_without_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = EventJournal(path, clock=lambda: datetime(2030, 1, 2, tzinfo=timezone.utc))
    journal.write("merged", alpha=0.5, version=3)
    with path.open("a") as file:
        file.write('{"at": "2030-01-02T00:0')
    (event,) = read_events(path)
    assert event == {"at": "2030-01-02T00:00:00.000+00:00", "event": "merged", "alpha": 0.5, "version": 3}
    assert read_events(tmp_path / "none") == []


def test_a_journal_that_cannot_be_written_stops_nothing_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        EventJournal(tmp_path).write("booted")
    assert "cannot write the journal" in caplog.text
