"""The attacks by name: what a bad device trains on, what it sends, and what a bad leaf makes of a batch.

Shape legend: n honest devices, m attackers, P shared values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_cluster.aggregate.buffer import Measured
from nfl_core.learning import Samples
from nfl_sim.attacks import vectors
from nfl_sim.attacks.data import add_backdoor, flip_labels

NUM_CLASSES = 10
JITTER = 0.5  # of the vector's norm: two colluders then have a cosine of 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """What the attackers know when they decide what to send.

    Attributes:
        honest_nP: What the honest devices learned, float32 [n, P].
        own_mP: What the attackers learned from their (poisoned) samples, float32 [m, P]; None: they did not train.
        past: The fleet's displacements so far, float32 [P] each, oldest first.
        scales_P: Of the round, float32 [P].
        num_attackers: m.
        generator: Their chance.
        harm: How far a vector [P], sent by all of them, moves the fleet from where the honest would go.
    """

    honest_nP: NDArray[np.float32]
    own_mP: NDArray[np.float32] | None
    past: tuple[NDArray[np.float32], ...]
    scales_P: NDArray[np.float32]
    num_attackers: int
    generator: np.random.Generator
    harm: Callable[[NDArray[np.float64]], float]


Craft: TypeAlias = Callable[[Scene], NDArray[np.float64]]


def _own(scene: Scene) -> NDArray[np.float64]:
    if scene.own_mP is None:
        raise ValueError("attackers that did not train have nothing of their own to send")
    return scene.own_mP.astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack. The default is a device like any other.

    Attributes:
        name: For tables.
        trains: Whether attackers train; else they only know what others learned.
        poison: What they make of their training samples.
        craft: What they send, float64 [m, P].
        tamper: What a bad leaf makes of the batches of a round.
    """

    name: str
    trains: bool = False
    poison: Callable[[Samples, torch.Generator], Samples] = lambda samples, _: samples
    craft: Craft = _own
    tamper: Callable[[list[Measured], np.random.Generator], list[Measured]] = lambda batches, _: batches


def _all(scene: Scene, vector_P: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.broadcast_to(vector_P, (scene.num_attackers, len(vector_P)))


def _optimal(make: Callable[[NDArray[np.float32], float], NDArray[np.float64]], *, jitter: float = 0.0) -> Craft:
    def craft(scene: Scene) -> NDArray[np.float64]:
        factor = vectors.strongest(lambda f: scene.harm(make(scene.honest_nP, f)))
        vector_P = make(scene.honest_nP, factor)
        return vectors.jitter(vector_P, scene.num_attackers, share=jitter, generator=scene.generator)

    return craft


def _noise(scene: Scene) -> NDArray[np.float64]:
    deviation = float(scene.honest_nP.std())
    size = scene.honest_nP.shape[1]
    return np.stack(
        [
            vectors.gaussian(size, deviation=10 * deviation, generator=scene.generator)
            for _ in range(scene.num_attackers)
        ]
    )


def _past(scene: Scene, which: int) -> NDArray[np.float64]:
    return scene.past[which].astype(np.float64) if scene.past else np.zeros(scene.honest_nP.shape[1])


def _replaced(batches: list[Measured], generator: np.random.Generator) -> list[Measured]:
    """Replace one batch mean by the opposite of all, as large as the range lets it be."""
    total_P = np.sum([batch.mean_P for batch in batches], axis=0)
    largest_P = np.max([np.abs(batch.mean_P) for batch in batches], axis=0)
    victim = int(generator.integers(len(batches)))
    lie_P = (-np.sign(total_P) * largest_P).astype(np.float32)
    return [replace(b, mean_P=lie_P) if n == victim else b for n, b in enumerate(batches)]


ATTACKS: Mapping[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack(name="none", trains=True),
        Attack(name="sign-flip", craft=lambda s: _all(s, vectors.sign_flip(s.honest_nP))),
        Attack(name="ipm-optimal", craft=_optimal(vectors.inner_product)),
        Attack(name="ipm-jittered", craft=_optimal(vectors.inner_product, jitter=JITTER)),
        Attack(name="alie", craft=lambda s: _all(s, vectors.little_is_enough(s.honest_nP, 1.5))),
        Attack(name="alie-optimal", craft=_optimal(vectors.little_is_enough)),
        Attack(name="mimic", craft=lambda s: _all(s, vectors.mimic(s.honest_nP))),
        Attack(name="gaussian", craft=_noise),
        Attack(name="not-finite", craft=lambda s: _all(s, vectors.not_finite(s.honest_nP.shape[1]))),
        Attack(
            name="scaled-label-flip",
            trains=True,
            poison=lambda samples, _: flip_labels(samples, num_classes=NUM_CLASSES),
            craft=lambda s: vectors.replacement(_own(s), factor=10.0),
        ),
        Attack(name="label-flip", trains=True, poison=lambda samples, _: flip_labels(samples, num_classes=NUM_CLASSES)),
        Attack(
            name="backdoor",
            trains=True,
            poison=lambda samples, generator: add_backdoor(samples, target=0, share=0.5, generator=generator),
        ),
        Attack(
            name="scaled-backdoor",
            trains=True,
            poison=lambda samples, generator: add_backdoor(samples, target=0, share=0.5, generator=generator),
            craft=lambda s: vectors.replacement(_own(s), factor=5.0),
        ),
        Attack(name="free-rider-zero", craft=lambda s: _all(s, np.zeros(s.honest_nP.shape[1]))),
        Attack(name="free-rider-replay", craft=lambda s: _all(s, _past(s, -1))),
        Attack(name="stale-replay", craft=lambda s: _all(s, _past(s, 0))),
        Attack(name="lying-leaf", trains=True, tamper=_replaced),
    )
}
