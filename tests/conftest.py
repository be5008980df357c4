"""A small fleet in one process for tests across packages: real services and real agents, a courier instead of FLARE.

Certificates, TLS, masks, TUF, gates, slots and learning are the product's; only the ways between sites are carried
by a loop over the mailboxes. `kill` drops a site's service without a word and makes it anew from its folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import nfl_secure.tls  # noqa: F401 - before grpc
from nfl_cluster.events import Figure, read_events
from nfl_cluster.first import seed_first_version
from nfl_cluster.gateway import serve_devices
from nfl_cluster.keeper import KeeperService
from nfl_cluster.leaf import Leaf
from nfl_cluster.mailbox import Mailbox, Message
from nfl_cluster.operations import send
from nfl_cluster.root import make_brain, make_desk
from nfl_cluster.service import SiteFolder, utc_now
from nfl_core.config import FleetConfig, write_fleet
from nfl_core.ids import SiteId
from nfl_edge.enrol import enrol
from nfl_edge.host import Host, Wiring
from nfl_edge.learn import TrainerProcess
from nfl_edge.runtime import World
from nfl_ota import Mirror, Repository
from nfl_secure.identity import FleetCA, Principal, Role, SpiffeId, TokenStore
from nfl_secure.identity.enrolment import serve_enrolment
from nfl_sim.data import enlarged_digits, share_out, write_owner, write_shadow
from nfl_sim.demo.proof import prove
from nfl_sim.demo.report import Proof
from nfl_sim.demo.watch import Watch
from nfl_sim.demo.witness import PrivateValues, PutIn
from nfl_sim.faults import SignFlipLearner, break_graph, sense_again

LEAVES = ("leaf-1", "leaf-2")
NUM_DEVICES = 6
WAIT_S = 60.0


def small_config() -> FleetConfig:
    """Two leaves, batches of three, little patience."""
    return FleetConfig.model_validate(
        {
            "fleet": {"name": "small"},
            "leaves": [{"site": leaf, "region": f"region-{number}"} for number, leaf in enumerate(LEAVES, 1)],
            "learning": {"epochs_per_update": 2},
            "privacy": {"n_min": 2, "batch_size": 3, "batch_max": 4, "window_s": 2.0},
            "keeper": {"n_min": 2},
            "rollout": {"waves": [0.34, 1.0], "min_soak_s": 0.1, "max_failure_fraction": 0.4, "min_reports": 2},
            "gates": {"max_drop_points": 3.0, "latency_budget_ms": 500},
            "root": {"batches_per_version": 2, "enrol_port": 0, "flare_port": 0, "admin_port": 0},
            "edge": {"poll_s": 0.1, "latency_budget_ms": 500, "max_accuracy_drop": 0.6},
        }
    )


@dataclass(slots=True)
class SmallFleet:
    """A fleet that runs in this event loop.

    Attributes:
        home: Its folder.
        attackers: Devices that attack now.
    """

    home: Path
    config: FleetConfig
    devices: tuple[str, ...]
    attackers: set[str] = field(default_factory=set)
    watch: Watch = field(init=False)
    _leaves: dict[str, tuple[Leaf, object]] = field(default_factory=dict)

    @property
    def taps(self) -> Path:
        return self.home / "taps"

    def leaf_of(self, device: str) -> str:
        return LEAVES[self.devices.index(device) % len(LEAVES)]

    def folder(self, site: str) -> SiteFolder:
        named = {"root": SiteFolder.of_root(self.home), "keeper": SiteFolder.of_keeper(self.home)}
        return named.get(site) or SiteFolder.of_leaf(self.home, site)

    def root_events(self, name: str) -> list[dict[str, Figure]]:
        return [
            dict(event) for event in read_events(self.folder("root").state / "events.jsonl") if event["event"] == name
        ]

    async def until(self, condition: Callable[[], bool], what: str, *, wait_s: float = WAIT_S) -> None:
        """Let the fleet go on until something holds."""
        end = time.monotonic() + wait_s
        while True:
            self.watch.poll()
            if condition():
                return
            assert time.monotonic() < end, f"waited {wait_s:.0f} s for {what}; last events: {self.watch.events[-8:]}"
            await asyncio.sleep(0.05)

    async def kill(self, leaf: str) -> None:
        """Drop a leaf's service as a kill would, and start another one on its folder and port."""
        _, server = self._leaves.pop(leaf)
        await server.stop(None)  # type: ignore[attr-defined]  # a grpc.aio.Server, which is untyped
        await self.serve_leaf(leaf)

    async def serve_leaf(self, site: str) -> None:
        section = self.config.leaf(site)
        leaf = Leaf(self.config, site, self.folder(site))
        server, port = await serve_devices(leaf.gateway, principal=leaf.principal, host=section.host, port=section.port)
        sections = [one.model_copy(update={"port": port}) if one.site == site else one for one in self.config.leaves]
        self.config = self.config.model_copy(update={"leaves": tuple(sections)})
        self._leaves[site] = (leaf, server)

    def order(self, action: str, **fields: str) -> None:
        send(self.home, action, **fields)  # type: ignore[arg-type]  # the tests' own words

    def prove(self) -> Proof:
        return prove(self.home, self.config, taps=self.taps)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run services, courier and devices."""
        for leaf in LEAVES:
            await self.serve_leaf(leaf)
        keeper = KeeperService(self.config, self.folder("keeper"))
        write_fleet(self.home / "fleet.toml", self.config)
        root = self.folder("root")
        brain = make_brain(self.config, root)
        desk_principal = Principal.open(root.keys)
        enrolment, port = await serve_enrolment(
            make_desk(self.config, root), principal=desk_principal, host="127.0.0.1", port=0
        )
        await asyncio.to_thread(self._enrol, f"127.0.0.1:{port}")
        trainer = TrainerProcess()
        learner = PrivateValues(
            SignFlipLearner(trainer, attacks=lambda folder: folder.parents[1].name in self.attackers), folder=self.taps
        )
        wiring = Wiring(world=World(egress_tap=PutIn(self.taps)), tap_folder=self.taps)
        host = Host([self.home / "devices" / name for name in self.devices], learner=learner, wiring=wiring)

        async def root_loop() -> None:
            while True:
                await asyncio.to_thread(brain.tick)
                await asyncio.sleep(0.03)

        async def sites_loop() -> None:
            while True:
                keeper.tick()
                for leaf, _ in list(self._leaves.values()):
                    leaf.tick()
                self._carry()
                await asyncio.sleep(0.03)

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
                await server.stop(None)  # type: ignore[attr-defined]  # as above
            await enrolment.stop(None)

    def _carry(self) -> None:
        boxes = {site: Mailbox(self.folder(site).mailbox) for site in ("root", "keeper", *LEAVES)}
        for site, box in boxes.items():
            for message in box.outgoing():
                arrived = Message(
                    message_id=message.message_id, peer=SiteId(site), kind=message.kind, payload=message.payload
                )
                boxes[message.peer].deliver(arrived)
                box.acknowledge(message.message_id)

    def _enrol(self, address: str) -> None:
        tokens = TokenStore(self.folder("root").tokens, clock=utc_now)
        ca_pem = (self.folder("root").ca / "ca.pem").read_bytes()
        for name in self.devices:
            enrol(
                self.home / "devices" / name,
                token=tokens.mint(name, self.leaf_of(name)),  # type: ignore[arg-type]  # valid ids
                root=address,
                ca_pem=ca_pem,
            )


def make_small_fleet(home: Path, *, num_devices: int = NUM_DEVICES, seed: int = 0) -> SmallFleet:
    """Make keys, first version, data."""
    config = small_config()
    home.mkdir(parents=True, exist_ok=True)
    fleet = SmallFleet(
        home=home, config=config, devices=tuple(f"robot-{number}" for number in range(1, num_devices + 1))
    )
    root = fleet.folder("root")
    root.path.mkdir()
    ca = FleetCA.create(root.ca, config.fleet.name)
    services = [(Role.ROOT, "root"), (Role.KEEPER, "keeper"), *((Role.LEAF, leaf) for leaf in LEAVES)]
    for role, name in services:
        folder = fleet.folder(name)
        folder.path.mkdir(parents=True, exist_ok=True)
        ca.admit(folder.keys, SpiffeId(fleet=ca.fleet, role=role, name=name), server_names=["127.0.0.1"])
    seed_first_version(config, root)
    repository = Repository.open(root.repository, root.tuf_keys, utc_now)
    for leaf in LEAVES:
        mirror = Mirror(fleet.folder(leaf).cache)
        for path, data in repository.files_since(0):
            mirror.write(path, data)
    data = enlarged_digits()
    shares = share_out(
        data,
        num_owners=num_devices,
        concentration=5.0,
        images_per_owner=180,
        generator=np.random.default_rng(seed),
        num_heldout=300,
        num_shadow=100,
    )
    for name, owner in zip(fleet.devices, shares.owners, strict=True):
        write_owner(home / "devices" / name / "samples.safetensors", data, owner)
    write_shadow(root.path / "heldout.safetensors", data, shares.heldout)
    write_shadow(root.path / "shadow.safetensors", data, shares.shadow)
    fleet.watch = Watch(home, fleet.devices)
    return fleet


@dataclass(slots=True)
class Played:
    """What is left of a small fleet's story.

    Attributes:
        fleet: Stopped; its folders are as the story left them.
        proof: Of its end.
    """

    fleet: SmallFleet
    proof: Proof


async def _play(home: Path) -> Played:
    fleet = make_small_fleet(home)
    view = fleet.watch.state
    async with fleet.running():
        await fleet.until(lambda: len([v for v in view.complete if v > 1]) >= 1, "the first learned version everywhere")
        receipts = sum(device.num_receipts for device in view.devices.values())
        await fleet.until(
            lambda: sum(device.num_receipts for device in view.devices.values()) > receipts, "a receipt to kill between"
        )
        await fleet.kill("leaf-1")
        await fleet.until(lambda: len([v for v in view.complete if v > 1]) >= 2, "a version after the kill")

        broken = home / "broken.onnx"
        broken.write_bytes(break_graph(_graph_of(fleet)))
        fleet.order("override-publish", candidate="running", graph=str(broken), reason="the test lets it through")
        await fleet.until(lambda: bool(view.rolled_back), "the broken version to be rolled back")
        await fleet.until(lambda: view.restoring[0] in view.complete, "the restored version everywhere")

        attackers = frozenset(name for name in fleet.devices if fleet.leaf_of(name) == "leaf-2")
        fleet.attackers |= attackers
        await fleet.until(lambda: bool(view.refused), "a gate to refuse the poisoned candidate")
        fleet.attackers.clear()
        for name in attackers:
            sense_again(home / "devices" / name / "samples.safetensors")
        complete = len(view.complete)
        await fleet.until(lambda: len(view.complete) > complete, "a version after the attack")
        fleet.order("pause")
        await fleet.until(lambda: bool(fleet.root_events("order")[1:]), "the pause")
        proof = fleet.prove()
    return Played(fleet=fleet, proof=proof)


def _graph_of(fleet: SmallFleet) -> bytes:
    from nfl_core.learning import create_model, export_graph, schema_of

    model = fleet.config.model
    module = create_model(model.name, num_classes=model.num_classes, input_shape=model.input_shape, seed=0)
    return export_graph(module, schema_of(module, fleet.config.spec))


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """The whole story, played once for all tests that look at it."""
    return asyncio.run(_play(tmp_path_factory.mktemp("a fleet") / "home"))
