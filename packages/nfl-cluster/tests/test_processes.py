from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_cluster import processes
from nfl_cluster.processes import (
    AlreadyRunningError,
    ProcessSpec,
    RestartPolicy,
    Supervisor,
    last_lines,
    recorded,
    stop_recorded,
)
from nfl_core.errors import ConflictError, ProcessDiedError

FOREVER = (sys.executable, "-c", "import time; time.sleep(120)")
SAYS_READY = (sys.executable, "-c", "import time; print('{\"ready\": true}', flush=True); time.sleep(120)")
# A parent with a child of its own that ignores SIGTERM.
STUBBORN_FAMILY = (
    sys.executable,
    "-c",
    """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)'], start_new_session=True)
print(child.pid, flush=True)
time.sleep(120)
""",
)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def build(*specs: ProcessSpec, **options: object) -> Supervisor:
        made.append(Supervisor(tmp_path / "run", specs, **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for one in made:
        one.stop()


def spec(name: str = "one", argv: tuple[str, ...] = FOREVER, **more: object) -> ProcessSpec:
    return ProcessSpec(name=name, group=str(more.pop("group", name)), argv=argv, **more)  # type: ignore[arg-type]


def until(supervisor: Supervisor, condition: Callable[[], object], *, within_s: float = 20.0) -> list[str]:
    deadline, news = time.monotonic() + within_s, []
    while not condition():
        assert time.monotonic() < deadline, news
        news += supervisor.poll()
        time.sleep(0.01)
    return news


@given(deaths=st.lists(st.floats(0, 1000), max_size=30))
def test_pauses_grow_and_end(deaths: list[float]) -> None:
    policy = RestartPolicy()
    now = max(deaths, default=0.0)
    pause_s = policy.pause_s([*deaths, now], now=now)
    recent = [at for at in [*deaths, now] if now - at <= policy.window_s]
    assert (pause_s is None) == (len(recent) > policy.max_deaths)
    if pause_s is not None:
        assert policy.first_pause_s <= pause_s <= policy.max_pause_s


def test_old_deaths_are_forgiven() -> None:
    assert RestartPolicy().pause_s([0.0] * 50 + [1000.0], now=1000.0) == RestartPolicy().first_pause_s


def test_a_killed_process_starts_again(make: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = make(spec(argv=SAYS_READY, says_ready=True))
    supervisor.start()
    until(supervisor, lambda: supervisor.ready("one"))
    first = supervisor.pid("one")
    supervisor.kill("one")
    news = until(supervisor, lambda: supervisor.pid("one") not in {None, first})
    assert any("signal 9" in line for line in news)
    until(supervisor, lambda: supervisor.ready("one"))
    events = [json.loads(line)["event"] for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert events == ["started", "ready", "died", "restarted", "ready"]


def test_it_is_not_ready_until_its_successor_says_so(make: Callable[..., Supervisor]) -> None:
    supervisor = make(spec(argv=SAYS_READY, says_ready=True))
    supervisor.start()
    until(supervisor, lambda: supervisor.ready("one"))
    supervisor.kill("one")
    until(supervisor, lambda: supervisor.pid("one") is None)
    assert not supervisor.ready("one")


def test_a_process_waits_for_those_before_it(make: Callable[..., Supervisor]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        supervisor = make(spec(ready_port=("127.0.0.1", held.getsockname()[1])), spec("two", after=("one",)))
        supervisor.start()
        supervisor.poll()
        assert supervisor.pid("two") is None
        held.listen(1)
        until(supervisor, lambda: supervisor.pid("two") is not None)


def test_a_process_that_dies_too_often_is_named_with_what_it_said(make: Callable[..., Supervisor]) -> None:
    argv = (sys.executable, "-c", "import sys; sys.exit('the disk is on fire')")
    policy = RestartPolicy(first_pause_s=0.01, max_pause_s=0.01, max_deaths=2)
    supervisor = make(spec(argv=argv), policy=policy)
    supervisor.start()
    with pytest.raises(
        ProcessDiedError, match=r"one died 3 times, the last time with exit code 1.*\n.*on fire"
    ) as raised:
        until(supervisor, lambda: False)
    assert "one.log" in raised.value.hint
    assert raised.value.exit_code == 1


def test_a_process_that_runs_once_may_end(make: Callable[..., Supervisor]) -> None:
    supervisor = make(spec(argv=(sys.executable, "-c", "pass"), once=True))
    supervisor.start()
    until(supervisor, lambda: supervisor.is_over("one"))
    assert supervisor.pid("one") is None


def test_a_command_that_does_not_exist_is_said(make: Callable[..., Supervisor]) -> None:
    supervisor = make(spec(argv=("/no/such/program",)), policy=RestartPolicy(first_pause_s=0.01, max_deaths=1))
    supervisor.start()
    with pytest.raises(ProcessDiedError, match="No such file"):
        until(supervisor, lambda: False)


def test_niceness_and_environment_reach_the_process(make: Callable[..., Supervisor], tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "import os; print(os.nice(0), os.environ['WORD'], flush=True)")
    supervisor = make(spec(argv=argv, nice=3, env={"WORD": "two words"}, once=True))
    supervisor.start()
    until(supervisor, lambda: supervisor.is_over("one"))
    assert (tmp_path / "run/logs/one.log").read_text() == f"{os.nice(0) + 3} two words\n"


def test_one_name_is_for_one_process(make: Callable[..., Supervisor]) -> None:
    with pytest.raises(ConflictError):
        make(spec(), spec())


def test_a_group_dies_with_all_its_descendants(make: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = make(spec(argv=STUBBORN_FAMILY))
    supervisor.start()
    grandchild = _printed_pid(supervisor, tmp_path)
    supervisor.kill("one")
    grandchild.wait(timeout=5)


def test_stop_leaves_nothing_even_of_the_stubborn(
    make: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_GRACE_S", 0.2)
    supervisor = make(spec(argv=STUBBORN_FAMILY))
    supervisor.start()
    grandchild = _printed_pid(supervisor, tmp_path)
    parent = supervisor.pid("one")
    supervisor.stop()
    grandchild.wait(timeout=5)
    assert parent is not None
    assert not psutil.pid_exists(parent)
    assert recorded(tmp_path / "run") == {}


def _printed_pid(supervisor: Supervisor, tmp_path: Path) -> psutil.Process:
    log = tmp_path / "run/logs/one.log"
    until(supervisor, lambda: log.exists() and log.read_text().endswith("\n"))
    return psutil.Process(int(log.read_text()))


_SUPERVISOR = """
import sys, time
from pathlib import Path
from nfl_cluster.processes import ProcessSpec, Supervisor
spec = ProcessSpec(name="one", group="one", argv=(sys.executable, "-c", "import time; time.sleep(120)"))
supervisor = Supervisor(Path(sys.argv[1]), [spec])
supervisor.start()
print(supervisor.pid("one"), flush=True)
time.sleep(120)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A supervisor in another process, and its child."""
    argv = [sys.executable, "-c", _SUPERVISOR, str(tmp_path / "run")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, psutil.Process(int(process.stdout.readline()))
        process.kill()


def test_children_die_with_a_killed_supervisor(other: tuple[subprocess.Popen[str], psutil.Process]) -> None:
    process, child = other
    process.kill()
    child.wait(timeout=5)


def test_a_second_supervisor_is_refused_while_the_first_lives(
    other: tuple[subprocess.Popen[str], psutil.Process], make: Callable[..., Supervisor]
) -> None:
    process, _ = other
    with pytest.raises(AlreadyRunningError, match=str(process.pid)):
        make(spec()).start()
    process.kill()
    process.wait()
    make(spec()).start()  # a stale pid file stops nobody


def test_stale_pids_of_strangers_are_left_alone(make: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = make(spec())
    (tmp_path / "run/pids.json").write_text(json.dumps({"one": {"pid": os.getppid(), "created_at": 1.0}}))
    supervisor.start()
    assert psutil.pid_exists(os.getppid())


def test_a_folder_is_stopped_from_outside(other: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path) -> None:
    process, child = other
    assert stop_recorded(tmp_path / "run") == ["one", "supervisor"]
    assert process.wait(5) is not None
    child.wait(timeout=5)
    assert stop_recorded(tmp_path / "run") == []


def test_a_log_does_not_grow_for_ever(
    make: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_LOG_BYTES", 10_000)
    monkeypatch.setattr(processes, "_LOG_LOOK_S", 0.05)
    loud = "import time\nwhile True: print('x' * 999, flush=True); time.sleep(0.001)"
    supervisor = make(spec(argv=(sys.executable, "-c", loud)))
    supervisor.start()
    log = tmp_path / "run/logs/one.log"
    until(supervisor, lambda: log.with_name("one.log.1").exists())
    until(supervisor, lambda: 0 < log.stat().st_size < 1_000_000)
    assert "\0" not in log.read_text()


def test_last_lines_of_nothing() -> None:
    assert last_lines(Path("/nowhere")) == []
