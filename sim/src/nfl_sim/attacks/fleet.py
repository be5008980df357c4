"""A sealed fleet in one process, some of whose devices attack it: real training, egress range, batches, rules, merges.

    settings = FleetSettings(rule="dnc", batch_size=2)
    fleet = Fleet(owners, shadow=shadow, settings=settings, attack=ATTACKS["sign-flip"], seed=1)
    for _ in range(10):
        print(np.mean(fleet.run_version().accuracy))

What is real: micro-updates, displacements, quantiser and error feedback, batches with rosters drawn anew each round,
the product's rule and server step, the device's merge. What is left out because it does not change the numbers that are
added: masks, signatures, transport. The root's gates are left out on purpose: here the rule is judged.

Shape legend: n devices, m attackers, P shared values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_cluster.aggregate.buffer import Measured
from nfl_cluster.aggregate.reputation import Observation, ReputationState, Settings, observe
from nfl_cluster.aggregate.robust import Outcome, combine_batches, score_batches
from nfl_core.codec.quantise import expand_scales
from nfl_core.config import RootSection
from nfl_core.errors import DeltaError
from nfl_core.ids import BatchId, RegionId
from nfl_core.learning import (
    Known,
    LearningSettings,
    NestedLearner,
    NestedModel,
    Samples,
    Track,
    create_model,
    default_spec,
    deviation_scales,
    displacement,
    label_prior,
    load_state,
    merge,
    micro_update,
    schema_of,
    score,
    state_of,
)
from nfl_core.server import server_step
from nfl_sim.attacks.attack import Attack, Scene
from nfl_sim.attacks.channel import Channel
from nfl_sim.attacks.data import success_rate

REGION = RegionId("all")
TARGET = 0  # class that a backdoor aims at


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerSamples:
    """One owner's samples."""

    train: Samples
    holdout: Samples
    test: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """What is varied.

    Attributes:
        rule: Name of the root's rule.
        max_attacker_fraction: What the root is told.
        num_attackers: The first so many owners attack.
        batch_size: Contributions of a batch.
        bits: Of a value; None: no quantiser.
        with_gate: Whether devices judge a version before they merge it.
        reputation: When devices are put into quarantine; None: never.
    """

    rule: str
    max_attacker_fraction: float = 0.2
    num_attackers: int = 4
    batch_size: int = 4
    bits: int | None = 2
    with_gate: bool = True
    reputation: Settings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReport:
    """One version, scored on the honest owners.

    Attributes:
        accuracy: Of each honest owner after its merge, on its test samples, 0 to 1.
        num_refused: Honest owners that refused the version.
        num_implausible: Of them, those that doubted the version itself, before they tried it.
        success: Mean share of stamped test images that honest owners take for `TARGET`.
        num_bad_batches: Batches with an attacker in them.
        num_batches: All batches.
        quarantined: Numbers of the owners in quarantine after this version.
    """

    accuracy: tuple[float, ...]
    num_refused: int
    num_implausible: int
    success: float
    num_bad_batches: int
    num_batches: int
    quarantined: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A device that has not merged yet: its model, not a copy, its samples, and what it knows of versions."""

    module: NestedModel
    owner: OwnerSamples
    known: Known


@dataclass(slots=True, kw_only=True)
class _Device:
    owner: OwnerSamples
    train: Samples
    module: NestedModel
    learner: NestedLearner
    channel: Channel
    track: Track
    own: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # what it learned in this round


class Fleet:
    """A fleet under attack.

    Args:
        owners: All owners; the attackers are the first ones.
        shadow: The root's samples, for the scales.
        settings: What is varied.
        attack: What the attackers do.
        seed: Decides everything.
        model: Entry point of the model.
    """

    def __init__(
        self,
        owners: Sequence[OwnerSamples],
        *,
        shadow: Samples,
        settings: FleetSettings,
        attack: Attack,
        seed: int,
        model: str = "small-cnn",
    ) -> None:
        self.settings, self._attack, self._shadow = settings, attack, shadow
        self._learning = LearningSettings()
        # Without the gate the whole version is taken, however bad, as long as its answers are numbers.
        self._merging = (
            self._learning
            if settings.with_gate
            else replace(self._learning, merge_alphas=(1.0,), merge_tolerance=1e9, merge_max_drop=1.0, plausible=False)
        )
        self._numpy, self._torch = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        shape, self._seed = tuple(shadow.x.shape[1:]), seed

        def make() -> NestedModel:
            return create_model(model, num_classes=10, input_shape=shape, seed=seed)

        self._root = make()
        self.schema = schema_of(self._root, default_spec())
        self.shared_P = self.schema.flatten(state_of(self._root))
        self._devices = [self._device(make(), owner, number) for number, owner in enumerate(owners)]
        self._velocity_P: NDArray[np.float32] | None = None
        self._past: list[NDArray[np.float32]] = []
        self._norms: Mapping[str, tuple[float, ...]] = {}
        self._shadow_P = np.zeros(self.schema.num_shared, np.float32)
        self._rosters: list[list[int]] = []
        self._reputation = ReputationState()
        self.version = 0

    def _device(self, module: NestedModel, owner: OwnerSamples, number: int) -> _Device:
        is_bad = number < self.settings.num_attackers
        train = self._attack.poison(owner.train, self._torch) if is_bad else owner.train
        generator = torch.Generator().manual_seed(1000 * self._seed + number)
        learner = NestedLearner(module, spec=default_spec(), settings=self._learning, generator=generator)
        return _Device(
            owner=owner,
            train=train,
            module=module,
            learner=learner,
            channel=Channel(bits=self.settings.bits),
            track=Track.begin(self.schema.unflatten(self.shared_P), version=0),
        )

    def run_version(self) -> VersionReport:
        """Let everybody learn and send, make the next version, and let everybody merge it."""
        self.make_version()
        return self._merge()

    def make_version(self) -> NDArray[np.float32]:
        """Let everybody learn and send, and return the next version's shared values, float32 [P], not merged yet."""
        scales_P = self._scales()
        sent = self._send(scales_P)
        batches, self._rosters = self._batches(sent)
        outcome = self._combine(batches)
        self._observe(batches, self._rosters)
        self._norms, moved_P = outcome.norms, outcome.moved[REGION]
        root = RootSection()
        self.shared_P, self._velocity_P = server_step(
            self.shared_P,
            moved_P,
            self._velocity_P,
            learning_rate=root.server_learning_rate,
            momentum=root.server_momentum,
        )
        self._past.append(moved_P)
        self.version += 1
        return self.shared_P

    def standings(self) -> list[Standing]:
        """Return how all owners' devices stand before they merge the present version."""
        return [
            Standing(module=device.module, owner=device.owner, known=self._known(device)) for device in self._devices
        ]

    def _known(self, device: _Device) -> Known:
        return Known(track=device.track, version=self.version, own=device.own)

    def _send(self, scales_P: NDArray[np.float32]) -> list[NDArray[np.float32] | None]:
        """Return what arrives of each device, float32 [P]; None: its gate refused."""
        m = self.settings.num_attackers
        own = [self._learn(d) if self._attack.trains or n >= m else None for n, d in enumerate(self._devices)]
        honest_nP = np.stack([moved for moved in own[m:] if moved is not None])
        wished: list[NDArray[np.float64] | NDArray[np.float32]] = list(honest_nP)
        if m:
            scene = Scene(
                honest_nP=honest_nP,
                own_mP=np.stack([o for o in own[:m] if o is not None]) if self._attack.trains else None,
                past=tuple(self._past),
                scales_P=scales_P,
                num_attackers=m,
                generator=self._numpy,
                harm=self._harm(honest_nP, scales_P),
            )
            wished = [*self._attack.craft(scene), *wished]
        return [self._pass(device, x_P, scales_P) for device, x_P in zip(self._devices, wished, strict=True)]

    def _pass(
        self, device: _Device, x_P: NDArray[np.float64] | NDArray[np.float32], scales_P: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        try:
            return device.channel.send(x_P, scales_P)
        except DeltaError:
            return None  # the device's own gate refuses; the round goes on without it

    def _learn(self, device: _Device) -> NDArray[np.float32]:
        before = state_of(device.module)
        prior = label_prior(device.train.y, num_classes=device.module.num_classes)
        micro_update(device.learner, device.train.x, device.train.y, prior=prior)
        device.own = displacement(before, state_of(device.module), self.schema)
        return self.schema.flatten(device.own)

    def _scales(self) -> NDArray[np.float32]:
        """Measure the scales as the root does: one shadow update from the running version."""
        load_state(self._root, self.schema.unflatten(self.shared_P), partial=True)
        before = state_of(self._root)
        generator = torch.Generator().manual_seed(0)
        learner = NestedLearner(self._root, spec=default_spec(), settings=self._learning, generator=generator)
        prior = label_prior(self._shadow.y, num_classes=self._root.num_classes)
        micro_update(learner, self._shadow.x, self._shadow.y, prior=prior, refit_steps=0)
        moved = displacement(before, state_of(self._root), self.schema)
        load_state(self._root, before)
        self._shadow_P = self.schema.flatten(moved)
        return expand_scales(deviation_scales(moved), self.schema.sizes)

    def _batches(self, sent: Sequence[NDArray[np.float32] | None]) -> tuple[list[Measured], list[list[int]]]:
        """Draw rosters anew from those who sent something, and return the batches with their rosters."""
        away = self._quarantined()
        present = [number for number, x_P in enumerate(sent) if x_P is not None and number not in away]
        order, size = self._numpy.permutation(present).tolist(), self.settings.batch_size
        rosters = [order[at : at + size] for at in range(0, len(order), size)]
        if len(rosters) > 1 and len(rosters[-1]) < size:
            rosters[-2:] = [rosters[-2] + rosters[-1]]
        batches: list[Measured] = []
        for roster in rosters:
            rows = [x_P for number in roster if (x_P := sent[number]) is not None]
            name, num = BatchId(f"{self.version}-{len(batches)}"), len(rows)
            mean_P = np.asarray(np.mean(rows, axis=0, dtype=np.float64), np.float32)
            batches.append(Measured(batch_id=name, region=REGION, mean_P=mean_P, weight=num, staleness=0, num=num))
        return self._attack.tamper(batches, self._numpy), rosters

    def _quarantined(self) -> frozenset[int]:
        return frozenset(int(name) for name in self._reputation.quarantined())

    def _observe(self, batches: Sequence[Measured], rosters: Sequence[Sequence[int]]) -> None:
        if self.settings.reputation is None:
            return
        observations = [
            Observation(members=tuple(map(str, roster)), figures=(score.against, score.energy))
            for score, roster in zip(score_batches(batches, self._shadow_P), rosters, strict=True)
        ]
        self._reputation, _ = observe(self._reputation, observations, settings=self.settings.reputation)

    def _combine(self, batches: Sequence[Measured]) -> Outcome:
        return combine_batches(
            batches,
            schema=self.schema,
            regions=[REGION],
            rule=self.settings.rule,
            max_attacker_fraction=self.settings.max_attacker_fraction,
            remembered=self._norms,
            shadow_P=self._shadow_P,
        )

    def _harm(
        self, honest_nP: NDArray[np.float32], scales_P: NDArray[np.float32]
    ) -> Callable[[NDArray[np.float64]], float]:
        """Return how far all attackers, sending one vector, move the result away from the honest mean."""
        honest = [Channel(bits=self.settings.bits).send(x_P, scales_P) for x_P in honest_nP]
        goal_P, num_attackers = honest_nP.mean(axis=0), self.settings.num_attackers
        state = self._numpy.bit_generator.state

        def harm(vector_P: NDArray[np.float64]) -> float:
            bad_P = Channel(bits=self.settings.bits).send(vector_P, scales_P)
            self._numpy.bit_generator.state = state  # the same rosters for every factor that is tried
            batches, _ = self._batches([*[bad_P] * num_attackers, *honest])
            return float(np.linalg.norm(self._combine(batches).moved[REGION] - goal_P))

        return harm

    def _merge(self) -> VersionReport:
        incoming = self.schema.unflatten(self.shared_P)
        accuracy, success, num_refused, num_implausible = [], [], 0, 0
        for number, device in enumerate(self._devices):
            is_bad = number < self.settings.num_attackers
            if is_bad and not self._attack.trains:
                continue
            report = merge(
                device.module,
                incoming=incoming,
                schema=self.schema,
                holdout=device.owner.holdout,
                train=device.owner.train,
                settings=self._merging,
                generator=device.learner.generator,
                known=self._known(device),
            )
            if not report.is_implausible:
                device.track = device.track.then(incoming, version=self.version)
            if report.accepted:
                device.learner.accept(alpha=report.alpha)
            if is_bad:
                continue
            num_refused += not report.accepted
            num_implausible += report.is_implausible
            accuracy.append(score(device.module, device.owner.test.x, device.owner.test.y).accuracy)
            success.append(success_rate(device.module, device.owner.test, target=TARGET))
        return VersionReport(
            accuracy=tuple(accuracy),
            num_refused=num_refused,
            num_implausible=num_implausible,
            success=float(np.mean(success)),
            num_bad_batches=sum(min(roster) < self.settings.num_attackers for roster in self._rosters),
            num_batches=len(self._rosters),
            quarantined=self._quarantined(),
        )
