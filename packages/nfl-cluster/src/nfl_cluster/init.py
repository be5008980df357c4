"""Make a fleet's home: ports, CA, principals, first version, leaf caches, FLARE kits.

Rules:

- `fleet.toml` is written first and decides: running again finishes what is missing and changes nothing that is there.
- Another configuration for the same home, or secrets in a home without `fleet.toml`, are refused, never mixed.
- Every port is decided here, so that everything made later can name it.

    >>> config = init_fleet(Path(".nfl"), config)                                  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import psutil
from pydantic import ValidationError

from nfl_cluster.flare.provision import provision
from nfl_cluster.service import SiteFolder, utc_now
from nfl_core.config import FleetConfig, load_fleet, write_fleet
from nfl_core.durable import make_folder
from nfl_core.errors import ConfigError, ConflictError, NflError, NotFoundError, PortInUseError
from nfl_core.ids import DeviceId, parse_device_id, parse_fleet_name
from nfl_ota import Mirror, Repository
from nfl_secure.identity import FleetCA, Principal, Role, SpiffeId, TokenStore

_ROOT_PORTS: tuple[Literal["enrol_port", "flare_port", "admin_port"], ...] = ("enrol_port", "flare_port", "admin_port")
_FIRST_VERSION_TIMEOUT_S = 300.0
_LAST_FILE = "metadata/timestamp.json"


class OtherFleetError(ConflictError):
    """The home holds another fleet, or secrets that no fleet.toml explains."""

    code = "init.other-fleet"
    hint = "choose another home with --home, or move the old one away"


class FirstVersionError(NflError):
    """The first version of the model could not be made."""

    code = "init.first-version"
    hint = "read the lines above; after mending run `nfl cluster init` again, it goes on where it stopped"


def init_fleet(
    home: Path,
    config: FleetConfig,
    *,
    say: Callable[[str], None] = lambda _: None,
    kits_made: Callable[[FleetConfig], None] = lambda _: None,
) -> FleetConfig:
    """Make whatever of a fleet's home is missing.

    Args:
        home: The fleet's folder; may contain spaces.
        config: What fleet.toml shall say; a port of 0 means any free one.
        say: Takes one line of progress.
        kits_made: Called when FLARE's kits are there, while version 1 is still being made: FLARE may start now.

    Returns:
        The configuration with every port decided, as in fleet.toml.

    Raises:
        OtherFleetError: The home belongs to another fleet.
        PortInUseError: A port of the configuration is taken.
        FirstVersionError: The model cannot be made.
        NflError: Whatever a step says.
    """
    make_folder(home)
    decided = _decide(home, config)
    say(f"fleet.toml: fleet {decided.fleet.name}, {len(decided.leaves)} leaves")
    _admit_all(decided, home)
    say("keys and certificates of root, keeper and leaves")
    with contextlib.nullcontext() if _is_published(home) else _first_version(home) as maker:
        provision(decided, home / "flare")
        say("FLARE's start-up kits")
        kits_made(decided)
        if maker is not None:
            _wait_for(maker)
    _seed_caches(decided, home)
    say("version 1, signed, in every leaf's cache")
    return decided


def wanted_config(home: Path, *, name: str | None, leaves: Sequence[str], file: Path | None) -> FleetConfig:
    """Return what `nfl cluster init` shall make.

    Args:
        home: The fleet's folder; without a name and a file, its fleet.toml says what is still to be made.
        name: Of a new fleet.
        leaves: "SITE:REGION" each; one leaf in one region when there is none.
        file: A fleet.toml.

    Raises:
        ConfigError: Neither name nor file nor a fleet.toml, both name and file, or a value that is not allowed.
    """
    if file is not None and (name or leaves):
        raise ConfigError("--config and --name or --leaf are given, expected one of them")
    if file is not None:
        return load_fleet(file)
    if name is None:
        if (home / "fleet.toml").exists() and not leaves:
            return load_fleet(home / "fleet.toml", env={})
        raise ConfigError(f"no fleet in {home} and no name for a new one", hint="give --name NAME, or --config FILE")
    pairs = [one.partition(":") for one in leaves or ["leaf-1:region-1"]]
    wanted = {
        "fleet": {"name": name},
        "root": dict.fromkeys(_ROOT_PORTS, 0),
        "leaves": [{"site": site, "region": region or "region-1"} for site, _, region in pairs],
    }
    try:
        return FleetConfig.model_validate(wanted)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: got {first.get('input')!r}; {first['msg']}") from error


def mint_token(home: Path, device: DeviceId | str, *, leaf: str) -> str:
    """Make a one-time token with which one device can enrol.

    Raises:
        ConfigError: The fleet has no such leaf.
        IdentityError: The device's id is invalid.
        NotFoundError: There is no fleet in this home.
    """
    load_fleet(home / "fleet.toml").leaf(leaf)
    return TokenStore(SiteFolder.of_root(home).tokens, clock=utc_now).mint(parse_device_id(device), leaf)


def check_ports(config: FleetConfig) -> None:
    """Check that every port of a fleet that does not run is free.

    Raises:
        PortInUseError: One is not; says which, and who holds it if that can be known.
    """
    for what, host, port in _ports(config):
        if port:
            _reserve(what, host, port).close()


def _decide(home: Path, config: FleetConfig) -> FleetConfig:
    path = home / "fleet.toml"
    if path.exists():
        there = load_fleet(path, env={})
        if _with_ports(config, _ports_of(there)) != there:
            raise OtherFleetError(f"{path} says something else than the configuration given")
        return there
    secrets = [found for found in (home / "root/ca", home / "root/keys", home / "flare") if found.exists()]
    if secrets:
        raise OtherFleetError(f"{secrets[0]} is there without {path}")
    decided = _with_ports(config, _free_ports(config))
    write_fleet(path, decided)
    return decided


def _free_ports(config: FleetConfig) -> list[int]:
    with contextlib.ExitStack() as held:  # all at once, so that none is given twice
        return [
            int(held.enter_context(_reserve(what, host, port)).getsockname()[1]) for what, host, port in _ports(config)
        ]


def _ports(config: FleetConfig) -> list[tuple[str, str, int]]:
    root = [(f"root.{name}", config.root.host, int(getattr(config.root, name))) for name in _ROOT_PORTS]
    return [*root, *((f"port of {leaf.site}", leaf.host, leaf.port) for leaf in config.leaves)]


def _ports_of(config: FleetConfig) -> list[int]:
    return [port for _, _, port in _ports(config)]


def _with_ports(config: FleetConfig, ports: list[int]) -> FleetConfig:
    """Put `ports` where `config` leaves them open."""
    merged = [given or port for (_, _, given), port in zip(_ports(config), ports, strict=False)]
    root = config.root.model_copy(update=dict(zip(_ROOT_PORTS, merged, strict=False)))
    leaves = tuple(
        leaf.model_copy(update={"port": port})
        for leaf, port in zip(config.leaves, merged[len(_ROOT_PORTS) :], strict=False)
    )
    return config.model_copy(update={"root": root, "leaves": leaves})


def _reserve(what: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
        if port:
            held.listen(1)
    except OSError as error:
        held.close()
        raise PortInUseError(
            f"{what}: {host}:{port} is taken{_holder(port)}",
            hint="end that process, or give another port in fleet.toml before `nfl cluster init`",
        ) from error
    return held


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for one in psutil.net_connections("inet"):
            if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN and one.pid:
                return f" by {psutil.Process(one.pid).name()} (process {one.pid})"
    return ""


def _admit_all(config: FleetConfig, home: Path) -> None:
    fleet, root = parse_fleet_name(config.fleet.name), SiteFolder.of_root(home)
    folder = root.path / "ca"
    ca = FleetCA.open(folder) if (folder / "ca.pem").exists() else FleetCA.create(folder, fleet)
    services = [
        (Role.ROOT, config.root.site, root, config.root.host),
        (Role.KEEPER, config.keeper.site, SiteFolder.of_keeper(home), "127.0.0.1"),
        *((Role.LEAF, leaf.site, SiteFolder.of_leaf(home, leaf.site), leaf.host) for leaf in config.leaves),
    ]
    for role, name, site, host in services:
        make_folder(site.path)
        try:
            Principal.open(site.keys)
        except NotFoundError:  # not made yet, or half of it
            ca.admit(site.keys, SpiffeId(fleet=fleet, role=role, name=name), server_names=[host])


@contextlib.contextmanager
def _first_version(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Make version 1 in a process of its own: it needs torch, and nobody else here does."""
    command = [sys.executable, "-m", "nfl_cluster.init", str(home)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as maker:
        try:
            yield maker
        finally:
            if maker.poll() is None:
                maker.kill()


def _is_published(home: Path) -> bool:
    root = SiteFolder.of_root(home)
    try:
        return bool(Repository.open(root.repository, root.tuf_keys, utc_now).regions())
    except NotFoundError:
        return False


def _wait_for(maker: subprocess.Popen[str]) -> None:
    try:
        _, said = maker.communicate(timeout=_FIRST_VERSION_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise FirstVersionError(f"version 1 was not ready after {_FIRST_VERSION_TIMEOUT_S:.0f} s") from error
    if maker.returncode:
        raise FirstVersionError(f"exit code {maker.returncode}; it said:\n{said.strip()[-800:]}")


def _seed_caches(config: FleetConfig, home: Path) -> None:
    root = SiteFolder.of_root(home)
    repository = Repository.open(root.repository, root.tuf_keys, utc_now)
    for leaf in config.leaves:
        cache = SiteFolder.of_leaf(home, leaf.site).cache
        if (cache / _LAST_FILE).exists():  # written last, so everything is there
            continue
        mirror = Mirror(cache)
        for path, data in repository.files_since(0):
            mirror.write(path, data)


def main() -> None:
    """Make version 1 of the fleet whose home is the only argument."""
    from nfl_cluster.first import seed_first_version

    home = Path(sys.argv[1])
    seed_first_version(load_fleet(home / "fleet.toml"), SiteFolder.of_root(home))


if __name__ == "__main__":
    main()
