"""A fleet in one process: real services and real agents, a courier instead of FLARE.

Certificates, TLS, masks, TUF, gates, slots and learning are the product's, and so is the trainer's process; only the
ways between sites are carried by a loop over the mailboxes.

    found_fleet(home, config)                       # keys, certificates, first version
    fleet = SmallFleet(home, config, leaf_of={"robot-1": "leaf-1"})
    async with fleet.running():
        await fleet.until(lambda: bool(fleet.watch.state.complete), "a version everywhere")
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import nfl_secure.tls  # noqa: F401  before grpc
from nfl_cluster.events import Figure, read_events
from nfl_cluster.first import seed_first_version
from nfl_cluster.gateway import serve_devices
from nfl_cluster.keeper import KeeperService
from nfl_cluster.leaf import Leaf
from nfl_cluster.mailbox import Mailbox, Message
from nfl_cluster.root import make_brain, make_desk
from nfl_cluster.service import SiteFolder, utc_now
from nfl_core.config import FleetConfig, write_fleet
from nfl_core.durable import make_folder
from nfl_core.errors import NflError
from nfl_core.ids import parse_site_id
from nfl_edge.enrol import enrol
from nfl_edge.host import Host, Wiring
from nfl_edge.learn import Learner, TrainerProcess
from nfl_ota import Mirror, Repository
from nfl_secure.identity import FleetCA, Principal, Role, SpiffeId, TokenStore
from nfl_secure.identity.enrolment import serve_enrolment
from nfl_sim.demo.watch import Watch

if TYPE_CHECKING:
    import grpc.aio

WAIT_S = 60.0
_TURN_S = 0.03


class FleetStalledError(NflError):
    """A fleet did not do in time what was waited for."""

    code = "sim.stalled"
    hint = "look into the journals below the fleet's folder; a busy machine needs a longer wait"


def found_fleet(home: Path, config: FleetConfig) -> None:
    """Make keys and certificates of all sites, publish the first version, fill the leaves' caches.

    Raises:
        NflError: Whatever a step says.
    """
    root = SiteFolder.of_root(home)
    make_folder(root.path)
    ca = FleetCA.create(root.ca, config.fleet.name)
    leaves = [leaf.site for leaf in config.leaves]
    services = [
        (Role.ROOT, config.root.site),
        (Role.KEEPER, config.keeper.site),
        *((Role.LEAF, leaf) for leaf in leaves),
    ]
    for role, name in services:
        folder = _folder(home, config, name)
        make_folder(folder.path)
        ca.admit(folder.keys, SpiffeId(fleet=ca.fleet, role=role, name=name), server_names=["127.0.0.1"])
    seed_first_version(config, root)
    repository = Repository.open(root.repository, root.tuf_keys, utc_now)
    for leaf in leaves:
        mirror = Mirror(SiteFolder.of_leaf(home, leaf).cache)
        for path, data in repository.files_since(0):
            mirror.write(path, data)


class SmallFleet:
    """A fleet that runs in this event loop.

    Args:
        home: Its folder, founded; the samples of devices and root are there.
        config: What it is.
        leaf_of: The leaf that each device hangs on, by the device's name.
        wrap: Puts another learner around the trainer, for faults and witnesses.
        wiring: Other parts of the devices.
    """

    def __init__(
        self,
        home: Path,
        config: FleetConfig,
        *,
        leaf_of: Mapping[str, str],
        wrap: Callable[[Learner], Learner] = lambda learner: learner,
        wiring: Wiring | None = None,
    ) -> None:
        self.home = home
        self.config = config
        self.leaf_of = dict(leaf_of)
        self.devices = tuple(leaf_of)
        self.watch = Watch(home, self.devices)
        self._wrap, self._wiring = wrap, wiring
        self._leaves: dict[str, tuple[Leaf, grpc.aio.Server]] = {}

    def folder(self, site: str) -> SiteFolder:
        """Return a site's folder."""
        return _folder(self.home, self.config, site)

    def device_folder(self, device: str) -> Path:
        """Return a device's folder."""
        return self.home / "devices" / device

    def root_events(self, name: str) -> list[dict[str, Figure]]:
        """Return what the root has journalled under a name."""
        events = read_events(self.folder(self.config.root.site).state / "events.jsonl")
        return [dict(event) for event in events if event["event"] == name]

    async def until(self, condition: Callable[[], bool], what: str, *, wait_s: float = WAIT_S) -> None:
        """Let the fleet go on until something holds.

        Raises:
            FleetStalledError: It does not within `wait_s`.
        """
        end = time.monotonic() + wait_s
        while True:
            self.watch.poll()
            if condition():
                return
            if time.monotonic() >= end:
                last = [f"{event.who} {event.name}" for event in self.watch.events[-8:]]
                raise FleetStalledError(f"waited {wait_s:.0f} s for {what}; last events: {', '.join(last) or 'none'}")
            await asyncio.sleep(0.05)

    async def kill(self, leaf: str) -> None:
        """Drop a leaf's service as a kill would, and start another one on its folder and port."""
        _, server = self._leaves.pop(leaf)
        await server.stop(None)
        await self._serve_leaf(leaf)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run services, courier and devices.

        Raises:
            NflError: A service or the devices' host failed.
        """
        for leaf in self.config.leaves:
            await self._serve_leaf(leaf.site)
        root = self.folder(self.config.root.site)
        keeper = KeeperService(self.config, self.folder(self.config.keeper.site))
        write_fleet(self.home / "fleet.toml", self.config)
        brain = make_brain(self.config, root)
        enrolment, port = await serve_enrolment(
            make_desk(self.config, root), principal=Principal.open(root.keys), host="127.0.0.1", port=0
        )
        await asyncio.to_thread(self._enrol, f"127.0.0.1:{port}")
        trainer = TrainerProcess()
        host = Host(
            [self.device_folder(name) for name in self.devices], learner=self._wrap(trainer), wiring=self._wiring
        )

        async def root_loop() -> None:
            while True:
                await asyncio.to_thread(brain.tick)
                await asyncio.sleep(_TURN_S)

        async def sites_loop() -> None:
            while True:
                keeper.tick()
                for leaf, _ in list(self._leaves.values()):
                    leaf.tick()
                self._carry()
                await asyncio.sleep(_TURN_S)

        agents = asyncio.ensure_future(host.run())
        loops = [asyncio.ensure_future(root_loop()), asyncio.ensure_future(sites_loop())]
        try:
            yield
            for task in (agents, *loops):
                if task.done():
                    task.result()
        finally:
            host.stop()
            await agents
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await trainer.stop()
            for _, server in self._leaves.values():
                await server.stop(None)
            await enrolment.stop(None)

    async def _serve_leaf(self, site: str) -> None:
        section = self.config.leaf(site)
        leaf = Leaf(self.config, site, self.folder(site))
        server, port = await serve_devices(leaf.gateway, principal=leaf.principal, host=section.host, port=section.port)
        sections = [one.model_copy(update={"port": port}) if one.site == site else one for one in self.config.leaves]
        self.config = self.config.model_copy(update={"leaves": tuple(sections)})
        self._leaves[site] = (leaf, server)

    def _carry(self) -> None:
        sites = (self.config.root.site, self.config.keeper.site, *(leaf.site for leaf in self.config.leaves))
        boxes = {site: Mailbox(self.folder(site).mailbox) for site in sites}
        for site, box in boxes.items():
            for message in box.outgoing():
                arrived = Message(
                    message_id=message.message_id, peer=parse_site_id(site), kind=message.kind, payload=message.payload
                )
                boxes[message.peer].deliver(arrived)
                box.acknowledge(message.message_id)

    def _enrol(self, address: str) -> None:
        root = self.folder(self.config.root.site)
        tokens = TokenStore(root.tokens, clock=utc_now)
        ca_pem = (root.ca / "ca.pem").read_bytes()
        for name, leaf in self.leaf_of.items():
            enrol(self.device_folder(name), token=tokens.mint(name, leaf), root=address, ca_pem=ca_pem)


def _folder(home: Path, config: FleetConfig, site: str) -> SiteFolder:
    named = {config.root.site: SiteFolder.of_root(home), config.keeper.site: SiteFolder.of_keeper(home)}
    return named.get(site) or SiteFolder.of_leaf(home, site)
