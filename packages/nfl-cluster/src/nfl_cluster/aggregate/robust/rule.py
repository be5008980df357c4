"""A round's batches to one displacement a region: bound the norms, then let the chosen rule find the middle.

Rules of this module:

* a bad device makes its whole batch bad. So of N contributions with a fraction a of attackers, floor(a * N) batches may
  be bad, if rosters are drawn anew each round;
* global levels are combined over all batches, regional ones over the region's own; a region without a batch stays;
* a rule never pretends: where so many batches may be bad that it cannot tell, it does what it can and says so in
  `Outcome.degraded`. One or two batches are averaged, after the bound, because there is no middle of two;
* `mean` bounds nothing; all others bound the norms first.

Shape legend: P values of the shared vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfl_cluster.aggregate.buffer import Measured
from nfl_cluster.aggregate.robust.norms import Bounded, bound_norms
from nfl_cluster.aggregate.robust.rules import RULES
from nfl_core.errors import ConfigError
from nfl_core.ids import RegionId
from nfl_core.levels import Scope
from nfl_core.schema import TensorSchema

FEWEST = 3  # two batches have no middle but their mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded:
    """A part of the model for which the rule promises less than it was asked for.

    Attributes:
        scope: Which part.
        region: Whose; empty for the global part.
        num_batches: How many there were.
        may_be_bad: How many of them may be bad.
        stands: How many the rule stood; 0: the batches were averaged.
    """

    scope: Scope
    region: str
    num_batches: int
    may_be_bad: int
    stands: int

    @property
    def why(self) -> str:
        """For people."""
        where = f"region {self.region}" if self.region else "all regions"
        return (
            f"{self.may_be_bad} of {self.num_batches} batches of {where} may be bad, the rule stands {self.stands}"
            + ("" if self.stands else ": they are averaged")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a round's batches come to.

    Attributes:
        moved: Displacement of each region, float32 [P]; regional values are 0 where the region has no batch.
        bounded: Which parts of which batches were pushed down.
        degraded: Where the rule promises less than it was asked for.
        norms: Norms to remember, by scope, newest last.
    """

    moved: Mapping[RegionId, NDArray[np.float32]]
    bounded: tuple[Bounded, ...]
    degraded: tuple[Degraded, ...]
    norms: Mapping[str, tuple[float, ...]]


def combine_batches(
    batches: Sequence[Measured],
    *,
    schema: TensorSchema,
    regions: Sequence[RegionId],
    rule: str,
    max_attacker_fraction: float,
    remembered: Mapping[str, Sequence[float]],
) -> Outcome:
    """Combine batches by a rule, scope by scope.

    Args:
        batches: Non-empty; every `mean_P` has the schema's length.
        schema: Says which values are regional.
        regions: Every region of the fleet.
        rule: A name in `RULES`.
        max_attacker_fraction: Of the devices, in [0, 0.5).
        remembered: `norms` of the last outcome; empty at first.

    Raises:
        ConfigError: There is no such rule.
        DeltaError: There is no batch, or a value is not finite.
    """
    if rule not in RULES:
        raise ConfigError(f"robust rule {rule!r} is unknown, expected one of {sorted(RULES)}")
    bounded: tuple[Bounded, ...] = ()
    norms = {name: tuple(values) for name, values in remembered.items()}
    if rule != "mean":
        verdict = bound_norms(batches, schema=schema, remembered=remembered)
        batches, bounded, norms = verdict.batches, verdict.bounded, dict(verdict.norms)
    degraded: list[Degraded] = []
    shared_P = np.zeros(schema.num_shared, np.float32)
    _combine(batches, shared_P, schema, Scope.GLOBAL, "", rule, max_attacker_fraction, degraded)
    moved: dict[RegionId, NDArray[np.float32]] = {}
    for region in regions:
        moved[region] = shared_P.copy()
        own = [batch for batch in batches if batch.region == region]
        _combine(own, moved[region], schema, Scope.REGION, region, rule, max_attacker_fraction, degraded)
    return Outcome(moved=moved, bounded=bounded, degraded=tuple(degraded), norms=norms)


def _combine(
    batches: Sequence[Measured],
    out_P: NDArray[np.float32],
    schema: TensorSchema,
    scope: Scope,
    region: str,
    name: str,
    max_attacker_fraction: float,
    degraded: list[Degraded],
) -> None:
    """Write the middle of one scope's part of the batches into its places of `out_P`."""
    spans = schema.slices(scope)
    if not batches or not spans:
        return
    rule, num = RULES[name], len(batches)
    may_be_bad = min(num, math.floor(max_attacker_fraction * sum(batch.num for batch in batches) + 1e-9))
    stands = min(may_be_bad, rule.most(num)) if num >= FEWEST else 0
    if stands < may_be_bad:
        degraded.append(Degraded(scope=scope, region=region, num_batches=num, may_be_bad=may_be_bad, stands=stands))
    rows = [np.concatenate([batch.mean_P[span] for span in spans]) for batch in batches]
    weights = np.array([batch.influence for batch in batches])
    used = rule if num >= FEWEST else RULES["mean"]
    middle = used.combine(rows, weights, num_bad=stands)
    at = 0
    for span in spans:
        out_P[span] = middle[at : at + span.stop - span.start]
        at += span.stop - span.start
