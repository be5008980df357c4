from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.errors import LearningError, SchemaError
from nfl_core.learning import (
    LearningSettings,
    MergeReport,
    NestedLearner,
    NestedModel,
    Samples,
    Score,
    decide,
    default_spec,
    label_prior,
    merge,
    micro_update,
    schema_of,
    score,
    state_of,
)
from nfl_core.learning.merge import Commit, Refuse, Trial, Try, mix

MakeModel = Callable[..., NestedModel]
MakeSamples = Callable[..., Samples]
ALPHAS = (1.0, 0.75, 0.5, 0.25)
SETTINGS = LearningSettings(batch_size=16, refit_steps=10, merge_tolerance=0.05, merge_alphas=ALPHAS)
SCORES = st.builds(Score, loss=st.one_of(st.floats(0, 10), st.just(float("inf"))), accuracy=st.floats(0, 1))


@given(
    before=SCORES,
    scores=st.lists(SCORES, min_size=4, max_size=4),
    tolerance=st.floats(0, 1),
    max_drop=st.floats(0, 1),
)
def test_only_the_largest_tolerable_share_is_committed(
    before: Score, scores: list[Score], tolerance: float, max_drop: float
) -> None:
    trials: list[Trial] = []
    rules = {"alphas": ALPHAS, "tolerance": tolerance, "max_drop": max_drop}
    while isinstance(action := decide(before, trials, **rules), Try):
        assert action.alpha == ALPHAS[len(trials)]
        trials.append(Trial(alpha=action.alpha, score=scores[len(trials)]))
    good = [
        a
        for a, s in zip(ALPHAS, scores, strict=True)
        if s.loss < float("inf")
        and s.loss <= before.loss * (1 + tolerance)
        and s.accuracy >= before.accuracy - max_drop
    ]
    assert action == (Commit(good[0]) if good else Refuse())


def noisy(make_samples: MakeSamples, num: int, seed: int) -> Samples:
    """Samples that nobody learns without error, so that a loss has room in both directions."""
    return make_samples(num, seed=seed, noise=2.5)


def trained(module: NestedModel, data: Samples, epochs: int = 6) -> NestedModel:
    learner = NestedLearner(module, spec=default_spec(), settings=SETTINGS, generator=torch.Generator().manual_seed(2))
    micro_update(learner, data.x, data.y, prior=label_prior(data.y, num_classes=3), epochs=epochs, batch_size=16)
    return module


def shared_of(module: NestedModel) -> dict[str, np.ndarray]:
    schema, state = schema_of(module, default_spec()), state_of(module)
    return {tensor.name: state[tensor.name] for tensor in schema.shared}


def merged(
    module: NestedModel, incoming: Mapping[str, np.ndarray], data: Samples, settings: LearningSettings = SETTINGS
) -> MergeReport:
    return merge(
        module,
        incoming=incoming,
        schema=schema_of(module, default_spec()),
        holdout=Samples(x=data.x[:45], y=data.y[:45]),
        train=Samples(x=data.x[45:], y=data.y[45:]),
        settings=settings,
        generator=torch.Generator().manual_seed(7),
    )


def test_better_levels_are_taken_whole_and_the_fast_level_is_refitted(
    make_model: MakeModel, make_samples: MakeSamples
) -> None:
    teacher, data = trained(make_model(), make_samples(300, seed=3)), make_samples(145, seed=4)
    module = trained(make_model(1), make_samples(20, seed=5), epochs=1)
    private = state_of(module)["private.weight"]
    report = merged(module, shared_of(teacher), data)
    assert (report.accepted, report.alpha, report.num_trials, report.refit_steps) == (True, 1.0, 1, 10)
    assert report.accuracy_after > report.accuracy_before
    assert report.loss_after < report.loss_before
    assert report.shock < 0
    after = state_of(module)
    assert all(np.array_equal(after[name], array) for name, array in shared_of(teacher).items())
    assert not np.array_equal(after["private.weight"], private)
    assert score(module, data.x[:45], data.y[:45]).loss == report.loss_after


@pytest.mark.parametrize("attack", ["sign-flip", "noise", "not-finite", "huge"])
def test_poisoned_levels_are_refused_and_the_model_is_untouched(
    make_model: MakeModel, make_samples: MakeSamples, attack: str
) -> None:
    module, data = trained(make_model(), noisy(make_samples, 200, 3)), noisy(make_samples, 145, 4)
    generator = np.random.default_rng(0)
    make = {
        "sign-flip": lambda a: -20 * a,
        "noise": lambda a: generator.normal(0, 3, a.shape).astype(np.float32),
        "not-finite": lambda a: np.full_like(a, np.nan),
        "huge": lambda a: a * np.float32(1e30),
    }[attack]
    before, twin = state_of(module), copy.deepcopy(module)
    report = merged(module, {name: make(array) for name, array in shared_of(module).items()}, data)
    assert (report.accepted, report.alpha, report.refit_steps, report.num_trials) == (False, 0.0, 0, 4)
    assert report.loss_after == report.loss_before
    assert report.accuracy_after == report.accuracy_before
    assert report.shock > 0
    assert all(array.tobytes() == before[name].tobytes() for name, array in state_of(module).items())
    assert torch.equal(module(data.x), twin(data.x))


def test_levels_that_are_a_little_bad_are_taken_in_part(make_model: MakeModel, make_samples: MakeSamples) -> None:
    """From harmless to hopeless noise: the whole, then parts, then nothing, each as the report says."""
    owner, data = trained(make_model(), noisy(make_samples, 200, 3)), noisy(make_samples, 145, 4)
    before, shared = state_of(owner), shared_of(owner)
    noise = {name: np.random.default_rng(1).normal(0, a.std() + 0.02, a.shape) for name, a in shared.items()}
    alphas = []
    for strength in np.geomspace(0.01, 10, 13):
        module = copy.deepcopy(owner)
        incoming = {name: (a + strength * noise[name]).astype(np.float32) for name, a in shared.items()}
        report = merged(module, incoming, data)
        alphas.append(report.alpha)
        expected = mix(before, incoming, alpha=report.alpha) if report.accepted else shared
        after = state_of(module)
        assert all(np.array_equal(after[name], expected[name]) for name in shared)
        assert report.loss_after <= 1.05 * report.loss_before
    assert alphas[0] == 1.0
    assert alphas[-1] == 0.0
    assert any(0 < alpha < 1 for alpha in alphas)


@pytest.mark.parametrize("seed", range(8))
def test_a_commit_is_never_worse_than_the_tolerance(
    make_model: MakeModel, make_samples: MakeSamples, seed: int
) -> None:
    module, data = trained(make_model(seed), noisy(make_samples, 100, seed)), noisy(make_samples, 100, seed + 50)
    generator = np.random.default_rng(seed)
    strength = 0.1 * 2.0**seed
    incoming = {
        n: a + generator.normal(0, strength * 0.1, a.shape).astype(np.float32) for n, a in shared_of(module).items()
    }
    before = score(module, data.x[:45], data.y[:45])
    report = merged(module, incoming, data)
    after = score(module, data.x[:45], data.y[:45])
    assert (report.loss_before, report.loss_after) == (before.loss, after.loss)
    assert after.loss <= before.loss * 1.05
    assert after.accuracy >= before.accuracy - SETTINGS.merge_max_drop
    assert report.accepted == (report.alpha > 0)


@pytest.mark.parametrize("astray", [True, False])
def test_the_refit_starts_from_the_fast_level_that_fits_better(
    make_model: MakeModel, make_samples: MakeSamples, astray: bool
) -> None:
    """With no refit and nothing new, a model that learned wrong labels is again what it was when it accepted."""
    data, settings = make_samples(105, seed=3), LearningSettings(batch_size=16, refit_steps=0, merge_tolerance=1e9)
    module, holdout, train = make_model(), Samples(x=data.x[:45], y=data.y[:45]), Samples(x=data.x[45:], y=data.y[45:])
    if astray:
        trained(module, train)
    learner = NestedLearner(module, spec=default_spec(), settings=SETTINGS, generator=torch.Generator().manual_seed(2))
    learner.accept()
    then, published = state_of(module), shared_of(module)
    y = (train.y + 1) % 3 if astray else train.y
    micro_update(learner, train.x, y, prior=label_prior(y, num_classes=3), epochs=3)
    learnt = state_of(module)
    report = merge(
        module,
        incoming=published if astray else shared_of(module),
        schema=schema_of(module, default_spec()),
        holdout=holdout,
        train=train,
        settings=replace(settings, merge_max_drop=1.0),
        generator=torch.Generator().manual_seed(7),
        fast=learner.rested(),
    )
    assert report.accepted
    expected = then if astray else learnt
    assert all(array.tobytes() == expected[name].tobytes() for name, array in state_of(module).items())


def test_the_same_generator_gives_the_same_bytes(make_model: MakeModel, make_samples: MakeSamples) -> None:
    teacher, data = trained(make_model(3), make_samples(100, seed=3)), make_samples(145, seed=4)
    modules = [trained(make_model(1), make_samples(40, seed=5)) for _ in range(2)]
    reports = [merged(module, shared_of(teacher), data) for module in modules]
    assert reports[0] == reports[1]
    one, two = (state_of(module) for module in modules)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_only_exactly_the_shared_tensors_are_merged(make_model: MakeModel, make_samples: MakeSamples) -> None:
    """A version that carries somebody's private head must not reach the owner's."""
    module, data = make_model(), make_samples(100)
    shared, before = shared_of(module), state_of(module)
    wrong: list[dict[str, np.ndarray]] = [
        {**shared, "private.weight": np.ones((3, 64), np.float32)},
        {name: array for name, array in shared.items() if name != "head.bias"},
        {**shared, "head.bias": np.ones(4, np.float32)},
    ]
    for incoming in wrong:
        with pytest.raises(SchemaError, match=r"private\.weight|head\.bias"):
            merged(module, incoming, data)
    assert all(np.array_equal(array, before[name]) for name, array in state_of(module).items())


def test_a_merge_without_judges_is_refused(make_model: MakeModel, make_samples: MakeSamples) -> None:
    module = make_model()
    with pytest.raises(LearningError, match="holdout"):
        merged(module, shared_of(module), make_samples(45))
