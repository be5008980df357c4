"""What a device does in a method of federated learning: its spec, how it trains, how it merges, with what it answers.

All methods are short sentences over the same pieces: one learner, one micro-update, one refit. Every method spends the
same budget: `LearningSettings.epochs_per_update` passes over its samples a round, however it divides them.

| strategy | private | schedule |
|---|---|---|
| `LocalOnly` | everything | all at once |
| `FedAvg` | nothing | all at once; `tune_epochs` passes of fine-tuning before it answers |
| `FedProx` | nothing | the same with a pull to the last version |
| `FedPer` | head | all at once, the head refitted after a merge |
| `FedRep` | head | head first, then what is shared; the head refitted after a merge |
| `FedBabu` | head, never trained | fine-tuned as a whole before it answers |
| `Ditto` | a second model | first the shared model, then the second one, pulled to the first |
| `FedAla` | nothing | the head starts from a mixture of its own and the new one, learned element by element |
| `FedRod` | residual head | shared levels on the balanced risk, the residual on the personal one |
| `Nested` | residual head | the product's default: see docs/adr |

Sources stand with each class.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nfl_core.learning.learner import NestedLearner
from nfl_core.learning.merge import MergeReport, Samples, merge
from nfl_core.learning.model import FloatArray, NestedModel, load_state, schema_of, state_of
from nfl_core.learning.objective import Objective, joint_loss, plain_loss, separate_loss
from nfl_core.learning.plausible import Known, Track
from nfl_core.learning.reference import default_spec
from nfl_core.learning.refit import cache_features, refit
from nfl_core.learning.update import micro_update
from nfl_core.levels import Level, NestedSpec, Scope
from nfl_core.schema import TensorSpec


@dataclass(slots=True, kw_only=True)
class Member:
    """One owner's device in a cohort.

    Attributes:
        place: Number of the owner.
        module: Its model.
        learner: Trains `module`.
        train: Its samples.
        prior: Logarithms of its label frequencies, float32 [K].
        accepted: The last accepted state; what is sent is measured from here.
    """

    place: int
    module: NestedModel
    learner: NestedLearner
    train: Samples
    prior: Tensor
    accepted: dict[str, FloatArray]

    def displacement(self, tensors: Sequence[TensorSpec]) -> dict[str, FloatArray]:
        """Return how far these tensors moved since they were accepted, float32."""
        now = state_of(self.module)
        return {t.name: np.subtract(now[t.name], self.accepted[t.name], dtype=np.float32) for t in tensors}

    def update(self, *, epochs: int, refit_steps: int = 0, learner: NestedLearner | None = None) -> int:
        """Run a micro-update of so many passes, none for 0; return its steps."""
        if not epochs:
            return 0
        report = micro_update(
            learner or self.learner,
            self.train.x,
            self.train.y,
            prior=self.prior,
            epochs=epochs,
            refit_steps=refit_steps,
        )
        return report.num_steps

    @property
    def epochs(self) -> int:
        """Passes of one round."""
        return self.learner.settings.epochs_per_update


class Strategy:
    """Federated averaging; the other methods differ from it.

    Attributes:
        spec: Levels and scopes.
        objective: What every device minimises.
    """

    spec: NestedSpec
    objective: Objective

    def __init__(self, *, spec: NestedSpec, objective: Objective) -> None:
        self.spec = spec
        self.objective = objective

    def join(self, member: Member) -> None:
        """Get to know a device; called once each, in order."""

    def train(self, member: Member) -> int:
        """Spend one round's passes; return the number of gradient steps."""
        return member.update(epochs=member.epochs)

    def receive(self, member: Member, incoming: Mapping[str, FloatArray]) -> None:
        """Merge new shared tensors, the due ones."""
        load_state(member.module, incoming, partial=True)
        member.learner.accept()

    def base(self, member: Member, incoming: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Return from where the next displacement of the tensors in `incoming` is measured: from what was accepted."""
        now = state_of(member.module)
        return {name: now[name] for name in incoming}

    def current(self, member: Member) -> NestedModel:
        """Return the personal model as it is, for scoring only."""
        return member.module

    def answer(self, member: Member) -> NestedModel:
        """Return the personal model that would be used after a merge; may be a copy that was tuned for it."""
        return self.current(member)


def local_only() -> NestedSpec:
    """Return the spec of a device that learns alone: everything private."""
    return NestedSpec.of([Level(name="all", params=("*",), scope=Scope.PRIVATE)])


def shared_only(*, prox: float = 0.0) -> NestedSpec:
    """Return the spec of federated averaging: everything global."""
    return NestedSpec.of([Level(name="all", params=("*",), scope=Scope.GLOBAL, prox=prox)])


def private_head() -> NestedSpec:
    """Return the spec of one private head on a shared body, for models with body, middle, head and private."""
    return NestedSpec.of(
        [
            Level(name="head", params=("head.*", "private.*"), scope=Scope.PRIVATE),
            Level(name="body", params=("body.*", "middle.*"), scope=Scope.GLOBAL),
        ]
    )


class LocalOnly(Strategy):
    """Nobody shares anything."""

    def __init__(self) -> None:
        super().__init__(spec=local_only(), objective=plain_loss)


class FedAvg(Strategy):
    """Share everything; answer with the shared model, or with one fine-tuned for some passes.

    Source: McMahan et al., arXiv:1602.05629; with `prox` FedProx, Li et al., arXiv:1812.06127.
    """

    def __init__(self, *, tune_epochs: int = 0, prox: float = 0.0) -> None:
        super().__init__(spec=shared_only(prox=prox), objective=plain_loss)
        self.tune_epochs = tune_epochs

    def answer(self, member: Member) -> NestedModel:
        """Return the shared model, fine-tuned."""
        return tuned(member, epochs=self.tune_epochs)


class FedProx(FedAvg):
    """Federated averaging with a pull to the last version. Source: Li et al., arXiv:1812.06127."""

    def __init__(self, *, prox: float = 0.01, tune_epochs: int = 0) -> None:
        super().__init__(tune_epochs=tune_epochs, prox=prox)


class FedPer(Strategy):
    """A private head, trained together with the shared body. Source: Arivazhagan et al., arXiv:1912.00818."""

    def __init__(self) -> None:
        super().__init__(spec=private_head(), objective=plain_loss)

    def answer(self, member: Member) -> NestedModel:
        """Return a copy whose head was refitted on the merged features; without it the method loses some points."""
        module = copy.deepcopy(member.module)
        settings = member.learner.settings
        refit(
            module,
            cache_features(module, member.train.x, member.train.y),
            num_steps=settings.num_refit_steps(len(member.train.y)),
            batch_size=settings.batch_size,
            learning_rate=settings.refit_learning_rate,
            generator=torch.Generator().manual_seed(member.place),
            parameters=[p for name, p in module.named_parameters() if name.startswith("head.")],
        )
        return module


class FedRep(FedPer):
    """A private head, trained before the shared body and apart from it. Source: Collins et al., arXiv:2102.07078."""

    def train(self, member: Member) -> int:
        """Spend half of the passes, rounded up, on the head and the rest on the body."""
        body_epochs = member.epochs // 2
        member.learner.hold("body")
        steps = member.update(epochs=member.epochs - body_epochs)
        member.learner.hold("head")
        steps += member.update(epochs=body_epochs)
        member.learner.hold()
        return steps


class FedBabu(Strategy):
    """A head that stays as it was made while the body is shared. Source: Oh et al., arXiv:2106.06042."""

    def __init__(self, *, tune_epochs: int = 2) -> None:
        super().__init__(spec=private_head(), objective=plain_loss)
        self.tune_epochs = tune_epochs

    def join(self, member: Member) -> None:
        """Hold the head for good."""
        member.learner.hold("head")

    def answer(self, member: Member) -> NestedModel:
        """Return the model, fine-tuned as a whole."""
        return tuned(member, epochs=self.tune_epochs)


class Ditto(Strategy):
    """A second, personal model that is pulled to the shared one. Source: Li et al., arXiv:2012.04221, Algorithm 1."""

    def __init__(self, *, prox: float = 0.1) -> None:
        super().__init__(spec=shared_only(), objective=plain_loss)
        self._spec = shared_only(prox=prox)
        self._personal: dict[int, NestedLearner] = {}

    def join(self, member: Member) -> None:
        """Make the second model."""
        self._personal[member.place] = NestedLearner(
            copy.deepcopy(member.module),
            spec=self._spec,
            settings=member.learner.settings,
            generator=member.learner.generator,
            objective=plain_loss,
        )

    def train(self, member: Member) -> int:
        """Spend half of the passes, rounded up, on the second model, pulled to the shared model as it was received."""
        personal = self._personal[member.place]
        personal.pull_to(member.accepted)
        shared_epochs = member.epochs // 2
        steps = member.update(epochs=shared_epochs)
        return steps + member.update(epochs=member.epochs - shared_epochs, learner=personal)

    def current(self, member: Member) -> NestedModel:
        """Return the second model."""
        return self._personal[member.place].module


class FedAla(Strategy):
    """The head starts each round from a learned mixture of its own and the new one; what lies below is overwritten.

    The mixing weights, one an element in [0, 1], are learned by gradient descent on a share of the owner's samples: to
    convergence at first, one pass later. Source: Zhang et al., arXiv:2212.01197, Algorithm 1, and its published code.
    """

    def __init__(self, *, rate: float = 1.0, share: float = 0.8, first_passes: int = 10) -> None:
        super().__init__(spec=shared_only(), objective=plain_loss)
        self.rate, self.share, self.first_passes = rate, share, first_passes
        self._mixing: dict[int, dict[str, Tensor]] = {}

    def receive(self, member: Member, incoming: Mapping[str, FloatArray]) -> None:
        """Overwrite the body, learn the mixture of the head."""
        old = {name: array for name, array in state_of(member.module).items() if name.startswith("head.")}
        load_state(member.module, incoming, partial=True)
        first = member.place not in self._mixing
        mixing = self._mixing.setdefault(
            member.place, {name: torch.ones(array.shape, requires_grad=False) for name, array in old.items()}
        )
        generator = member.learner.generator
        num = max(1, int(self.share * len(member.train.y)))
        pick = torch.randperm(len(member.train.y), generator=generator)[:num]
        cache = cache_features(member.module, member.train.x[pick], member.train.y[pick])
        parameters = {name: p for name, p in member.module.named_parameters() if name in old}
        start = {name: torch.from_numpy(array) for name, array in old.items()}
        way = {name: torch.from_numpy(incoming[name]) - start[name] for name in old}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name] + way[name] * mixing[name])
        for _ in range(self.first_passes if first else 1):
            for batch in torch.split(torch.arange(num), member.learner.settings.batch_size):
                loss = cross_entropy(member.module.generic(cache.z[batch]), cache.y[batch])
                gradients = torch.autograd.grad(loss, list(parameters.values()))
                with torch.no_grad():
                    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                        mixing[name].sub_(self.rate * gradient * way[name]).clamp_(0.0, 1.0)
                        parameter.copy_(start[name] + way[name] * mixing[name])
        member.learner.accept()

    def base(self, member: Member, incoming: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Return what was published: the server averages models, wherever they started from."""
        del member
        return dict(incoming)


class FedRod(Strategy):
    """A shared model on the balanced risk, a private residual head on the personal one, each blind to the other.

    Source: Chen and Chao, arXiv:2107.00778; the linear head without hypernetwork.
    """

    def __init__(self) -> None:
        spec = NestedSpec.of(
            [
                Level(name="head", params=("private.*",), scope=Scope.PRIVATE),
                Level(name="body", params=("body.*", "middle.*", "head.*"), scope=Scope.GLOBAL),
            ]
        )
        super().__init__(spec=spec, objective=separate_loss)


class Nested(Strategy):
    """The product's default: joint loss, and a refit of the fast level after training and after each merge."""

    def __init__(self, *, spec: NestedSpec | None = None, objective: Objective = joint_loss) -> None:
        super().__init__(spec=spec or default_spec(), objective=objective)

    def train(self, member: Member) -> int:
        """Spend all passes at once, then refit."""
        num_steps = member.learner.settings.num_refit_steps(len(member.train.y))
        return member.update(epochs=member.epochs, refit_steps=num_steps)

    def receive(self, member: Member, incoming: Mapping[str, FloatArray]) -> None:
        """Take the new levels and refit the private head on what they see."""
        super().receive(member, incoming)
        settings = member.learner.settings
        refit(
            member.module,
            cache_features(member.module, member.train.x, member.train.y),
            num_steps=settings.num_refit_steps(len(member.train.y)),
            batch_size=settings.batch_size,
            learning_rate=settings.refit_learning_rate,
            generator=member.learner.generator,
        )


class GatedNested(Nested):
    """The default as a device runs it: a merge is judged on samples that were kept from training, and may be refused.

    Args:
        holdout_fraction: Of each owner's training samples, within (0, 1).

    Attributes:
        reports: What every merge did, in order.
    """

    def __init__(
        self, *, spec: NestedSpec | None = None, objective: Objective = joint_loss, holdout_fraction: float = 0.15
    ) -> None:
        super().__init__(spec=spec, objective=objective)
        self.holdout_fraction = holdout_fraction
        self.reports: list[MergeReport] = []
        self._holdout: dict[int, Samples] = {}
        self._tracks: dict[int, Track] = {}
        self._versions: dict[int, int] = {}  # merges of each member so far, refused ones too

    def join(self, member: Member) -> None:
        """Set some samples apart, and begin the track of versions."""
        y = member.train.y
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(member.place))
        num_kept = max(1, round(self.holdout_fraction * len(y)))
        kept, rest = order[:num_kept], order[num_kept:]
        self._holdout[member.place] = Samples(x=member.train.x[kept], y=y[kept])
        member.train = Samples(x=member.train.x[rest], y=y[rest])
        shared = {tensor.name: member.accepted[tensor.name] for tensor in schema_of(member.module, self.spec).shared}
        self._tracks[member.place], self._versions[member.place] = Track.begin(shared, version=0), 0

    def receive(self, member: Member, incoming: Mapping[str, FloatArray]) -> None:
        """Merge a plausible version as far as the holdout allows."""
        schema, track = schema_of(member.module, self.spec), self._tracks[member.place]
        self._versions[member.place] += 1
        version = self._versions[member.place]
        report = merge(
            member.module,
            incoming=incoming,
            schema=schema,
            holdout=self._holdout[member.place],
            train=member.train,
            settings=member.learner.settings,
            generator=member.learner.generator,
            fast=member.learner.rested(),
            known=Known(track=track, version=version, own=member.displacement(schema.shared)),
        )
        self.reports.append(report)
        if not report.is_implausible:
            self._tracks[member.place] = track.then(incoming, version=version)
        if report.accepted:
            member.learner.accept(alpha=report.alpha)


def tuned(member: Member, *, epochs: int) -> NestedModel:
    """Return a copy of a member's model after so many passes over all its levels; the member is left alone."""
    if not epochs:
        return member.module
    learner = NestedLearner(
        copy.deepcopy(member.module),
        spec=local_only(),
        settings=replace(member.learner.settings, refit_steps=0),
        generator=torch.Generator().manual_seed(member.place),
        objective=plain_loss,
    )
    member.update(epochs=epochs, learner=learner)
    return learner.module
