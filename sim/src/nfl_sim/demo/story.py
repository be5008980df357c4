"""What happens in the demo, and when: good versions, an attack, a bad version let through, a killed leaf, the end.

Every chapter waits for what the fleet itself reports. A chapter that does not get there in its time ends the demo with
an error that says what was waited for and what to look at.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil

from nfl_cluster.brain.content import Content, Contents
from nfl_cluster.operations import send
from nfl_cluster.processes import Supervisor
from nfl_cluster.service import SiteFolder
from nfl_cluster.topology import service_processes
from nfl_core.durable import remove_file, write_file
from nfl_core.errors import NflError
from nfl_core.ids import DeviceId
from nfl_edge.folder import DeviceFolder
from nfl_edge.link import read_tap
from nfl_ota import Repository
from nfl_sim.demo.fleet import LEAVES, DemoFleet, baselines, device_hosts, enrol_devices
from nfl_sim.demo.narrator import FAULTS, Narrator
from nfl_sim.demo.proof import prove
from nfl_sim.demo.report import Accuracies, Proof, Report, Round, Versions, settled
from nfl_sim.demo.screen import Screen
from nfl_sim.demo.watch import ANSWERS, Watch, scores
from nfl_sim.faults import break_graph, sense_again

TICK_S = 0.1
MEMORY_EVERY_S = 0.5
_ATTACKED = LEAVES[1]
_KILLED = LEAVES[0]


class StalledError(NflError):
    """A chapter of the demo did not get to its end in time."""

    code = "demo.stalled"
    hint = "read run/logs and root/state/events.jsonl in the demo's folder; start the demo again to begin anew"


class UnprovenError(NflError):
    """The demo ran, and what it must prove did not hold."""

    code = "demo.unproven"
    hint = "this is a defect: keep the demo's folder and report it"


@dataclass(slots=True)
class Story:
    """One run of the demo.

    Args:
        fleet: The fleet it happens to.
        supervisor: Runs the fleet's processes; polled by this thread.
        screen: Tells it.
        num_versions: Good versions to publish, version 1 not counted.
        seed: For the baselines.
    """

    fleet: DemoFleet
    supervisor: Supervisor
    screen: Screen
    num_versions: int
    seed: int
    started: float = field(default_factory=time.monotonic)
    narrator: Narrator = field(init=False)
    restarts: list[str] = field(default_factory=list)
    peak_rss_bytes: int = 0
    watch: Watch = field(init=False)
    _memory_at: float = 0.0

    def __post_init__(self) -> None:
        """Begin to watch."""
        started_at = datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - self.started)
        self.narrator = Narrator(self.screen, started_at=started_at)
        self.watch = Watch(self.fleet.home, self.fleet.devices)

    def play(self) -> Report:
        """Play the whole story and return its report. The fleet runs on, paused.

        Raises:
            StalledError: A chapter did not end in time.
            ProcessDiedError: A process died again and again.
            UnprovenError: Sums were not exact, something private was sent, or a receipt was lost.
        """
        self._start()
        self._good_versions(2)
        self._attack()
        self._bad_version()
        self._kill_leaf()
        self._good_versions(self.num_versions)
        return self._end()

    def _start(self) -> None:
        self.screen.say("starting the services of root, keeper and leaves")
        for spec in service_processes(self.fleet.config, self.fleet.home):
            self.supervisor.add(spec)
        self._wait(lambda: self.supervisor.ready("root-service"), deadline_s=60, what="the root's service to serve")
        enrol_devices(self.fleet)
        self.screen.say(f"{len(self.fleet.devices)} devices enrolled: own keys, own certificates, tokens used up")
        for spec in (
            *device_hosts(self.fleet),
            baselines(self.fleet, num_rounds=self.num_versions + 4, seed=self.seed),
        ):
            self.supervisor.add(spec)

    def _good_versions(self, number: int) -> None:
        """Wait until that many good versions have been rolled out to the end."""
        self._wait(
            lambda: len(self._good()) >= number,
            deadline_s=20 * number + 60,
            what=f"good version number {number} to be on all devices",
        )

    def _good(self) -> list[int]:
        view = self.watch.state
        return [
            version
            for version in view.complete
            if version > 1 and version in view.published and version not in view.overridden
        ]

    def _attack(self) -> None:
        members = [device for device in self.fleet.devices if self.fleet.leaf_of(device) == _ATTACKED]
        self.narrator.fault(
            self._now(),
            f"attack on {_ATTACKED}",
            f"all {len(members)} devices of {_ATTACKED} are hacked: they send the opposite of what they learn",
        )
        begun, since, num_published = self._now(), 0, 0
        attackers: set[DeviceId] = set()

        def is_over() -> bool:
            nonlocal since, num_published
            view = self.watch.state
            if len(view.published) > num_published:  # strike at each version until one is refused
                num_published, since = len(view.published), len(self.watch.events)
                attackers.update(members)
                self._set_attackers(attackers)
            for device in [device for device in attackers if self._has_struck(device, since=since)]:
                attackers.remove(device)
                self._set_attackers(attackers)
                sense_again(DeviceFolder(self.fleet.folder(device)).samples)
            return len(view.refused) > num_refused

        num_published, num_refused = len(self.watch.state.published), len(self.watch.state.refused)
        self._wait(is_over, deadline_s=90, what="a gate to refuse the poisoned candidate")
        remove_file(self.fleet.control)
        for device in attackers:
            sense_again(DeviceFolder(self.fleet.folder(device)).samples)
        self.narrator.mark(begun, FAULTS, "c-bad", "", until_s=self._now())
        self._good_versions(len(self._good()) + 1)

    def _set_attackers(self, devices: Collection[DeviceId]) -> None:
        write_file(self.fleet.control, "\n".join(sorted(devices)).encode())

    def _has_struck(self, device: DeviceId, *, since: int) -> bool:
        """Say whether a device has contributed what it learned after the event number `since`."""
        names = [event.name for event in self.watch.events[since:] if event.who == device]
        return "micro-update" in names and "contributed" in names[names.index("micro-update") :]

    def _bad_version(self) -> None:
        path = self.fleet.home / "run/broken.onnx"
        write_file(path, break_graph(self._first_version().graph))
        send(
            self.fleet.home,
            "override-publish",
            candidate="running",
            reason="the demo lets a bad export through",
            graph=str(path),
        )
        self.narrator.fault(
            self._now(),
            "bad version let through",
            "an operator overrides the gates: a version whose graph yields infinities goes out",
        )
        self._wait(
            lambda: bool(self.watch.state.rolled_back),
            deadline_s=60,
            what="devices to fall back and the root to roll back",
        )
        restored = len(self.watch.state.restoring)
        self._wait(
            lambda: (
                restored
                <= len([version for version in self.watch.state.restoring if version in self.watch.state.complete])
            ),
            deadline_s=60,
            what="the restored version to be on all devices",
        )

    def _first_version(self) -> Content:
        site = SiteFolder.of_root(self.fleet.home)
        repository = Repository.open(site.repository, site.tuf_keys, lambda: datetime.now(timezone.utc))
        return Contents(repository, site.repository).of(1)

    def _kill_leaf(self) -> None:
        before = sum(device.num_receipts for device in self.watch.state.devices.values())
        self._wait(
            lambda: sum(device.num_receipts for device in self.watch.state.devices.values()) >= before + 3,
            deadline_s=60,
            what="contributions of the next round",
        )
        killed_at = self._now()
        self.supervisor.kill(_KILLED)
        self.screen.say(
            f"{_KILLED} killed with SIGKILL: its service, its FLARE parent and its FLARE job process", style="bold red"
        )
        names = (f"{_KILLED}-service", f"{_KILLED}-flare")
        self._wait(lambda: not any(map(self.supervisor.ready, names)), deadline_s=10, what=f"{_KILLED} to be gone")
        self._wait(lambda: all(map(self.supervisor.ready, names)), deadline_s=60, what=f"{_KILLED} to be back")
        self.narrator.mark(killed_at, FAULTS, "c-kill", f"{_KILLED} killed, back", until_s=self._now())
        self.screen.say(f"{_KILLED} is back and goes on with what is on its disk", style="green")
        self._good_versions(len(self._good()) + 1)

    def _end(self) -> Report:
        send(self.fleet.home, "pause")
        updates = [device.num_updates for device in self.watch.state.devices.values()]
        num_rounds = max(1, round(sum(updates) / len(updates)))
        accuracies = self.watch.state.accuracies()
        self.screen.say(f"learning alone and sharing all, on the same data and steps: {num_rounds} micro-updates each")
        self._wait(lambda: len(self._baselines()) >= num_rounds, deadline_s=90, what="the learners to compare with")
        self.screen.say("opening what keeper and leaf could only open together, and searching everything that was sent")
        proof = prove(self.fleet.home, self.fleet.config, taps=self.fleet.taps)
        report = self._report(accuracies, num_rounds=num_rounds, proof=proof)
        if not proof.holds:
            raise UnprovenError(f"the proof does not hold: {proof.model_dump_json()}")
        return report

    def _report(self, accuracies: list[float], *, num_rounds: int, proof: Proof) -> Report:
        view, rounds = self.watch.state, self._rounds(num_rounds, accuracies)
        receipts = sum(device.num_receipts for device in view.devices.values())
        sent = [read_tap(path) for path in sorted(self.fleet.taps.glob("*.tap"))]
        contributions = sum(
            len(message) for messages in sent for method, message in messages if method.endswith("Contribute")
        )
        return Report(
            seconds=self._now(),
            peak_rss_mb=self.peak_rss_bytes / 1e6,
            accuracy=Accuracies(
                nested=settled([one.nested for one in rounds]),
                local=settled([one.local for one in rounds]),
                shared=settled([one.shared for one in rounds]),
            ),
            bytes_up_per_device_per_version=proof.sent_bytes / max(1, receipts),
            bytes_contribution=contributions / max(1, receipts),
            bytes_fp32=4 * self._first_version().schema.num_shared,
            versions=Versions(
                published=len(self._good()),
                refused=len({candidate for candidate, _, _ in view.refused}),
                rolled_back=len(view.rolled_back),
            ),
            devices=len(self.fleet.devices),
            data=self.fleet.data,
            seed=self.seed,
            rounds=rounds,
            moments=self.narrator.moments,
            restarts=self.restarts,
            batches_bounded=len(view.bounded),
            proof=proof,
        )

    def _rounds(self, num_rounds: int, last: list[float]) -> list[Round]:
        """Return the curves; nested: what models get right once devices have made 1, 2, ... updates on average."""
        latest: dict[str, float] = {}
        num_answers: Counter[str] = Counter()
        curve: list[list[float]] = []
        num_updates = 0
        for event in self.watch.events:
            if scores(event, num_answers=num_answers[event.who]):
                latest[event.who] = event.number("accuracy")
            num_answers[event.who] += event.name in ANSWERS
            num_updates += event.name == "micro-update"
            if num_updates >= (len(curve) + 1) * len(self.fleet.devices):
                curve.append([latest[device] for device in self.fleet.devices if device in latest])
        if len(curve) >= num_rounds:
            curve[num_rounds - 1 :] = [last]
        else:
            curve.append(last)
        rows = self._baselines()[:num_rounds]
        return [
            Round(number=i + 1, nested=nested, local=list(row["local"]), shared=list(row["shared"]))
            for i, (nested, row) in enumerate(zip(curve, rows, strict=False))
        ]

    def _baselines(self) -> list[dict[str, list[float]]]:
        path = self.fleet.home / "run/baselines.jsonl"
        lines = path.read_text(encoding="ascii").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _wait(self, condition: Callable[[], bool], *, deadline_s: float, what: str) -> None:
        """Let the fleet go on until `condition` holds. Raises StalledError, ProcessDiedError."""
        until = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > until:
                raise StalledError(f"waited {deadline_s:.0f} s for {what}")
            self._tick()

    def _tick(self) -> None:
        for line in self.supervisor.poll():
            self.restarts.append(line)
            self.screen.say(line, style="yellow")
        for event in self.watch.poll():
            self.narrator.tell(event, self.watch.state)
        self.screen.show(self.watch.state)
        if time.monotonic() > self._memory_at:
            self._memory_at = time.monotonic() + MEMORY_EVERY_S
            self.peak_rss_bytes = max(self.peak_rss_bytes, resident_bytes())
        time.sleep(TICK_S)

    def _now(self) -> float:
        return time.monotonic() - self.started


def resident_bytes() -> int:
    """Return the resident memory of this process and all its descendants, shared pages counted for each."""
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended between the listing and the look
            continue
    return total


def write_report(folder: Path, report: Report) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into a folder and return their paths. Raises DurableError."""
    from nfl_sim.demo.page import render

    as_json, as_page = folder / "report.json", folder / "report.html"
    write_file(as_json, (report.model_dump_json(indent=1) + "\n").encode(), mode=0o644)
    write_file(as_page, render(report).encode(), mode=0o644)
    return as_json, as_page
