"""What the services of all sites share: where their files are, how they log, start, tick and stop.

Rules:

* one JSON line on stdout says that the service serves; everything else goes to stderr as JSON lines;
* SIGTERM and SIGINT end the loop between two ticks, never inside one;
* a full disk is waited out; every other error ends the process with its traceback and the error's exit code.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from nfl_core.durable import make_folder
from nfl_core.errors import ExitCode, NflError, StorageFullError

# gRPC's own lines are no JSON, and every refused handshake writes some; read once, when grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

POLL_S = 0.05  # of a mailbox: well below what a person notices, some 20 directory listings a second
_LOG = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Return the present time, UTC."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """Where one site's service keeps its files.

    Attributes:
        path: `$NFL_HOME/root`, `$NFL_HOME/keeper` or `$NFL_HOME/leaves/<leaf>`.
    """

    path: Path

    @classmethod
    def of_root(cls, home: Path) -> SiteFolder:
        """Return the root's folder."""
        return cls(home / "root")

    @classmethod
    def of_keeper(cls, home: Path) -> SiteFolder:
        """Return the keeper's folder."""
        return cls(home / "keeper")

    @classmethod
    def of_leaf(cls, home: Path, site: str) -> SiteFolder:
        """Return a leaf's folder."""
        return cls(home / "leaves" / site)

    @property
    def keys(self) -> Path:
        """Keys and certificates of the service."""
        return self.path / "keys"

    @property
    def mailbox(self) -> Path:
        """The mailbox that the service shares with its courier."""
        return self.path / "mailbox"

    @property
    def cache(self) -> Path:
        """A leaf's copy of the repository."""
        return self.path / "cache"

    @property
    def repository(self) -> Path:
        """The root's repository of bundles."""
        return self.path / "repo"

    @property
    def tuf_keys(self) -> Path:
        """The root's keys for the repository."""
        return self.path / "keys" / "tuf"

    @property
    def ca(self) -> Path:
        """The root's certificate authority."""
        return self.path / "ca"

    @property
    def tokens(self) -> Path:
        """The root's enrolment tokens."""
        return self.state / "tokens"

    @property
    def state(self) -> Path:
        """Durable state; made when it is missing."""
        make_folder(self.path / "state")
        return self.path / "state"


class _JsonLines(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "at": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "service": self._service,
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(service: str) -> None:
    """Send the log of this process to stderr, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(service))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def say_ready(service: str, **figures: str | int) -> None:
    """Print the one line on stdout that says the service serves."""
    sys.stdout.write(json.dumps({"ready": True, "service": service, **figures}) + "\n")
    sys.stdout.flush()


def stop_on_signals() -> asyncio.Event:
    """Return an event of the running loop that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def tick_until(stop: asyncio.Event, tick: Callable[[], Awaitable[None]], *, interval_s: float = POLL_S) -> None:
    """Call `tick` again and again until `stop` is set; wait out a full disk.

    Args:
        stop: Ends the loop between two ticks.
        tick: One round of work; what it raises ends the loop, StorageFullError excepted.
        interval_s: Pause between two ticks; a hundredfold when the disk is full.
    """
    while not stop.is_set():
        pause_s = interval_s
        try:
            await tick()
        except StorageFullError as error:
            _LOG.error("%s: %s; work stands still until there is room", error.code, error.message)
            pause_s = 100 * interval_s
        try:
            await asyncio.wait_for(stop.wait(), pause_s)
        except asyncio.TimeoutError:
            continue


def run_service(name: str, work: Callable[[], Awaitable[None]]) -> int:
    """Run a service to its end and return the exit code of the process.

    Args:
        name: For the log.
        work: The service.
    """
    log_to_stderr(name)
    try:
        asyncio.run(_awaited(work))
    except NflError as error:
        _LOG.critical("%s: %s (%s)", error.code, error.message, error.hint, exc_info=True)
        return int(error.exit_code)
    except Exception:  # noqa: BLE001 - the boundary of the process: nothing below may swallow, so this is a broken invariant
        _LOG.critical("a fault of the program ends %s", name, exc_info=True)
        return int(ExitCode.FAILED)
    return int(ExitCode.OK)


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()
