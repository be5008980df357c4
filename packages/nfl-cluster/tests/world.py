"""A whole fleet in one process: real services, real certificates, real masks, real TUF; a courier that misbehaves.

The model is a toy of 20 values with a graph that nobody runs, so a world is cheap; judges answer what a test wants.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_cluster.aggregate.batches import BatchLog
from nfl_cluster.brain import Brain
from nfl_cluster.brain.content import Content, Tensors
from nfl_cluster.events import read_events
from nfl_cluster.keeper import KeeperService
from nfl_cluster.leaf import Leaf
from nfl_cluster.mailbox import Mailbox, Message
from nfl_cluster.root import make_brain
from nfl_cluster.service import SiteFolder
from nfl_cluster.validate.gates import Judgement
from nfl_core.config import FleetConfig
from nfl_core.ids import RegionId, SiteId, VersionId
from nfl_core.schema import TensorSchema
from nfl_core.wire import device_pb2
from nfl_ota import GateResult, Repository, build_bundle
from nfl_secure.egress import EgressGate, SealedContribution
from nfl_secure.identity import FleetCA, Principal, Role, SpiffeId
from nfl_secure.policy import verify_policy

FLEET = "test"
SHAPES = {"body.w": (4, 3), "head.w": (3,), "middle.w": (5,), "private.w": (2,)}
ROOT, KEEPER, LEAVES = SiteId("root"), SiteId("keeper"), (SiteId("leaf-1"), SiteId("leaf-2"))


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = datetime.now(timezone.utc)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class ToyJudges:
    """Gates and scales of a test's choice."""

    def __init__(self) -> None:
        self.refuses = False
        self.num_judged = 0

    def judge(
        self, candidate: Mapping[RegionId, Tensors], *, running: Content, bundle_bytes: Mapping[RegionId, int]
    ) -> Judgement:
        self.num_judged += 1
        gate = GateResult(name="toy", passed=not self.refuses, value=float(self.refuses), limit=0.0)
        return Judgement(gates=(gate,), accuracy=dict.fromkeys(candidate, 0.5))

    def accuracy(self, graph: bytes, tensors: Mapping[RegionId, Tensors]) -> dict[RegionId, float]:
        return dict.fromkeys(tensors, 0.5)

    def scales(self, content: Content) -> tuple[float, ...] | None:
        return tuple(0.1 for _ in content.schema.shared)


def make_config(**sections: dict[str, object]) -> FleetConfig:
    leaves = [{"site": "leaf-1", "region": "north"}, {"site": "leaf-2", "region": "south"}]
    privacy = {"n_min": 2, "batch_size": 3, "batch_max": 4, "bits": 2, "window_s": 5.0}
    base: dict[str, object] = {
        "fleet": {"name": FLEET},
        "leaves": leaves,
        "privacy": privacy,
        "keeper": {"n_min": 2},
        "root": {"batches_per_version": 2, "server_learning_rate": 1.0},
        "rollout": {"waves": [0.2, 1.0], "min_soak_s": 1.0, "wave_deadline_s": 5.0},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}  # type: ignore[dict-item]
    return FleetConfig.model_validate(base)


class World:
    """Everything of one fleet but the network."""

    def __init__(self, home: Path, *, config: FleetConfig | None = None, seed: int = 0) -> None:
        self.home, self.clock, self.rng = home, Clock(), random.Random(seed)
        self.config = config or make_config()
        self.schema = TensorSchema.of(SHAPES, self.config.spec)
        self.ca = FleetCA.create(home / "root" / "ca", FLEET, clock=self.clock)
        self.folders = {ROOT: SiteFolder.of_root(home), KEEPER: SiteFolder.of_keeper(home)}
        self.folders |= {leaf: SiteFolder.of_leaf(home, leaf) for leaf in LEAVES}
        for site, folder in self.folders.items():
            role = {ROOT: Role.ROOT, KEEPER: Role.KEEPER}.get(site, Role.LEAF)
            self.ca.admit(folder.keys, self.spiffe(role, site), server_names=["127.0.0.1"])
        self._publish_first()
        self.judges = ToyJudges()
        self.devices: dict[str, Principal] = {}
        self.accepted: dict[str, tuple[NDArray[np.int64], int]] = {}
        self.brain: Brain
        self.keeper: KeeperService
        self.leaves: dict[SiteId, Leaf] = {}
        for site in self.folders:
            self.restart(site)

    def spiffe(self, role: Role, name: str) -> SpiffeId:
        return SpiffeId(fleet=self.ca.fleet, role=role, name=name)

    def restart(self, site: SiteId) -> None:
        """Open a service anew from its folder, as after a kill."""
        folder = self.folders[site]
        if site == ROOT:
            self.brain = make_brain(self.config, folder, clock=self.clock, judges=self.judges)
        elif site == KEEPER:
            self.keeper = KeeperService(self.config, folder, clock=self.clock)
        else:
            self.leaves[site] = Leaf(self.config, site, folder, clock=self.clock, monotonic=self.clock().timestamp)

    def tick(self, site: SiteId) -> None:
        {ROOT: self.brain, KEEPER: self.keeper, **self.leaves}[site].tick()

    def mailbox(self, site: SiteId) -> Mailbox:
        return Mailbox(self.folders[site].mailbox)

    def carry(self, *, lossy: bool = False) -> int:
        """Carry mail once; a lossy courier delays, reorders and repeats."""
        mail = [(site, message) for site in self.folders for message in self.mailbox(site).outgoing()]
        if lossy:
            self.rng.shuffle(mail)
        num = 0
        for site, message in mail:
            if lossy and self.rng.random() < 0.3:
                continue
            arrived = Message(message_id=message.message_id, peer=site, kind=message.kind, payload=message.payload)
            self.mailbox(message.peer).deliver(arrived)
            num += 1
            if not (lossy and self.rng.random() < 0.3):
                self.mailbox(site).acknowledge(message.message_id)
        return num

    def settle(self, rounds: int = 60) -> None:
        """Tick and carry until nothing moves any more."""
        for _ in range(rounds):
            for site in self.folders:
                self.tick(site)
            if not self.carry():
                return

    def device(self, name: str) -> Principal:
        if name not in self.devices:
            self.devices[name] = self.ca.admit(self.home / "devices" / name / "keys", self.spiffe(Role.DEVICE, name))
        return self.devices[name]

    def hello(self, name: str, leaf: SiteId, *, version: int = 0, digest: str = "") -> device_pb2.HelloReply:
        """Say hello as a device does, without the network."""
        request = device_pb2.HelloRequest(installed_version=version, installed_digest=digest)
        gateway, attendance = self.leaves[leaf].gateway, self.leaves[leaf].attendance
        offer = attendance.hello(self.device(name).spiffe.name, request, is_served=gateway.is_served())  # type: ignore[arg-type]
        policy = self.leaves[leaf].log.newest_policy()
        return device_pb2.HelloReply(
            policy=policy.signed if policy else b"",
            newest_version=offer.version,
            bundle_target=offer.target,
            newest_digest=offer.digest,
        )

    def seal(self, name: str, leaf: SiteId, *, base: str, scale: float = 0.1) -> SealedContribution:
        """Seal a contribution under the newest policy that the leaf knows."""
        log: BatchLog = self.leaves[leaf].log
        newest = log.newest_policy()
        assert newest is not None
        policy = verify_policy(newest.signed, ca_pem=self.ca.ca_pem, schema=self.schema, n_min_floor=2, at=self.clock())
        gate = EgressGate(
            self.schema,
            principal=self.device(name),
            policy=policy,
            state=self.home / "devices" / name / "egress",
            clock=self.clock,
            tap=self._witness,
        )
        rng = np.random.default_rng(zlib.crc32(f"{name}|{newest.policy_id}".encode()))
        moved = {t.name: (rng.standard_normal(t.shape) * scale).astype(np.float32) for t in self.schema.shared}
        return gate.seal(moved, base=base, weight=1, leaf=leaf)  # type: ignore[arg-type]

    def contribute(self, name: str, leaf: SiteId, *, base: str) -> bytes:
        sealed = self.seal(name, leaf, base=base)
        return self.leaves[leaf].log.accept(sealed.frame, peer=self.device(name).spiffe)

    def events(self, name: str) -> list[Mapping[str, object]]:
        found = read_events(self.folders[ROOT].state / "events.jsonl")
        return [event for event in found if event["event"] == name]

    def counts(self, batch_id: str) -> NDArray[np.int64]:
        """Return the integer sum that the root uncovered."""
        store = self.brain._store
        return store.get_arrays("batches", f"{batch_id}.safetensors")["counts"].astype(np.int64)

    def install_everywhere(self, names: Mapping[str, SiteId], *, seconds: float = 30.0) -> None:
        """Let devices run whatever they are offered until the rollout is through."""
        for _ in range(int(seconds)):
            for name, leaf in names.items():
                reply = self.hello(name, leaf)
                self.hello(name, leaf, version=reply.newest_version, digest=reply.newest_digest)
            self.settle()
            self.clock.advance(1.1)

    def _witness(self, contribution_id: str, *, counts_P: NDArray[np.int64], weight: int) -> None:
        self.accepted[contribution_id] = (counts_P.copy(), weight)

    def _publish_first(self) -> None:
        folder = self.folders[ROOT]
        repository = Repository.create(folder.repository, folder.tuf_keys, self.clock)
        rng = np.random.default_rng(0)
        tensors = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in self.schema.shared}
        repository.publish(
            [
                build_bundle(
                    model="toy",
                    region=RegionId(region),
                    version=VersionId(1),
                    spec=self.config.spec,
                    schema=self.schema,
                    tensors=tensors,
                    graph=b"toy graph",
                    created_at=self.clock(),
                )
                for region in ("north", "south")
            ]
        )
