"""Learning from a stream: what a device does with one batch, and what it says about it.

The loop is that of `NestedLearner`; a stream adds an objective (rehearsal), a gate before it and a watch behind it:

1. the gate refuses what must not be learned, or protects the shared levels (`gates`);
2. the batch and remembered samples make one step under the prior of their mixture (`rehearsal`);
3. the batch is offered to the memory with the answers of that moment (`replay`);
4. a drift makes private levels learn faster for a while, brings an old private level back when it fits again, and asks
   for an early sync when what is shared no longer fits (`drift`, `recall`).

Rules kept here:

* A batch that raises leaves everything as it was: model, clocks, memory, chance.
* `state_dict` with `state_of(module)` continues bit for bit, in mid-chunk and in mid-boost too.

    learner = NestedLearner(module, spec=spec, settings=settings, generator=generator)
    stream = ContinualLearner(learner, replay=buffer, drift=DriftWatch(), shelf=RecallShelf())
    for x, y in batches:
        report = stream.observe(x, y)

Shape legend: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning.continual.average import SlowAverage
from nfl_core.learning.continual.drift import Drift, DriftWatch, decide
from nfl_core.learning.continual.errors import StreamRefusedError
from nfl_core.learning.continual.gates import Degradation, judge
from nfl_core.learning.continual.recall import (
    RecallReport,
    RecallShelf,
    Signature,
    private_state,
    signature_of,
)
from nfl_core.learning.continual.rehearsal import Rehearsal, RehearsalSettings
from nfl_core.learning.continual.replay import ReplayBuffer, ReplayState
from nfl_core.learning.learner import LearnerState, NestedLearner
from nfl_core.learning.model import FloatArray, NestedModel
from nfl_core.learning.objective import PRIOR_SMOOTHING
from nfl_core.learning.refit import FeatureCache, cache_features
from nfl_core.levels import Scope

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How a device learns from its stream.

    Attributes:
        rehearsal: How remembered samples take part.
        num_recent: Newest samples that signatures and recall are judged on, >= 1; they are part of the state.
        label_memory: Share that a batch has in the stream's label frequencies, within (0, 1].
        snapshot_batches: Batches between two looks at the private level as it is in quiet times, >= 1.
        max_repeated_fraction: See `judge`.
    """

    rehearsal: RehearsalSettings = field(default_factory=RehearsalSettings)
    num_recent: int = 64
    label_memory: float = 0.2
    snapshot_batches: int = 25
    max_repeated_fraction: float = 0.5

    def __post_init__(self) -> None:
        if min(self.num_recent, self.snapshot_batches) < 1 or not 0 < self.label_memory <= 1:
            raise ConfigError(f"stream settings out of range: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReport:
    """What one batch did.

    Attributes:
        loss: Objective before the step, nats.
        num_learned: Samples learned from.
        num_kept: Samples that entered the memory.
        degradations: What was wrong with the batch, by name.
        drift: What was found; None without a watch.
        boosted: Whether private levels learned faster.
        wants_sync: Whether an early version would help.
        recall: What a recall did; None: there was none.
    """

    loss: float
    num_learned: int
    num_kept: int
    degradations: tuple[Degradation, ...]
    drift: Drift | None
    boosted: bool
    wants_sync: bool
    recall: RecallReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """Everything but the model's parameters: named arrays and a JSON object."""

    arrays: Arrays
    text: str


class _Saved(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    learner: str
    replay: str
    drift: str
    shelf: str
    boost_left: int
    rate_factor: float
    num_batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quiet:
    """The private level at a moment without drift."""

    signature: Signature
    state: dict[str, FloatArray]


class ContinualLearner:
    """Learns from a stream, batch by batch.

    Args:
        learner: Its objective is replaced; it keeps levels, clocks and chance.
        replay: The memory, of the same model.
        settings: How it learns.
        drift: Watches for changes; None: nobody does.
        shelf: Old private levels; used only with `drift`.
        average: Follows the model; None: the model answers as it is.

    Raises:
        LearningError: The memory is for another shape or number of classes.
    """

    def __init__(
        self,
        learner: NestedLearner,
        *,
        replay: ReplayBuffer,
        settings: StreamSettings | None = None,
        drift: DriftWatch | None = None,
        shelf: RecallShelf | None = None,
        average: SlowAverage | None = None,
    ) -> None:
        module = learner.module
        if (replay.input_shape, replay.num_classes) != (tuple(module.input_shape), module.num_classes):
            raise LearningError(
                f"replay holds {replay.num_classes} classes of {replay.input_shape}, "
                f"the model has {module.num_classes} of {module.input_shape}"
            )
        self.learner = learner
        self.replay = replay
        self.settings = settings or StreamSettings()
        self.average = average
        self._drift, self._shelf = drift, shelf
        self._rehearsal = Rehearsal(replay, generator=learner.generator, settings=self.settings.rehearsal)
        learner.objective = self._rehearsal
        self._private = tuple(level.name for level in learner.spec.levels if level.scope is Scope.PRIVATE)
        self._shared = tuple(level.name for level in learner.spec.levels if level.scope is not Scope.PRIVATE)
        self._counts = np.zeros(module.num_classes, np.float32)
        self._recent_x = np.zeros((0, *module.input_shape), np.float32)
        self._recent_y = np.zeros(0, np.int64)
        self._quiet: list[_Quiet] = []  # the last two, older first
        self._boost_left, self._rate_factor, self._num_batches = 0, 1.0, 0

    def observe(self, x: Tensor, y: Tensor) -> StreamReport:
        """Learn from one batch.

        Args:
            x: float32 [B, *input_shape].
            y: int64 [B], values 0 to K - 1.

        Raises:
            StreamRefusedError: The batch must not be learned from; nothing changed.
            LearningError: The loss is not finite; nothing changed.
        """
        module = self.learner.module
        admission = judge(
            x,
            y,
            num_classes=module.num_classes,
            input_shape=tuple(module.input_shape),
            known_classes=frozenset(self._recent_y.tolist()) | frozenset(self.replay.labels.tolist()),
            max_repeated_fraction=self.settings.max_repeated_fraction,
        )
        x, y = x[admission.places], y[admission.places]
        loss = self._step(x, y, protect_shared=admission.protect_shared)
        sight = self._rehearsal.last
        assert sight is not None  # the step has just seen the batch
        logits = sight.generic if bool(torch.isfinite(sight.generic).all()) else None
        num_kept = self.replay.offer(x, y, logits=logits)
        self._remember(x, y)
        if self.average is not None:
            self.average.update(module)
        boosted = self._boost_left > 0
        self._boost_left = max(0, self._boost_left - 1)
        drift, wants_sync, recall = self._watch(loss=sight.loss, mean=sight.mean)
        return StreamReport(
            loss=loss,
            num_learned=len(y),
            num_kept=num_kept,
            degradations=admission.degradations,
            drift=drift,
            boosted=boosted,
            wants_sync=wants_sync,
            recall=recall,
        )

    def answering(self) -> NestedModel:
        """Return the model that answers: a copy with the averaged parameters, or the model itself."""
        return self.learner.module if self.average is None else self.average.model(self.learner.module)

    def prior(self) -> Tensor:
        """Return the logarithms of the stream's recent label frequencies, smoothed, float32 [K]."""
        return _prior(self._counts)

    def state_dict(self) -> StreamState:
        """Return a copy of all that is needed to go on exactly here, the model's parameters apart."""
        learner, replay = self.learner.state_dict(), self.replay.state_dict()
        shelf, shelf_text = self._shelf.state_dict() if self._shelf is not None else ({}, "")
        own: Arrays = {"counts": self._counts, "recent_x": self._recent_x, "recent_y": self._recent_y}
        for place, quiet in enumerate(self._quiet):
            own |= {f"quiet{place}:{name}": array for name, array in quiet.state.items()}
            own |= {f"quiet{place}:mean": quiet.signature.mean, f"quiet{place}:labels": quiet.signature.labels}
        parts: Mapping[str, Mapping[str, NDArray[np.generic]]] = {
            "learner": learner.arrays,
            "replay": replay.arrays,
            "shelf": shelf,
            "average": {} if self.average is None else self.average.state(),
            "stream": own,
        }
        saved = _Saved(
            learner=learner.text,
            replay=replay.text,
            drift="" if self._drift is None else self._drift.to_json(),
            shelf=shelf_text,
            boost_left=self._boost_left,
            rate_factor=self._rate_factor,
            num_batches=self._num_batches,
        )
        arrays = {f"{part}/{name}": array.copy() for part, named in parts.items() for name, array in named.items()}
        return StreamState(arrays=arrays, text=saved.model_dump_json())

    def load_state_dict(self, state: StreamState) -> None:
        """Go on where `state_dict` was called, with the same parts; load the model's parameters separately.

        Raises:
            LearningError: The state belongs to another model, spec or set of parts.
            ReplayMismatchError: Its memory belongs to another model.
        """
        try:
            saved = _Saved.model_validate_json(state.text)
        except ValidationError as e:
            raise LearningError(f"the state of a stream cannot be read: {e.errors()[0]['msg']}") from e
        parts = {part: _part(state.arrays, f"{part}/") for part in ("learner", "replay", "shelf", "average", "stream")}
        for name, mine, theirs in (
            ("drift watch", self._drift, saved.drift),
            ("shelf", self._shelf, saved.shelf),
            ("average", self.average, parts["average"]),
        ):
            if (mine is None) != (not theirs):
                raise LearningError(f"the state of a stream differs in its {name}, expected the same parts")
        restored = ReplayBuffer.restore(
            ReplayState(arrays=parts["replay"], text=saved.replay), max_bytes=self.replay.max_bytes
        )
        restored.adopt(self.replay.identity)
        try:
            own = _own(parts["stream"])
        except KeyError as e:
            raise LearningError(f"the state of a stream lacks {e}") from e
        floats = {name: np.asarray(array, np.float32) for name, array in parts["learner"].items()}
        self.learner.load_state_dict(LearnerState(arrays=floats, text=saved.learner))
        if self._drift is not None:
            self._drift.load_json(saved.drift)
        if self._shelf is not None:
            self._shelf.load_state_dict(_floats(parts["shelf"]), saved.shelf)
        if self.average is not None:
            self.average.load_state(self.learner.module, _floats(parts["average"]))
        self.replay = self._rehearsal.buffer = restored
        self._counts, self._recent_x, self._recent_y, self._quiet = own
        self._boost_left, self._rate_factor = saved.boost_left, saved.rate_factor
        self._num_batches = saved.num_batches

    def _step(self, x: Tensor, y: Tensor, *, protect_shared: bool) -> float:
        learner = self.learner
        if protect_shared and not self._private:
            raise StreamRefusedError(
                f"the stream holds class {int(y[0])} alone and the model has no private level that could learn it"
            )
        batch = np.bincount(y.numpy(), minlength=len(self._counts)).astype(np.float32)
        share = np.float32(self.settings.label_memory if self._num_batches else 1.0)
        counts = (1 - share) * self._counts + share * batch
        chance = learner.generator.get_state()
        learner.hold(*(self._shared if protect_shared else ()))
        learner.pace(dict.fromkeys(self._private, self._rate_factor) if self._boost_left else {})
        try:
            loss = float(learner.observe(x, y, prior=_prior(counts)))
        except LearningError:
            learner.generator.set_state(chance)
            raise
        if self._boost_left and self._private:
            learner.flush(*self._private)  # a period of one, as long as it must learn fast
        self._counts = counts
        self._num_batches += 1
        return loss

    def _remember(self, x: Tensor, y: Tensor) -> None:
        num = self.settings.num_recent
        self._recent_x = np.concatenate([self._recent_x, x.numpy()])[-num:]
        self._recent_y = np.concatenate([self._recent_y, y.numpy()])[-num:]

    def _recent(self) -> FeatureCache:
        return cache_features(self.learner.module, torch.from_numpy(self._recent_x), torch.from_numpy(self._recent_y))

    def _watch(self, *, loss: float, mean: Tensor) -> tuple[Drift | None, bool, RecallReport | None]:
        if self._drift is None:
            return None, False, None
        drift = self._drift.observe(loss=loss, mean=mean)
        response = decide(drift, self._drift.settings)
        if not (drift.loss or drift.features):
            if not self._boost_left and self._num_batches % self.settings.snapshot_batches == 0:
                self._look()
            return drift, False, None
        self._boost_left, self._rate_factor = response.boost_batches, response.rate_factor
        return drift, response.wants_sync, self._recall()

    def _look(self) -> None:
        module = self.learner.module
        signature = signature_of(self._recent(), num_classes=module.num_classes)
        self._quiet = [*self._quiet, _Quiet(signature=signature, state=private_state(module))][-2:]

    def _recall(self) -> RecallReport | None:
        if self._shelf is None or not self._private:
            return None
        self.learner.flush(*self._private)
        report = self._shelf.recall(self.learner.module, self._recent())
        if self._quiet:
            # The newer look may have seen the change already: it takes a detector some batches to be sure.
            self._shelf.keep(self._quiet[0].signature, self._quiet[0].state)
            self._quiet = []
        return report


def _prior(counts: NDArray[np.float32]) -> Tensor:
    smoothed = counts + np.float32(PRIOR_SMOOTHING)
    return torch.from_numpy(np.log(smoothed / smoothed.sum()))


def _part(arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _floats(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, FloatArray]:
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def _own(
    arrays: Mapping[str, NDArray[np.generic]],
) -> tuple[FloatArray, FloatArray, NDArray[np.int64], list[_Quiet]]:
    quiet = []
    for place in range(2):
        mine = _floats(_part(arrays, f"quiet{place}:"))
        if mine:
            signature = Signature(mean=mine.pop("mean"), labels=mine.pop("labels"))
            quiet.append(_Quiet(signature=signature, state=mine))
    counts, recent_x = np.asarray(arrays["counts"], np.float32), np.asarray(arrays["recent_x"], np.float32)
    return counts, recent_x, np.asarray(arrays["recent_y"], np.int64), quiet
