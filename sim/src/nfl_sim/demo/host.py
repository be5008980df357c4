"""The process that runs some of the demo's devices: `nfl device run`, with witnesses and, for some, a faulty learner.

Beside what the product's command does, it records the integers that each device puts into its mask (for the exact check
of sums) and lets devices named in a control file attack.

Run as `python -m nfl_sim.demo.host --taps FOLDER --control FILE DEVICE...`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

from nfl_core.durable import make_folder
from nfl_edge.host import Host, Wiring
from nfl_edge.learn import TrainerProcess
from nfl_edge.runtime import World
from nfl_sim.demo.witness import PrivateValues, PutIn, device_of
from nfl_sim.faults import SignFlipLearner


class Control:
    """Which devices attack now: their names, one a line, in a file that the demo writes and removes."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def attacks(self, checkpoints: Path) -> bool:
        """Say whether the device that owns this folder of checkpoints attacks."""
        try:
            names = self._file.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return False
        return device_of(checkpoints) in names


async def run(folders: list[Path], *, taps: Path, control: Path) -> None:
    """Run devices until SIGTERM."""
    trainer = TrainerProcess()
    wiring = Wiring(world=World(egress_tap=PutIn(taps)), tap_folder=taps)
    learner = PrivateValues(SignFlipLearner(trainer, attacks=Control(control).attacks), folder=taps)
    host = Host(folders, learner=learner, wiring=wiring)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.stop)
    running = asyncio.ensure_future(host.run())
    ready = asyncio.ensure_future(host.ready())
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        print(json.dumps({"ready": True, "devices": host.device_ids, "pid": os.getpid()}), flush=True)  # noqa: T201  the ready line
    ready.cancel()
    try:
        await running
    finally:
        await trainer.stop()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Run some of the demo's devices.")
    parser.add_argument("--taps", type=Path, required=True, help="where to record what devices send and put in")
    parser.add_argument("--control", type=Path, required=True, help="file that names the devices that attack")
    parser.add_argument("devices", type=Path, nargs="+", help="folders of enrolled devices")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    make_folder(arguments.taps)
    asyncio.run(run(arguments.devices, taps=arguments.taps, control=arguments.control))


if __name__ == "__main__":
    main()
