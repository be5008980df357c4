"""Keep the courier job running: submit it, watch it, submit it again.

FLARE fails a whole job when one site's job process dies, and a restarted server forgets it. Both cost a few seconds of
mail and nothing else. `nfl_cluster.flare.watch` decides; this talks to FLARE's server as its administrator.

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
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from nvflare.fuel.flare_api.api_spec import AuthenticationError, JobNotDone, JobNotFound, NoConnection
from nvflare.fuel.flare_api.api_spec import InternalError as FlareInternalError
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from nfl_cluster.flare.names import ADMIN, ROOT_COURIER, SITE_COURIER
from nfl_cluster.flare.run import die_with_parent
from nfl_cluster.flare.watch import SUBMIT, Seen, decide
from nfl_core.config import load_fleet
from nfl_core.durable import make_folder, write_file

POLL_S = 1.0  # each look leaves two of FLARE's timer threads behind for 65 s
EAGER_POLL_S = 0.3  # while there is no job yet
_CONNECT_S = 5.0
_FLARE_ERRORS = (NoConnection, FlareInternalError, JobNotFound, JobNotDone, AuthenticationError, ConnectionError)
_LOG = logging.getLogger(__name__)


class Office(Protocol):
    """What is needed of FLARE's administration; `FlareOffice` in the product, a simulator in tests."""

    def look(self, job: str | None) -> Seen:
        """Return what there is: connected, answering, carrying, root_carries."""

    def submit(self, folder: Path) -> str:
        """Submit a job and return its id."""

    def abort(self, job: str) -> None:
        """End a job; harmless when it has ended."""


class FlareOffice:
    """FLARE's administration through one session.

    Args:
        session: Open.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def look(self, job: str | None) -> Seen:
        """Ask the server for its clients and jobs, and the clients for theirs."""
        info = self._session.get_system_info()
        rows = self._session.get_client_job_status() if info.client_info else None
        answers = [row for row in rows or [] if row.get("status") not in {"no_reply", "error"}]
        return Seen(
            connected=frozenset(str(client.name) for client in info.client_info),
            answering=frozenset(str(row["client_name"]) for row in answers),
            carrying=frozenset(str(row["client_name"]) for row in answers if job and row.get("job_id") == job),
            root_carries=any(one.job_id == job for one in info.job_info),
        )

    def submit(self, folder: Path) -> str:
        """Submit a job and return its id."""
        return str(self._session.submit_job(str(folder)))

    def abort(self, job: str) -> None:
        """End a job; harmless when it has ended."""
        with contextlib.suppress(JobNotFound, JobNotDone, FlareInternalError):
            self._session.abort_job(job)


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
    common: dict[str, object] = {
        "format_version": 2,
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
    }
    server = {**common, "workflows": [{"id": "courier", "path": ROOT_COURIER, "args": couriers}]}
    client = {**common, "executors": [{"tasks": ["*"], "executor": {"path": SITE_COURIER, "args": couriers}}]}
    deploy = {"app": ["server", *sorted(members)]}
    meta = {"name": "nfl-courier", "resource_spec": {}, "min_clients": 1, "deploy_map": deploy}
    for name, content in (
        ("app/config/config_fed_server.json", server),
        ("app/config/config_fed_client.json", client),
        ("meta.json", meta),
    ):
        write_file(folder / name, json.dumps(content, indent=1).encode())
    return folder


class JobKeeper:
    """Keep one fleet's courier job running.

    Args:
        work: Folder for the job's definition.
        root: Name of the root site.
        sites: All client sites of the fleet.
        clock: Monotonic seconds.
        say: Takes one event, for the log that people read.
    """

    def __init__(
        self,
        *,
        work: Path,
        root: str,
        sites: frozenset[str],
        clock: Callable[[], float],
        say: Callable[[dict[str, object]], None],
    ) -> None:
        self._work, self._root, self._sites, self._clock, self._say = work, root, sites, clock, say
        self._job: str | None = None
        self._members: frozenset[str] = frozenset()
        self._carried: frozenset[str] = frozenset()
        self._connected: frozenset[str] = frozenset()
        self._has_root = False
        self._num_failures = 0
        self._since = clock()

    @property
    def has_job(self) -> bool:
        """Whether there is a job to watch."""
        return self._job is not None

    def watch(self, office: Office) -> None:
        """Look once, and do what is due."""
        seen = self._remembered(office.look(self._job))
        action, why = decide(seen, sites=self._sites)
        if action != SUBMIT:
            return
        old, self._members = self._job, seen.connected & self._sites
        self._num_failures = 0 if seen.complete or old is None else self._num_failures + 1
        folder = write_job(self._work, members=self._members, sites=self._sites, root=self._root)
        self._job = office.submit(folder)
        self._carried, self._has_root, self._since = frozenset(), False, self._clock()
        self._say({"event": "job-submitted", "job": self._job, "sites": sorted(self._members), "why": why})
        if old is not None:
            office.abort(old)

    def forget(self) -> None:
        """Forget the job: FLARE's server has gone."""
        self._job, self._connected, self._since = None, frozenset(), self._clock()

    def _remembered(self, seen: Seen) -> Seen:
        """Add what was seen before."""
        if self._job is None and seen.connected != self._connected:
            self._connected, self._since = seen.connected, self._clock()
        was_complete = self._has_root and self._carried >= self._members
        self._carried |= seen.carrying
        self._has_root |= seen.root_carries
        complete = self._job is not None and self._has_root and self._carried >= self._members
        if complete and not was_complete:
            self._say({"event": "job-running", "job": self._job, "sites": sorted(self._members)})
        return replace(
            seen,
            has_job=self._job is not None,
            complete=complete,
            carried=self._carried,
            age_s=self._clock() - self._since,
            num_failures=self._num_failures,
        )


@contextlib.contextmanager
def _session(kit: Path) -> Iterator[Session]:
    session = new_secure_session(ADMIN, str(kit), timeout=_CONNECT_S)
    try:
        yield session
    finally:
        with contextlib.suppress(*_FLARE_ERRORS):
            session.close()


def run(home: Path) -> None:
    """Keep the job until SIGTERM."""
    config = load_fleet(home / "fleet.toml")
    sites = frozenset([config.keeper.site, *(leaf.site for leaf in config.leaves)])
    keeper = JobKeeper(work=home / "flare/job", root=config.root.site, sites=sites, clock=time.monotonic, say=_print)
    while True:
        try:
            with _session(home / "flare" / ADMIN) as session:
                office = FlareOffice(session)
                while True:
                    keeper.watch(office)
                    time.sleep(POLL_S if keeper.has_job else EAGER_POLL_S)
        except _FLARE_ERRORS as error:
            _LOG.warning("no session with FLARE's server: %s: %s", type(error).__name__, error)
            keeper.forget()
            time.sleep(EAGER_POLL_S)


def _print(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Parse the command line and keep the job."""
    parser = argparse.ArgumentParser(description="Keep the fleet's courier job running in FLARE.")
    parser.add_argument("--home", type=Path, required=True, help="folder of the fleet")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    die_with_parent()
    run(arguments.home)


if __name__ == "__main__":
    main()
