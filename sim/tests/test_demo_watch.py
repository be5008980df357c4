"""Following journals, and telling what they say."""

from __future__ import annotations

import io
import json
from datetime import datetime, timezone
from pathlib import Path

import pytest
from rich.console import Console

from nfl_sim.demo.narrator import PUBLISHED, REFUSED, ROLLOUT, Narrator
from nfl_sim.demo.screen import Screen
from nfl_sim.demo.watch import Watch

AT = "2026-03-01T12:00:00+00:00"


class Journals:
    """A root's and one device's journal, written as the product writes them."""

    def __init__(self, home: Path) -> None:
        self.root = home / "root/state/events.jsonl"
        self.device = home / "devices/robot-01/journal/events.jsonl"
        for path in (self.root, self.device):
            path.parent.mkdir(parents=True)

    def write(self, path: Path, event: str, **figures: object) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"at": AT, "event": event, **figures}) + "\n")


@pytest.fixture
def journals(tmp_path: Path) -> Journals:
    return Journals(tmp_path)


def test_versions_are_counted_by_what_became_of_them(tmp_path: Path, journals: Journals) -> None:
    watch = Watch(tmp_path, ["robot-01"])
    journals.write(journals.root, "published", version=2)
    journals.write(journals.root, "rollout-complete", version=2)
    journals.write(journals.root, "gate-refused", candidate="c1", gate="accuracy-north", why="too low")
    journals.write(journals.root, "published", version=3, override="because")
    journals.write(journals.root, "rolled-back", version=3, to=2, new_version=4)
    watch.poll()
    state = watch.state
    assert (state.published, state.complete, state.rolled_back, state.restoring) == ([2, 3], [2], [3], [4])
    assert state.overridden == [3]
    assert [candidate for candidate, _, _ in state.refused] == ["c1"]


def test_a_line_that_is_still_being_written_waits(tmp_path: Path, journals: Journals) -> None:
    watch = Watch(tmp_path, ["robot-01"])
    line = json.dumps({"at": AT, "event": "micro-update", "accuracy": 0.5, "num_steps": 7})
    journals.device.write_text(line[:20])
    assert watch.poll() == []
    journals.device.write_text(line + "\n")
    assert [event.name for event in watch.poll()] == ["micro-update"]
    assert watch.poll() == []
    assert watch.state.devices["robot-01"].num_steps == 7


def test_a_device_is_scored_when_it_has_answered_a_version(tmp_path: Path, journals: Journals) -> None:
    watch = Watch(tmp_path, ["robot-01"])
    for event, accuracy, score in (("initialised", 0.1, 0.1), ("micro-update", 0.5, 0.5), ("merged", 0.8, 0.8)):
        journals.write(journals.device, event, accuracy=accuracy)
        watch.poll()
        assert watch.state.accuracies() == [score]
    journals.write(journals.device, "micro-update", accuracy=0.6)
    watch.poll()
    assert watch.state.accuracies() == [0.8]
    journals.write(journals.device, "merge-refused", accuracy=0.7)
    watch.poll()
    assert watch.state.accuracies() == [0.7]


def test_a_fallback_returns_the_device_to_its_version(tmp_path: Path, journals: Journals) -> None:
    watch = Watch(tmp_path, ["robot-01"])
    journals.write(journals.device, "installed", version=2)
    journals.write(journals.device, "fell-back", version=3, to=2, why="not-finite")
    watch.poll()
    device = watch.state.devices["robot-01"]
    assert (device.version, device.num_fallbacks, device.mood) == (2, 1, "fell back")


def test_without_a_terminal_every_event_is_one_plain_line(tmp_path: Path, journals: Journals) -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=80), clock=lambda: 12.0)
    narrator = Narrator(screen, started_at=datetime(2026, 3, 1, 11, 59, 50, tzinfo=timezone.utc))
    watch = Watch(tmp_path, ["robot-01"])
    journals.write(journals.root, "published", version=2)
    journals.write(journals.root, "wave-opened", version=2, fraction=0.2)
    journals.write(journals.root, "gate-refused", candidate="c1", gate="accuracy-north", why="9 points")
    journals.write(journals.root, "rollout-halted", version=2, why="all fell back")
    with screen:
        for event in watch.poll():
            narrator.tell(event, watch.state)
    lines = out.getvalue().splitlines()
    assert [line[10:] for line in lines] == [
        "v2 published, signed",
        "v2: wave of 20 %",
        "candidate refused by gate accuracy-north: 9 points",
        "v2 halted: all fell back",
    ]
    assert [(mark.row, mark.label) for mark in narrator.moments] == [
        (PUBLISHED, "v2"),
        (REFUSED, "accuracy"),
        (ROLLOUT, "v2 halted"),
    ]
    assert narrator.moments[0].at_s == pytest.approx(10.0)
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_the_fleet_is_drawn(tmp_path: Path, journals: Journals) -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=120, force_terminal=True), clock=lambda: 1.0)
    watch = Watch(tmp_path, ["robot-01"])
    journals.write(journals.device, "merged", accuracy=0.25)
    watch.poll()
    with screen:
        screen.show(watch.state)
        screen.say("hello")
    assert "25.0 %" in out.getvalue()
    assert "01:p" in out.getvalue()
