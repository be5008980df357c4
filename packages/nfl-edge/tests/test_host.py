from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nfl_core.errors import StorageFullError
from nfl_edge.errors import DeviceBusyError, DeviceFolderError
from nfl_edge.folder import lock_device
from nfl_edge.host import Host, Wiring
from nfl_edge.models import Models
from nfl_ota.slots import Slots

from .world import Device, Fleet, InProcessLearner


def host_of(fleet: Fleet, *devices: Device, **options) -> Host:
    wiring = Wiring(leaf_address=fleet.leaf.address, **options)
    return Host([device.folder.root for device in devices], learner=InProcessLearner(), wiring=wiring)


async def reached(condition, task: asyncio.Task, *, within_s: float = 40.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if task.done():
            task.result()
            raise AssertionError("the host ended")
        assert time.monotonic() < deadline, "not reached"
        await asyncio.sleep(0.02)


async def test_devices_of_a_host_share_nothing_but_the_trainer(fleet: Fleet, tmp_path: Path) -> None:
    fleet.publish(1)
    devices = [fleet.device(f"robot-{number}", index=number) for number in range(3)]
    (tmp_path / "taps").mkdir()
    host = host_of(fleet, *devices, tap_folder=tmp_path / "taps")
    task = asyncio.ensure_future(host.run())
    await asyncio.wait_for(host.ready(), 20)
    await reached(lambda: all(device.events("micro-update") for device in devices), task)
    assert fleet.leaf.peers == {f"spiffe://home/device/robot-{number}" for number in range(3)}
    names = {path.name for device in devices for path in device.folder.checkpoints.iterdir()}
    assert len(names) == 3  # everybody has learned something else
    assert sorted(path.name for path in (tmp_path / "taps").iterdir()) == [f"robot-{n}.tap" for n in range(3)]
    host.stop()
    await asyncio.wait_for(task, 20)


async def test_a_fault_of_one_agent_is_told_and_stops_no_other(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.publish(1)
    sick, well = fleet.device("robot-1"), fleet.device("robot-2", index=1)
    boot, faults = Models.boot, [2]

    def break_twice(self, **options):
        if self._folder == sick.folder and faults[0]:
            faults[0] -= 1
            raise RuntimeError("a fault of the program")
        return boot(self, **options)

    monkeypatch.setattr(Models, "boot", break_twice)
    host = host_of(fleet, sick, well)
    task = asyncio.ensure_future(host.run())
    await reached(lambda: well.events("micro-update"), task)
    await reached(lambda: sick.events("micro-update"), task)  # it came back by itself
    assert [event["code"] for event in sick.events("agent-restarted")] == ["RuntimeError", "RuntimeError"]
    assert "a fault of the program" in sick.events("agent-restarted")[0]["why"]
    assert well.events("agent-restarted") == []
    host.stop()
    await asyncio.wait_for(task, 20)


async def test_a_device_runs_in_one_process_only(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    with pytest.raises(DeviceFolderError, match="twice"):
        host_of(fleet, device, device)
    lock = lock_device(device.folder)
    with pytest.raises(DeviceBusyError, match="another process"):
        await host_of(fleet, device).run()
    os.close(lock)
    with pytest.raises(DeviceFolderError, match="no enrolled device"):
        Host([fleet.home / "nobody"])


@pytest.mark.root
async def test_a_disk_that_is_full_during_install_keeps_the_old_slot(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    slots = device.folder.slots
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(slots)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow to mount a small file system")
    try:
        fleet.publish(1)
        host = host_of(fleet, device)
        task = asyncio.ensure_future(host.run())
        await reached(lambda: device.events("micro-update"), task)
        free = os.statvfs(slots)
        (slots / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - 8192))
        fleet.publish(2)
        await reached(lambda: device.events("install-refused"), task)
        refused = device.events("install-refused")[0]
        assert refused["code"] == StorageFullError.code
        assert Slots(slots).load().manifest.version == 1
        assert host.agents["robot-1"].guard.active is not None
        (slots / "ballast").unlink()
        await reached(lambda: host.agents["robot-1"].state.base.version == 2, task)
        host.stop()
        await asyncio.wait_for(task, 20)
    finally:
        subprocess.run(["umount", "-l", str(slots)], check=True)


def start_process(fleet: Fleet, *devices: Device) -> subprocess.Popen[str]:
    argv = [
        sys.executable,
        "-m",
        "nfl_edge",
        "run",
        "--leaf",
        fleet.leaf.address,
        *(str(one.folder.root) for one in devices),
    ]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_the_process_says_ready_survives_its_trainer_and_ends_on_sigterm(fleet: Fleet) -> None:
    fleet.publish(1)
    devices = [fleet.device(f"robot {number}".replace(" ", "-"), index=number) for number in range(2)]
    process = start_process(fleet, *devices)
    try:
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 60)
        assert json.loads(line) == {"ready": True, "devices": ["robot-0", "robot-1"], "pid": process.pid}
        host = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while not all(device.events("micro-update") for device in devices):
            assert time.monotonic() < deadline
            assert process.poll() is None
            await asyncio.sleep(0.05)
        # The host holds no torch; its child does.
        assert not any("torch" in entry.path for entry in host.memory_maps())
        (trainer,) = host.children()
        assert any("torch" in entry.path for entry in trainer.memory_maps())
        assert trainer.nice() == 19
        trainer.kill()
        fleet.publish(2)
        deadline = time.monotonic() + 60  # a second start of torch at the lowest priority
        while not all(device.events("merged") or device.events("merge-refused") for device in devices):  # answered
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        (trainer,) = host.children()
        process.send_signal(signal.SIGTERM)
        rest, log = await asyncio.wait_for(asyncio.to_thread(process.communicate), 20)
        assert process.returncode == 0
        assert rest == ""
        assert "Traceback" not in log
        assert not psutil.pid_exists(trainer.pid)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


async def test_a_host_that_is_killed_goes_on_from_its_durable_state(fleet: Fleet) -> None:
    fleet.publish(1)
    device = fleet.device("robot-1")
    process = start_process(fleet, device)
    try:
        deadline = time.monotonic() + 60
        while not device.events("micro-update"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        process.kill()
        process.communicate()
        await fleet.leaf.stop()
        fleet.open_policy(1, 1)
        await fleet.leaf.start()
        process = start_process(fleet, device)
        while not device.events("receipt"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            await asyncio.sleep(0.02)
        assert len(device.events("micro-update")) == 1
        assert len(device.events("initialised")) == 1
        assert len(fleet.leaf.bodies) == 1
    finally:
        process.kill()
        process.communicate()
