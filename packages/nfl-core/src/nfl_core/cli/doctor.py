"""`nfl doctor`: is this machine fit, and if not, what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import EntryPoint, PackageNotFoundError, version

import typer
from rich.table import Table

from nfl_core.cli.app import load_verb, verbs
from nfl_core.cli.console import emit_result, invocation
from nfl_core.durable import remove_file, write_file
from nfl_core.errors import ExitCode, NflError

PACKAGES = ("nfl-core", "nfl-secure", "nfl-ota", "nfl-edge", "nfl-cluster")
MIN_FREE_BYTES = 2 * 1024**3  # a demo fleet of 20 devices writes some 300 MB; the rest is room for versions


class State(str, Enum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check.

    Attributes:
        check: What was looked at.
        state: How it ended.
        found: What was seen.
        fix: What to do; empty when there is nothing to do.
    """

    check: str
    state: State
    found: str
    fix: str = ""


def doctor() -> None:
    """Check this machine and say how to fix what is wrong."""
    findings = [finding for check in CHECKS for finding in check()]
    table = Table("check", "state", "found", "fix", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.check, finding.state.value, finding.found, finding.fix)
    emit_result({"findings": findings}, text=table)
    if any(finding.state is State.FAILED for finding in findings):
        raise typer.Exit(int(ExitCode.FAILED))


def _python() -> list[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return [Finding(check="python", state=State.NOTE, found=found, fix="the product is tested on Linux")]
    return [Finding(check="python", state=State.OK, found=found)]


def _packages() -> list[Finding]:
    found = {name: number for name in PACKAGES if (number := _version(name)) is not None}
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    trains = {number.rsplit(".", 1)[0] for number in found.values()}
    if len(trains) > 1:
        fix = "install versions of one train, for instance all 0.1.x"
        return [Finding(check="packages", state=State.FAILED, found=listed, fix=fix)]
    return [Finding(check="packages", state=State.OK, found=listed)]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _verbs() -> list[Finding]:
    points = verbs()
    broken = [finding for name in sorted(points) if (finding := _broken_verb(points[name])) is not None]
    return broken or [Finding(check="verbs", state=State.OK, found=", ".join(sorted(points)))]


def _broken_verb(point: EntryPoint) -> Finding | None:
    try:
        load_verb(point)
    except NflError as error:
        found = f"{error.message}: {error.__cause__}"
        return Finding(
            check=f"verb {point.name}", state=State.FAILED, found=found, fix="install the package that brings it again"
        )
    return None


def _home() -> list[Finding]:
    home = invocation().home
    if not home.exists():
        return [
            Finding(check="home", state=State.NOTE, found=f"{home} does not exist", fix="`nfl cluster init` makes it")
        ]
    probe = home / f".doctor-{os.getpid()}"
    try:
        write_file(probe, b"probe")
        remove_file(probe)
    except NflError as error:
        return [Finding(check="home", state=State.FAILED, found=error.message, fix=error.hint)]
    free_bytes = shutil.disk_usage(home).free
    found = f"{home}, {free_bytes / 1e9:.1f} GB free"
    if free_bytes < MIN_FREE_BYTES:
        return [
            Finding(
                check="home",
                state=State.NOTE,
                found=found,
                fix=f"free some space, {MIN_FREE_BYTES / 1e9:.0f} GB are advised",
            )
        ]
    return [Finding(check="home", state=State.OK, found=found)]


def _fleet() -> list[Finding]:
    from nfl_core.config import load_fleet

    path = invocation().fleet_file
    if not path.exists():
        return [
            Finding(check="fleet.toml", state=State.NOTE, found=f"no file {path}", fix="`nfl cluster init` makes it")
        ]
    try:
        config = load_fleet(path)
    except NflError as error:
        return [Finding(check="fleet.toml", state=State.FAILED, found=error.message, fix=error.hint)]
    return [
        Finding(check="fleet.toml", state=State.OK, found=f"fleet {config.fleet.name}, {len(config.leaves)} leaves")
    ]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (_python, _packages, _verbs, _home, _fleet)
