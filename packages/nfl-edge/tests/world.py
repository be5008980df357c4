"""A small fleet around real agents: CA, root, keeper, leaf, published bundles, devices with their folders."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import nfl_secure.tls  # noqa: F401 - before grpc
from nfl_core.codec.quantise import modulus_bits
from nfl_core.config import EdgeSection, LearningSection, ModelSection, PrivacySection
from nfl_core.ids import RegionId, VersionId
from nfl_core.learning.export import export_graph
from nfl_core.learning.model import create_model, schema_of, state_of
from nfl_core.learning.reference import default_spec
from nfl_core.schema import TensorSchema
from nfl_core.wire import sites_pb2
from nfl_edge import training
from nfl_edge.agent import AgentSettings
from nfl_edge.folder import DeviceFolder
from nfl_edge.link import GrpcLink
from nfl_edge.runtime import AgentRuntime, World
from nfl_edge.settings import DeviceSettings, FleetSettings, write_settings
from nfl_edge.telemetry import read_events
from nfl_ota.bundle import BundleManifest, MergeSettings, build_bundle
from nfl_ota.mirror import Mirror
from nfl_ota.publish import Repository
from nfl_secure.identity import FleetCA, Principal, Role, SpiffeId
from nfl_secure.policy import VerifiedPolicy, read_policy, sign_policy
from nfl_secure.secagg import Keeper

from .leaf_simulator import LeafSimulator

SHAPE = (1, 12, 12)
REGION = RegionId("north")
FAST = AgentSettings(poll_s=0.02, report_s=0.1, backoff_s=0.02, backoff_max_s=0.1, relearn_s=3600.0)


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real hand-written digits, uint8 [1797, 1, 12, 12], labels int64."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = np.clip(np.pad(data.images, ((0, 0), (2, 2), (2, 2))) * 15.9, 0, 255).astype(np.uint8)[:, None]
    order = np.random.default_rng(3).permutation(len(x))
    return x[order], data.target[order].astype(np.int64)


@cache
def model(seed: int = 1):
    module = create_model("small-cnn", num_classes=10, input_shape=SHAPE, seed=seed)
    return module, schema_of(module, default_spec())


@cache
def graph() -> bytes:
    return export_graph(*model())


def schema() -> TensorSchema:
    return model()[1]


def shared_tensors(version: int = 1) -> dict[str, np.ndarray]:
    """Versions that go on in one direction, by steps that a device finds plausible."""
    (start, tensors), (end, _) = model(1), model(2)
    here, there, share = state_of(start), state_of(end), np.float32(0.01 * (version - 1))
    return {t.name: here[t.name] + share * (there[t.name] - here[t.name]) for t in tensors.shared}


def write_samples(path: Path, *, index: int = 0, num: int = 90) -> None:
    x, y = digits()
    part = slice(index * num, (index + 1) * num)
    x, y = x[part], y[part]
    cuts = {"train": slice(0, 50), "holdout": slice(50, 70), "test": slice(70, num)}
    arrays = {f"{name}.x": np.ascontiguousarray(x[cut]) for name, cut in cuts.items()}
    arrays |= {f"{name}.y": np.ascontiguousarray(y[cut]) for name, cut in cuts.items()}
    save_file(arrays, path)


class InProcessLearner:
    """The trainer's own functions, called in a thread: another place to run, the same work."""

    async def init(self, request):
        return await asyncio.to_thread(training.init, request)

    async def micro_update(self, request):
        return await asyncio.to_thread(training.learn, request)

    async def merge(self, request):
        return await asyncio.to_thread(training.merge_in, request)

    async def evaluate(self, request):
        return await asyncio.to_thread(training.evaluate, request)


@dataclass
class Device:
    folder: DeviceFolder
    settings: DeviceSettings
    principal: Principal

    def events(self, name: str | None = None) -> list:
        return [event for event in read_events(self.folder.events) if name in (None, event["event"])]


class Fleet:
    """Everything real but the leaf's process."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.ca = FleetCA.create(home / "ca", "home")
        self.root = self._service(Role.ROOT, "root")
        self.leaf_principal = self._service(Role.LEAF, "leaf-1")
        self.other_leaf = self._service(Role.LEAF, "leaf-2")
        keeper = self._service(Role.KEEPER, "keeper")
        self.keeper = Keeper(keeper, keys=home / "kk", state=home / "ks", n_min=2, clock=utc_now)
        self.repository = Repository.create(home / "repo", home / "repo-keys", utc_now)
        self.mirror = Mirror(home / "mirror")
        self._marker = 0
        self.leaf = LeafSimulator(self.leaf_principal, self.mirror)
        self.manifests: dict[int, BundleManifest] = {}
        self._push()

    def _service(self, role: Role, name: str) -> Principal:
        spiffe = SpiffeId(fleet=self.ca.fleet, role=role, name=name)
        return self.ca.admit(self.home / name, spiffe, server_names=["127.0.0.1"])

    def device(self, name: str, *, index: int = 0, samples: bool = True, edge: EdgeSection | None = None) -> Device:
        folder = DeviceFolder(self.home / "devices" / name)
        folder.make()
        spiffe = SpiffeId(fleet=self.ca.fleet, role=Role.DEVICE, name=name)
        principal = self.ca.admit(folder.keys, spiffe)
        fleet = FleetSettings(
            model=ModelSection(input_shape=SHAPE),
            levels=default_spec().levels,
            learning=LearningSection(batch_size=16, epochs_per_update=1, refit_steps=5),
            privacy=PrivacySection(n_min=2, batch_size=2, batch_max=4),
            edge=edge or EdgeSection(latency_budget_ms=2000.0, probation_inferences=8),
        )
        settings = DeviceSettings(
            device_id=name,
            fleet=self.ca.fleet,
            region=REGION,
            leaf_id="leaf-1",
            leaf_address=self.leaf.address or "127.0.0.1:1",
            settings=fleet,
        )
        write_settings(folder, settings)
        folder.trusted_root.write_bytes((self.home / "repo" / "metadata" / "1.root.json").read_bytes())
        if samples:
            write_samples(folder.samples, index=index)
        return Device(folder, settings, principal)

    def publish(
        self, version: int, tensors: dict | None = None, *, graph_bytes: bytes | None = None, tolerance: float = 1e9
    ):
        """Publish a version and assign it. By default any finite merge is tolerable."""
        manifest, chunks = build_bundle(
            model="small-cnn",
            region=REGION,
            version=VersionId(version),
            spec=default_spec(),
            schema=schema(),
            tensors=tensors or shared_tensors(version),
            graph=graph_bytes or graph(),
            created_at=utc_now(),
            merge=MergeSettings(tolerance=tolerance, refit_steps=5),
        )
        self.repository.publish([(manifest, chunks)])
        self._push()
        self.assign(BundleManifest.from_bytes(manifest))

    def roll_back(self, *, to: int, version: int) -> None:
        (manifest,) = self.repository.publish_rollback(to=VersionId(to), version=VersionId(version))
        self._push()
        self.assign(manifest)

    def assign(self, manifest: BundleManifest) -> None:
        self.manifests[manifest.version] = manifest
        self.leaf.newest = (manifest.version, manifest.target_path, manifest.content_digest)

    def open_policy(self, policy_id: int, *versions: int, expires_in_s: float = 3600.0) -> VerifiedPolicy:
        message = sites_pb2.RoundPolicy(
            policy_id=policy_id,
            fleet=self.ca.fleet,
            schema_fingerprint=schema().fingerprint,
            scales=[0.1] * len(schema().shared),
            bits=2,
            modulus_bits=modulus_bits(2, 4),
            n_min=2,
            batch_size=2,
            batch_max=4,
            max_weight=1,
            mode="sealed",
            window_ms=6000,
            expires_at_unix=int((utc_now() + timedelta(seconds=expires_in_s)).timestamp()),
            keeper_id="keeper",
            keeper_key=self.keeper.key_statement(),
            num_values=schema().num_shared + 1,
        )
        for version in versions:
            message.bases.add(version=version, region=REGION, digest=self.manifests[version].content_digest)
        signed = sign_policy(message, principal=self.root, at=utc_now())
        self.leaf.policy = read_policy(signed, ca_pem=self.ca.ca_pem, at=utc_now())
        return self.leaf.policy

    def link(self, device: Device, **options) -> GrpcLink:
        partial = device.folder.cache / "partial"
        leaf = self.leaf_principal.spiffe
        options = {"call_s": 2.0, "stream_s": 10.0, **options}
        return GrpcLink(self.leaf.address, principal=device.principal, leaf=leaf, partial=partial, **options)

    def agent(
        self, device: Device, *, link=None, learner=None, world: World | None = None, settings=FAST, **options
    ) -> AgentRuntime:
        return AgentRuntime(
            device.folder,
            settings=replace_address(device.settings, self.leaf.address),
            principal=device.principal,
            link=link or self.link(device, **options),
            learner=learner or InProcessLearner(),
            world=world,
            agent_settings=settings,
        )

    def _push(self) -> None:
        for path, data in self.repository.files_since(self._marker):
            self.mirror.write(path, data)
        self._marker = self.repository.marker


def replace_address(settings: DeviceSettings, address: str) -> DeviceSettings:
    return settings.model_copy(update={"leaf_address": address}) if address else settings


class Running:
    """An agent's loop as a task; a fault of the loop ends every wait with that fault."""

    def __init__(self, agent: AgentRuntime) -> None:
        self.agent = agent
        self.task = asyncio.ensure_future(agent.run())

    async def until(self, condition: Callable[[], object], *, within_s: float = 30.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if self.task.done():
                if not self.task.cancelled():
                    self.task.result()
                raise AssertionError("the agent's loop ended")
            if time.monotonic() > deadline:
                raise AssertionError(f"not reached within {within_s} s; state {self.agent.state}")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.agent.stop()
        await asyncio.wait_for(self.task, 30)
        await self.agent._link.close()

    async def kill(self) -> None:
        """Drop the loop wherever it stands, like a power cut at an await."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.agent._link.close()
