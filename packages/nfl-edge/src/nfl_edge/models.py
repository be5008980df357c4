"""Hold the model of one device: which bundle, which checkpoint, which engine; and change all three together.

Slots say which bundle runs, the store says what was learned, the guard says which engine answers. Every change here is
made of steps that may be repeated after a reboot and end the same.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from nfl_core.durable import write_file
from nfl_core.errors import DurableError, LearningError, NflError, SchemaError
from nfl_core.ids import Digest
from nfl_core.schema import TensorSchema
from nfl_core.tensors import write_tensors
from nfl_edge.errors import SamplesError
from nfl_edge.folder import DeviceFolder
from nfl_edge.infer import Engine, OrtEngine
from nfl_edge.learn import Learner
from nfl_edge.requests import InitRequest, Learnt, MergeRequest, MergeResult, MicroUpdateRequest, Task
from nfl_edge.safety import Guard
from nfl_edge.sense import SampleSource, read_samples
from nfl_edge.settings import DeviceSettings
from nfl_edge.store import Checkpoint, Store, same_tensors
from nfl_edge.words import Base
from nfl_ota.bundle import Bundle, BundleManifest
from nfl_ota.errors import NoBootableSlotError
from nfl_ota.health import Observation, Outcome, Probation, ProbationSettings
from nfl_ota.slots import SlotMachine, Slots

NUM_INPUTS = 16  # kept in memory for the self-check
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """Outcome of a probation: `reason` is empty when it passed; accuracies are -1 where there are no labels."""

    reason: str
    num_inferences: int
    latency_ms: float
    accuracy: float
    reference: float


class Models:
    """The model of one device.

    Args:
        folder: The device's folder.
        settings: Model, levels, learning, limits.
        source: Samples, for the trainer and for the probation.
        learner: Who trains.
        guard: Who answers inferences; this class alone puts engines into it.
    """

    def __init__(
        self, folder: DeviceFolder, *, settings: DeviceSettings, source: SampleSource, learner: Learner, guard: Guard
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._source = source
        self._learner = learner
        self._guard = guard
        self._slots = Slots(folder.slots, machine=SlotMachine(max_tries=settings.settings.edge.max_tries))
        self._store = Store(folder.checkpoints, folder.state / "checkpoint")
        self._bundle: Bundle | None = None
        self._staged: Bundle | None = None
        self._before: Engine | None = None
        self._inputs: NDArray[np.float32] | None = None
        self._inputs_of = ""
        self._turn = 0
        self.checkpoint: Checkpoint | None = None

    @property
    def schema(self) -> TensorSchema | None:
        """Schema of the bundle that runs; None before the first."""
        return None if self._bundle is None else self._bundle.manifest.tensor_schema

    @property
    def current_name(self) -> str:
        """Name of the present checkpoint; empty when there is none."""
        return self._store.pointer().current

    def manifests(self) -> tuple[BundleManifest, ...]:
        """Return the manifests of the bundles in the slots. Raises DurableError."""
        return tuple(self._slots.manifests())

    @property
    def learned_from(self) -> str:
        """Digest of the base that the checkpoint has learned from since its merge; empty: not yet."""
        meta = None if self.checkpoint is None else self.checkpoint.meta
        return meta.base_digest if meta is not None and meta.num_updates_here else ""

    def boot(self, *, keep: tuple[str, ...] = ()) -> Base | None:
        """Load what runs, counting the try of a slot on probation.

        Args:
            keep: Checkpoints that an update in the making still needs.

        Returns:
            What runs; None when there is nothing.

        Raises:
            DurableError: Slots or store cannot be read.
        """
        try:
            boot = self._slots.boot()
        except NoBootableSlotError:
            self._bundle = None
        else:
            self._bundle = boot.bundle
        self.checkpoint = self._load_checkpoint()
        self._store.collect(keep)
        self._take_current()
        return None if self._bundle is None else _base_of(self._bundle)

    def stage(self, bundle: Bundle) -> None:
        """Write a verified bundle into the slot that does not run.

        Raises:
            SchemaError: It is for another model than the one that learned here.
            StorageFullError: The disk is full; the old slot is untouched.
            NflError: Another rule of the slots.
        """
        schema = self.schema
        if schema is not None and bundle.manifest.tensor_schema.fingerprint != schema.fingerprint:
            raise SchemaError(f"version {bundle.manifest.version} has other tensors than the model that runs here")
        self._slots.install(bundle)
        self._staged = bundle

    async def initialise(self, candidate: Base) -> Learnt:
        """Make the first checkpoint from the staged bundle. Raises LearningError, ProcessDiedError, DurableError."""
        return await self._init_from(self._require_staged(candidate))

    async def merge(self, candidate: Base) -> MergeResult:
        """Merge the staged bundle into the present checkpoint, as a shadow.

        Raises:
            LearningError: It cannot be merged.
            ProcessDiedError: The trainer cannot be kept alive.
            DurableError: Something cannot be written.
        """
        bundle = self._require_staged(candidate)
        rules = bundle.manifest.merge
        request = MergeRequest(
            task=self._task(bundle),
            checkpoint=self.current_name,
            incoming=self._write_incoming(bundle),
            base_version=candidate.version,
            base_digest=candidate.digest,
            alphas=rules.alphas,
            tolerance=rules.tolerance,
            max_drop=rules.max_drop,
            refit_steps=rules.refit_steps,
            refit_learning_rate=rules.refit_learning_rate,
        )
        result = await self._learner.merge(request)
        if result.seen:
            # Refused, and nothing has changed but what the device knows of versions.
            self._store.advance(result.seen)
            self.checkpoint = self._store.load(result.seen)
            self._store.collect()
        return result

    async def learn(self) -> Learnt:
        """Run one micro-update and make its result the present checkpoint and engine.

        Raises:
            LearningError: It failed; the present checkpoint stands.
            ProcessDiedError: The trainer cannot be kept alive.
            DurableError: The result cannot be stored.
        """
        bundle = self._bundle
        if bundle is None:
            raise LearningError("there is no version to learn from")
        if not self.current_name:
            # The checkpoint was lost to a bad disk: begin again from the version that runs.
            self._store.advance((await self._init_from(bundle)).checkpoint)
        learnt = await self._learner.micro_update(
            MicroUpdateRequest(task=self._task(bundle), checkpoint=self.current_name)
        )
        self._store.advance(learnt.checkpoint)
        old, self.checkpoint = self.checkpoint, self._store.load(learnt.checkpoint)
        self._store.collect()
        self._refresh_engine(old, self.checkpoint)
        return learnt

    def activate(self, candidate: Base, *, shadow: str, first: bool) -> None:
        """Make candidate slot, shadow checkpoint and their engine the running ones. Safe to repeat.

        Raises:
            EngineError: The graph does not run with these tensors.
            NflError: Slot or checkpoint cannot be switched.
        """
        # Repeated after a reboot, the engine in charge may be the candidate's already.
        is_repeated = self._bundle is not None and self._bundle.manifest.version == candidate.version
        self._before = None if is_repeated else self._guard.active
        state = self._slots.state
        pending = state.record(state.pending)
        if first:
            bundle = self._slots.load(state.pending)
        else:
            if pending is not None and pending.version == candidate.version:
                self._slots.activate()
            bundle = self._slots.load()
        if _base_of(bundle).version != candidate.version:
            raise DurableError(f"the slot holds version {bundle.manifest.version}, expected {candidate.version}")
        if shadow:
            self._store.commit(shadow)
        self.checkpoint = self._load_checkpoint()
        self._bundle = bundle
        if self.checkpoint is None:
            raise DurableError("there is no checkpoint to run the new version with")
        self._guard.take(self._build(bundle, self.checkpoint), standby=self._before)

    def probe(self) -> ProbeResult:
        """Run the probation of the engine in charge, on the holdout samples, against the engine before it.

        Raises:
            LearningError: There is no engine.
        """
        engine, bundle = self._guard.active, self._bundle
        if engine is None or bundle is None:
            raise LearningError("there is no engine to put on probation")
        limits, edge = bundle.manifest.probation, self._settings.settings.edge
        num = max(limits.num_inferences, edge.probation_inferences)
        x_BCHW, y_B = self._probes(num)
        reference = self._reference(x_BCHW, y_B)
        probation = Probation(
            ProbationSettings(
                latency_budget_ms=min(limits.latency_budget_ms, edge.latency_budget_ms),
                num_inferences=num,
                max_accuracy_drop=min(limits.max_accuracy_drop, edge.max_accuracy_drop),
                max_late_fraction=limits.max_late_fraction,
                reference_accuracy=reference,
            )
        )
        latencies, hits = [], []
        verdict = probation.verdict
        for index in range(num):
            sight = self._guard.look(engine, x_BCHW[index : index + 1])
            usable = (
                sight.finite and sight.outputs is not None and sight.outputs.logits_BK.shape == (1, engine.num_classes)
            )
            correct: bool | None = None
            if usable and y_B is not None and sight.outputs is not None:
                correct = int(sight.outputs.logits_BK[0].argmax()) == int(y_B[index])
                hits.append(correct)
            latencies.append(sight.latency_ms)
            verdict = probation.observe(Observation(latency_ms=sight.latency_ms, finite=usable, correct=correct))
            if verdict.outcome is not Outcome.PENDING:
                break
        return ProbeResult(
            reason="" if verdict.outcome is Outcome.HEALTHY else verdict.reason or "undecided",
            num_inferences=len(latencies),
            latency_ms=median(latencies),
            accuracy=sum(hits) / len(hits) if hits else -1.0,
            reference=-1.0 if reference is None else reference,
        )

    def next_input(self) -> NDArray[np.float32]:
        """Return the next of the owner's holdout inputs, float32 [1, C, H, W]; zeros when there are no samples."""
        if self._inputs is None or self._inputs_of != self._source.revision():
            self._inputs_of = self._source.revision()
            try:
                self._inputs = self._probes(NUM_INPUTS)[0]
            except SamplesError as error:
                _LOG.warning("%s: %s", self._settings.device_id, error)
                self._inputs = np.zeros((1, *self._settings.settings.model.input_shape), np.float32)
        self._turn = (self._turn + 1) % len(self._inputs)
        return self._inputs[self._turn : self._turn + 1]

    def confirm(self, candidate: Base) -> None:
        """Keep the candidate. Safe to repeat.

        Raises:
            NflError: The slot cannot be confirmed.
        """
        state = self._slots.state
        pending = state.record(state.pending)
        if pending is not None and pending.version == candidate.version:
            self._slots.activate()  # the first version of a device: it ran from the staged slot so far
        self._slots.confirm()
        if self._slots.factory is None and self._bundle is not None:
            # The first version that ran well here is the last resort for ever.
            self._slots.provision_factory(self._bundle)
        self._staged = self._before = None
        if (engine := self._guard.active) is not None:
            self._guard.take(engine)
        self._store.collect()

    def fall_back(self, candidate: Base, *, before: str, condemned: bool) -> Base | None:
        """Return to slot, checkpoint and engine from before the candidate. Needs no network. Safe to repeat.

        Returns:
            What runs now; None when there is nothing.

        Raises:
            NflError: The slots or the store cannot be switched.
        """
        record = self._slots.state.record(self._slots.state.active)
        if record is not None and record.version == candidate.version:
            try:
                self._bundle = self._slots.fall_back().bundle
            except NoBootableSlotError:
                self._bundle = None
        else:
            self._bundle = self._slots.load() if self._slots.state.active is not None else None
        active = None if self._bundle is None else _base_of(self._bundle)
        if before or condemned:
            self._store.return_to(before)
        elif active is not None:
            self._follow(active)
        self.checkpoint = self._load_checkpoint()
        standby, self._before, self._staged = self._before, None, None
        if standby is not None and self._bundle is not None and self.checkpoint is not None:
            self._guard.take(standby)
        else:
            self._take_current()
        return active

    def _follow(self, active: Base) -> None:
        """The slots changed by themselves: take the checkpoint that belongs to what runs now, if there is one."""
        previous = self._store.pointer().previous
        if self.checkpoint is None or self.checkpoint.meta.base_digest == active.digest or not previous:
            return
        if self._store.load(previous).meta.base_digest == active.digest:
            self._store.return_to(previous)

    def _load_checkpoint(self) -> Checkpoint | None:
        pointer = self._store.pointer()
        for name in (pointer.current, pointer.previous):
            if not name:
                continue
            try:
                checkpoint = self._store.load(name)
            except DurableError as error:
                _LOG.error("%s: %s", self._settings.device_id, error)
                continue
            if name != pointer.current:
                self._store.return_to(name)
            return checkpoint
        if pointer.current:
            self._store.return_to("")
        return None

    def _take_current(self) -> None:
        if self._bundle is None or self.checkpoint is None:
            self._guard.clear()
            return
        try:
            self._guard.take(self._build(self._bundle, self.checkpoint))
        except LearningError as error:
            # Booting must go on: a candidate on probation then fails it, a confirmed one leaves the guard closed.
            _LOG.error("%s: %s", self._settings.device_id, error)
            self._guard.clear()

    def _refresh_engine(self, old: Checkpoint | None, new: Checkpoint) -> None:
        bundle, engine = self._bundle, self._guard.active
        if bundle is None:
            return
        shared = {tensor.name for tensor in bundle.manifest.tensor_schema.shared}
        if engine is not None and old is not None and same_tensors(_only(old, shared), _only(new, shared)):
            names = {tensor.name for tensor in bundle.manifest.tensor_schema.private}
            engine.swap_private(_only(new, names))
            return
        # Slow levels moved too: a new engine, taken by one assignment, so that no inference sees a mixture.
        self._guard.take(self._build(bundle, new))

    def _build(self, bundle: Bundle, checkpoint: Checkpoint) -> Engine:
        schema = bundle.manifest.tensor_schema
        return OrtEngine.build(
            bundle.graph,
            shared=_only(checkpoint, {tensor.name for tensor in schema.shared}),
            private=_only(checkpoint, {tensor.name for tensor in schema.private}),
            input_shape=tuple(self._settings.settings.model.input_shape),
        )

    def _probes(self, num: int) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Return `num` inputs, float32 [num, C, H, W], and their labels, None when there are no samples."""
        if not self._source.revision():
            return np.zeros((num, *self._settings.settings.model.input_shape), np.float32), None
        holdout = read_samples(self._source.path).holdout
        order = np.arange(num) % len(holdout)
        return holdout.x_BCHW[order], holdout.y_B[order]

    def _reference(self, x_BCHW: NDArray[np.float32], y_B: NDArray[np.int64] | None) -> float | None:
        engine = self._before or self._previous_engine()
        if engine is None or y_B is None:
            return None
        try:
            answers = engine.run(x_BCHW).logits_BK.argmax(axis=1)
        except LearningError:
            return None
        return float((answers == y_B).mean())

    def _previous_engine(self) -> Engine | None:
        """Build the engine from before after a reboot in the middle of a probation; None when that is not possible."""
        previous, name = self._slots.state.previous, self._store.pointer().previous
        if previous is None or not name:
            return None
        try:
            self._before = self._build(self._slots.load(previous), self._store.load(name))
        except NflError as error:
            _LOG.warning("%s: no engine from before the update: %s", self._settings.device_id, error)
            return None
        if self._guard.active is not None:
            self._guard.take(self._guard.active, standby=self._before)
        return self._before

    async def _init_from(self, bundle: Bundle) -> Learnt:
        request = InitRequest(
            task=self._task(bundle),
            incoming=self._write_incoming(bundle),
            base_version=bundle.manifest.version,
            base_digest=bundle.manifest.content_digest,
        )
        return await self._learner.init(request)

    def _require_staged(self, candidate: Base) -> Bundle:
        if self._staged is None or self._staged.manifest.version != candidate.version:
            raise LearningError(f"version {candidate.version} is not staged")
        return self._staged

    def _write_incoming(self, bundle: Bundle) -> str:
        path = self._folder.state / "incoming.safetensors"
        write_file(path, write_tensors(bundle.tensors))
        return str(path)

    def _task(self, bundle: Bundle) -> Task:
        fleet = self._settings.settings
        return Task(
            checkpoints=str(self._folder.checkpoints),
            samples=str(self._source.path),
            model=fleet.model,
            levels=bundle.manifest.levels,
            learning=fleet.learning,
            # A device's own stream of chance, the same after every restart.
            seed=int.from_bytes(hashlib.sha256(self._settings.device_id.encode()).digest()[:4], "big"),
        )


def _base_of(bundle: Bundle) -> Base:
    manifest = bundle.manifest
    return Base(version=manifest.version, digest=Digest(manifest.content_digest), target=manifest.target_path)


def _only(checkpoint: Checkpoint, names: set[str]) -> dict[str, NDArray[np.float32]]:
    return {name: value for name, value in checkpoint.tensors.items() if name in names}
