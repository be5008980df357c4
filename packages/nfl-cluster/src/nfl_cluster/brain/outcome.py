"""What the root says about a round's combination: which batches were pushed down, where the rule fell short."""

from __future__ import annotations

from nfl_cluster.aggregate.robust import Outcome
from nfl_cluster.brain.store import RootStore


def tell_outcome(store: RootStore, outcome: Outcome, *, rule: str) -> None:
    """Note events of an outcome; they are committed with the candidate that it makes.

    Args:
        store: The root's state.
        outcome: Of `combine_batches`.
        rule: By which it was made.
    """
    for level, share in outcome.own_shares.items():
        store.tell("scope-learned", level=level, own_share=round(share, 4))
    for part in outcome.bounded:
        store.tell("batch-bounded", batch=part.batch_id, scope=part.scope.value, norm=part.norm, bound=part.bound)
    for less in outcome.degraded:
        store.tell("rule-degraded", rule=rule, scope=less.scope.value, region=less.region, why=less.why)
