from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nfl_cluster import commands, init, run_fleet
from nfl_cluster import status as status_module
from nfl_cluster.mailbox import Mailbox
from nfl_cluster.service import SiteFolder
from nfl_core.cli import app
from nfl_core.config import FleetConfig, write_fleet


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "a home"
    folder.mkdir()
    config = FleetConfig.model_validate(
        {
            "fleet": {"name": "home"},
            "leaves": [{"site": "leaf-1", "region": "kitchen", "port": 18500}],
        }
    )
    write_fleet(folder / "fleet.toml", config)
    return folder


def nfl(*arguments: str, home: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    with pytest.raises(SystemExit) as ended:
        app.main(["--home", str(home), "--output", "json", *arguments])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def test_help_loads_neither_flare_nor_torch() -> None:
    probe = (
        "import sys, nfl_cluster.commands\n"
        "heavy = {'nvflare', 'torch', 'grpc', 'onnxruntime', 'sqlalchemy', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "verb",
    [
        ["cluster", "init"],
        ["cluster", "up"],
        ["cluster", "down"],
        ["cluster", "distil"],
        ["fleet", "token"],
        ["fleet", "propose"],
        ["fleet", "halt"],
        ["fleet", "rollback"],
        ["fleet", "pause"],
        ["fleet", "resume"],
        ["status"],
    ],
)
def test_every_verb_teaches_with_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app.main([*verb, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "Example" in said
    assert " ".join(["nfl", *verb[:1]]) in said or "nfl --" in said


def test_the_verbs_are_pinned() -> None:
    assert sorted(one.callback.__name__ for one in commands.cluster.registered_commands if one.callback) == [
        "distil",
        "down",
        "init",
        "up",
    ]
    assert sorted(one.callback.__name__ for one in commands.fleet.registered_commands if one.callback) == [
        "halt",
        "pause",
        "propose",
        "resume",
        "rollback",
        "token",
    ]


def test_init_says_where_everything_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FleetConfig] = []
    monkeypatch.setattr(init, "init_fleet", lambda _, config, *, say: made.append(config) or config)
    arguments = ("cluster", "init", "--name", "home", "--leaf", "leaf-1:kitchen", "--leaf", "leaf-2:garden")
    code, said = nfl(*arguments, home=tmp_path, capsys=capsys)
    assert code == 0
    assert [leaf.region for leaf in made[0].leaves] == ["kitchen", "garden"]
    assert said["data"]["fleet"] == "home"  # type: ignore[index]


def test_a_token_needs_a_leaf_of_the_fleet(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = nfl("fleet", "token", "robot-7", "--leaf", "leaf-1", home=home, capsys=capsys)
    assert code == 0
    assert said["data"]["root"] == "127.0.0.1:18440"  # type: ignore[index]
    code, said = nfl("fleet", "token", "robot-7", "--leaf", "leaf-9", home=home, capsys=capsys)
    assert code == 3
    assert said["error"]["code"] == "config.invalid"  # type: ignore[index]


@pytest.mark.parametrize(
    ("verb", "order"),
    [
        (["halt", "--reason", "odd"], {"action": "halt", "reason": "odd"}),
        (["rollback", "--to", "3", "--reason", "r"], {"action": "rollback", "to": 3, "reason": "r"}),
        (["pause", "--reason", "r"], {"action": "pause", "reason": "r"}),
        (["resume", "--reason", "r"], {"action": "resume", "reason": "r"}),
    ],
)
def test_orders_wait_for_the_root(
    home: Path, capsys: pytest.CaptureFixture[str], verb: list[str], order: dict[str, object]
) -> None:
    code, _ = nfl("fleet", *verb, home=home, capsys=capsys)
    assert code == 0
    (message,) = Mailbox(SiteFolder.of_root(home).mailbox).incoming()
    assert message.kind == "operator"
    assert json.loads(message.payload) == order


def test_status_of_a_fleet_that_does_not_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = SiteFolder.of_root(home).state
    events = [{"at": f"2026-01-01T00:00:0{n}+00:00", "event": "published", "version": n, "seq": n} for n in range(3)]
    (state / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events) + '{"torn')
    Mailbox(SiteFolder.of_root(home).mailbox).post("leaf-1", "policy", b"x")  # type: ignore[arg-type]
    code, said = nfl("status", "--events", "2", home=home, capsys=capsys)
    assert code == 0
    data = said["data"]
    assert isinstance(data, dict)
    assert data["running"] is False
    assert [json.loads(one["details"]) for one in data["events"]] == [{"version": 1}, {"version": 2}]
    assert data["mail"][0] == {"site": "root", "num_outgoing": 1, "num_dead": 0}


def test_status_as_a_person_reads_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nfl_core.cli.console import stdout

    stdout().print(status_module.render(status_module.read_status(home, num_events=5)))
    assert "does not run here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb", [["status"], ["cluster", "up"], ["fleet", "halt"], ["fleet", "token", "r", "--leaf", "l"]]
)
def test_a_home_without_a_fleet_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    code, said = nfl(*verb, home=tmp_path, capsys=capsys)
    assert code == 3
    assert "fleet.toml" in said["error"]["message"]  # type: ignore[index]


def test_down_without_up_stops_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "run").mkdir()
    assert nfl("cluster", "down", home=home, capsys=capsys) == (
        0,
        {"schema": "nfl/1", "ok": True, "data": {"stopped": []}},
    )


def test_up_refuses_a_port_that_is_taken(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    from nfl_core.config import load_fleet

    with socket.create_server(("127.0.0.1", 0)) as held:
        config = load_fleet(home / "fleet.toml")
        root = config.root.model_copy(update={"enrol_port": held.getsockname()[1]})
        write_fleet(home / "fleet.toml", config.model_copy(update={"root": root}))
        code, said = nfl("cluster", "up", home=home, capsys=capsys)
    assert code == 6
    assert said["error"]["code"] == "transport.port-in-use"  # type: ignore[index]


def test_up_runs_until_it_is_told_to_stop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    from nfl_cluster.processes import ProcessSpec, recorded

    argv = (sys.executable, "-c", "import time; time.sleep(60)")
    specs = [ProcessSpec(name="one", group="one", argv=argv)]
    monkeypatch.setattr(run_fleet, "fleet_processes", lambda _config, _home: specs)
    monkeypatch.setattr(run_fleet, "check_ports", lambda _: None)
    ready: list[list[str]] = []

    def stop_when_ready(names: list[str]) -> None:
        ready.append(names)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    run_fleet.run_fleet(home, say=lambda _: None, ready=stop_when_ready)
    assert ready == [["one"]]
    assert recorded(home / "run") == {}
    assert signal.getsignal(signal.SIGTERM) is before
