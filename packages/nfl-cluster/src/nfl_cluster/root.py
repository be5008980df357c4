"""The root's service: the brain on its mailbox, and the enrolment port.

The brain works in a thread, one tick after the other, so that a shadow update never keeps an enrolment waiting.

    python -m nfl_cluster.root --home .nfl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

# isort: off
import nfl_cluster.service  # noqa: F401 - first: it quietens grpc
import nfl_secure.tls as nfl_tls  # before grpc: it holds grpcio to TLS 1.3

# isort: on
from nfl_cluster.brain import Brain
from nfl_cluster.brain.content import Contents
from nfl_cluster.brain.judges import Judges, SampleJudges
from nfl_cluster.brain.store import RootStore
from nfl_cluster.first import seed_first_version
from nfl_cluster.mailbox import Mailbox
from nfl_cluster.registry import Registry
from nfl_cluster.service import SiteFolder, run_service, say_ready, stop_on_signals, tick_until, utc_now
from nfl_core.config import FleetConfig, load_fleet
from nfl_core.errors import ConfigError, NotFoundError
from nfl_core.ids import DeviceId, LeafId
from nfl_ota import Repository
from nfl_secure.identity import EnrolmentDesk, FleetCA, Placement, Principal, TokenStore
from nfl_secure.identity.enrolment import serve_enrolment

SETTINGS = frozenset({"model", "levels", "learning", "privacy", "edge"})


def make_brain(
    config: FleetConfig,
    folder: SiteFolder,
    *,
    clock: Callable[[], datetime] = utc_now,
    judges: Judges | None = None,
) -> Brain:
    """Return the brain of the root in a folder, as it was when it last stored its state.

    Args:
        config: Of the fleet.
        folder: The root's.
        clock: Now, aware.
        judges: None: with the samples in the folder.

    Raises:
        NotFoundError: The root has no keys or no repository.
        DurableError: Its state cannot be read.
    """
    repository = Repository.open(folder.repository, folder.tuf_keys, clock)
    return Brain(
        config,
        principal=Principal.open(folder.keys),
        mailbox=Mailbox(folder.mailbox),
        store=RootStore(folder.state, clock),
        registry=Registry.open(folder.path / "registry.sqlite"),
        repository=repository,
        contents=Contents(repository, folder.repository),
        judges=judges or SampleJudges(config, folder.path),
        clock=clock,
    )


def make_desk(config: FleetConfig, folder: SiteFolder) -> EnrolmentDesk:
    """Return who decides about enrolments. Raises NotFoundError when there is no CA."""
    settings_json = json.dumps(config.model_dump(mode="json", include=set(SETTINGS)), sort_keys=True)
    first_root = folder.repository / "metadata" / "1.root.json"

    def place(_: DeviceId, leaf: LeafId) -> Placement:
        try:
            section = config.leaf(leaf)
        except ConfigError as error:
            raise NotFoundError(error.message) from error
        return Placement(
            leaf_address=f"{section.host}:{section.port}",
            region=section.region,
            settings_json=settings_json,
            trusted_root=first_root.read_bytes(),
        )

    return EnrolmentDesk(ca=FleetCA.open(folder.ca), tokens=TokenStore(folder.tokens), place=place)


async def serve(home: Path) -> None:
    """Run the root until a signal.

    Raises:
        PortInUseError: The enrolment port is taken.
        NflError: What the brain cannot go on from.
    """
    stop = stop_on_signals()
    config = load_fleet(home / "fleet.toml")
    folder = SiteFolder.of_root(home)
    if not (folder.repository / "targets" / "bundles").is_dir():
        await asyncio.to_thread(seed_first_version, config, folder)
    brain = await asyncio.to_thread(make_brain, config, folder)
    principal = Principal.open(folder.keys)
    server, port = await serve_enrolment(
        make_desk(config, folder), principal=principal, host=config.root.host, port=config.root.enrol_port
    )
    await asyncio.to_thread(
        nfl_tls.start_up_self_test, f"{config.root.host}:{port}", principal=principal, client_certificates=False
    )

    async def tick() -> None:
        await asyncio.to_thread(brain.tick)

    say_ready("root", site=config.root.site, host=config.root.host, port=port)
    try:
        await tick_until(stop, tick)
    finally:
        await server.stop(1.0)


def main(argv: list[str] | None = None) -> int:
    """Run the root service named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nfl_cluster.root", description="aggregate, judge, publish, roll out"
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--site", help="ignored; a fleet has one root")
    arguments = parser.parse_args(argv)
    return run_service("root", lambda: serve(arguments.home))


if __name__ == "__main__":
    sys.exit(main())
