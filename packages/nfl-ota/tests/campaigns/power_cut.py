"""Cut the power at every point of installing, activating, confirming and falling back, and look what boots.

`nox -s campaign -- power-cut COUNT`. A scenario runs on a simulated disk that remembers itself after every operation.
From each of these points every simple outcome of a cut is tried, then random ones until COUNT; a part of them cuts
again while the device recovers. What boots must be the version before or after the step that was interrupted, with the
right hash, and the device must be able to take the next version. Three controls, wrong on purpose, must be caught.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from simulated_disk import SimulatedDisk, data_choices, folder
from worlds import opened

from nfl_core.errors import NflError
from nfl_ota import Floor, FloorState, Mark, Slots

DOUBLE_CUTS = 0.25  # of the random cases
BUNDLES = {version: opened(version) for version in range(1, 8)}
NEXT = 7  # a version that no scenario installs: the device must be able to take it afterwards


@dataclass
class Run:
    """A scenario as it happened: after every operation (disk, versions that may boot, least floor, quarantined)."""

    points: list = field(default_factory=list)


class Device:
    """The real slots and the real floor."""

    settles = False  # whether the disk gets the time to write back between two steps; ours must not need it

    def __init__(self, disk):
        self.slots = Slots(folder(), disk=disk)
        self.disk = disk

    def do(self, step, version):
        match step:
            case "factory":
                self.slots.provision_factory(BUNDLES[version])
            case "install":
                self.slots.install(BUNDLES[version])
            case "activate":
                self.slots.activate()
            case "boot":
                self.slots.boot()
            case "confirm":
                self.slots.confirm()
            case "fall-back":
                self.slots.fall_back()
            case "floor":
                Floor(folder() / "floor", disk=self.disk).raise_to(FloorState(bundle=Mark(number=version)))

    def boots(self):
        return self.slots.boot().bundle.manifest.version

    def floor(self):
        return Floor(folder() / "floor", disk=self.disk).state.bundle.number

    def quarantined(self):
        return set(self.slots.state.quarantined)

    def goes_on(self):
        """Take the next version, as a device would after any interruption."""
        if self.slots.state.on_probation:
            self.slots.confirm()
        self.slots.install(BUNDLES[NEXT])
        self.slots.activate()
        assert self.boots() == NEXT
        self.slots.confirm()


class PatientDevice(Device):
    """The real slots on a disk that gets the time to settle: for disks that lie."""

    settles = True


class NaiveDevice(Device):
    """The wrong way that looks right: files replaced by rename, one record, no sync, no hash."""

    settles = True

    def do(self, step, version):
        from nfl_ota.image import pack_image

        record = json.loads(self.disk.read(folder() / "state") or b"{}")
        match step:
            case "factory" | "install":
                slot = "b" if record.get("active") == "a" else "a"
                self._replace(f"slot-{slot}", pack_image(BUNDLES[version]))
                record |= {"pending": slot, "active": record.get("active", slot if step == "factory" else None)}
            case "activate":
                record |= {"active": record["pending"], "previous": record["active"]}
            case "fall-back" | "boot" if version:
                record["active"] = record["previous"]
            case _:
                return
        self._replace("state", json.dumps(record).encode())

    def boots(self):
        from nfl_ota.image import unpack_image

        record = json.loads(self.disk.read(folder() / "state") or b"")
        return unpack_image(self.disk.read(folder() / f"slot-{record['active']}") or b"").manifest.version

    def floor(self):
        return NEXT

    def quarantined(self):
        return set(BUNDLES)

    def goes_on(self):
        pass

    def _replace(self, name, data):
        self.disk.write(folder() / f".{name}", data, mode=0o600)
        self.disk.rename(folder() / f".{name}", folder() / name)


# Step, version, version that runs afterwards. Boots stand where a device would start again.
SCENARIO = [
    *[("factory", 1, None), ("boot", 0, 1)],
    *[("floor", 2, 1), ("install", 2, 1), ("activate", 0, 2), ("boot", 0, 2), ("confirm", 0, 2)],
    *[("floor", 3, 2), ("install", 3, 2), ("activate", 0, 3), ("boot", 0, 3), ("fall-back", 3, 2), ("boot", 0, 2)],
    *[("floor", 4, 2), ("install", 4, 2), ("install", 4, 2), ("activate", 0, 4)],
    *[("boot", 0, 4), ("boot", 0, 4), ("boot", 0, 4), ("boot", 4, 2)],
    *[("floor", 5, 2), ("install", 5, 2), ("activate", 0, 5), ("boot", 0, 5), ("confirm", 0, 5)],
    *[("floor", 6, 5), ("install", 6, 5), ("activate", 0, 6), ("boot", 0, 6), ("confirm", 0, 6), ("boot", 0, 6)],
]
GIVEN_UP = {"fall-back", "boot"}  # steps that name the version which they quarantine


def record(kind, disk) -> Run:
    """Run the scenario and remember every point of it."""
    run, before, floor, quarantined = Run(), None, 0, set()
    device = kind(disk)
    for step, version, after in SCENARIO:
        disk.history = []
        device.do(step, version)
        # The factory image may boot as soon as its record is there, which is inside its step.
        may_boot = {before, after} if step != "factory" else {None, version}
        # A boot that counts the last try may already fall back when it is repeated after a cut.
        may_boot |= {2} if step == "boot" and before == 4 else set()
        run.points += [(point, frozenset(may_boot), floor, frozenset(quarantined)) for point in disk.history]
        before = after if step != "factory" else version
        floor = version if step == "floor" else floor
        quarantined |= {version} if step in GIVEN_UP and version else set()
        disk.history = None
        # The step has returned: from here on nothing but its outcome may boot, whether the disk has settled or not.
        run.points.append(
            (disk.copy(), frozenset({before} | ({2} if before == 4 else set())), floor, frozenset(quarantined))
        )
        if kind.settles:
            disk.settle()
    return run


def simple_cuts(point, choices):
    """Yield every simple outcome of a cut: a prefix of the pending names, one fate for all unsynced data."""
    for num, choose in itertools.product(range(len(point.pending) + 1), choices.values()):
        yield point.crashed(range(num), choose)


def random_cut(point, choices, rng):
    """Return an outcome in which names and data fare each on their own."""
    kept = [index for index in range(len(point.pending)) if rng.random() < 0.5]
    fates = list(choices.values())

    def any_fate(durable, data):
        return rng.choice(fates)(durable, data)

    return point.crashed(kept, any_fate)


def violation(kind, disk, truth, *, again=None):
    """Return what is wrong with a device that starts on this disk, None when nothing is."""
    _, may_boot, floor, quarantined = truth
    try:
        if again is not None:
            disk.history = []
            try:
                kind(disk).boots()
            except NflError:
                if None not in may_boot:
                    raise
            points = disk.history
            disk.history = None
            if points:
                disk = random_cut(again.choice(points), data_choices(again), again)
        device = kind(disk)
        if device.floor() < floor:
            return f"floor {device.floor()} is below {floor}"
        if not device.quarantined() >= quarantined:
            return f"quarantine forgot {quarantined - device.quarantined()}"
        try:
            version = device.boots()
        except NflError:
            version = None
            if None not in may_boot:
                raise
        if version not in may_boot:
            return f"version {version} boots, expected one of {may_boot}"
        device.goes_on()
    except (NflError, AssertionError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def check(kind, make_disk, count, *, seed=0, stride=1):
    """Return (cases, violations) of the simple cuts at every `stride`th point, and of random ones up to `count`."""
    rng = random.Random(seed)
    choices = data_choices(rng)
    run = record(kind, make_disk())
    found, cases = [], 0
    for truth in run.points[::stride]:
        for disk in simple_cuts(truth[0], choices):
            found.append(violation(kind, disk, truth))
            cases += 1
    while cases < count:
        truth = rng.choice(run.points)
        again = rng if rng.random() < DOUBLE_CUTS else None
        found.append(violation(kind, random_cut(truth[0], choices, rng), truth, again=again))
        cases += 1
    return cases, [what for what in found if what is not None]


CONTROLS = {
    "naive writer": (NaiveDevice, SimulatedDisk),
    "disk that ignores sync": (PatientDevice, lambda: SimulatedDisk(ignores_sync=True)),
    "disk that ignores sync of folders": (PatientDevice, lambda: SimulatedDisk(ignores_folder_sync=True)),
}


def main(count: int = 10_000) -> None:
    """Run the campaign; the last line of the output is its result as JSON."""
    started = time.monotonic()
    logging.disable()  # every damaged record would be named
    cases, violations = check(Device, SimulatedDisk, count)
    for what in sorted(set(violations))[:20]:
        sys.stderr.write(f"violation: {what}\n")
    caught = 0
    for name, (kind, make_disk) in CONTROLS.items():
        tried, faults = check(kind, make_disk, 0, seed=1)
        caught += bool(faults)
        sys.stderr.write(f"control: {name}: caught in {len(faults)} of {tried} cuts\n")
    result = {
        "campaign": "power-cut",
        "cases": cases,
        "violations": len(violations),
        "controls": len(CONTROLS),
        "controls_caught": caught,
        "seconds": round(time.monotonic() - started, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    if violations or caught < len(CONTROLS):
        raise SystemExit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
