"""Read what happens from the journals that root and devices keep anyway; nothing is told to the demo alone.

watch = Watch(home)
for event in watch.poll():
    ...
watch.state.published, watch.state.devices["robot-03"].accuracy
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a journal.

    Attributes:
        at: When, UTC.
        who: "root" or a device's id.
        name: What.
        figures: The rest of the line.
    """

    at: datetime
    who: str
    name: str
    figures: dict[str, object]

    def text(self, key: str) -> str:
        """Return a figure as text; empty when it is not there."""
        value = self.figures.get(key)
        return "" if value is None else str(value)

    def number(self, key: str) -> float:
        """Return a figure as a number; 0 when it is not there or is none."""
        value = self.figures.get(key)
        return float(value) if isinstance(value, (int, float)) else 0.0


@dataclass(slots=True)
class DeviceView:
    """What is known of one device."""

    accuracy: float | None = None
    version: int = 0
    mood: str = "starting"
    num_updates: int = 0
    num_steps: int = 0
    num_receipts: int = 0
    num_fallbacks: int = 0
    num_answers: int = 0
    policies: list[int] = field(default_factory=list)


@dataclass(slots=True)
class FleetView:
    """What is known of the fleet.

    Attributes:
        published: Numbers of versions that were published, the first one included, restored ones not.
        refused: Candidates that a gate refused: (candidate, gate, why).
        rolled_back: Versions that were taken back.
        restoring: Versions that restore an older one, in the order of `rolled_back`.
        overridden: Versions that an operator let through.
        complete: Versions whose rollout ended well.
        bounded: Batches that the robust rule pushed down.
    """

    devices: dict[str, DeviceView] = field(default_factory=dict)
    published: list[int] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    rolled_back: list[int] = field(default_factory=list)
    restoring: list[int] = field(default_factory=list)
    complete: list[int] = field(default_factory=list)
    bounded: list[str] = field(default_factory=list)
    overridden: list[int] = field(default_factory=list)

    def accuracies(self) -> list[float]:
        """Return the devices' present accuracies on their own test images, those that have one."""
        return [device.accuracy for device in self.devices.values() if device.accuracy is not None]


# After these a device has taken in, or refused, a version: the model that then works for its owner is the one to score.
ANSWERS = frozenset({"merged", "merge-refused"})
_MOODS = {
    "booted": "starting",
    "linked": "waiting",
    "fetched": "fetching",
    "initialised": "waiting",
    "merged": "probation",
    "merge-refused": "refused",
    "micro-update": "learned",
    "contributed": "sending",
    "receipt": "waiting",
    "probation-passed": "waiting",
    "installed": "waiting",
    "fell-back": "fell back",
    "agent-restarted": "fault",
    "leaf-away": "leaf away",
}


class Watch:
    """Follow the journals below a fleet's home.

    Args:
        home: Folder of the fleet.
        devices: Ids of the devices to follow.
    """

    def __init__(self, home: Path, devices: Iterable[str]) -> None:
        self.state = FleetView(devices={name: DeviceView() for name in devices})
        self.events: list[Event] = []
        self._files = {"root": home / "root/state/events.jsonl"}
        self._files |= {name: home / "devices" / name / "journal/events.jsonl" for name in self.state.devices}
        self._offsets = dict.fromkeys(self._files, 0)

    def poll(self) -> list[Event]:
        """Read what is new, oldest first, and bring `state` up to date."""
        fresh = sorted((event for who in self._files for event in self._read(who)), key=lambda event: event.at)
        for event in fresh:
            if event.who == "root":
                _apply_root(self.state, event)
            else:
                _apply_device(self.state.devices[event.who], event)
        self.events += fresh
        return fresh

    def _read(self, who: str) -> list[Event]:
        path = self._files[who]
        if not path.exists() or path.stat().st_size == self._offsets[who]:
            return []
        with path.open("rb") as file:
            file.seek(self._offsets[who])
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # the writer may be in the middle of a line
        self._offsets[who] += len(whole)
        return [_parse(who, line) for line in whole.splitlines() if line.strip()]


def scores(event: Event, *, num_answers: int) -> bool:
    """Say whether an event's accuracy is the device's: that of its last answer, before any that of what it learned."""
    return event.name in ANSWERS or (event.name in {"initialised", "micro-update"} and not num_answers)


def _parse(who: str, line: bytes) -> Event:
    figures: dict[str, object] = json.loads(line)
    at, name = datetime.fromisoformat(str(figures.pop("at")).replace("Z", "+00:00")), str(figures.pop("event"))
    return Event(at=at, who=who, name=name, figures=figures)


def _apply_root(state: FleetView, event: Event) -> None:
    version = int(event.number("version"))
    if event.name == "published":
        state.published.append(version)
        if event.figures.get("override"):
            state.overridden.append(version)
    elif event.name == "gate-refused":
        state.refused.append((event.text("candidate"), event.text("gate"), event.text("why")))
    elif event.name == "rolled-back":
        state.rolled_back.append(version)
        state.restoring.append(int(event.number("new_version")))
    elif event.name == "rollout-complete":
        state.complete.append(version)
    elif event.name == "batch-bounded":
        state.bounded.append(event.text("batch"))


def _apply_device(device: DeviceView, event: Event) -> None:
    device.mood = _MOODS.get(event.name, device.mood)
    if scores(event, num_answers=device.num_answers):
        device.accuracy = event.number("accuracy")
    device.num_answers += event.name in ANSWERS
    if event.name == "installed":
        device.version = int(event.number("version"))
    elif event.name == "fell-back":
        device.num_fallbacks += 1
        device.version = int(event.number("to"))
    elif event.name == "micro-update":
        device.num_updates += 1
        device.num_steps += int(event.number("num_steps"))
    elif event.name == "receipt":
        device.num_receipts += 1
    elif event.name == "contributed":
        device.policies.append(int(event.number("policy")))
