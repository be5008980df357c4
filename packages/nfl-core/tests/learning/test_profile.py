from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nfl_core.errors import ConfigError, DeltaError, SpecError
from nfl_core.learning import LearningSettings, ModelError, NestedModel, WrappedModel, default_spec, state_of
from nfl_core.learning.profile import load_model, profile_model
from nfl_core.levels import Level, NestedSpec, Scope

SETTINGS = LearningSettings(learning_rate=0.05, batch_size=8)
NETWORK = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))

def make_of(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def with_batch_norm():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))

def nothing():
    return 3

def broken():
    raise RuntimeError("no weights")
"""


@pytest.fixture
def network(tmp_path: Path) -> str:
    (tmp_path / "network.py").write_text(NETWORK)
    return f"{tmp_path}/network.py"


def levels_of(**slow: object) -> NestedSpec:
    return NestedSpec.of(
        [
            Level(name="reflex", params=("private.*",), scope=Scope.PRIVATE),
            Level.model_validate({"name": "fleet", "params": ("[!p]*",), "scope": "global"} | slow),
        ]
    )


def test_a_profile_counts_what_is_sent_and_kept(make_model: Callable[..., NestedModel]) -> None:
    model = make_model()
    num = {name: array.size for name, array in state_of(model).items()}
    shared = sum(size for name, size in num.items() if not name.startswith("private."))
    spec = levels_of(optimizer="adam", period=4, sync_every=2, learning_rate=0.001, prox=0.1)
    profile = profile_model(model, spec, settings=SETTINGS, bits=2, max_batch=32)
    reflex, fleet = profile.levels
    assert profile.private == ("private.weight", "private.bias")
    assert (reflex.num_parameters, fleet.num_parameters) == (sum(num.values()) - shared, shared)
    assert profile.num_parameters == sum(num.values())
    assert reflex.share + fleet.share == pytest.approx(1)
    assert (reflex.bytes_up_fp32, reflex.bytes_up_sealed) == (0, 0)
    assert profile.modulus_bits == 7
    assert (fleet.bytes_up_fp32, fleet.bytes_up_sealed) == (4 * shared, -(-7 * shared // 8))
    assert profile.bytes_up_fp32 == 2 * shared, "every second version"
    # Two moments, the open chunk and the anchors, each as large as the level; and a count for each tensor.
    assert fleet.memory_bytes == 4 * (4 * shared + fleet.num_tensors)
    assert reflex.memory_bytes == 4 * reflex.num_parameters, "its state when the last version was accepted"
    assert 0 < profile.step_ms < 10_000
    assert profile.advice == ()


@pytest.mark.parametrize(
    ("spec", "note"),
    [
        (levels_of(learning_rate=0.0), "'fleet' stands still"),
        (levels_of(optimizer="m3"), "0.0001 is usual for m3"),
        (NestedSpec.of([Level(name="all", params=("*",), scope=Scope.GLOBAL)]), "nothing is private"),
        (NestedSpec.of([Level(name="all", params=("*",), scope=Scope.PRIVATE)]), "nothing is shared"),
        (
            NestedSpec.of(
                [
                    Level(name="wide", params=("private.*", "head.*"), scope=Scope.GLOBAL),
                    Level(name="narrow", params=("body.*", "middle.*"), scope=Scope.PRIVATE),
                ]
            ),
            "yet fewer share it",
        ),
    ],
)
def test_a_profile_notes_what_is_seldom_meant(
    make_model: Callable[..., NestedModel], spec: NestedSpec, note: str
) -> None:
    notes = profile_model(make_model(), spec, settings=SETTINGS, bits=2, max_batch=32).advice
    assert len(notes) == 1
    assert note in notes[0]


def test_what_does_not_fit_is_refused(make_model: Callable[..., NestedModel]) -> None:
    with pytest.raises(SpecError, match="in no level"):
        profile_model(make_model(), NestedSpec.of(levels_of().levels[:1]), settings=SETTINGS, bits=2, max_batch=32)
    with pytest.raises(DeltaError, match="expected at most 32"):
        profile_model(make_model(), default_spec(), settings=SETTINGS, bits=16, max_batch=2**20)


def test_a_factory_in_a_file_may_take_the_shape_or_nothing(network: str) -> None:
    assert load_model("small-cnn", num_classes=3, input_shape=(1, 8, 8)).num_classes == 3
    for factory, num_classes in (("make", 3), ("make_of", 5)):
        model = load_model(f"{network}:{factory}", num_classes=5, input_shape=(1, 8, 8))
        assert isinstance(model, WrappedModel)
        assert model.num_classes == num_classes
    before = torch.random.get_rng_state()
    states = [state_of(load_model(f"{network}:make", num_classes=3, input_shape=(1, 8, 8), seed=s)) for s in (1, 1, 2)]
    one, two, other = (state["1.weight"].tobytes() for state in states)
    assert one == two != other
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{}:with_batch_norm", "layer '1' is a BatchNorm1d"),
        ("{}:nothing", "returns a int"),
        ("{}:broken", "fails: RuntimeError: no weights"),
        ("{}:none", "has no function 'none'"),
        ("{}.py:make", "there is no file"),
        ("smal-cnn", "is not installed"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused(network: str, reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(reference.format(network), num_classes=3, input_shape=(1, 8, 8))
    assert issubclass(ModelError, ConfigError)


def test_a_file_that_does_not_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_at_all")
    with pytest.raises(ConfigError, match="cannot be run: ModuleNotFoundError"):
        load_model(f"{tmp_path}/broken.py:make", num_classes=3, input_shape=(1, 8, 8))
