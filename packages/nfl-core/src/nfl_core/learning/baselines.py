"""A fleet in one process, for what a method is worth: the same learner, data and steps, with another spec.

    nested = Cohort(make, spec=spec, settings=settings, owners=owners, seed=1)
    local = Cohort(make, spec=local_only(), settings=settings, owners=owners, seed=1, objective=plain_loss)
    shared = Cohort(make, spec=shared_only(), settings=settings, owners=owners, seed=1, objective=plain_loss)
    for _ in range(6):
        print(local.run_round().after_local, shared.run_round().after_average)

Averaging is plain (no masks, no bits): what a fleet that hides nothing would get. With one level of period one,
everything shared, a round is federated averaging bit for bit.

Source: McMahan et al., Communication-Efficient Learning of Deep Networks, arXiv:1602.05629, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nfl_core.errors import LearningError
from nfl_core.learning.learner import NestedLearner
from nfl_core.learning.merge import Samples
from nfl_core.learning.model import FloatArray, NestedModel, load_state, schema_of, state_of
from nfl_core.learning.objective import Objective, joint_loss, label_prior, score
from nfl_core.learning.settings import LearningSettings
from nfl_core.learning.update import displacement, micro_update
from nfl_core.levels import Level, NestedSpec, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """One owner's data; `test` is scored and never trained on."""

    region: str
    train: Samples
    test: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """Test accuracies of one round, one an owner, 0 to 1.

    Attributes:
        after_local: Right after the owner's own training.
        after_average: With the new shared levels and the owner's private ones, before any further step.
        num_steps: Batches learned from by all owners together.
        cpu_s: CPU seconds of the training alone.
    """

    after_local: tuple[float, ...]
    after_average: tuple[float, ...]
    num_steps: int
    cpu_s: float


def local_only() -> NestedSpec:
    """Return the spec of a device that learns alone: everything private."""
    return NestedSpec.of([Level(name="all", params=("*",), scope=Scope.PRIVATE)])


def shared_only() -> NestedSpec:
    """Return the spec of federated averaging: everything global."""
    return NestedSpec.of([Level(name="all", params=("*",), scope=Scope.GLOBAL)])


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
        spec: What is private, regional and global.
        settings: Of the learner; the merge settings are not used here.
        owners: At least one.
        seed: Decides the order of all samples.
        objective: What everybody minimises.
        weigh_by_samples: Average by number of training samples instead of evenly.
        server_learning_rate: What the mean displacement is multiplied by, > 0; 1 is plain averaging.
    """

    def __init__(
        self,
        make: Callable[[], NestedModel],
        *,
        spec: NestedSpec,
        settings: LearningSettings,
        owners: Sequence[Owner],
        seed: int,
        objective: Objective = joint_loss,
        weigh_by_samples: bool = False,
        server_learning_rate: float = 1.0,
    ) -> None:
        if not owners:
            raise LearningError("a cohort has no owners, expected at least one")
        self.owners = tuple(owners)
        self._server_rate = np.float32(server_learning_rate)
        self.models = [make() for _ in owners]
        self.schema = schema_of(self.models[0], spec)
        self._weights = [float(len(owner.train.y)) if weigh_by_samples else 1.0 for owner in owners]
        self._learners = [
            NestedLearner(
                module,
                spec=spec,
                settings=settings,
                generator=torch.Generator().manual_seed(seed * len(owners) + place),
                objective=objective,
            )
            for place, module in enumerate(self.models)
        ]

    def run_round(self) -> RoundReport:
        """Let every owner train once, then average what is shared within its scope."""
        accepted = [state_of(module) for module in self.models]
        reports = [
            micro_update(
                learner,
                o.train.x,
                o.train.y,
                prior=label_prior(o.train.y, num_classes=learner.module.num_classes),
                refit_steps=0,
            )
            for learner, o in zip(self._learners, self.owners, strict=True)
        ]
        after_local = self._scores()
        moved = [displacement(old, state_of(m), self.schema) for old, m in zip(accepted, self.models, strict=True)]
        regions = {owner.region for owner in self.owners}
        means = {region: self._means(moved, region=region) for region in sorted(regions)}
        for module, learner, owner, old in zip(self.models, self._learners, self.owners, accepted, strict=True):
            new = {t.name: old[t.name] + self._server_rate * means[owner.region][t.name] for t in self.schema.shared}
            load_state(module, new, partial=True)
            learner.accept()
        return RoundReport(
            after_local=after_local,
            after_average=self._scores(),
            num_steps=sum(report.num_steps for report in reports),
            cpu_s=sum(report.cpu_s for report in reports),
        )

    def _means(self, moved: Sequence[Mapping[str, FloatArray]], *, region: str) -> dict[str, FloatArray]:
        means: dict[str, FloatArray] = {}
        for scope in (Scope.REGION, Scope.GLOBAL):
            members = [i for i, owner in enumerate(self.owners) if scope is Scope.GLOBAL or owner.region == region]
            names = [tensor.name for tensor in self.schema.shared if tensor.scope is scope]
            parts = [{name: moved[i][name] for name in names} for i in members]
            means.update(weighted_mean(parts, [self._weights[i] for i in members]))
        return means

    def _scores(self) -> tuple[float, ...]:
        return tuple(score(m, o.test.x, o.test.y).accuracy for m, o in zip(self.models, self.owners, strict=True))


def _sum(parts: Sequence[FloatArray]) -> FloatArray:
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total
