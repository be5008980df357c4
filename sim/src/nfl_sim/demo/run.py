"""From a command line to a report: the folder, the fleet, the story, and an end without orphans."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from nfl_cluster.operations import send
from nfl_cluster.processes import Supervisor
from nfl_cluster.topology import flare_processes
from nfl_core.cli.console import stderr
from nfl_core.config import FleetConfig
from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ConflictError
from nfl_sim.demo.fleet import make_fleet
from nfl_sim.demo.report import Report
from nfl_sim.demo.screen import Screen
from nfl_sim.demo.story import Story, write_report


class DemoRunsError(ConflictError):
    """Another demo runs in the same folder."""

    code = "demo.running"
    hint = "stop it with Ctrl-C in its terminal (or `kill PID`), or give this one another NFL_HOME"


def run_demo(home: Path, *, num_devices: int, num_versions: int, seed: int, keep: bool) -> Report:
    """Run the demo below `home` and return its report, which is also written to `home/demo`.

    Raises:
        DemoRunsError: Another demo runs there.
        NflError: A step failed, a process could not be brought back, or the proof does not hold.
    """
    started = time.monotonic()
    folder = home / "demo"
    take_over(folder)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Screen(stderr()) as screen:
            screen.say("making the fleet")
            supervisor = Supervisor(folder / "run")
            supervisor.start()

            def start_flare(config: FleetConfig) -> None:
                screen.say("starting FLARE's root, keeper and leaves")
                for spec in flare_processes(config, folder):
                    supervisor.add(spec)

            try:
                fleet = make_fleet(
                    folder,
                    cache=home / "data",
                    num_devices=num_devices,
                    seed=seed,
                    say=screen.say,
                    kits_made=start_flare,
                )
                story = Story(
                    fleet=fleet,
                    supervisor=supervisor,
                    screen=screen,
                    num_versions=num_versions,
                    seed=seed,
                    started=started,
                )
                report = story.play()
                pages = write_report(folder, report)
                screen.say(f"report: {pages[0]} and {pages[1]}", style="bold")
                if keep:
                    send(folder, "resume")
                    _stay(folder, supervisor.poll, screen)
            finally:
                screen.say("stopping all processes")
                supervisor.stop()
        return report
    finally:
        signal.signal(signal.SIGTERM, previous)
        (folder / "pid").unlink(missing_ok=True)


def take_over(folder: Path) -> None:
    """Replace the folder of a demo that has ended; the data beside it stays.

    Raises:
        DemoRunsError: The demo there still runs.
        DurableError: The folder cannot be replaced.
    """
    pid = _running(folder / "pid")
    if pid is not None:
        raise DemoRunsError(f"a demo runs in {folder}, process {pid}")
    make_folder(folder.parent)
    if folder.exists():
        # Renamed first: whoever looks sees the whole old demo or the new one, never half of either.
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old)
    make_folder(folder)
    write_file(folder / "pid", f"{os.getpid()} {psutil.Process().create_time()}".encode())


def _running(file: Path) -> int | None:
    """Return the process that wrote this pid file, if it still runs."""
    try:
        pid, born = file.read_text().split()
        process = psutil.Process(int(pid))
        return process.pid if abs(process.create_time() - float(born)) < 1 else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def _stay(folder: Path, poll: Callable[[], list[str]], screen: Screen) -> None:
    """Keep the fleet running until Ctrl-C."""
    screen.say(f"the fleet stays up; look with: nfl --home '{folder}' status    end with Ctrl-C here", style="bold")
    try:
        while True:
            for line in poll():
                screen.say(line, style="yellow")
            time.sleep(0.2)
    except KeyboardInterrupt:
        return


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
