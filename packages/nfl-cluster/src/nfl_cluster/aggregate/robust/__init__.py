"""What the root does with batch means before it moves by them: a bound on norms, and robust rules."""

from nfl_cluster.aggregate.robust.norms import Bounded, Verdict, bound_norms
from nfl_cluster.aggregate.robust.rule import Degraded, Outcome, combine_batches
from nfl_cluster.aggregate.robust.rules import RULES, Rule, TooFewBatchesError

__all__ = [
    "RULES",
    "Bounded",
    "Degraded",
    "Outcome",
    "Rule",
    "TooFewBatchesError",
    "Verdict",
    "bound_norms",
    "combine_batches",
]
