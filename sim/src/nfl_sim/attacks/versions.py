"""Poisoned versions: what an attacker who controls the root would have devices merge, by kind.

Every kind is built from a good version and offered to each device's own merge (`nfl_core.learning.merge`), which knows
the owner's samples and the versions that it saw before. A backdoor leaves clean inputs alone, so no sample speaks
against it: only a step that is longer than usual gives it away.

Shape legend: P shared values.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.learning import (
    LearningSettings,
    NestedModel,
    Samples,
    default_spec,
    label_prior,
    load_state,
    merge,
    micro_update,
    schema_of,
    state_of,
)
from nfl_core.learning.learner import NestedLearner
from nfl_sim.attacks.data import add_backdoor, flip_labels, success_rate
from nfl_sim.attacks.fleet import Standing

SCALE = 10.0
NOISE = 1.0  # of the version's own deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to poison.

    Attributes:
        name: For tables.
        make: The poisoned version, float32 [P].
    """

    name: str
    make: Callable[[Workshop], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What devices did with one kind.

    Attributes:
        kind: Its name.
        num_devices: How many it was offered to.
        num_refused: How many kept what they had.
        reasons: How many of these by which check.
        num_partly: How many took a share below one.
        lost: Mean test accuracy that devices lost by it, 0 to 1; below 0: they gained.
        worst_lost: Of the device that lost most.
        success: Mean share of stamped test images taken for the target afterwards.
    """

    kind: str
    num_devices: int
    num_refused: int
    reasons: Mapping[str, int]
    num_partly: int
    lost: float
    worst_lost: float
    success: float


class Workshop:
    """The attacker at the root: trains copies of the version on samples of its own.

    Args:
        module: A model of the fleet's kind; copied.
        samples: The attacker's.
        base_P: What the fleet runs, float32 [P].
        good_P: The honest next version, float32 [P].
        seed: Decides the order of samples.
        epochs: Passes over them.
    """

    def __init__(
        self,
        module: NestedModel,
        samples: Samples,
        *,
        base_P: NDArray[np.float32],
        good_P: NDArray[np.float32],
        seed: int,
        epochs: int = 10,
    ) -> None:
        self.base_P, self.good_P, self.samples = base_P, good_P, samples
        self._module, self._epochs = module, epochs
        self.generator = torch.Generator().manual_seed(seed)
        self.random = np.random.default_rng(seed)

    def stepped(self, factor: float) -> NDArray[np.float32]:
        """Return the base moved by `factor` times the honest step, float32 [P]."""
        return np.asarray(self.base_P + np.float32(factor) * (self.good_P - self.base_P), np.float32)

    def train(self, samples: Samples) -> NDArray[np.float32]:
        """Return the good version after training on `samples`, float32 [P]."""
        module = copy.deepcopy(self._module)
        schema = schema_of(module, default_spec())
        load_state(module, schema.unflatten(self.good_P), partial=True)
        learner = NestedLearner(module, spec=default_spec(), settings=LearningSettings(), generator=self.generator)
        prior = label_prior(samples.y, num_classes=module.num_classes)
        micro_update(learner, samples.x, samples.y, prior=prior, epochs=self._epochs)
        return schema.flatten(state_of(module))


def _noisy(shop: Workshop) -> NDArray[np.float32]:
    noise_P = shop.random.normal(0.0, NOISE * float(shop.good_P.std()), len(shop.good_P))
    return np.asarray(shop.good_P + noise_P, np.float32)


def _backdoored(shop: Workshop) -> NDArray[np.float32]:
    return shop.train(add_backdoor(shop.samples, target=0, share=0.5, generator=shop.generator))


KINDS: Sequence[Kind] = (
    Kind(name="good", make=lambda shop: shop.good_P),
    Kind(name="sign-flipped step", make=lambda shop: shop.stepped(-1.0)),
    Kind(name="sign-flipped step x10", make=lambda shop: shop.stepped(-SCALE)),
    Kind(name="scaled step x10", make=lambda shop: shop.stepped(SCALE)),
    Kind(name="sign-flipped weights", make=lambda shop: -shop.good_P),
    Kind(name="noise", make=_noisy),
    Kind(name="zeros", make=lambda shop: np.zeros_like(shop.good_P)),
    Kind(name="not a number", make=lambda shop: np.full_like(shop.good_P, np.nan)),
    Kind(name="label-flipped training", make=lambda shop: shop.train(flip_labels(shop.samples, num_classes=10))),
    Kind(name="backdoor", make=_backdoored),
)


def offer(
    kind: Kind,
    *,
    shop: Workshop,
    devices: Sequence[Standing],
    settings: LearningSettings,
    seed: int,
) -> Offered:
    """Offer one poisoned version to every device; their models are not changed.

    Args:
        kind: Of poison.
        shop: The attacker.
        devices: As they stand before this version.
        settings: Of the merge.
        seed: Of the refits.
    """
    poisoned_P, num_partly = kind.make(shop), 0
    reasons: Counter[str] = Counter()
    lost: list[float] = []
    success: list[float] = []
    for number, device in enumerate(devices):
        mine, samples = copy.deepcopy(device.module), device.owner
        schema = schema_of(mine, default_spec())
        before = _accuracy(mine, samples.test)
        report = merge(
            mine,
            incoming=schema.unflatten(poisoned_P),
            schema=schema,
            holdout=samples.holdout,
            train=samples.train,
            settings=settings,
            generator=torch.Generator().manual_seed(seed + number),
            known=device.known,
        )
        if report.refusal is not None:
            reasons[report.refusal.value] += 1
        num_partly += report.accepted and report.alpha < 1.0
        lost.append(before - _accuracy(mine, samples.test))
        success.append(success_rate(mine, samples.test, target=0))
    return Offered(
        kind=kind.name,
        num_devices=len(devices),
        num_refused=reasons.total(),
        reasons=dict(reasons),
        num_partly=num_partly,
        lost=float(np.mean(lost)),
        worst_lost=max(lost),
        success=float(np.mean(success)),
    )


def _accuracy(module: NestedModel, samples: Samples) -> float:
    with torch.inference_mode():
        return float((module(samples.x).argmax(1) == samples.y).to(torch.float32).mean())
