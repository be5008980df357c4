from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from nfl_core.errors import ConfigError, SchemaError, SpecError
from nfl_core.learning import NestedModel, create_model, default_spec, load_state, schema_of, small_cnn, state_of
from nfl_core.levels import Level, NestedSpec, Scope

Make = Callable[..., NestedModel]


def test_a_fresh_device_answers_like_the_fleet(make_model: Make) -> None:
    module = make_model()
    x = torch.randn(5, *module.input_shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(module(x), module.generic(module.features(x)))


def test_the_reference_model_is_about_48_thousand_parameters() -> None:
    module = small_cnn(10, (1, 28, 28))
    assert sum(p.numel() for p in module.parameters()) == 48_596
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("num_classes", "shape"), [(1, (1, 8, 8)), (3, (8, 8)), (3, (0, 8, 8))])
def test_a_shape_that_is_no_image_is_refused(num_classes: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="small-cnn got"):
        small_cnn(num_classes, shape)


def test_the_same_seed_makes_the_same_bytes_and_leaves_the_global_state_alone(make_model: Make) -> None:
    before = torch.random.get_rng_state()
    one, two, other = state_of(make_model(4)), state_of(make_model(4)), state_of(make_model(5))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert any(one[name].tobytes() != other[name].tobytes() for name in one)


def test_an_unknown_model_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ConfigError, match="small-cnn"):
        create_model("smal-cnn", num_classes=3, input_shape=(1, 8, 8), seed=0)


def test_schema_follows_the_default_levels(make_model: Make) -> None:
    schema = schema_of(make_model(), default_spec())
    scope = {tensor.name.split(".")[0]: tensor.scope for tensor in schema.tensors}
    assert scope == {"body": Scope.GLOBAL, "middle": Scope.REGION, "head": Scope.GLOBAL, "private": Scope.PRIVATE}
    assert [tensor.name for tensor in schema.tensors] == list(state_of(make_model()))


def test_a_spec_that_covers_a_parameter_not_at_all_or_twice_is_refused(make_model: Make) -> None:
    head = Level(name="a", params=("head.*",), scope=Scope.GLOBAL)
    with pytest.raises(SpecError, match="in no level"):
        schema_of(make_model(), NestedSpec.of([head]))
    with pytest.raises(SpecError, match="in levels a, b"):
        schema_of(make_model(), NestedSpec.of([head, Level(name="b", params=("*",), scope=Scope.GLOBAL)]))


def test_batch_norm_is_refused_because_its_statistics_would_travel_unseen() -> None:
    spec = NestedSpec.of([Level(name="all", params=("*",), scope=Scope.GLOBAL)])
    with pytest.raises(SchemaError, match="layer '1' is a BatchNorm1d"):
        schema_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), spec)
    with pytest.raises(SchemaError, match="float64"):
        schema_of(nn.Linear(2, 2, dtype=torch.float64), spec)


def test_state_is_a_copy_both_ways(make_model: Make) -> None:
    module = make_model()
    state = state_of(module)
    state["head.bias"][:] = 9
    assert not np.any(state_of(module)["head.bias"] == 9)
    state["head.bias"].flags.writeable = False  # as arrays read from a file may be
    load_state(module, state)
    state["head.bias"].flags.writeable = True
    state["head.bias"][:] = 8
    assert np.all(state_of(module)["head.bias"] == 9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"head.bios": np.zeros(3, np.float32)}, "unknown tensors"),
        ({"head.bias": np.zeros(4, np.float32)}, "expected float32"),
        ({"head.bias": np.zeros(3, np.float64)}, "expected float32"),
    ],
)
def test_a_wrong_state_is_refused_and_nothing_is_written(
    make_model: Make, change: dict[str, np.ndarray], match: str
) -> None:
    module = make_model(1)
    before = state_of(module)
    with pytest.raises(SchemaError, match=match):
        load_state(module, {**state_of(make_model(2)), **change})
    assert all(np.array_equal(before[name], array) for name, array in state_of(module).items())


def test_a_partial_state_must_be_asked_for(make_model: Make) -> None:
    module = make_model()
    part = {"head.bias": np.ones(3, np.float32)}
    with pytest.raises(SchemaError, match="lacks"):
        load_state(module, part)
    load_state(module, part, partial=True)
    assert np.all(state_of(module)["head.bias"] == 1)
