r"""Start a site's processes, keep them running, stop them all.

Rules:

- A process that dies is started again after a pause that doubles; one that dies too often ends the supervisor with
  `ProcessDiedError`, which says what died and what it said last.
- Nothing is left behind: the kernel kills a process when its supervisor dies, a group is killed with all its
  descendants, and a second start on the same folder first looks who still runs there.
- All calls come from the main thread: the death signal follows the thread that started a process.

    >>> supervisor = Supervisor(home / "run", specs)                               # doctest: +SKIP
    >>> supervisor.start()                                                         # doctest: +SKIP
    >>> while not all(supervisor.ready(spec.name) for spec in specs):              # doctest: +SKIP
    ...     print(*supervisor.poll(), sep="\n")
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import psutil

from nfl_core.durable import make_folder, read_file, remove_file, write_file
from nfl_core.errors import ConflictError, NotFoundError, ProcessDiedError

STOP_GRACE_S = 4.0
MAX_LOG_BYTES = 8 * 1024 * 1024  # of one process; as much again in NAME.log.1
LAST_LINES = 12
_LOG_LOOK_S = 5.0
# Asks for the death signal (prctl option 1, SIGKILL), then becomes the process. Not a preexec_fn: that would fork this
# process with all its libraries, and gRPC's threads do not survive a fork.
_SHIM = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):  # the supervisor died before the line above
    os._exit(1)
os.nice(int(sys.argv[2]))
os.execvp(sys.argv[3], sys.argv[3:])
"""


class AlreadyRunningError(ConflictError):
    """Another supervisor runs this fleet's processes."""

    code = "process.already-running"
    hint = "stop it with `nfl cluster down`, or work with what runs: `nfl status`"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a process that died starts again.

    Attributes:
        first_pause_s: Pause before the first restart; doubles with each further death in the window.
        max_pause_s: Largest pause.
        max_deaths: One more than these in the window is too often.
        window_s: What "often" looks back on.
    """

    first_pause_s: float = 0.2
    max_pause_s: float = 5.0
    max_deaths: int = 8
    window_s: float = 60.0

    def pause_s(self, deaths: Sequence[float], *, now: float) -> float | None:
        """Return how long to wait before the next start, None to give up.

        Args:
            deaths: Times of all deaths so far, the present one among them; seconds, monotonic.
            now: The present time.
        """
        recent = sum(1 for at in deaths if now - at <= self.window_s)
        if recent > self.max_deaths:
            return None
        return min(self.first_pause_s * 2.0 ** max(recent - 1, 0), self.max_pause_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A process to run.

    Attributes:
        name: Unique; its log is `logs/NAME.log`.
        group: What is killed together, for instance the name of a site.
        argv: Command line.
        env: Added to the supervisor's environment.
        nice: Added to its niceness.
        once: It may end with 0 and is then not started again.
        says_ready: It prints a JSON line with `"ready": true` when it serves.
        ready_port: It serves when this (host, port) takes connections.
        after: Names of processes that must be ready before it starts.
    """

    name: str
    group: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0
    once: bool = False
    says_ready: bool = False
    ready_port: tuple[str, int] | None = None
    after: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Running:
    spec: ProcessSpec
    process: subprocess.Popen[bytes] | None = None
    log_offset: int = 0
    is_ready: bool = False
    is_over: bool = False
    start_at: float = 0.0  # monotonic; not before
    deaths: list[float] = field(default_factory=list)


class Supervisor:
    """Run the processes of one machine's part of a fleet.

    Args:
        folder: For pids, events and logs, usually `$NFL_HOME/run`.
        specs: What to run, in order of start.
        policy: When what died starts again.
        clock: Monotonic seconds.
        sleep: Waits.
    """

    def __init__(
        self,
        folder: Path,
        specs: Iterable[ProcessSpec] = (),
        *,
        policy: RestartPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder, self._policy, self._clock, self._sleep = folder, policy or RestartPolicy(), clock, sleep
        self._running: dict[str, _Running] = {}
        self._logs_seen_at = clock()
        self._news: list[str] = []
        make_folder(folder / "logs")
        for spec in specs:
            self._remember(spec)

    def start(self) -> None:
        """Start everything that waits for nothing; `poll` starts the rest in its turn.

        Raises:
            AlreadyRunningError: Another supervisor runs this folder's processes.
        """
        clear_stale(self._folder)
        self._start_due()

    def add(self, spec: ProcessSpec) -> None:
        """Run one more process.

        Raises:
            ConflictError: There is one of that name.
        """
        self._remember(spec)
        self._start_due()

    def poll(self) -> list[str]:
        """Look after everything once, and return what happened since the last look, one line each.

        Raises:
            ProcessDiedError: A process dies too often; the others still run, call `stop`.
        """
        for running in self._running.values():
            self._look(running)
        self._start_due()
        if self._clock() - self._logs_seen_at > _LOG_LOOK_S:
            self._logs_seen_at = self._clock()
            for name in self._running:
                _cap(self._log(name))
        news, self._news = self._news, []
        return news

    def ready(self, name: str) -> bool:
        """Return whether a process serves; False from its death until its successor serves."""
        return self._running[name].is_ready

    def is_over(self, name: str) -> bool:
        """Return whether a process that runs once has done its work."""
        return self._running[name].is_over

    def pid(self, name: str) -> int | None:
        """Return a process's id, None while it does not run."""
        process = self._running[name].process
        return None if process is None else process.pid

    def kill(self, group: str) -> None:
        """SIGKILL a whole group with all descendants; `poll` notices and starts it again."""
        _kill(self._alive(group), signal.SIGKILL)

    def stop(self) -> None:
        """Stop everything: SIGTERM in reverse order, SIGKILL after a few seconds; returns when nothing is left."""
        family = [process for process in self._alive() if process.is_running()]
        for running in reversed(self._running.values()):
            if running.process is not None and running.process.poll() is None:
                running.process.terminate()
        deadline = self._clock() + STOP_GRACE_S
        while self._clock() < deadline and any(self._is_alive(running) for running in self._running.values()):
            self._sleep(0.02)
        _kill([*family, *self._alive()], signal.SIGKILL)
        for running in self._running.values():
            if running.process is not None:
                running.process.wait()
            running.process, running.is_ready, running.is_over = None, False, True
        remove_file(self._folder / "pids.json")

    def _remember(self, spec: ProcessSpec) -> None:
        if spec.name in self._running:
            raise ConflictError(f"there is a process {spec.name!r} already, expected another name")
        self._running[spec.name] = _Running(spec=spec)

    def _start_due(self) -> None:
        now, has_started = self._clock(), False
        for running in self._running.values():
            if running.process is not None or running.is_over or now < running.start_at:
                continue
            if all(self._running[name].is_ready for name in running.spec.after):
                self._launch(running)
                has_started = True
        if has_started:
            self._write_pids()

    def _launch(self, running: _Running) -> None:
        spec, log = running.spec, self._log(running.spec.name)
        _cap(log)
        running.log_offset = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            running.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), str(spec.nice), *spec.argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **spec.env},
                start_new_session=True,
            )
        self._say("started" if not running.deaths else "restarted", spec.name, pid=running.process.pid)

    def _look(self, running: _Running) -> None:
        process, spec = running.process, running.spec
        if process is None:
            return
        code = process.poll()
        if code is None:
            if not running.is_ready and self._serves(running):
                running.is_ready = True
                self._say("ready", spec.name)
            return
        running.process, running.is_ready = None, False
        if spec.once and code == 0:
            running.is_over = True
            self._say("ended", spec.name)
            return
        self._died(running, code)

    def _died(self, running: _Running, code: int) -> None:
        now, name = self._clock(), running.spec.name
        running.deaths.append(now)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        pause_s = self._policy.pause_s(running.deaths, now=now)
        self._say("died", name, how=how)
        if pause_s is None:
            running.is_over = True
            said = "\n".join(last_lines(self._log(name)))
            raise ProcessDiedError(
                f"{name} died {len(running.deaths)} times, the last time with {how}; it said:\n{said}",
                hint=f"mend what its log {self._log(name)} says, then run `nfl cluster up` again; nothing is lost",
            )
        running.start_at = now + pause_s
        self._news.append(f"{name} died ({how}), starts again in {pause_s:.1f} s")

    def _serves(self, running: _Running) -> bool:
        spec = running.spec
        if spec.ready_port is not None:
            return takes_connections(*spec.ready_port)
        if not spec.says_ready:
            return True
        with self._log(spec.name).open("rb") as log:
            log.seek(running.log_offset)
            return any(_says_ready(line) for line in log.read(MAX_LOG_BYTES).splitlines())

    def _is_alive(self, running: _Running) -> bool:
        return running.process is not None and running.process.poll() is None

    def _alive(self, group: str | None = None) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for running in self._running.values():
            if self._is_alive(running) and group in {None, running.spec.group} and running.process is not None:
                found += _family(running.process.pid)
        return found

    def _log(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}.log"

    def _say(self, event: str, name: str, **figures: str | int) -> None:
        line = {"at": datetime.now(timezone.utc).isoformat(), "event": event, "process": name, **figures}
        with (self._folder / "events.jsonl").open("a") as events:
            events.write(json.dumps(line) + "\n")
        if event in {"ready", "restarted", "ended"}:
            self._news.append(f"{name} {event}")

    def _write_pids(self) -> None:
        pids = {name: running.process.pid for name, running in self._running.items() if running.process is not None}
        record = {
            name: {"pid": pid, "created_at": created}
            for name, pid in {"supervisor": os.getpid(), **pids}.items()
            if (created := _created_at(pid)) is not None
        }
        write_file(self._folder / "pids.json", json.dumps(record, indent=1).encode())


def recorded(folder: Path) -> dict[str, psutil.Process]:
    """Return the processes that a supervisor of this folder wrote down and that still run, by name."""
    try:
        record = json.loads(read_file(folder / "pids.json"))
    except (NotFoundError, ValueError):
        return {}
    found: dict[str, psutil.Process] = {}
    for name, one in record.items():
        if _created_at(one["pid"]) == one["created_at"]:  # else the number belongs to somebody else now
            with contextlib.suppress(psutil.NoSuchProcess):
                found[name] = psutil.Process(one["pid"])
    return found


def clear_stale(folder: Path) -> None:
    """Kill what a dead supervisor left behind.

    Raises:
        AlreadyRunningError: The supervisor lives.
    """
    found = recorded(folder)
    supervisor = found.pop("supervisor", None)
    if supervisor is not None and supervisor.pid != os.getpid():
        raise AlreadyRunningError(f"process {supervisor.pid} runs the fleet of {folder.parent}")
    _kill([process for left in found.values() for process in _family(left.pid)], signal.SIGKILL)


def stop_recorded(folder: Path, *, grace_s: float = 15.0) -> list[str]:
    """Stop the supervisor of a folder and whatever it left; return the names of what ran."""
    found = recorded(folder)
    family = [process for one in found.values() for process in _family(one.pid)]
    supervisor = found.get("supervisor")
    if supervisor is not None:
        supervisor.terminate()
        psutil.wait_procs([supervisor], timeout=grace_s)
    _kill(family, signal.SIGKILL)
    psutil.wait_procs(family, timeout=grace_s)
    remove_file(folder / "pids.json")
    return sorted(found)


def last_lines(log: Path, *, num: int = LAST_LINES) -> list[str]:
    """Return the last lines of a log; none when there is no log."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 64 * 1024, 0))
        return file.read().decode(errors="replace").splitlines()[-num:]


def takes_connections(host: str, port: int) -> bool:
    """Return whether somebody listens at an address."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.2):
        return True
    return False


def _says_ready(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        said = json.loads(line)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("ready") is True


def _cap(log: Path) -> None:
    """Start a log anew when it is too long; its writer appends, so it goes on at the new end."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def _created_at(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
