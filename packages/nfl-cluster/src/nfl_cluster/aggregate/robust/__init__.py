"""What the root does with batch means before it moves by them: a bound on norms, and robust rules."""

from nfl_cluster.aggregate.robust.norms import Bounded, Verdict, bound_norms
from nfl_cluster.aggregate.robust.rule import SHADOW_TRUST, Degraded, Outcome, combine_batches
from nfl_cluster.aggregate.robust.rules import RULES, Rule, TooFewBatchesError
from nfl_cluster.aggregate.robust.trust import BatchScore, agreement, score_batches

__all__ = [
    "RULES",
    "SHADOW_TRUST",
    "BatchScore",
    "Bounded",
    "Degraded",
    "Outcome",
    "Rule",
    "TooFewBatchesError",
    "Verdict",
    "agreement",
    "bound_norms",
    "combine_batches",
    "score_batches",
]
