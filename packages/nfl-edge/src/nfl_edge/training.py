"""Make, train, merge and score checkpoints, as the agent asks. Only the trainer process imports this.

Each function reads a checkpoint, works on a copy and writes a new one; it moves no pointer and keeps nothing in memory,
so killing it at any moment loses nothing but time. The same request gives the same bytes.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfl_core.config import LearningSection
from nfl_core.errors import LearningError
from nfl_core.learning.continual import ModelIdentity
from nfl_core.learning.learner import LearnerState, NestedLearner
from nfl_core.learning.merge import MergeReport, merge
from nfl_core.learning.merge import Samples as MergeSamples
from nfl_core.learning.model import NestedModel, create_model, load_state, schema_of, state_of
from nfl_core.learning.objective import label_prior, score
from nfl_core.learning.plausible import Known, Track, judge_step
from nfl_core.learning.refit import cache_features, refit
from nfl_core.learning.settings import LearningSettings
from nfl_core.learning.update import micro_update
from nfl_core.levels import NestedSpec
from nfl_core.schema import TensorSchema
from nfl_core.tensors import read_tensors
from nfl_core.wire.limits import MAX_CHUNK_BYTES
from nfl_edge.errors import SamplesError
from nfl_edge.remember import Memory
from nfl_edge.requests import (
    Evaluated,
    EvaluateRequest,
    InitRequest,
    Learnt,
    MergeRequest,
    MergeResult,
    MicroUpdateRequest,
    Task,
)
from nfl_edge.sense import Samples, Split, read_samples
from nfl_edge.store import (
    SUFFIX,
    Checkpoint,
    CheckpointMeta,
    Tensors,
    displacement,
    load_checkpoint,
    write_checkpoint,
)
from nfl_edge.track import load_track, save_track

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Bench:
    """A model on the bench, with everything around it."""

    module: NestedModel
    learner: NestedLearner
    schema: TensorSchema
    samples: Samples | None
    settings: LearningSettings
    memory: Memory
    track: Track | None = None


def init(request: InitRequest) -> Learnt:
    """Make the first checkpoint. Raises NflError when inputs do not fit together."""
    started = time.process_time()
    bench = _bench(request.task)
    incoming = _incoming(request.incoming, bench.schema)
    load_state(bench.module, incoming, partial=True)
    bench.track = Track.begin(incoming, version=request.base_version)
    meta = CheckpointMeta(
        base_version=request.base_version, base_digest=request.base_digest, schema_fingerprint=bench.schema.fingerprint
    )
    name = _write(request.task, bench, accepted=_shared(bench), meta=meta)
    return Learnt(checkpoint=name, accuracy=_test_accuracy(bench), cpu_s=time.process_time() - started)


def learn(request: MicroUpdateRequest) -> Learnt:
    """Run one micro-update. Raises NflError; a result that is not finite is an error and is never written."""
    started = time.process_time()
    bench = _bench(request.task)
    old = _restore(request.task, bench, request.checkpoint)
    samples = _required(bench, request.task)
    train = _merge_samples(samples.train)
    prior = label_prior(train.y, num_classes=request.task.model.num_classes)
    _protect_shared(bench, train)
    is_rehearsing = bench.memory.rehearse(bench.learner, train)
    report = micro_update(bench.learner, train.x, train.y, prior=prior, refit_steps=0 if is_rehearsing else None)
    if is_rehearsing:
        _refit(bench, bench.memory.with_lost_train(train))
    bench.memory.offer(bench.module, train=train, holdout=_merge_samples(samples.holdout))
    meta = old.meta.model_copy(
        update={"num_updates": old.meta.num_updates + 1, "num_updates_here": old.meta.num_updates_here + 1}
    )
    name = _write(request.task, bench, accepted=old.accepted, meta=meta)
    return Learnt(
        checkpoint=name,
        num_steps=report.num_steps,
        loss_before=report.loss_before,
        loss_after=report.loss_after,
        accuracy=_test_accuracy(bench),
        cpu_s=time.process_time() - started,
    )


def merge_in(request: MergeRequest) -> MergeResult:
    """Merge new shared tensors; write the shadow checkpoint when the merge is worth it. Raises NflError."""
    started = time.process_time()
    bench = _bench(request.task)
    old = _restore(request.task, bench, request.checkpoint)
    incoming = _incoming(request.incoming, bench.schema)
    report = _merge(bench, request, incoming, own=displacement(old))
    name = seen = ""
    if not report.is_implausible:
        bench.track = _then(bench.track, incoming, version=request.base_version)
    if report.accepted:
        bench.learner.accept(alpha=report.alpha)
        bench.memory.move(bench.module, _identity(bench.schema, request.base_version))
        meta = old.meta.model_copy(
            update={"base_version": request.base_version, "base_digest": request.base_digest, "num_updates_here": 0}
        )
        # Displacements are measured from what was accepted (alpha counts), never from what was published.
        name = _write(request.task, bench, accepted=_shared(bench), meta=meta)
    elif not report.is_implausible:
        seen = _write(request.task, bench, accepted=old.accepted, meta=old.meta)
    return MergeResult(
        checkpoint=name,
        refusal="" if report.refusal is None else report.refusal.value,
        seen=seen,
        alpha=report.alpha,
        shock=report.shock,
        loss_before=_number(report.loss_before),
        loss_after=_number(report.loss_after),
        accuracy_before=report.accuracy_before,
        accuracy_after=report.accuracy_after,
        refit_steps=report.refit_steps,
        accuracy=_test_accuracy(bench),
        cpu_s=time.process_time() - started,
    )


def evaluate(request: EvaluateRequest) -> Evaluated:
    """Score a checkpoint. Raises NflError."""
    bench = _bench(request.task)
    _restore(request.task, bench, request.checkpoint)
    split: Split = getattr(_required(bench, request.task), request.split)
    accuracy, loss = _score(bench.module, split)
    return Evaluated(accuracy=accuracy, loss=_number(loss))


def _bench(task: Task) -> _Bench:
    module = create_model(
        task.model.name,
        num_classes=task.model.num_classes,
        input_shape=tuple(task.model.input_shape),
        seed=task.seed % 2**31,
    )
    spec = NestedSpec.of(task.levels)
    settings = _settings(task.learning)
    generator = torch.Generator().manual_seed(task.seed % 2**31)
    samples = _read(task)
    learner = NestedLearner(module, spec=spec, settings=settings, generator=generator)
    schema = schema_of(module, spec)
    return _Bench(
        module=module,
        learner=learner,
        schema=schema,
        samples=samples,
        settings=settings,
        memory=Memory.of(task.learning, task.model, identity=_identity(schema, 0), seed=task.seed),
    )


def _read(task: Task) -> Samples | None:
    path = Path(task.samples)
    if not path.exists():
        return None
    samples = read_samples(path)
    for split in (samples.train, samples.holdout, samples.test):
        if split.x_BCHW.shape[1:] != tuple(task.model.input_shape) or int(split.y_B.max()) >= task.model.num_classes:
            raise SamplesError(
                f"samples have shape {list(split.x_BCHW.shape[1:])} and labels up to {split.y_B.max()}, "
                f"the model expects {list(task.model.input_shape)} and labels below {task.model.num_classes}"
            )
    return samples


def _required(bench: _Bench, task: Task) -> Samples:
    if bench.samples is None:
        raise SamplesError(f"there are no samples at {Path(task.samples).name}")
    return bench.samples


def _merge(bench: _Bench, request: MergeRequest, incoming: Tensors, *, own: Tensors) -> MergeReport:
    # What is plausible is the device's own to say: nothing of it comes with the version.
    known = None if bench.track is None else Known(track=bench.track, version=request.base_version, own=own)
    if bench.samples is None:
        return _take_whole(bench, incoming, known)
    settings = replace(
        bench.settings,
        merge_alphas=request.alphas,
        merge_tolerance=request.tolerance,
        merge_max_drop=request.max_drop,
        refit_steps=request.refit_steps,
        refit_learning_rate=request.refit_learning_rate,
    )
    return merge(
        bench.module,
        incoming=incoming,
        schema=bench.schema,
        holdout=bench.memory.with_lost_holdout(_merge_samples(bench.samples.holdout)),
        train=bench.memory.with_lost_train(_merge_samples(bench.samples.train)),
        settings=settings,
        generator=bench.learner.generator,
        fast=bench.learner.rested(),
        known=known,
    )


def _take_whole(bench: _Bench, incoming: Tensors, known: Known | None) -> MergeReport:
    """Nothing was personalised, so there is nothing to break and only the step to judge by: take the whole."""
    refusal = None
    if known is not None and bench.settings.plausible:
        refusal = judge_step(known, incoming, factor=bench.settings.plausible_factor)
    if refusal is None:
        load_state(bench.module, incoming, partial=True)
    return MergeReport(
        accepted=refusal is None,
        alpha=float(refusal is None),
        shock=0.0,
        loss_before=0.0,
        loss_after=0.0,
        accuracy_before=0.0,
        accuracy_after=0.0,
        refit_steps=0,
        num_trials=0,
        refusal=refusal,
    )


def _then(track: Track | None, incoming: Tensors, *, version: int) -> Track:
    return Track.begin(incoming, version=version) if track is None else track.then(incoming, version=version)


def _protect_shared(bench: _Bench, train: MergeSamples) -> None:
    """Let the private level alone learn from a file of one class, as the gate of a stream does."""
    scopes = {level.name: level.scope for level in bench.learner.spec.levels}
    shared = [name for name, scope in scopes.items() if scope.is_shared]
    num_classes = len(set(bench.memory.with_lost_train(train).y.tolist()))
    if num_classes < 2 and len(shared) < len(scopes):
        _LOG.warning("one-class: the samples show a single class; private levels learn, shared ones are protected")
        bench.learner.hold(*shared)


def _refit(bench: _Bench, samples: MergeSamples) -> None:
    num_steps = bench.settings.num_refit_steps(len(samples.y))
    if num_steps:
        refit(
            bench.module,
            cache_features(bench.module, samples.x, samples.y),
            num_steps=num_steps,
            batch_size=bench.settings.batch_size,
            learning_rate=bench.settings.refit_learning_rate,
            generator=bench.learner.generator,
        )


def _identity(schema: TensorSchema, version: int) -> ModelIdentity:
    return ModelIdentity(schema_fingerprint=schema.fingerprint, version=version)


def _test_accuracy(bench: _Bench) -> float:
    return 0.0 if bench.samples is None else _score(bench.module, bench.samples.test)[0]


def _settings(section: LearningSection) -> LearningSettings:
    return LearningSettings(
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        epochs_per_update=section.epochs_per_update,
        refit_steps=section.refit_steps,
        refit_passes=section.refit_passes,
    )


def _restore(task: Task, bench: _Bench, name: str) -> Checkpoint:
    checkpoint = load_checkpoint(Path(task.checkpoints) / f"{name}{SUFFIX}", name)
    if checkpoint.meta.schema_fingerprint != bench.schema.fingerprint:
        raise LearningError(
            f"checkpoint {name[:12]} has schema {checkpoint.meta.schema_fingerprint[:12]}, "
            f"the model has {bench.schema.fingerprint[:12]}"
        )
    load_state(bench.module, checkpoint.tensors)
    arrays = {key: np.asarray(value, dtype=np.float32) for key, value in checkpoint.learner.items()}
    bench.learner.load_state_dict(LearnerState(arrays=arrays, text=checkpoint.learner_text))
    identity = _identity(bench.schema, checkpoint.meta.base_version)
    bench.memory.load(checkpoint.memory, checkpoint.memory_text, identity=identity)
    bench.track = load_track(checkpoint.track, checkpoint.track_text, accepted=checkpoint.accepted)
    return checkpoint


def _write(task: Task, bench: _Bench, *, accepted: Tensors, meta: CheckpointMeta) -> str:
    state = bench.learner.state_dict()
    tensors = state_of(bench.module)
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise LearningError(f"tensor {name!r} is not finite after learning", hint="lower the learning rate")
    memory, memory_text = bench.memory.save()
    track, track_text = save_track(bench.track, accepted=accepted)
    checkpoint = Checkpoint(
        tensors=tensors,
        accepted=accepted,
        learner=dict(state.arrays),
        learner_text=state.text,
        meta=meta,
        memory=memory,
        memory_text=memory_text,
        track=track,
        track_text=track_text,
    )
    return write_checkpoint(Path(task.checkpoints), checkpoint)


def _incoming(path: str, schema: TensorSchema) -> Tensors:
    expected = {tensor.name: (tensor.shape, "float32") for tensor in schema.shared}
    arrays = read_tensors(Path(path).read_bytes(), expected, max_bytes=MAX_CHUNK_BYTES)
    return {name: value.astype(np.float32, copy=False) for name, value in arrays.items()}


def _shared(bench: _Bench) -> Tensors:
    state = state_of(bench.module)
    return {tensor.name: state[tensor.name] for tensor in bench.schema.shared}


def _score(module: NestedModel, split: Split) -> tuple[float, float]:
    x, y = _tensors(split)
    scored = score(module, x, y)
    return scored.accuracy, scored.loss


def _tensors(split: Split) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(split.x_BCHW), torch.from_numpy(np.array(split.y_B))


def _merge_samples(split: Split) -> MergeSamples:
    x, y = _tensors(split)
    return MergeSamples(x=x, y=y)


def _number(value: float) -> float:
    """JSON has no infinity; the journal shows the largest float instead."""
    return value if math.isfinite(value) else float(np.finfo(np.float32).max)
