from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nfl_core.errors import LearningError, SchemaError
from nfl_core.learning import (
    LearningSettings,
    NestedLearner,
    NestedModel,
    Samples,
    default_spec,
    deviation_scales,
    displacement,
    joint_loss,
    label_prior,
    micro_update,
    schema_of,
    score,
    state_of,
)
from nfl_core.levels import Level, NestedSpec, Scope

MakeModel = Callable[..., NestedModel]
MakeSamples = Callable[..., Samples]
PRIOR = torch.zeros(3)


def learner_of(module: NestedModel, seed: int = 0, rate: float = 0.05) -> NestedLearner:
    settings = LearningSettings(learning_rate=rate, batch_size=16, epochs_per_update=3)
    return NestedLearner(module, spec=default_spec(), settings=settings, generator=torch.Generator().manual_seed(seed))


def test_a_micro_update_learns(make_model: MakeModel, make_samples: MakeSamples) -> None:
    module, data, fresh = make_model(), make_samples(100), make_samples(100, seed=1)
    report = micro_update(
        learner_of(module),
        data.x,
        data.y,
        prior=label_prior(data.y, num_classes=3),
        cpu_clock=iter([1.0, 3.5]).__next__,
    )
    assert report.num_steps == 3 * 7  # 100 samples make six batches of 16 and one of 4
    assert report.cpu_s == 2.5
    assert report.loss_after < 0.7 * report.loss_before
    assert score(module, fresh.x, fresh.y).accuracy > 0.8


def test_an_update_leaves_no_open_chunk(make_model: MakeModel, make_samples: MakeSamples) -> None:
    """Ten batches are two chunks of four and a part; without the flush the part would be missing in the delta."""
    data, module = make_samples(80), make_model()
    spec = NestedSpec.of([Level(name="slow", params=("*",), scope=Scope.GLOBAL, period=4)])
    settings = LearningSettings(batch_size=8, epochs_per_update=1, refit_steps=0)
    learner = NestedLearner(module, spec=spec, settings=settings, generator=torch.Generator().manual_seed(0))
    assert micro_update(learner, data.x, data.y, prior=PRIOR).num_steps == 10
    assert learner.clock.gathered("slow") == 0
    assert not any(np.any(array) for array in learner.state_dict().arrays.values())
    before = state_of(module)
    learner.flush()
    assert all(np.array_equal(before[name], array) for name, array in state_of(module).items())


def test_the_closing_refit_moves_the_private_head_alone(make_model: MakeModel, make_samples: MakeSamples) -> None:
    data, states = make_samples(50), []
    for steps in (0, 10):
        module = make_model()
        report = micro_update(learner_of(module), data.x, data.y, prior=PRIOR, refit_steps=steps)
        states.append(state_of(module))
        assert report.num_steps == 3 * 4
    different = {name for name in states[0] if not np.array_equal(states[0][name], states[1][name])}
    assert different == {"private.weight", "private.bias"}


def test_the_same_seed_gives_the_same_bytes(make_model: MakeModel, make_samples: MakeSamples) -> None:
    data, states = make_samples(50), []
    for seed in (3, 3, 4):
        module = make_model()
        micro_update(learner_of(module, seed), data.x, data.y, prior=PRIOR)
        states.append(state_of(module))
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])
    assert any(states[0][name].tobytes() != states[2][name].tobytes() for name in states[0])


def test_private_tensors_never_appear_in_a_displacement(make_model: MakeModel, make_samples: MakeSamples) -> None:
    module, data = make_model(), make_samples(50)
    schema, accepted = schema_of(module, default_spec()), state_of(module)
    micro_update(learner_of(module), data.x, data.y, prior=PRIOR)
    current = state_of(module)
    assert np.any(current["private.weight"])
    moved = displacement(accepted, current, schema)
    assert [name for name in moved if name.startswith("private.")] == []
    assert list(moved) == [tensor.name for tensor in schema.shared]
    assert all(np.array_equal(moved[name], current[name] - accepted[name]) and np.any(moved[name]) for name in moved)


def test_a_state_without_a_shared_tensor_has_no_displacement(make_model: MakeModel) -> None:
    module = make_model()
    state = state_of(module)
    for broken in (
        {**state, "head.bias": np.zeros(4, np.float32)},
        {k: v for k, v in state.items() if k != "head.bias"},
    ):
        with pytest.raises(SchemaError, match=r"head\.bias"):
            displacement(state, broken, schema_of(module, default_spec()))


@pytest.mark.parametrize(("num", "labels", "epochs"), [(0, 0, 1), (5, 4, 1), (5, 5, 0)])
def test_nothing_to_learn_from_is_refused(
    make_model: MakeModel, make_samples: MakeSamples, num: int, labels: int, epochs: int
) -> None:
    data = make_samples(5)
    with pytest.raises(LearningError, match="micro-update got"):
        micro_update(learner_of(make_model()), data.x[:num], data.y[:labels], prior=PRIOR, epochs=epochs)


def test_a_diverging_update_is_an_error_and_leaves_everything_as_it_was(
    make_model: MakeModel, make_samples: MakeSamples
) -> None:
    data, module = make_samples(50), make_model()
    learner = learner_of(module)
    weights, state = state_of(module), learner.state_dict()
    with pytest.raises(LearningError, match="the loss is nan") as caught:
        micro_update(learner, data.x * float("inf"), data.y, prior=PRIOR)
    assert "learning rate" in caught.value.hint
    assert all(np.array_equal(weights[name], array) for name, array in state_of(module).items())
    assert learner.state_dict().text == state.text


def test_weights_that_overflow_in_the_last_step_are_an_error_too(
    make_model: MakeModel, make_samples: MakeSamples
) -> None:
    """The loss is looked at before a step, so the last step needs a look of its own."""
    data, module = make_samples(50), make_model()
    learner = learner_of(module)
    learner.objective = lambda *batch: 1e3 * joint_loss(*batch)
    learner.pace({level.name: 1e39 for level in learner.spec.levels})
    weights, state = state_of(module), learner.state_dict()
    with pytest.raises(LearningError, match="is not finite after 1 steps"):
        micro_update(learner, data.x, data.y, prior=PRIOR, epochs=1, batch_size=50)
    assert all(np.array_equal(weights[name], array) for name, array in state_of(module).items())
    assert learner.state_dict().text == state.text


def test_scales_are_deviations_and_never_zero() -> None:
    moved = {"a": np.array([3.0, -4.0], np.float32), "b": np.zeros((2, 2), np.float32)}
    assert deviation_scales(moved, num_deviations=2.0) == pytest.approx((2 * 12.5**0.5, 1e-8))
