"""Run all processes of a fleet in the foreground until somebody says stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from nfl_cluster.init import check_ports
from nfl_cluster.processes import Supervisor, clear_stale
from nfl_cluster.topology import fleet_processes
from nfl_core.config import load_fleet

POLL_S = 0.1


def run_fleet(home: Path, *, say: Callable[[str], None], ready: Callable[[list[str]], None]) -> None:
    """Run a fleet until SIGTERM or Ctrl-C; nothing is left when this returns or raises.

    Args:
        home: The fleet's folder.
        say: Takes one line of news.
        ready: Called once, with the names of all processes, when all serve.

    Raises:
        ConfigError: There is no fleet in this home.
        AlreadyRunningError: It runs already.
        PortInUseError: Somebody holds one of its ports.
        ProcessDiedError: A process dies again and again.
    """
    config = load_fleet(home / "fleet.toml")
    clear_stale(home / "run")
    check_ports(config)
    specs = fleet_processes(config, home)
    names = [spec.name for spec in specs]
    supervisor = Supervisor(home / "run", specs)
    stopping: list[int] = []
    old = {
        number: signal.signal(number, lambda got, _: stopping.append(got)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    has_said = False
    try:
        supervisor.start()
        while not stopping:
            for line in supervisor.poll():
                say(line)
            if not has_said and all(supervisor.ready(name) for name in names):
                has_said = True
                ready(names)
            time.sleep(POLL_S)
    finally:
        supervisor.stop()
        for number, handler in old.items():
            signal.signal(number, handler)
