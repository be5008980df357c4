"""A round's batches to one displacement a region: bound the norms, then let the chosen rule find the middle.

Rules of this module:

* a bad device makes its whole batch bad. So of N contributions with a fraction a of attackers, floor(a * N) batches may
  be bad, if rosters are drawn anew each round;
* global levels are combined over all batches, regional ones over the region's own; a region without a batch stays;
* with a learned scope, regional levels are drawn towards the fleet's as far as regions are alike (`aggregate.scope`);
* a rule never pretends: where so many batches may be bad that it cannot tell, it does what it can and says so in
  `Outcome.degraded`. One or two batches are averaged, after the bound, because there is no middle of two;
* `mean` bounds nothing; all others bound the norms first;
* `shadow-trust` needs no majority of good batches: each counts as far as its global part agrees with the root's shadow
  update. Without one it is `norm-bound`, by name; where no batch agrees, nothing moves.

Shape legend: n batches, P values of the shared vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfl_cluster.aggregate.buffer import Measured
from nfl_cluster.aggregate.robust.norms import Bounded, bound_norms
from nfl_cluster.aggregate.robust.rules import RULES, Rule, check
from nfl_cluster.aggregate.robust.trust import agreement
from nfl_cluster.aggregate.scope import pool_regions
from nfl_core.errors import ConfigError
from nfl_core.ids import RegionId
from nfl_core.levels import Scope
from nfl_core.schema import TensorSchema

SHADOW_TRUST = "shadow-trust"
FEWEST = 3  # two batches have no middle but their mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded:
    """A part of the model for which the rule promises less than it was asked for.

    Attributes:
        scope: Which part.
        region: Whose; empty for the global part.
        why: What is missing, and what was done instead.
    """

    scope: Scope
    region: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a round's batches come to.

    Attributes:
        moved: Displacement of each region, float32 [P]; regional values are 0 where the region has no batch.
        bounded: Which parts of which batches were pushed down.
        degraded: Where the rule promises less than it was asked for.
        norms: Norms to remember, by scope, newest last.
        own_shares: By regional level, how much of it is the regions' own, 0 to 1, to be remembered; empty unless scope
            is learned.
    """

    moved: Mapping[RegionId, NDArray[np.float32]]
    bounded: tuple[Bounded, ...]
    degraded: tuple[Degraded, ...]
    norms: Mapping[str, tuple[float, ...]]
    own_shares: Mapping[str, float]


def combine_batches(
    batches: Sequence[Measured],
    *,
    schema: TensorSchema,
    regions: Sequence[RegionId],
    rule: str,
    max_attacker_fraction: float,
    remembered: Mapping[str, Sequence[float]],
    shadow_P: NDArray[np.float32] | None = None,
    own_shares: Mapping[str, float] | None = None,
) -> Outcome:
    """Combine batches by a rule, scope by scope.

    Args:
        batches: Non-empty; every `mean_P` has the schema's length.
        schema: Says which values are regional.
        regions: Every region of the fleet.
        rule: A name in `RULES`, or `SHADOW_TRUST`.
        max_attacker_fraction: Of the devices, in [0, 0.5).
        remembered: `norms` of the last outcome; empty at first.
        shadow_P: The root's shadow update, float32 [P]; for `SHADOW_TRUST`.
        own_shares: Those of the last outcome, empty at first, to let regional levels be pooled as far as regions are
            alike; None: each region for itself.

    Raises:
        ConfigError: There is no such rule.
        DeltaError: There is no batch, or a value is not finite.
    """
    if rule != SHADOW_TRUST and rule not in RULES:
        raise ConfigError(f"robust rule {rule!r} is unknown, expected one of {sorted({*RULES, SHADOW_TRUST})}")
    check([batch.mean_P for batch in batches], np.array([batch.influence for batch in batches]))
    bounded: tuple[Bounded, ...] = ()
    norms = {name: tuple(values) for name, values in remembered.items()}
    if rule != "mean":
        verdict = bound_norms(batches, schema=schema, remembered=remembered)
        batches, bounded, norms = verdict.batches, verdict.bounded, dict(verdict.norms)
    mixer = _Mixer(schema, rule=rule, max_attacker_fraction=max_attacker_fraction)
    weights_n = mixer.weights(batches, shadow_P)
    shared_P = np.zeros(schema.num_shared, np.float32)
    mixer.mix(batches, weights_n, shared_P, scope=Scope.GLOBAL, region="")
    moved: dict[RegionId, NDArray[np.float32]] = {}
    for region in regions:
        moved[region] = shared_P.copy()
        own = [number for number, batch in enumerate(batches) if batch.region == region]
        mixer.mix([batches[n] for n in own], weights_n[own], moved[region], scope=Scope.REGION, region=region)
    shares: dict[str, float] = {}
    if own_shares is not None and schema.slices(Scope.REGION):
        common_P = np.zeros(schema.num_shared, np.float32)
        mixer.mix(batches, weights_n, common_P, scope=Scope.REGION, region="")
        moved, shares = pool_regions(
            moved, common_P, batches=batches, weights_n=weights_n, schema=schema, remembered=own_shares
        )
    return Outcome(moved=moved, bounded=bounded, degraded=tuple(mixer.degraded), norms=norms, own_shares=shares)


class _Mixer:
    """One round's rule: mixes a scope at a time and notes where it promises less than asked."""

    def __init__(self, schema: TensorSchema, *, rule: str, max_attacker_fraction: float) -> None:
        self._schema, self._fraction = schema, max_attacker_fraction
        self._trusts = rule == SHADOW_TRUST
        self._rule = RULES["norm-bound" if self._trusts else rule]
        self.degraded: list[Degraded] = []

    def weights(self, batches: Sequence[Measured], shadow_P: NDArray[np.float32] | None) -> NDArray[np.float64]:
        """Return how much each batch counts, [n]; 0: not at all."""
        influence_n = np.array([batch.influence for batch in batches])
        if not self._trusts:
            return influence_n
        if shadow_P is None or not shadow_P.any():
            self._trusts = False
            self._note(Scope.GLOBAL, "", "there is no shadow update, batches are averaged within their bound")
            return influence_n
        trust_n = agreement(batches, shadow_P, spans=self._schema.slices(Scope.GLOBAL))
        if not trust_n.any():
            self._note(Scope.GLOBAL, "", f"none of {len(batches)} batches agrees with the shadow update, nothing moves")
        return np.asarray(influence_n * trust_n)

    def mix(
        self,
        batches: Sequence[Measured],
        weights_n: NDArray[np.float64],
        out_P: NDArray[np.float32],
        *,
        scope: Scope,
        region: str,
    ) -> None:
        """Write the middle of one scope's part of the batches into its places of `out_P`."""
        spans = self._schema.slices(scope)
        counting: list[int] = np.flatnonzero(weights_n).tolist()
        if not counting or not spans:
            return
        rule, stands = self._choose(batches, scope, region)
        rows = [np.concatenate([batches[number].mean_P[span] for span in spans]) for number in counting]
        middle = rule.combine(rows, weights_n[counting], num_bad=stands)
        at = 0
        for span in spans:
            out_P[span] = middle[at : at + span.stop - span.start]
            at += span.stop - span.start

    def _choose(self, batches: Sequence[Measured], scope: Scope, region: str) -> tuple[Rule, int]:
        num = len(batches)
        may_be_bad = min(num, math.floor(self._fraction * sum(batch.num for batch in batches) + 1e-9))
        if self._trusts:
            return RULES["mean"], 0
        rule = self._rule if num >= FEWEST else RULES["mean"]
        stands = min(may_be_bad, rule.most(num))
        if stands < may_be_bad:
            where = f"region {region}" if region else "all regions"
            instead = f"the rule stands {stands}" if stands else "they are averaged"
            self._note(scope, region, f"{may_be_bad} of {num} batches of {where} may be bad, {instead}")
        return rule, stands

    def _note(self, scope: Scope, region: str, why: str) -> None:
        self.degraded.append(Degraded(scope=scope, region=region, why=why))
