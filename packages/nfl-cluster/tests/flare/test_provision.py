from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nfl_cluster.flare.builders import is_loopback
from nfl_cluster.flare.launch import flare_environment, parent_command
from nfl_cluster.flare.names import ADMIN, ROOT_COURIER, SITE_COURIER, TLS_1_3_ONLY, TLS_VARIABLE
from nfl_cluster.flare.provision import ProvisionError, provision
from nfl_core.config import FleetConfig
from nfl_core.errors import ConfigError

SITES = ("root", "keeper", "leaf-1", "leaf-2")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = FleetConfig.model_validate(
        {
            "fleet": {"name": "home"},
            "root": {"flare_port": 18999},
            "leaves": [{"site": "leaf-1", "region": "a"}, {"site": "leaf-2", "region": "b"}],
        }
    )
    folder = tmp_path_factory.mktemp("with space") / "flare kits"
    provision(config, folder)
    return folder


def local(kits: Path, site: str) -> dict[str, object]:
    return json.loads((kits / site / "local/resources.json").read_text())


def test_every_site_gets_a_kit(kits: Path) -> None:
    for site in (*SITES, ADMIN):
        assert (kits / site / "startup/rootCA.pem").exists()
    assert not (kits / "making").exists()


@pytest.mark.parametrize("site", SITES)
def test_a_site_allows_its_own_courier_and_nothing_else(kits: Path, site: str) -> None:
    policy = local(kits, site)
    assert policy["class_allow_list"] == [ROOT_COURIER if site == "root" else SITE_COURIER]
    assert policy["class_list_enforcement_mode"] == "enforce"


def test_the_root_on_loopback_listens_on_loopback_and_the_kit_is_still_signed(kits: Path) -> None:
    settings = json.loads((kits / "root/startup/fed_server.json").read_text())
    (server,) = settings["servers"]
    assert server["service"] == {"target": "127.0.0.1:18999", "scheme": "grpc"}
    assert server["connection_security"] == "mtls"


@pytest.mark.parametrize("site", SITES[1:])
def test_clients_use_mutual_tls(kits: Path, site: str) -> None:
    settings = json.loads((kits / site / "startup/fed_client.json").read_text())
    assert settings["client"]["connection_security"] == "mtls"


def test_keys_are_for_their_owner_alone(kits: Path) -> None:
    for key in kits.glob("*/startup/*.key"):
        assert key.stat().st_mode & 0o077 == 0, key


def test_again_changes_nothing(kits: Path, config: FleetConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in kits.rglob("*") if path.is_file()}
    provision(config, kits)
    assert before == {path: path.stat().st_mtime_ns for path in kits.rglob("*") if path.is_file()}


def test_a_half_made_folder_is_made_anew(config: FleetConfig, tmp_path: Path) -> None:
    folder = tmp_path / "flare"
    (folder / "making/rubbish").mkdir(parents=True)
    (folder / "leaf-1/startup").mkdir(parents=True)
    (folder / "leaf-1/startup/client.key").write_text("of another CA")
    provision(config, folder)
    assert "PRIVATE KEY" in (folder / "leaf-1/startup/client.key").read_text()


def test_a_port_must_be_decided(config: FleetConfig, tmp_path: Path) -> None:
    root = config.root.model_copy(update={"flare_port": 0})
    with pytest.raises(ConfigError, match="flare_port is 0"):
        provision(config.model_copy(update={"root": root}), tmp_path)


def test_what_flare_says_is_passed_on(config: FleetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "no space left for keys")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ProvisionError, match="no space left for keys"):
        provision(config, tmp_path / "flare")
    assert not (tmp_path / "flare/complete").exists()


def test_parents_run_in_the_foreground_on_the_leash_with_tls_1_3_only() -> None:
    argv = parent_command(Path("/a home/flare/leaf-1"), site="leaf-1", is_root=False)
    assert argv[:4] == [sys.executable, "-u", "-m", "nfl_cluster.flare.run"]
    assert "uid=leaf-1" in argv
    assert "/a home/flare/leaf-1" in argv
    assert flare_environment("leaf-1", Path("/m"))[TLS_VARIABLE] == TLS_1_3_ONLY


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("root.example", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
