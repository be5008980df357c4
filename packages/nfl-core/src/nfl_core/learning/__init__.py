"""Nested learning on one device: levels that learn at their own pace, and merge without forgetting their owner.

This is the only room of nfl-core that needs torch (`pip install nfl-core[torch]`).

    module = create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=0)
    learner = NestedLearner(module, spec=default_spec(), settings=LearningSettings(), generator=generator)
    accepted = state_of(module)
    micro_update(learner, x, y, prior=label_prior(y, num_classes=10))
    moved = displacement(accepted, state_of(module), schema_of(module, default_spec()))
"""

from __future__ import annotations

from nfl_core.learning.clock import LevelClock
from nfl_core.learning.cohort import Cohort, Owner, RoundReport, weighted_mean
from nfl_core.learning.export import export_graph
from nfl_core.learning.learner import LearnerState, NestedLearner
from nfl_core.learning.merge import MergeReport, Samples, decide, merge
from nfl_core.learning.model import ModelError, NestedModel, create_model, load_state, schema_of, state_of
from nfl_core.learning.nested import WrappedModel, nested, propose_spec
from nfl_core.learning.norms import with_group_norm
from nfl_core.learning.objective import Score, joint_loss, label_prior, plain_loss, score, score_logits, separate_loss
from nfl_core.learning.plausible import Known, Refusal, Track, content_of, judge_answers, judge_step
from nfl_core.learning.reference import FourRooms, SmallCnn, default_levels, default_spec, small_cnn
from nfl_core.learning.refit import FeatureCache, cache_features, refit
from nfl_core.learning.settings import LearningSettings
from nfl_core.learning.strategies import (
    Ditto,
    FedAla,
    FedAvg,
    FedBabu,
    FedPer,
    FedProx,
    FedRep,
    FedRod,
    GatedNested,
    LocalOnly,
    Member,
    Nested,
    Strategy,
    local_only,
    private_head,
    shared_only,
)
from nfl_core.learning.transport import FewBits, Transport, Whole
from nfl_core.learning.update import MicroUpdateReport, deviation_scales, displacement, micro_update

__all__ = [
    "Cohort",
    "Ditto",
    "FeatureCache",
    "FedAla",
    "FedAvg",
    "FedBabu",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedRod",
    "FewBits",
    "FourRooms",
    "GatedNested",
    "Known",
    "LearnerState",
    "LearningSettings",
    "LevelClock",
    "LocalOnly",
    "Member",
    "MergeReport",
    "MicroUpdateReport",
    "ModelError",
    "Nested",
    "NestedLearner",
    "NestedModel",
    "Owner",
    "Refusal",
    "RoundReport",
    "Samples",
    "Score",
    "SmallCnn",
    "Strategy",
    "Track",
    "Transport",
    "Whole",
    "WrappedModel",
    "cache_features",
    "content_of",
    "create_model",
    "decide",
    "default_levels",
    "default_spec",
    "deviation_scales",
    "displacement",
    "export_graph",
    "joint_loss",
    "judge_answers",
    "judge_step",
    "label_prior",
    "load_state",
    "local_only",
    "merge",
    "micro_update",
    "nested",
    "plain_loss",
    "private_head",
    "propose_spec",
    "refit",
    "schema_of",
    "score",
    "score_logits",
    "separate_loss",
    "shared_only",
    "small_cnn",
    "state_of",
    "weighted_mean",
    "with_group_norm",
]
