from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from nfl_cluster import init
from nfl_cluster.init import FirstVersionError, OtherFleetError, check_ports, init_fleet, mint_token, wanted_config
from nfl_core.config import FleetConfig, load_fleet
from nfl_core.errors import ConfigError, IdentityError, PortInUseError
from nfl_ota import Mirror
from nfl_secure.identity import Principal


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FleetConfig]:
    home = tmp_path_factory.mktemp("with space") / "a home"
    return home, init_fleet(home, wanted(home))


def wanted(home: Path) -> FleetConfig:
    return wanted_config(home, name="home", leaves=["leaf-1:kitchen", "leaf-2:garden"], file=None)


def snapshot(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}


def test_a_fleet_has_everything(fleet: tuple[Path, FleetConfig]) -> None:
    home, config = fleet
    ports = [
        config.root.enrol_port,
        config.root.flare_port,
        config.root.admin_port,
        *(one.port for one in config.leaves),
    ]
    assert len(set(ports)) == len(ports)
    assert all(ports)
    assert load_fleet(home / "fleet.toml", env={}) == config
    for site in ("root", "keeper", "leaves/leaf-1", "leaves/leaf-2"):
        assert Principal.open(home / site / "keys").spiffe.fleet == "home"
    for leaf in ("leaf-1", "leaf-2"):
        assert Mirror(home / "leaves" / leaf / "cache").fetch("metadata/timestamp.json", max_bytes=100_000)
        assert (home / "flare" / leaf / "startup/client.key").exists()


def test_again_changes_nothing(fleet: tuple[Path, FleetConfig]) -> None:
    home, config = fleet
    before = snapshot(home)
    assert init_fleet(home, wanted(home)) == config
    assert init_fleet(home, config) == config
    assert snapshot(home) == before


def test_a_half_made_home_is_finished(
    fleet: tuple[Path, FleetConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(fleet[0] / "root/repo", home / "root/repo")  # version 1 is made already; it takes longest
    shutil.copytree(fleet[0] / "root/keys/tuf", tmp_path / "tuf")

    class PowerCutError(Exception):
        pass

    def cut(*_: object) -> None:
        raise PowerCutError

    for step in ("_admit_all", "provision", "_seed_caches"):
        with monkeypatch.context() as patch:
            patch.setattr(init, step, cut)
            with pytest.raises(PowerCutError):
                init_fleet(home, wanted(home))
        if step == "_admit_all":
            shutil.copytree(tmp_path / "tuf", home / "root/keys/tuf")
    config = init_fleet(home, wanted(home))
    assert Mirror(home / "leaves/leaf-1/cache").fetch("metadata/timestamp.json", max_bytes=100_000)
    assert load_fleet(home / "fleet.toml", env={}) == config


def test_another_fleet_in_the_same_home_is_refused(fleet: tuple[Path, FleetConfig]) -> None:
    home, _ = fleet
    before = snapshot(home)
    with pytest.raises(OtherFleetError):
        init_fleet(home, wanted_config(home, name="other", leaves=[], file=None))
    assert snapshot(home) == before


def test_secrets_without_a_fleet_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "root/ca").mkdir(parents=True)
    with pytest.raises(OtherFleetError, match="without"):
        init_fleet(tmp_path, wanted(tmp_path))
    assert not (tmp_path / "fleet.toml").exists()


def test_a_port_in_use_is_named_with_its_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        config = wanted(tmp_path)
        leaf = config.leaves[1].model_copy(update={"port": port})
        config = config.model_copy(update={"leaves": (config.leaves[0], leaf)})
        with pytest.raises(PortInUseError, match=rf"port of leaf-2: 127.0.0.1:{port} is taken by .*process \d+"):
            init_fleet(tmp_path, config)
        with pytest.raises(PortInUseError, match="leaf-2"):
            check_ports(config)
    assert not (tmp_path / "fleet.toml").exists()


def test_a_model_that_does_not_exist_is_said(tmp_path: Path) -> None:
    config = wanted(tmp_path)
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": "no-such-model"})})
    with pytest.raises(FirstVersionError, match="no-such-model"):
        init_fleet(tmp_path, config)


def test_a_token_is_for_a_leaf_of_this_fleet_and_a_proper_device(fleet: tuple[Path, FleetConfig]) -> None:
    home, _ = fleet
    assert len(mint_token(home, "robot-7", leaf="leaf-1")) > 20
    with pytest.raises(ConfigError, match="no leaf 'leaf-9'"):
        mint_token(home, "robot-7", leaf="leaf-9")
    with pytest.raises((IdentityError, ConfigError)):
        mint_token(home, "../robot", leaf="leaf-1")


def test_what_init_needs_to_know(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no name"):
        wanted_config(tmp_path, name=None, leaves=[], file=None)
    with pytest.raises(ConfigError, match="one of them"):
        wanted_config(tmp_path, name="home", leaves=[], file=tmp_path / "fleet.toml")
    with pytest.raises(ConfigError, match=r"fleet\.name"):
        wanted_config(tmp_path, name="Bad Name", leaves=[], file=None)
    assert [leaf.site for leaf in wanted_config(tmp_path, name="home", leaves=[], file=None).leaves] == ["leaf-1"]
