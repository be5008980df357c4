"""A fleet in one process, for what a method is worth: the same learner, data and steps, with another strategy.

    nested = Cohort(make, strategy=Nested(), settings=settings, owners=owners, seed=1)
    alone = Cohort(make, strategy=LocalOnly(), settings=settings, owners=owners, seed=1)
    for _ in range(6):
        print(nested.run_round().after_merge, alone.run_round().after_local)

What a method does on the device stands in `strategies`; what is averaged follows from its spec: global tensors over all
owners, regional ones over the owners of a region, each every `sync_every` rounds. With one level of period one,
everything shared, a round is federated averaging bit for bit.

Source: McMahan et al., Communication-Efficient Learning of Deep Networks, arXiv:1602.05629, Algorithm 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nfl_core.errors import LearningError
from nfl_core.learning.learner import NestedLearner
from nfl_core.learning.merge import Samples
from nfl_core.learning.model import FloatArray, NestedModel, schema_of, state_of
from nfl_core.learning.objective import label_prior, score
from nfl_core.learning.settings import LearningSettings
from nfl_core.learning.strategies import Member, Strategy
from nfl_core.learning.transport import Transport, Whole
from nfl_core.levels import Scope
from nfl_core.pooling import Unit, can_tell, pool
from nfl_core.schema import TensorSpec
from nfl_core.server import server_step

_Moved = dict[str, dict[str, FloatArray]]  # by region and tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """One owner's data; `test` is scored and never trained on."""

    region: str
    train: Samples
    test: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One round.

    Attributes:
        after_local: Test accuracy of each owner's personal model right after its own training, 0 to 1.
        after_merge: The same with the new shared levels, as the strategy would use it; both empty when not scored.
        num_steps: Batches learned from by all owners together.
        bytes_up: Of the displacements that were sent, all owners together.
        cpu_s: CPU seconds of training and merging, scoring not included.
    """

    after_local: tuple[float, ...]
    after_merge: tuple[float, ...]
    num_steps: int
    bytes_up: int
    cpu_s: float


def weighted_mean(moved: Sequence[Mapping[str, FloatArray]], weights: Sequence[float]) -> dict[str, FloatArray]:
    """Return sum of weight times displacement over the sum of weights, float32, summed in the given order.

    Raises:
        LearningError: Nothing to average, or the weights do not sum to more than zero.
    """
    if not moved or len(moved) != len(weights) or sum(weights) <= 0:
        raise LearningError(
            f"mean of {len(moved)} displacements with {len(weights)} weights, expected as many, sum > 0"
        )
    shares = [np.float32(weight / sum(weights)) for weight in weights]
    return {name: _sum([share * part[name] for share, part in zip(shares, moved, strict=True)]) for name in moved[0]}


class Cohort:
    """Owners that learn and average in rounds.

    Args:
        make: Makes the initial model; called once an owner, must return equal weights each time.
        strategy: What a device does; one object for this cohort alone.
        settings: Of the learner.
        owners: At least one.
        seed: Decides the order of all samples, and who takes part.
        weigh_by_samples: Average by number of training samples instead of evenly.
        server_learning_rate: What the mean displacement is multiplied by, > 0; 1 is plain averaging.
        server_momentum: Of the mean displacements, in [0, 1); see `nfl_core.server`.
        transport: How displacements travel; whole by default.
        participation: Fraction of the owners that train and send in a round, within (0, 1]; all of them merge.
        learned_scope: Let regional levels be pooled as far as regions are alike; see `nfl_core.pooling`.
    """

    def __init__(
        self,
        make: Callable[[], NestedModel],
        *,
        strategy: Strategy,
        settings: LearningSettings,
        owners: Sequence[Owner],
        seed: int,
        weigh_by_samples: bool = False,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        transport: Transport | None = None,
        participation: float = 1.0,
        learned_scope: bool = False,
    ) -> None:
        if not owners:
            raise LearningError("a cohort has no owners, expected at least one")
        if not 0 < participation <= 1:
            raise LearningError(f"participation is {participation}, expected a fraction within (0, 1]")
        self.owners = tuple(owners)
        self.strategy = strategy
        if not 0 < server_learning_rate < float("inf") or not 0 <= server_momentum < 1:
            raise LearningError(
                f"the server has rate {server_learning_rate} and momentum {server_momentum}, expected > 0 and [0, 1)"
            )
        self._server_rate, self._server_momentum = server_learning_rate, server_momentum
        self._velocities: _Moved = {owner.region: {} for owner in owners}
        self._transport = Whole() if transport is None else transport
        self._num_active = max(1, round(participation * len(owners)))
        self._generator = torch.Generator().manual_seed(seed)
        self.models = [make() for _ in owners]
        self.schema = schema_of(self.models[0], strategy.spec)
        self._weights = [float(len(owner.train.y)) if weigh_by_samples else 1.0 for owner in owners]
        self.members = [
            self._join(place, owner, settings, seed * len(owners) + place) for place, owner in enumerate(self.owners)
        ]
        start = state_of(self.models[0])
        # What the server holds: every shared tensor, for each region.
        self.published: dict[str, dict[str, FloatArray]] = {
            owner.region: {tensor.name: start[tensor.name] for tensor in self.schema.shared} for owner in self.owners
        }
        self.num_rounds = 0
        self.learned_scope = learned_scope
        self.own_shares: dict[str, float] = {}  # of each regional level, the largest so far

    def _join(self, place: int, owner: Owner, settings: LearningSettings, seed: int) -> Member:
        module = self.models[place]
        learner = NestedLearner(
            module,
            spec=self.strategy.spec,
            settings=settings,
            generator=torch.Generator().manual_seed(seed),
            objective=self.strategy.objective,
        )
        prior = label_prior(owner.train.y, num_classes=module.num_classes)
        member = Member(
            place=place, module=module, learner=learner, train=owner.train, prior=prior, accepted=state_of(module)
        )
        self.strategy.join(member)
        return member

    def run_round(self, *, scored: bool = True) -> RoundReport:
        """Let the owners train, average what is due within its scope, and let every owner merge it."""
        self.num_rounds += 1
        due = [t for t in self.schema.shared if self.num_rounds % self.strategy.spec.level(t.level).sync_every == 0]
        active = self._draw()
        started = time.process_time()
        num_steps = sum(self.strategy.train(self.members[place]) for place in active)
        cpu_s = time.process_time() - started
        after_local = self._scores(self.strategy.current) if scored else ()
        started, bytes_up = time.process_time(), 0
        if due:
            arrived: dict[int, dict[str, FloatArray]] = {}
            for place in active:
                own = self.members[place].displacement(due)
                arrived[place], num_bytes = self._transport.send(own, place=place)
                bytes_up += num_bytes
            moved = self._average(arrived, due)
            if self.learned_scope:
                self._pool(moved, arrived, due)
            self._step(moved)
            for member, owner in zip(self.members, self.owners, strict=True):
                incoming = {tensor.name: self.published[owner.region][tensor.name] for tensor in due}
                self.strategy.receive(member, incoming)
                member.accepted.update(self.strategy.base(member, incoming))
        cpu_s += time.process_time() - started
        return RoundReport(
            after_local=after_local,
            after_merge=self._scores(self.strategy.answer) if scored else (),
            num_steps=num_steps,
            bytes_up=bytes_up,
            cpu_s=cpu_s,
        )

    def _draw(self) -> list[int]:
        if self._num_active == len(self.owners):
            return list(range(len(self.owners)))
        drawn: list[int] = torch.randperm(len(self.owners), generator=self._generator)[: self._num_active].tolist()
        return sorted(drawn)

    def _average(self, arrived: Mapping[int, Mapping[str, FloatArray]], due: Sequence[TensorSpec]) -> _Moved:
        """Return the mean displacement of each tensor that is due and of which something arrived, for each region."""
        moved: _Moved = {region: {} for region in self.published}
        for region, mine in moved.items():
            for scope in (Scope.REGION, Scope.GLOBAL):
                names = [tensor.name for tensor in due if tensor.scope is scope]
                places = [p for p in arrived if scope is Scope.GLOBAL or self.owners[p].region == region]
                if names and places:
                    parts = [{name: arrived[place][name] for name in names} for place in places]
                    mine.update(weighted_mean(parts, [self._weights[place] for place in places]))
        self._transport.summed(moved[self.owners[0].region])
        return moved

    def _pool(self, moved: _Moved, arrived: Mapping[int, Mapping[str, FloatArray]], due: Sequence[TensorSpec]) -> None:
        """Let the sums say, level by level, how much of its regional levels a region keeps to itself."""
        for level in dict.fromkeys(tensor.level for tensor in due if tensor.scope is Scope.REGION):
            names = [tensor.name for tensor in due if tensor.level == level]
            units: dict[str, list[Unit]] = {region: [] for region in self.published}
            for place, parts in arrived.items():
                flat_P = np.concatenate([parts[name].ravel() for name in names])
                units[self.owners[place].region].append(Unit(mean_P=flat_P, weight=self._weights[place]))
            steps, share = pool(units, least=self.own_shares.get(level, 0.0))
            if can_tell(units):
                self.own_shares[level] = share
            for region, step_P in steps.items():
                at = 0
                for name in names:
                    held = self.published[region][name]
                    moved[region][name] = step_P[at : at + held.size].astype(np.float32).reshape(held.shape)
                    at += held.size

    def _step(self, moved: _Moved) -> None:
        for region, parts in moved.items():
            held, velocity = self.published[region], self._velocities[region]
            for name, part in parts.items():
                held[name], velocity[name] = server_step(
                    held[name],
                    part,
                    velocity.get(name),
                    learning_rate=self._server_rate,
                    momentum=self._server_momentum,
                )

    def _scores(self, model_of: Callable[[Member], NestedModel]) -> tuple[float, ...]:
        return tuple(
            score(model_of(member), owner.test.x, owner.test.y).accuracy
            for member, owner in zip(self.members, self.owners, strict=True)
        )


def _sum(parts: Sequence[FloatArray]) -> FloatArray:
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total
