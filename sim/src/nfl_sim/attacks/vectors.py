"""What colluding devices send instead of what they learned.

The attackers of this module know everything: what all honest devices of the round send, the rule, the scales. What they
send passes the egress range like everybody's (`nfl_sim.attacks.channel`); nothing here is clipped.

Shape legend: n honest displacements, m attackers, P shared values.

Sources: inner product manipulation: Xie et al., arXiv:1903.03936; a little is enough: Baruch et al.,
arXiv:1902.06156; mimic: Karimireddy et al., arXiv:2006.09365; model replacement: Bagdasaryan et al., arXiv:1807.00459;
line search for the strongest factor: Shejwalkar and Houmansadr, NDSS 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nfl_core.errors import ConfigError

Vectors: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


class AttackFactorError(ConfigError):
    """A factor is so large, or no number, that what it makes is not finite: a device could not send it."""

    code = "attack.factor"
    hint = "use a finite factor; what an attacker cannot send is no attack"


def sign_flip(honest_nP: Vectors) -> NDArray[np.float64]:
    """Return the opposite of the honest mean, [P]."""
    return inner_product(honest_nP, 1.0)


def inner_product(honest_nP: Vectors, factor: float) -> NDArray[np.float64]:
    """Return the honest mean times -factor, [P]. Raises AttackFactorError."""
    return _scaled(_mean(honest_nP), -factor)


def little_is_enough(honest_nP: Vectors, factor: float) -> NDArray[np.float64]:
    """Return the honest mean plus `factor` deviations of every coordinate, [P]. Raises AttackFactorError."""
    deviation_P = np.asarray(honest_nP, np.float64).std(axis=0, ddof=1)
    return np.asarray(_mean(honest_nP) + _scaled(deviation_P, factor))


def mimic(honest_nP: Vectors, *, whom: int = 0) -> NDArray[np.float64]:
    """Return what one honest device sends, [P]: it counts twice, the others less. Raises ConfigError."""
    if not 0 <= whom < len(honest_nP):
        raise ConfigError(f"device {whom} is to be mimicked, expected one of {len(honest_nP)}")
    return np.array(honest_nP[whom], np.float64)


def gaussian(num_values: int, *, deviation: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return noise around zero, [P]."""
    return generator.normal(0.0, deviation, num_values)


def not_finite(num_values: int, *, value: float = float("nan")) -> NDArray[np.float64]:
    """Return NaN or infinity throughout, [P]: what the egress gate has to refuse."""
    return np.full(num_values, value)


def replacement(wanted_P: Vectors, *, factor: float) -> NDArray[np.float64]:
    """Return a displacement scaled so that it survives the average, [P]. Raises AttackFactorError."""
    return _scaled(np.asarray(wanted_P, np.float64), factor)


def jitter(
    vector_P: NDArray[np.float64], num_attackers: int, *, share: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the vector m times, each with noise of its own of `share` times its norm, so that no two look alike."""
    noise_mP = generator.normal(0.0, 1.0, (num_attackers, len(vector_P)))
    length = float(np.linalg.norm(vector_P)) * share / np.sqrt(len(vector_P))
    jittered_mP: NDArray[np.float64] = vector_P[None] + length * noise_mP
    return jittered_mP


def strongest(
    harm: Callable[[float], float], *, start: float = 0.0, step: float = 10.0, num_tries: int = 20, ratio: float = 0.8
) -> float:
    """Return the factor that does most harm: doubling steps while it grows, then ever smaller ones.

    Args:
        harm: Of a factor; larger is worse for the fleet.
        start: First factor.
        step: First step, not 0.
        num_tries: How often `harm` is asked, >= 1.
        ratio: By which steps shrink, in (0, 1).
    """
    best, worst, grows = start, harm(start), True
    for _ in range(num_tries - 1):
        found = harm(best + step)
        if found > worst:
            best, worst = best + step, found
            step = 2 * step if grows else step * ratio
        else:
            grows, step = False, step * ratio
    return best


def _mean(honest_nP: Vectors) -> NDArray[np.float64]:
    mean_P: NDArray[np.float64] = np.asarray(honest_nP, np.float64).mean(axis=0)
    return mean_P


def _scaled(vector_P: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):  # looked at below, by name
        scaled_P = factor * vector_P
    if not np.isfinite(scaled_P).all():
        raise AttackFactorError(f"factor {factor} makes values that are not finite")
    return np.asarray(scaled_P)
