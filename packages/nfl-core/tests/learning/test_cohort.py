from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nfl_core.errors import LearningError
from nfl_core.learning import (
    Cohort,
    Ditto,
    FedAla,
    FedAvg,
    FedBabu,
    FedPer,
    FedRep,
    FedRod,
    LearningSettings,
    LocalOnly,
    Nested,
    NestedModel,
    Owner,
    Samples,
    state_of,
    weighted_mean,
)
from nfl_core.levels import Scope

MakeModel = Callable[..., NestedModel]
MakeSamples = Callable[..., Samples]
SETTINGS = LearningSettings(learning_rate=0.05, batch_size=16, epochs_per_update=2)


def owners_of(make_samples: MakeSamples, num: int = 4) -> list[Owner]:
    return [
        Owner(region=f"region-{i % 2}", train=make_samples(40 + 8 * i, seed=i), test=make_samples(30, seed=100 + i))
        for i in range(num)
    ]


def test_scopes_decide_with_whom_a_level_is_averaged(make_model: MakeModel, make_samples: MakeSamples) -> None:
    cohort = Cohort(make_model, strategy=Nested(), settings=SETTINGS, owners=owners_of(make_samples), seed=0)
    cohort.run_round()
    states = [state_of(module) for module in cohort.models]
    for tensor in cohort.schema.tensors:
        values = [state[tensor.name].tobytes() for state in states]
        distinct = {Scope.GLOBAL: 1, Scope.REGION: 2, Scope.PRIVATE: 4}[tensor.scope]
        assert len(set(values)) == distinct, tensor.name
        if tensor.scope is Scope.REGION:
            assert (values[0], values[1]) == (values[2], values[3])


def test_the_servers_velocity_is_kept_for_each_region(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners, name = owners_of(make_samples), "middle.0.weight"
    plain, fast = (
        Cohort(make_model, strategy=Nested(), settings=SETTINGS, owners=owners, seed=0, server_momentum=momentum)
        for momentum in (0.0, 0.5)
    )
    start = state_of(make_model())[name]
    for cohort in (plain, fast):
        cohort.run_round()
    for region in ("region-0", "region-1"):
        moved = plain.published[region][name] - start
        np.testing.assert_allclose(fast.published[region][name], start + np.float32(1.5) * moved, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("rate", "momentum"), [(0.0, 0.5), (1.0, 1.0), (1.0, -0.1), (float("nan"), 0.0), (float("inf"), 0.0)]
)
def test_a_server_that_could_not_settle_is_refused(
    make_model: MakeModel, make_samples: MakeSamples, rate: float, momentum: float
) -> None:
    with pytest.raises(LearningError, match="rate"):
        Cohort(
            make_model,
            strategy=Nested(),
            settings=SETTINGS,
            owners=owners_of(make_samples, 2),
            seed=0,
            server_learning_rate=rate,
            server_momentum=momentum,
        )


def test_the_server_rate_stretches_the_mean(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners, moved = owners_of(make_samples, 2), []
    start = state_of(make_model())["head.weight"]
    for rate in (1.0, 1.5):
        cohort = Cohort(
            make_model, strategy=FedAvg(), settings=SETTINGS, owners=owners, seed=0, server_learning_rate=rate
        )
        cohort.run_round()
        moved.append(state_of(cohort.models[0])["head.weight"] - start)
    np.testing.assert_allclose(moved[1], 1.5 * moved[0], atol=1e-6)  # one float32 rounding of a weight below 1
    assert np.abs(moved[0]).max() > 1e-3


def test_every_method_takes_the_same_number_of_steps(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners, steps = owners_of(make_samples), set()
    strategies = (Nested(), LocalOnly(), FedAvg(), FedPer(), FedRep(), FedBabu(), Ditto(), FedAla(), FedRod())
    for strategy in strategies:
        cohort = Cohort(make_model, strategy=strategy, settings=SETTINGS, owners=owners, seed=0)
        steps.add(cohort.run_round().num_steps)
    assert steps == {2 * sum(-(-len(owner.train.y) // 16) for owner in owners)}


def test_the_same_seed_gives_the_same_round(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners, runs = owners_of(make_samples, 2), []
    for seed in (1, 1, 2):
        cohort = Cohort(make_model, strategy=Nested(), settings=SETTINGS, owners=owners, seed=seed)
        cohort.run_round()
        runs.append([array.tobytes() for array in state_of(cohort.models[0]).values()])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_mean_needs_parts_and_weight(make_model: MakeModel) -> None:
    part = {"a": np.array([2.0, 4.0], np.float32)}
    assert weighted_mean([part, {"a": np.array([4.0, 0.0], np.float32)}], [3.0, 1.0])["a"].tolist() == [2.5, 3.0]
    for parts, weights in (([], []), ([part], [0.0]), ([part], [1.0, 1.0])):
        with pytest.raises(LearningError, match="mean of"):
            weighted_mean(parts, weights)
    with pytest.raises(LearningError, match="no owners"):
        Cohort(make_model, strategy=Nested(), settings=SETTINGS, owners=[], seed=0)
