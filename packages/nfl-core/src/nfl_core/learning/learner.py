"""Nested learning: every level gathers gradients each batch and steps at its own period.

Rules kept here:

* A slow level ACCUMULATES THE SUM of the gradients of its whole period and applies it once; it never skips one. A chunk
  that is cut short is applied by `flush`, so nothing learned is lost.
* One loop for everything: ordinary training, local-only and federated averaging are this learner with another spec.
* The learner is resumable: `state_dict` together with `state_of(module)` continues bit for bit, in mid-chunk too.
* A batch that cannot be learned from raises before anything has changed: parameters, chunks, clocks and memory.
* A level whose learning rate is 0 stands still: it gathers nothing, remembers nothing and is not differentiated.

Source: accumulated, once-applied error of a chunk: Behrouz et al., Nested Learning, arXiv:2512.24695, continuum memory
system, Eq. 71.
"""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nfl_core.errors import LearningError, SpecError
from nfl_core.learning.clock import LevelClock
from nfl_core.learning.model import FloatArray, NestedModel
from nfl_core.learning.objective import Objective, joint_loss
from nfl_core.learning.optim import Memory, Optimizer, optimizer_of, rescale, zeros_like
from nfl_core.learning.settings import LearningSettings
from nfl_core.levels import Level, NestedSpec, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerState:
    """What a learner knows beside the model's parameters.

    Attributes:
        arrays: float32 arrays by name: `sum.<parameter>`, `memory.<slot>.<parameter>`, `anchor.<parameter>`,
            `rested.<parameter>`.
        text: A JSON object with the clocks and the state of the random generator; a few kilobytes.
    """

    arrays: dict[str, FloatArray]
    text: str


@dataclass(slots=True, kw_only=True)
class _Lane:
    """One level at work: its parameters, what it gathered and what its optimizer remembers."""

    level: Level
    names: list[str]
    parameters: list[Tensor]
    optimizer: Optimizer
    learning_rate: float
    memory: Memory
    gathered: list[Tensor]  # sums of the open chunk; empty between batches when the period is one
    anchors: list[Tensor] | None  # where the proximal term pulls to; None without one
    rested: list[Tensor] | None  # a private level as it was when the last version was accepted; None for shared ones


class NestedLearner:
    """Trains a model level by level.

    Args:
        module: Trained in place; the learner keeps a reference.
        spec: Which parameters make which level.
        settings: Learning rate of levels that name none, and batch size for those who feed the learner.
        generator: The only source of chance, for those who feed the learner too.
        objective: What is minimised.

    Raises:
        SpecError: The spec does not cover the model exactly once or names an unknown optimizer, a level that learns has
            a frozen parameter, or no level learns.
    """

    def __init__(
        self,
        module: NestedModel,
        *,
        spec: NestedSpec,
        settings: LearningSettings,
        generator: torch.Generator,
        objective: Objective = joint_loss,
    ) -> None:
        self.module = module
        self.spec = spec
        self.settings = settings
        self.generator = generator
        self.objective = objective
        self.clock = LevelClock(tuple((level.name, level.period) for level in spec.levels))
        parameters = dict(module.named_parameters())
        level_of = spec.assign(list(parameters))
        self._lanes: dict[str, _Lane] = {}
        for level in spec.levels:
            names = [name for name in parameters if level_of[name] == level.name]
            self._lanes[level.name] = self._lane(level, names, [parameters[name] for name in names])
        self._still = frozenset(name for name, lane in self._lanes.items() if not lane.learning_rate)
        self._held = self._still
        self._paces: dict[str, float] = {}
        if len(self._still) == len(self._lanes):
            raise SpecError(f"all levels have learning rate 0: {', '.join(self._lanes)}; expected one that learns")

    def _lane(self, level: Level, names: list[str], parameters: list[Tensor]) -> _Lane:
        optimizer = optimizer_of(level.optimizer)
        rate = self.settings.learning_rate if level.learning_rate is None else level.learning_rate
        frozen = [name for name, parameter in zip(names, parameters, strict=True) if not parameter.requires_grad]
        if rate and frozen:
            raise SpecError(
                f"parameter {frozen[0]!r} is frozen (requires_grad is False), yet level {level.name!r} learns",
                hint="give its level learning_rate = 0, or wrap the module with `nested`, which makes it a constant",
            )
        return _Lane(
            level=level,
            names=names,
            parameters=parameters,
            optimizer=optimizer,
            learning_rate=rate,
            memory=optimizer.init(parameters) if rate else {},
            gathered=zeros_like(parameters) if rate and level.period > 1 else [],
            anchors=[p.detach().clone() for p in parameters] if rate and level.prox else None,
            rested=[p.detach().clone() for p in parameters] if self._rests(level) else None,
        )

    def observe(self, x: Tensor, y: Tensor, *, prior: Tensor) -> Tensor:
        """Learn from one batch: every level gathers, the due ones step.

        Args:
            x: float32 [B, *input_shape].
            y: int64 [B].
            prior: float32 [K], logarithms of the owner's label frequencies.

        Returns:
            The loss before the step, a detached scalar.

        Raises:
            LearningError: The batch is empty or not of this model's shape and classes, or the loss is not finite.
        """
        self._check(x, y)
        try:
            loss = self.objective(self.module, x, y, prior)
        except IndexError as e:  # of cross-entropy; what y may be is the objective's, so it is not looked at before
            raise self._strange_labels(y) from e
        if not math.isfinite(loss.item()):
            raise LearningError(
                f"the loss is {loss.item()}, expected a finite number",
                hint="look for NaN or huge values in the samples; otherwise lower the learning rate",
            )
        lanes = [lane for lane in self._lanes.values() if lane.level.name not in self._held]
        # A level that the objective does not reach learns nothing: zeros, not an error.
        wanted = [parameter for lane in lanes for parameter in lane.parameters]
        gradients = iter(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
        with torch.no_grad():
            for lane in lanes:
                self._gather(lane, [next(gradients) for _ in lane.parameters])
            for name, num_batches in self.clock.tick(held=self._held):
                self._close(self._lanes[name], num_batches)
        return loss.detach()

    def hold(self, *names: str) -> None:
        """Keep these levels as they are, and no others, until the next call: they neither gather nor step.

        Alternating schedules and head-only training are made of this; an open chunk of a held level waits.

        Raises:
            NotFoundError: The spec has no such level.
            LearningError: All levels would be held.
        """
        held = frozenset(self.spec.level(name).name for name in names) | self._still
        if len(held) == len(self.spec.levels):
            raise LearningError(f"all levels are held: {sorted(held)}; expected at least one that learns")
        self._held = held

    def pull_to(self, state: Mapping[str, FloatArray]) -> None:
        """Let proximal terms pull to this state instead of the last accepted one; it must name their parameters."""
        for lane in self._lanes.values():
            if lane.anchors is not None:
                lane.anchors = [torch.from_numpy(np.array(state[name], copy=True)) for name in lane.names]

    def pace(self, factors: Mapping[str, float]) -> None:
        """Let levels step with their learning rate times a factor from now on; a level that is not named, with its own.

        Who paces keeps the factors: they are not in `state_dict`.

        Raises:
            NotFoundError: The spec has no such level.
            LearningError: A factor is not a finite number above 0.
        """
        paces = {self.spec.level(name).name: factor for name, factor in factors.items()}
        for name, factor in paces.items():
            if not 0 < factor < math.inf:
                raise LearningError(f"level {name!r} is paced by {factor}, expected a finite number above 0")
        self._paces = paces

    def flush(self, *names: str) -> None:
        """Apply the chunks that are open, of these levels or of all, as a period that ends now would.

        Those of held levels wait.

        Raises:
            NotFoundError: The spec has no such level.
        """
        wanted = {self.spec.level(name).name for name in names} or set(self._lanes)
        with torch.no_grad():
            for name, num_batches in self.clock.flush(held=self._held | (set(self._lanes) - wanted)):
                self._close(self._lanes[name], num_batches)

    def accept(self, *, alpha: float = 1.0) -> None:
        """Take note that a merge replaced the share `alpha` of the shared levels.

        Chunks restart, proximal terms pull to the new weights, and what optimizers remember follows `Level.state`.

        Open chunks are dropped, because their gradients belong to weights that are gone: `flush` first to keep them.
        """
        with torch.no_grad():
            self.clock.flush()
            for lane in self._lanes.values():
                if lane.gathered:
                    torch._foreach_zero_(lane.gathered)
                if lane.rested is not None:
                    lane.rested = [p.detach().clone() for p in lane.parameters]
                if lane.level.scope is Scope.PRIVATE or lane.level.name in self._still:
                    continue
                if lane.anchors is not None:
                    lane.anchors = [p.detach().clone() for p in lane.parameters]
                if lane.level.state == "reset":
                    lane.memory = lane.optimizer.init(lane.parameters)
                elif lane.level.state == "rescale":
                    rescale(lane.optimizer, lane.memory, alpha=alpha)

    def rested(self) -> dict[str, FloatArray]:
        """Return the private levels as they were when the last version was accepted, float32 by parameter name.

        They fit what published levels see; what was trained since fits features that moved with it.
        """
        return {
            name: np.array(tensor.numpy(), copy=True, order="C")
            for lane in self._lanes.values()
            if lane.rested is not None
            for name, tensor in zip(lane.names, lane.rested, strict=True)
        }

    def _rests(self, level: Level) -> bool:
        return level.scope is Scope.PRIVATE and bool(self.spec.shared)

    def state_dict(self) -> LearnerState:
        """Return a copy of all that is needed to go on exactly here, the model's parameters apart."""
        arrays = {
            name: np.array(tensor.detach().numpy(), copy=True, order="C") for name, tensor in self._tensors().items()
        }
        chance = base64.b64encode(bytes(self.generator.get_state().numpy())).decode("ascii")
        return LearnerState(
            arrays=arrays, text=json.dumps({"clock": self.clock.to_json(), "generator": chance}, sort_keys=True)
        )

    def load_state_dict(self, state: LearnerState) -> None:
        """Go on where `state_dict` was called; load the model's parameters separately.

        Raises:
            LearningError: The state belongs to another model, spec or version of this program.
        """
        tensors = self._tensors()
        if set(tensors) != set(state.arrays):
            raise LearningError(f"learner state differs in {sorted(set(tensors) ^ set(state.arrays))[:3]}")
        for name, tensor in tensors.items():
            if state.arrays[name].shape != tuple(tensor.shape) or state.arrays[name].dtype != np.float32:
                raise LearningError(
                    f"learner state {name!r} is {state.arrays[name].shape}, expected {tuple(tensor.shape)}"
                )
        counters, chance = _parse(state.text)
        clock = copy.copy(self.clock)
        clock.load_json(counters)
        try:
            generator_state = torch.frombuffer(bytearray(chance), dtype=torch.uint8)
            torch.Generator().set_state(generator_state)
        except (RuntimeError, TypeError, ValueError) as e:
            raise LearningError(f"learner state holds no generator of this version of torch: {e}") from e
        self.clock = clock
        self.generator.set_state(generator_state)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(torch.from_numpy(np.array(state.arrays[name], copy=True, order="C")))

    def _check(self, x: Tensor, y: Tensor) -> None:
        if not len(y) or len(x) != len(y):
            raise LearningError(f"a batch has {len(x)} inputs and {len(y)} labels, expected as many, at least one")
        if x.dtype is not torch.float32 or tuple(x.shape[1:]) != self.module.input_shape:
            raise LearningError(
                f"inputs are {x.dtype}{list(x.shape)}, expected torch.float32[B, *{list(self.module.input_shape)}]"
            )
        if y.dtype is not torch.int64 or y.ndim != 1:
            raise LearningError(f"labels are {y.dtype}{list(y.shape)}, expected torch.int64[B]")
        if int(y.min()) < 0:
            raise self._strange_labels(y)  # torch would ignore a label of -100 in silence

    def _strange_labels(self, y: Tensor) -> LearningError:
        last = self.module.num_classes - 1
        return LearningError(f"labels are {int(y.min())} to {int(y.max())}, expected 0 to {last}: the model's classes")

    def _gather(self, lane: _Lane, gradients: Sequence[Tensor]) -> None:
        if lane.anchors is not None:
            pairs = zip(gradients, lane.parameters, lane.anchors, strict=True)
            gradients = [torch.add(g, p - a, alpha=lane.level.prox) for g, p, a in pairs]
        if lane.level.period == 1:
            lane.gathered = list(gradients)  # applied before anybody can look; no copy, no addition
            return
        torch._foreach_add_(lane.gathered, list(gradients))

    def _close(self, lane: _Lane, num_batches: int) -> None:
        if lane.level.reduce == "mean" and num_batches > 1:
            torch._foreach_div_(lane.gathered, num_batches)
        rate = lane.learning_rate * self._paces.get(lane.level.name, 1.0)
        lane.optimizer.update(lane.parameters, lane.gathered, lane.memory, learning_rate=rate)
        if lane.level.period == 1:
            lane.gathered = []
        else:
            torch._foreach_zero_(lane.gathered)

    def _tensors(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for lane in self._lanes.values():
            slots = [("sum", lane.gathered), ("anchor", lane.anchors), ("rested", lane.rested)]
            slots += [(f"memory.{slot}", tensors) for slot, tensors in lane.memory.items()]
            for slot, tensors in slots:
                found.update(
                    {f"{slot}.{name}": tensor for name, tensor in zip(lane.names, tensors or (), strict=bool(tensors))}
                )
        return found


def _parse(text: str) -> tuple[dict[str, int], bytes]:
    try:
        parsed = json.loads(text)
        counters = {str(name): int(count) for name, count in parsed["clock"].items()}
        return counters, base64.b64decode(parsed["generator"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise LearningError(f"learner state cannot be read: {e!r}") from e
