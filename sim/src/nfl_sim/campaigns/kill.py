"""Campaign "kill": play the demo again and again, and SIGKILL one random process of each run at a random moment.

A run passes when it ends right (its proof holds, its report is there), or when it stops with a named error that says
what died or stood still and how to go on. Everything else is a violation: an end without a name, a proof that does not
hold, a run that hangs, a process that outlives its demo. Three runs that only pretend are the controls: each must be
caught.

    python3 noxfile.py -s campaign -- kill 20

Results are kept as they come, in `.nfl/campaign-kill/results.jsonl` (`NFL_HOME` moves it): the same command again goes
on where it was cut off. The folder of a run that was a violation stays there as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from nfl_cluster.processes import recorded
from nfl_core.durable import make_folder
from nfl_sim.demo.report import Report

DEMO = (sys.executable, "-m", "nfl_core.cli", "demo")
FIRST_S, LAST_S = 3.0, 65.0  # when a kill may come, seconds after the start
LIMIT_S = 420.0  # of a whole run: every chapter of the demo has a deadline of its own below this
RIGHT, STOPPED, VIOLATION = "ended right", "stopped with a named error", "VIOLATION"
_NAMED = re.compile(r"^error\[(?P<code>[a-z0-9.-]+)\]: (?P<what>\S.*)$", re.MULTILINE)
_TRY = re.compile(r"^try: \S", re.MULTILINE)
_BROKEN = ("Traceback (most recent call last)", "error[demo.unproven]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        number: From 1.
        victim: Name of the process that was killed, "none" when the run was over before.
        kind: Of process: root, leaf, keeper, agent host, FLARE, trainer.
        at_s: When, seconds after the start.
        outcome: One of RIGHT, STOPPED, VIOLATION.
        detail: The error's name, or what is wrong.
        seconds: How long the run took.
    """

    number: int
    victim: str
    kind: str
    at_s: float
    outcome: str
    detail: str
    seconds: float


def main(arguments: Sequence[str]) -> int:
    """Run the campaign; the last line on stdout is its result. Returns the exit code."""
    started = time.monotonic()
    count = int(arguments[0]) if arguments else 20
    folder = Path(os.environ.get("NFL_HOME", ".nfl")).resolve() / "campaign-kill"
    make_folder(folder)
    results = folder / "results.jsonl"
    cases = _earlier(results)[:count]
    for number in range(len(cases) + 1, count + 1):
        case = run_case(folder, number)
        with results.open("a", encoding="ascii") as file:
            file.write(json.dumps(asdict(case)) + "\n")
        cases.append(case)
        _tell(
            f"{number:3d}/{count}  {case.kind:10s} {case.victim:18s} at {case.at_s:5.1f} s  "
            f"{case.outcome}: {case.detail} ({case.seconds:.0f} s)"
        )
    caught = [name for name, command in _controls().items() if _is_caught(folder / "control", name, command)]
    _tell(table(cases))
    violations = sum(case.outcome == VIOLATION for case in cases)
    result = {
        "campaign": "kill",
        "cases": len(cases),
        "violations": violations,
        "controls": len(_controls()),
        "controls_caught": len(caught),
        "seconds": round(time.monotonic() - started, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    if results.exists() and len(cases) == count:
        results.rename(folder / "results-last.jsonl")  # complete: the same command starts a new campaign
    return 1 if violations or len(caught) < len(_controls()) else 0


def run_case(folder: Path, number: int) -> Case:
    """Play the demo once and kill one of its processes."""
    rng = random.Random(f"kill-{number}")  # noqa: S311 - which process dies is no secret
    home = folder / f"run {number}"
    shutil.rmtree(home, ignore_errors=True)
    make_folder(home)
    _share_data(folder, home)
    at_s, kind = rng.uniform(FIRST_S, LAST_S), rng.choice(("root", "leaf", "keeper", "agent host", "FLARE", "trainer"))
    chosen: list[str] = []

    def strike(pid: int) -> bool:
        found = _victims(home / "demo", pid)
        named = sorted(name for name in found if kind_of(name) == kind)
        if not named:
            return False
        chosen.append(rng.choice(named))
        with contextlib.suppress(psutil.NoSuchProcess):
            found[chosen[0]].kill()
        return True

    outcome, detail, seconds = play(DEMO, home, strike=strike, at_s=at_s)
    _keep_data(folder, home)
    if outcome != VIOLATION:
        shutil.rmtree(home, ignore_errors=True)
    return Case(
        number=number,
        victim=chosen[0] if chosen else "none",
        kind=kind,
        at_s=round(at_s, 1),
        outcome=outcome,
        detail=detail,
        seconds=round(seconds, 1),
    )


def play(
    command: Sequence[str], home: Path, *, strike: Callable[[int], bool], at_s: float, limit_s: float = LIMIT_S
) -> tuple[str, str, float]:
    """Run a demo to its end.

    Args:
        command: The demo's command line.
        home: Its NFL_HOME; its output goes to `demo.out` and `demo.err` there.
        strike: Called with the demo's process id from `at_s` on, until it says that it has struck.
        at_s: Seconds after the start.
        limit_s: A run that takes longer hangs.

    Returns:
        Outcome, detail, and how long it took.
    """
    started, has_struck = time.monotonic(), False
    with (home / "demo.out").open("wb") as out, (home / "demo.err").open("wb") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, "NFL_HOME": str(home)}
        )
    seen: dict[int, psutil.Process] = {}
    try:
        while process.poll() is None and time.monotonic() - started < limit_s:
            seen |= {one.pid: one for one in _family(process.pid)}
            has_struck = has_struck or (time.monotonic() - started >= at_s and strike(process.pid))
            time.sleep(0.2)
        is_over = process.poll() is not None
        time.sleep(0.5)  # processes that were told to die may take a moment
        orphans = [one for pid, one in seen.items() if pid != process.pid and _lives(one)] if is_over else []
    finally:
        for one in [*seen.values(), *_family(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
    seconds = time.monotonic() - started
    if not is_over:
        return VIOLATION, f"still running after {limit_s:.0f} s", seconds
    if orphans:
        return VIOLATION, f"{len(orphans)} processes outlived it, such as {_command_of(orphans[0])}", seconds
    return *judge(process.returncode, home), seconds


def judge(code: int, home: Path) -> tuple[str, str]:
    """Return outcome and detail of a demo that has ended with `code`."""
    said = (home / "demo.err").read_text(errors="replace")
    broken = next((sign for sign in _BROKEN if sign in said), None)
    if broken is not None:
        return VIOLATION, broken
    if code == 0:
        try:
            report = Report.model_validate_json((home / "demo/report.json").read_bytes())
        except (OSError, ValueError) as error:
            return VIOLATION, f"ended with 0, and its report is no report: {type(error).__name__}"
        return (RIGHT, f"{report.versions.published} versions") if report.proof.holds else (VIOLATION, "proof fails")
    named = _NAMED.search(said)
    if named is None or not _TRY.search(said):
        return VIOLATION, f"exit code {code} without a named error that says how to go on"
    return STOPPED, f"{named['code']}: {named['what'][:70]}"


def kind_of(name: str) -> str:
    """Return the kind of process that a name is of."""
    if name.endswith("/trainer"):
        return "trainer"
    if "flare" in name:
        return "FLARE"
    kinds = {"root": "root", "keeper": "keeper", "leaf": "leaf", "device": "agent host"}
    return next((kind for start, kind in kinds.items() if name.startswith(start)), "other")


def table(cases: Sequence[Case]) -> str:
    """Return how each kind of victim fared."""
    counts = Counter((case.kind, case.outcome) for case in cases)
    kinds = sorted({case.kind for case in cases})
    head = f"{'killed':12s} {RIGHT:>12s} {STOPPED:>28s} {VIOLATION:>10s}"
    rows = [
        f"{kind:12s} {counts[kind, RIGHT]:12d} {counts[kind, STOPPED]:28d} {counts[kind, VIOLATION]:10d}"
        for kind in kinds
    ]
    return "\n".join([head, *rows])


def _victims(folder: Path, pid: int) -> dict[str, psutil.Process]:
    """Return the processes of a running demo by name: those of its supervisor, and their children."""
    found: dict[str, psutil.Process] = {}
    for name, process in recorded(folder / "run").items():
        if name in {"supervisor", "baselines"} or process.pid == pid:
            continue
        found[name] = process
        for child in _family(process.pid)[1:]:
            is_trainer = "nfl_edge.trainer" in _command_of(child)
            found[f"{name}/{'trainer' if is_trainer else 'job'}"] = child
    return found


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _command_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline())[:120]
    return ""


def _share_data(folder: Path, home: Path) -> None:
    """Let a run find the data that an earlier one fetched."""
    if (folder / "data").is_dir():
        shutil.copytree(folder / "data", home / "data")


def _keep_data(folder: Path, home: Path) -> None:
    if (home / "data").is_dir() and not (folder / "data").exists():
        shutil.copytree(home / "data", folder / "data")


def _controls() -> dict[str, str]:
    """Return demos that only pretend, as Python text, by what is wrong with them."""
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    orphan = f"import subprocess, sys; subprocess.Popen({sleeper}, start_new_session=True)"
    return {
        "ends with a bare traceback": "raise RuntimeError('no name')",
        "ends with 0 and no report": "pass",
        "leaves a process behind": (
            f"{orphan}; import time; time.sleep(1); "
            "sys.stderr.write('error[process.died]: leaf-1\\nwhy: killed\\ntry: again\\n'); sys.exit(1)"
        ),
    }


def _is_caught(home: Path, name: str, text: str) -> bool:
    shutil.rmtree(home, ignore_errors=True)
    make_folder(home)
    outcome, detail, _ = play([sys.executable, "-c", text], home, strike=lambda _: True, at_s=0.0, limit_s=30.0)
    _tell(f"control: a demo that {name}: {'caught' if outcome == VIOLATION else 'NOT CAUGHT'} ({detail})")
    shutil.rmtree(home, ignore_errors=True)
    return outcome == VIOLATION


def _earlier(results: Path) -> list[Case]:
    if not results.exists():
        return []
    return [Case(**json.loads(line)) for line in results.read_text(encoding="ascii").splitlines() if line]


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
