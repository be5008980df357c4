from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

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
    NestedLearner,
    NestedModel,
    Owner,
    Samples,
    label_prior,
    local_only,
    micro_update,
    plain_loss,
    score,
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


def test_one_shared_level_of_period_one_is_federated_averaging_bit_for_bit(
    make_model: MakeModel, make_samples: MakeSamples
) -> None:
    """The reference is written with torch's own optimizer and shares no code with the learner."""
    owners = owners_of(make_samples)
    cohort = Cohort(
        make_model,
        strategy=FedAvg(),
        settings=SETTINGS,
        owners=owners,
        seed=3,
        weigh_by_samples=True,
    )
    reports = [cohort.run_round() for _ in range(2)]

    world = {name: p.detach().clone() for name, p in make_model().named_parameters()}
    generators = [torch.Generator().manual_seed(3 * len(owners) + i) for i in range(len(owners))]
    total = sum(len(owner.train.y) for owner in owners)
    for _ in range(2):
        step = {name: torch.zeros_like(p) for name, p in world.items()}
        for owner, generator in zip(owners, generators, strict=True):
            client = make_model()
            client.load_state_dict(world)
            optimizer = torch.optim.SGD(client.parameters(), lr=0.05, foreach=False)
            for _ in range(2):
                order = torch.randperm(len(owner.train.y), generator=generator)
                for i in range(0, len(order), 16):
                    pick = order[i : i + 16]
                    optimizer.zero_grad()
                    z = client.middle(client.body(owner.train.x[pick]))
                    cross_entropy(client.head(z), owner.train.y[pick]).backward()
                    optimizer.step()
            for name, p in client.named_parameters():
                step[name] += (p.detach() - world[name]) * np.float32(len(owner.train.y) / total)
        world = {name: p + step[name] for name, p in world.items()}

    for module in cohort.models:
        state = state_of(module)
        assert all(state[name].tobytes() == p.numpy().tobytes() for name, p in world.items())
    answer = make_model()
    answer.load_state_dict(world)
    assert reports[1].after_merge == tuple(score(answer, o.test.x, o.test.y).accuracy for o in owners)


def test_all_private_is_everybody_alone(make_model: MakeModel, make_samples: MakeSamples) -> None:
    owners = owners_of(make_samples, 3)
    cohort = Cohort(make_model, strategy=LocalOnly(), settings=SETTINGS, owners=owners, seed=0)
    reports = [cohort.run_round() for _ in range(2)]
    for place, owner in enumerate(owners):
        alone = make_model()
        learner = NestedLearner(
            alone,
            spec=local_only(),
            settings=SETTINGS,
            generator=torch.Generator().manual_seed(place),
            objective=plain_loss,
        )
        for _ in range(2):
            micro_update(
                learner, owner.train.x, owner.train.y, prior=label_prior(owner.train.y, num_classes=3), refit_steps=0
            )
        one, two = state_of(alone), state_of(cohort.models[place])
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert reports[1].after_local == reports[1].after_merge


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
