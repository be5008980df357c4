from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import nfl_secure  # noqa: F401 - before grpc
from nfl_core.errors import ConfigError, ConflictError, NotFoundError, UnreachableError
from nfl_core.ids import LeafId
from nfl_edge.cli import app
from nfl_edge.enrol import enrol
from nfl_edge.errors import DeviceFolderError
from nfl_edge.folder import DeviceFolder
from nfl_edge.settings import FleetSettings, read_settings
from nfl_edge.status import read_status
from nfl_secure.errors import UsedTokenError
from nfl_secure.identity import FleetCA, Principal, Role, SpiffeId
from nfl_secure.identity.enrolment import EnrolmentDesk, Placement, serve_enrolment
from nfl_secure.identity.tokens import TokenStore

from .world import Fleet, Running

RUNNER = CliRunner()


@pytest.mark.parametrize("verb", ["enrol", "run", "status"])
def test_help_teaches_with_an_example(verb: str) -> None:
    shown = RUNNER.invoke(app, [verb, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert f"device {verb}" in shown.output


def test_verbs_and_options_are_pinned() -> None:
    command = typer.main.get_command(app)
    options = {
        name: sorted(option for parameter in verb.params for option in parameter.opts if option.startswith("--"))
        for name, verb in command.commands.items()
    }
    assert options == {
        "enrol": ["--ca", "--id", "--root", "--token"],
        "run": ["--leaf", "--tap"],
        "status": ["--events"],
    }


class Desk:
    """The root's enrolment port, the real one."""

    def __init__(self, home: Path, settings_json: str) -> None:
        self.ca = FleetCA.create(home / "ca", "home")
        self.root = self.ca.admit(
            home / "root", SpiffeId(fleet=self.ca.fleet, role=Role.ROOT, name="root"), server_names=["127.0.0.1"]
        )
        self.tokens = TokenStore(home / "tokens")
        self.placement = Placement(
            leaf_address="127.0.0.1:9", region="north", settings_json=settings_json, trusted_root=b"{}"
        )
        self.desk = EnrolmentDesk(ca=self.ca, tokens=self.tokens, place=lambda device, leaf: self.placement)

    async def start(self):
        self.server, port = await serve_enrolment(self.desk, principal=self.root, host="127.0.0.1", port=0)
        return f"127.0.0.1:{port}"


async def in_thread(function, *args, **options):
    import asyncio

    return await asyncio.to_thread(lambda: function(*args, **options))


async def test_a_device_enrols_once_with_its_token(tmp_path: Path) -> None:
    desk = Desk(tmp_path, FleetSettings().model_dump_json())
    address = await desk.start()
    folder = tmp_path / "with space" / "robot-7"
    token = desk.tokens.mint("robot-7", LeafId("leaf-1"))
    options = {"root": address, "ca_pem": desk.ca.ca_pem}
    shown = await in_thread(enrol, folder, token=token, **options)
    assert shown["device"] == "robot-7"
    settings = read_settings(DeviceFolder(folder))
    assert (settings.leaf_id, settings.region, settings.fleet, settings.settings) == (
        "leaf-1",
        "north",
        "home",
        FleetSettings(),
    )
    assert str(Principal.open(folder / "keys").spiffe) == "spiffe://home/device/robot-7"
    assert (folder / "keys" / "tls.key").stat().st_mode & 0o777 == 0o600
    assert DeviceFolder(folder).trusted_root.read_bytes() == b"{}"
    with pytest.raises(ConflictError):
        await in_thread(enrol, folder, token=token, **options)
    with pytest.raises(UsedTokenError):
        await in_thread(enrol, tmp_path / "robot-7", token=token, **options)
    status = read_status(folder)
    assert (status["version"], status["micro_updates"], status["outbox"]) == (None, 0, 0)
    await desk.server.stop(None)
    with pytest.raises(UnreachableError):
        await in_thread(enrol, tmp_path / "robot-8", token=token, **options)


async def test_settings_that_are_not_understood_are_a_named_error(tmp_path: Path) -> None:
    desk = Desk(tmp_path, '{"modell": {}}')
    address = await desk.start()
    token = desk.tokens.mint("robot-7", LeafId("leaf-1"))
    with pytest.raises(ConfigError, match="not understood"):
        await in_thread(enrol, tmp_path / "robot-7", token=token, root=address, ca_pem=desk.ca.ca_pem)
    with pytest.raises(DeviceFolderError, match="no enrolled device"):
        read_status(tmp_path / "robot-7")
    await desk.server.stop(None)


def test_a_settings_file_that_was_edited_badly_is_a_named_error(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path)
    folder.settings.write_text('{"device_id": 3}')
    with pytest.raises(DeviceFolderError, match="device_id"):
        read_settings(folder)
    with pytest.raises(DeviceFolderError):
        read_settings(DeviceFolder(tmp_path / "none"))
    assert not issubclass(DeviceFolderError, NotFoundError)


async def test_status_tells_what_a_device_runs_and_has_learned(fleet: Fleet) -> None:
    device = fleet.device("robot-1")
    fleet.publish(1)
    running = Running(fleet.agent(device))
    await running.until(lambda: device.events("micro-update"))
    status = read_status(device.folder.root, num_events=2)  # beside the running agent
    assert (status["device"], status["version"], status["micro_updates"]) == ("robot-1", 1, 1)
    assert status["accuracy"] == device.events("micro-update")[0]["accuracy"]
    assert len(status["events"]) == 2
    json.dumps(status)
    await running.stop()
