"""Keep the courier job running: submit it, watch it, submit it again.

FLARE fails a whole job when one site's job process dies, and a restarted server forgets it. Both cost a few seconds of
mail and nothing else. The job starts with the sites that are there; a site that comes later makes it start again with it.

Run as `python -m nfl_cluster.flare.jobs --home HOME`, one a fleet, beside FLARE's server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nvflare.fuel.flare_api.api_spec import InternalError as FlareInternalError
from nvflare.fuel.flare_api.api_spec import JobNotFound, NoConnection
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from nfl_core.config import load_fleet
from nfl_core.durable import make_folder, write_file
from nfl_cluster.flare.names import ADMIN, ROOT_COURIER, SITE_COURIER

POLL_S = 0.4
PATIENCE_S = 12.0  # how long a start waits for all sites before it goes on with those that are there
_RUNNING = ("SUBMITTED", "APPROVED", "DISPATCHED", "RUNNING")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the supervisor sees of FLARE at one moment.

    Attributes:
        connected: Client sites that are registered now.
        status: Status of our job, None without one.
        members: Sites that our job was started with.
        waited_s: Seconds since there was no running job, or since the set of connected sites last changed.
    """

    connected: frozenset[str]
    status: str | None
    members: frozenset[str]
    waited_s: float


def decide(seen: Seen, *, sites: frozenset[str]) -> str:
    """Return what to do next: "submit", "abort" (to start again with a newcomer) or "wait"."""
    running = seen.status is not None and seen.status.upper().startswith(_RUNNING)
    if running:
        newcomers = (seen.connected & sites) - seen.members
        return "abort" if newcomers and seen.waited_s > 1.0 else "wait"
    everybody_is_there = seen.connected >= sites
    return "submit" if everybody_is_there or (seen.connected & sites and seen.waited_s > PATIENCE_S) else "wait"


def write_job(folder: Path, *, members: frozenset[str], sites: frozenset[str], root: str) -> Path:
    """Write FLARE's job definition and return its folder.

    Args:
        folder: Where; replaced.
        members: Client sites of the job.
        sites: Client sites of the fleet.
        root: Name of the root site.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder / "app/config")
    couriers = {"sites": sorted(sites), "root": root}
    server = {
        "format_version": 2, "task_data_filters": [], "task_result_filters": [], "components": [],
        "workflows": [{"id": "courier", "path": ROOT_COURIER, "args": couriers}],
    }
    client = {
        "format_version": 2, "task_data_filters": [], "task_result_filters": [], "components": [],
        "executors": [{"tasks": ["*"], "executor": {"path": SITE_COURIER, "args": couriers}}],
    }
    meta = {
        "name": "nfl-courier", "resource_spec": {}, "min_clients": 1,
        "deploy_map": {"app": ["server", *sorted(members)]},
    }
    for name, content in (("app/config/config_fed_server.json", server), ("app/config/config_fed_client.json", client), ("meta.json", meta)):
        write_file(folder / name, json.dumps(content, indent=1).encode())
    return folder


class JobSupervisor:
    """Watch one fleet's courier job.

    Args:
        kit: The admin's start-up kit.
        work: Folder for job definitions.
        sites: All client sites of the fleet.
        clock: Monotonic seconds.
        say: Takes one event, for the log that people read.
    """

    def __init__(self, *, kit: Path, work: Path, root: str, sites: frozenset[str], clock: Callable[[], float], say: Callable[[dict[str, object]], None]) -> None:
        self._root = root
        self._kit, self._work, self._sites, self._clock, self._say = kit, work, sites, clock, say
        self._job: str | None = None
        self._members: frozenset[str] = frozenset()
        self._connected: frozenset[str] = frozenset()
        self._since = clock()

    def watch(self, session: Session) -> None:
        """Look once, and do what is due."""
        seen = self._look(session)
        action = decide(seen, sites=self._sites)
        if action == "submit":
            self._members = seen.connected & self._sites
            self._job = session.submit_job(str(write_job(self._work, members=self._members, sites=self._sites, root=self._root)))
            self._say({"event": "job-submitted", "job": self._job, "sites": sorted(self._members)})
        elif action == "abort" and self._job is not None:
            self._say({"event": "job-restarting", "job": self._job, "why": f"{', '.join(sorted(seen.connected - self._members))} came back"})
            session.abort_job(self._job)
            self._job = None
        if action != "wait":
            self._since = self._clock()

    def forget(self) -> None:
        """Forget the job: FLARE's server has gone."""
        self._job, self._since = None, self._clock()

    def _look(self, session: Session) -> Seen:
        connected = frozenset(client.name for client in session.get_system_info().client_info)
        status = None if self._job is None else session.get_job_status(self._job)
        if connected != self._connected:
            self._connected, self._since = connected, self._clock()
        if self._job is not None and (status is None or not status.upper().startswith(_RUNNING)):
            self._say({"event": "job-ended", "job": self._job, "status": str(status)})
            self._job, self._since = None, self._clock()
        return Seen(connected=connected, status=status if self._job else None, members=self._members, waited_s=self._clock() - self._since)


@contextlib.contextmanager
def _session(kit: Path) -> Iterator[Session]:
    session = new_secure_session(ADMIN, str(kit), timeout=5.0)
    try:
        yield session
    finally:
        session.close()


def run(home: Path) -> None:
    """Supervise until SIGTERM."""
    config = load_fleet(home / "fleet.toml")
    sites = frozenset([config.keeper.site, *(leaf.site for leaf in config.leaves)])
    supervisor = JobSupervisor(
        kit=home / "flare" / ADMIN, work=home / "flare/job", root=config.root.site, sites=sites, clock=time.monotonic,
        say=lambda event: print(json.dumps(event), flush=True),  # noqa: T201  stdout is this process's result
    )
    while True:
        try:
            with _session(home / "flare" / ADMIN) as session:
                while True:
                    supervisor.watch(session)
                    time.sleep(POLL_S)
        except (NoConnection, FlareInternalError, JobNotFound, ConnectionError) as error:
            _LOG.warning("no session with FLARE's server: %s: %s", type(error).__name__, error)
            supervisor.forget()
            time.sleep(POLL_S)


def main() -> None:
    """Parse the command line and supervise."""
    parser = argparse.ArgumentParser(description="Keep the fleet's courier job running in FLARE.")
    parser.add_argument("--home", type=Path, required=True, help="folder of the fleet")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run(arguments.home)


if __name__ == "__main__":
    main()
