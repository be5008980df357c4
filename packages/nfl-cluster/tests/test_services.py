"""The three services as processes: ready line, clean stop, refusal to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nfl_core.config import write_fleet
from nfl_core.errors import ExitCode

from .world import World, make_config


def _start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "a home"  # with a space
    World(home)
    write_fleet(home / "fleet.toml", make_config(root={"enrol_port": 0}))
    return home


@pytest.mark.parametrize("service", [("root",), ("keeper",), ("leaf", "--site", "leaf-1")])
def test_a_service_says_that_it_is_ready_and_stops_cleanly(home: Path, service: tuple[str, ...]) -> None:
    name, *rest = service
    process = _start(f"nfl_cluster.{name}", "--home", str(home), *rest)
    assert process.stdout is not None
    try:
        line = json.loads(process.stdout.readline())
        assert (line["ready"], line["service"]) == (True, name)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == ExitCode.OK, errors
    assert all(json.loads(entry) for entry in errors.splitlines())


def test_a_leaf_whose_port_is_taken_names_it(home: Path) -> None:
    first = _start("nfl_cluster.leaf", "--home", str(home), "--site", "leaf-1")
    assert first.stdout is not None
    try:
        port = json.loads(first.stdout.readline())["port"]
        environment = {**os.environ, "NFL_LEAVES__0__PORT": str(port)}
        command = [sys.executable, "-m", "nfl_cluster.leaf", "--home", str(home), "--site", "leaf-1"]
        second = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=30)
    assert second.returncode == ExitCode.UNREACHABLE
    assert "transport.port-in-use" in second.stderr


def test_a_service_without_keys_does_not_start(tmp_path: Path) -> None:
    tmp_path.joinpath("empty").mkdir()
    write_fleet(tmp_path / "empty" / "fleet.toml", make_config())
    process = _start("nfl_cluster.keeper", "--home", str(tmp_path / "empty"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.NOT_FOUND
    assert "not-found" in errors


def test_a_broken_state_stops_the_root_loudly(home: Path) -> None:
    state = home / "root" / "state"
    state.mkdir(exist_ok=True)
    for name in ("root.0", "root.1"):
        (state / name).write_bytes(b"garbage")
    process = _start("nfl_cluster.root", "--home", str(home))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.FAILED
    assert "Traceback" in errors
    assert "durable.corrupt" in errors
