"""One robust rule that works on sums: no batch moves the model further than batches usually do.

Under sealed mode nobody sees a single contribution, so distances between devices cannot be taken. The norm of a batch
mean can: honest ones are alike, a batch that somebody scaled up is not.

Shape legend: P values of the shared vector.

Rules:

* for each shared scope, the norm of a batch's part is held to `factor` times the median of the norms seen lately, this
  round's included; the part keeps its direction;
* with fewer than `MIN_NORMS` norms there is nothing to compare with, and nothing is bounded;
* what is remembered is the bounded norm, so that an attacker cannot raise the bound round by round faster than honest
  batches do.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nfl_cluster.aggregate.buffer import Measured, scope_mask
from nfl_core.ids import BatchId
from nfl_core.levels import Scope
from nfl_core.schema import TensorSchema

MIN_NORMS = 3  # a median of two is a mean, which one attacker moves at will
MAX_REMEMBERED = 32  # norms a scope: some eight rounds of four batches
DEFAULT_FACTOR = (
    1.5  # honest ternary batch means differ by some 15 %; a batch of full-scale values has five times the norm
)
_SCOPES = (Scope.REGION, Scope.GLOBAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """One part of one batch that was pushed down.

    Attributes:
        batch_id: The batch.
        scope: The part.
        norm: What it had.
        bound: What it was given.
    """

    batch_id: BatchId
    scope: Scope
    norm: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the rule did.

    Attributes:
        batches: The batches, bounded.
        bounded: Which parts were pushed down.
        norms: Norms to remember, by scope, newest last.
    """

    batches: tuple[Measured, ...]
    bounded: tuple[Bounded, ...]
    norms: Mapping[str, tuple[float, ...]]


def bound_norms(
    batches: Sequence[Measured],
    *,
    schema: TensorSchema,
    remembered: Mapping[str, Sequence[float]],
    factor: float = DEFAULT_FACTOR,
) -> Verdict:
    """Hold every batch mean to the running median of norms.

    Args:
        batches: Of one round.
        schema: Says which values belong to which scope.
        remembered: `norms` of the last verdict; empty at first.
        factor: Of the median, > 1.
    """
    found: list[Bounded] = []
    norms: dict[str, tuple[float, ...]] = {}
    result = list(batches)
    for scope in _SCOPES:
        mask_P = scope_mask(schema, scope)
        if not mask_P.any():
            continue
        mine = [float(np.linalg.norm(batch.mean_P[mask_P].astype(np.float64))) for batch in result]
        pool = [*remembered.get(scope.value, ()), *mine]
        bound = factor * statistics.median(pool) if len(pool) >= MIN_NORMS else float("inf")
        for index, (batch, norm) in enumerate(zip(result, mine, strict=True)):
            if norm > bound:
                scaled_P = np.where(mask_P, batch.mean_P * np.float32(bound / norm), batch.mean_P)
                result[index] = replace(batch, mean_P=scaled_P.astype(np.float32))
                found.append(Bounded(batch_id=batch.batch_id, scope=scope, norm=norm, bound=bound))
        norms[scope.value] = (*remembered.get(scope.value, ()), *(min(norm, bound) for norm in mine))[-MAX_REMEMBERED:]
    return Verdict(batches=tuple(result), bounded=tuple(found), norms=norms)
