"""What the learner remembers, survives and refuses; its laws stand in test_laws.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from nfl_core.errors import LearningError, NotFoundError, SpecError
from nfl_core.learning import (
    LearnerState,
    LearningSettings,
    NestedLearner,
    NestedModel,
    Samples,
    load_state,
    state_of,
)
from nfl_core.learning.optim import OPTIMIZERS
from nfl_core.levels import Level, NestedSpec, Scope

MakeModel = Callable[..., NestedModel]
MakeSamples = Callable[..., Samples]
PRIOR = torch.full((3,), 1 / 3).log()


def spec_of(*periods: int, slow: dict[str, object] | None = None) -> NestedSpec:
    rooms = (("private.*",), ("middle.*",), ("body.*", "head.*"))
    scopes = (Scope.PRIVATE, Scope.REGION, Scope.GLOBAL)
    names = ("reflex", "skill", "concept")
    levels = [
        Level(name=n, params=r, scope=s, period=p) for n, r, s, p in zip(names, rooms, scopes, periods, strict=True)
    ]
    return NestedSpec.of([*levels[:2], levels[2].model_copy(update=slow or {})])


def learner_of(module: NestedModel, spec: NestedSpec, seed: int = 0) -> NestedLearner:
    settings = LearningSettings(learning_rate=0.05, batch_size=8)
    return NestedLearner(module, spec=spec, settings=settings, generator=torch.Generator().manual_seed(seed))


def observe(learner: NestedLearner, batches: Sequence[Samples]) -> None:
    for batch in batches:
        learner.observe(batch.x, batch.y, prior=PRIOR)


def same(one: NestedModel, two: NestedModel) -> bool:
    a, b = state_of(one), state_of(two)
    return all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_a_flush_without_an_open_chunk_changes_nothing(make_model: MakeModel, make_samples: MakeSamples) -> None:
    module, twin = make_model(), make_model()
    observe(learner := learner_of(module, spec_of(1, 2, 2)), [make_samples(8, 1), make_samples(8, 2)])
    observe(learner_of(twin, spec_of(1, 2, 2)), [make_samples(8, 1), make_samples(8, 2)])
    learner.flush()
    learner.flush()
    assert same(module, twin)


def test_reduce_mean_divides_by_what_was_gathered(make_model: MakeModel, make_samples: MakeSamples) -> None:
    batch = make_samples(8)
    moved = {}
    for reduce in ("sum", "mean"):
        module = make_model()
        before = state_of(module)["head.weight"]
        learner = learner_of(module, spec_of(4, 4, 4, slow={"reduce": reduce}))
        observe(learner, [batch, batch, batch])
        learner.flush()
        moved[reduce] = state_of(module)["head.weight"] - before
    # The parameters stand still within a chunk, so three equal batches give three equal gradients.
    np.testing.assert_allclose(moved["sum"], 3 * moved["mean"], atol=1e-6)
    assert np.abs(moved["mean"]).max() > 1e-4


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_device_that_is_rebooted_after_any_step_ends_at_the_same_bytes(
    make_model: MakeModel, make_samples: MakeSamples, optimizer: str
) -> None:
    """Cut after every batch, merge and flush: a new object that loads what was saved goes on as if nothing had been."""
    rule = {"optimizer": optimizer, "learning_rate": 0.001}
    spec = NestedSpec.of(
        level.model_copy(update=rule | ({} if level.scope is Scope.PRIVATE else {"state": "rescale", "prox": 0.1}))
        for level in spec_of(1, 2, 4).levels
    )
    batches = [make_samples(8, seed) for seed in range(3)]

    def learn(learner: NestedLearner) -> None:
        batch = batches[int(torch.randint(3, (), generator=learner.generator))]
        learner.observe(batch.x, batch.y, prior=PRIOR)

    # The twelfth batch is beyond the tenth step, at which the slow momentum of m3 turns.
    actions = [*[learn] * 5, lambda one: one.accept(alpha=0.5), *[learn] * 5, NestedLearner.flush, *[learn] * 2]
    learner = learner_of(make_model(), spec, seed=5)
    saved = []
    for action in actions:
        saved.append((learner.state_dict(), state_of(learner.module)))
        action(learner)
    for place, (state, weights) in enumerate(saved):
        rebooted = learner_of(make_model(seed=9), spec, seed=6)
        load_state(rebooted.module, weights)
        rebooted.load_state_dict(state)
        for action in actions[place:]:
            action(rebooted)
        assert same(learner.module, rebooted.module), place
        one, two = learner.state_dict(), rebooted.state_dict()
        assert one.text == two.text
        assert all(one.arrays[name].tobytes() == two.arrays[name].tobytes() for name in one.arrays)


def test_the_state_can_be_written_as_a_tensor_file(make_model: MakeModel, make_samples: MakeSamples) -> None:
    from nfl_core.tensors import read_tensors, write_tensors

    learner = learner_of(make_model(), spec_of(1, 1, 4, slow={"optimizer": "adam"}))
    observe(learner, [make_samples(8)])
    state = learner.state_dict()
    back = read_tensors(write_tensors(state.arrays), None, max_bytes=10_000_000)
    assert set(back) == set(state.arrays)
    assert any(name.startswith("sum.body.") for name in back)
    assert any(name.startswith("memory.second.head.") for name in back)
    assert len(state.text) < 10_000


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"clock": 3, "generator": ""}', "cannot be read"),
        ('{"clock": {"ticks": 1}, "generator": "AAAA"}', "counters"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(
    make_model: MakeModel, make_samples: MakeSamples, text: str, match: str
) -> None:
    learner = learner_of(make_model(), spec_of(1, 1, 4))
    observe(learner, [make_samples(8)])
    state = learner.state_dict()
    with pytest.raises(LearningError, match=match):
        learner.load_state_dict(LearnerState(arrays=state.arrays, text=text))
    cut = state.text.replace('"generator": "', '"generator": "AAAA')
    with pytest.raises(LearningError, match="generator"):
        learner.load_state_dict(LearnerState(arrays=state.arrays, text=cut))
    assert learner.state_dict().text == state.text


def test_a_state_of_another_spec_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(LearningError, match="differs in"):
        learner_of(make_model(), spec_of(1, 1, 1)).load_state_dict(
            learner_of(make_model(), spec_of(1, 1, 4)).state_dict()
        )
    state = learner_of(make_model(), spec_of(1, 1, 4)).state_dict()
    arrays = {**state.arrays, "sum.head.bias": np.zeros(4, np.float32)}
    with pytest.raises(LearningError, match=r"sum\.head\.bias"):
        learner_of(make_model(), spec_of(1, 1, 4)).load_state_dict(LearnerState(arrays=arrays, text=state.text))


def test_the_proximal_term_pulls_towards_the_accepted_weights(make_model: MakeModel, make_samples: MakeSamples) -> None:
    batches = [make_samples(8, seed) for seed in range(12)]
    distances = []
    for prox in (0.0, 1.0, 8.0):
        module = make_model()
        start = state_of(module)["head.weight"]
        observe(learner_of(module, spec_of(1, 1, 1, slow={"prox": prox})), batches)
        distances.append(float(np.linalg.norm(state_of(module)["head.weight"] - start)))
    assert all(far > 1.2 * near for far, near in pairwise(distances))


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("policy", ["keep", "reset", "rescale"])
def test_a_merge_treats_memory_as_the_level_says(
    make_model: MakeModel, make_samples: MakeSamples, policy: str, optimizer: str
) -> None:
    rule = {"optimizer": optimizer, "learning_rate": 0.001, "state": policy}
    module = make_model()
    learner = learner_of(module, NestedSpec.of(v.model_copy(update=rule) for v in spec_of(1, 1, 1).levels))
    fresh = learner.state_dict().arrays
    observe(learner, [make_samples(8, seed) for seed in range(11)])
    before = learner.state_dict().arrays
    learner.accept(alpha=0.75)
    directions = {f"memory.{slot}" for slot in OPTIMIZERS[optimizer]().directions}
    after = learner.state_dict().arrays
    for name, array in after.items():
        if name.startswith("rested."):  # how the private level was when the version was accepted: as it is now
            np.testing.assert_array_equal(array, state_of(module)[name.removeprefix("rested.")])
            continue
        is_direction = any(name.startswith(f"{direction}.") for direction in directions)
        is_private = ".private." in name  # a merge is no business of a private level
        share = 0.25 if policy == "rescale" and is_direction and not is_private else 1.0
        expected = fresh[name] if policy == "reset" and not is_private else before[name] * np.float32(share)
        np.testing.assert_array_equal(array, expected, err_msg=name)
    assert all(np.any(before[name]) for name in before if ".head." in name)


def test_after_a_merge_chunks_restart(make_model: MakeModel, make_samples: MakeSamples) -> None:
    module = make_model()
    learner = learner_of(module, spec_of(1, 1, 4))
    observe(learner, [make_samples(8)])
    learner.accept()
    before = state_of(module)
    assert not any(np.any(a) for name, a in learner.state_dict().arrays.items() if name.startswith("sum."))
    observe(learner, [make_samples(8, seed) for seed in range(3)])
    assert np.array_equal(before["head.bias"], state_of(module)["head.bias"])
    observe(learner, [make_samples(8)])
    assert not np.array_equal(before["head.bias"], state_of(module)["head.bias"])


def test_a_level_that_stands_still_costs_nothing_and_moves_nothing(
    make_model: MakeModel, make_samples: MakeSamples
) -> None:
    still = {"learning_rate": 0.0, "optimizer": "adam", "prox": 0.1, "state": "reset", "period": 4}
    model = make_model()
    for name in ("body.0.weight", "head.bias"):
        model.get_parameter(name).requires_grad_(requires_grad=False)  # a frozen parameter may be in such a level
    learner = learner_of(model, spec_of(1, 1, 4, slow=still))
    before = state_of(model)
    observe(learner, [make_samples(8, seed) for seed in range(5)])
    learner.accept()
    learner.flush()
    now = state_of(model)
    moved = {name.split(".")[0] for name in now if not np.array_equal(now[name], before[name])}
    assert moved == {"private", "middle"}
    assert {name.split(".")[0] for name in learner.state_dict().arrays} == {"rested"}
    learner.hold("skill")
    with pytest.raises(LearningError, match="all levels are held"):
        learner.hold("skill", "reflex")


def test_what_cannot_learn_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    model.get_parameter("body.0.bias").requires_grad_(requires_grad=False)
    with pytest.raises(SpecError, match=r"'body\.0\.bias' is frozen") as caught:
        learner_of(model, spec_of(1, 1, 1))
    assert "learning_rate = 0" in caught.value.hint
    all_still = NestedSpec.of(v.model_copy(update={"learning_rate": 0.0}) for v in spec_of(1, 1, 1).levels)
    with pytest.raises(SpecError, match="all levels have learning rate 0"):
        learner_of(make_model(), all_still)


def test_a_held_level_keeps_its_open_chunk(make_model: MakeModel, make_samples: MakeSamples) -> None:
    """Held between its batches or not at all, a slow level steps on the same sum."""
    moved = []
    for held in (False, True):
        model = make_model()
        learner = learner_of(model, spec_of(4, 4, 4))
        observe(learner, [make_samples(8, 1), make_samples(8, 2)])
        if held:
            learner.hold("concept")
            learner.flush("concept")
            observe(learner, [make_samples(8, 9)])
            assert learner.clock.gathered("concept") == 2
            learner.hold()
        learner.flush("concept")
        assert learner.clock.gathered("concept") == 0
        moved.append(state_of(model)["body.0.weight"])
    assert np.array_equal(*moved)
    assert not np.array_equal(moved[0], state_of(make_model())["body.0.weight"])
    with pytest.raises(NotFoundError, match="no level 'fast'"):
        learner.flush("fast")


def test_a_pace_stretches_the_steps_of_a_level(make_model: MakeModel, make_samples: MakeSamples) -> None:
    moved = []
    for factors in ({}, {"concept": 2.0}):
        model = make_model()
        learner = learner_of(model, spec_of(1, 1, 1))
        learner.pace(factors)
        observe(learner, [make_samples(8)])
        moved.append({name: array - state_of(make_model())[name] for name, array in state_of(model).items()})
    np.testing.assert_allclose(moved[1]["head.weight"], 2 * moved[0]["head.weight"], atol=1e-6)  # weights below 1
    assert np.array_equal(moved[0]["private.weight"], moved[1]["private.weight"])
    with pytest.raises(NotFoundError, match="no level 'fast'"):
        learner.pace({"fast": 1.0})
    for factor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(LearningError, match="expected a finite number"):
            learner.pace({"concept": factor})


BAD_BATCHES: dict[str, tuple[Callable[[Samples], tuple[torch.Tensor, torch.Tensor]], str]] = {
    "empty": (lambda s: (s.x[:0], s.y[:0]), "0 inputs and 0 labels"),
    "other many": (lambda s: (s.x, s.y[:-1]), "8 inputs and 7 labels"),
    "nan": (lambda s: (s.x * float("nan"), s.y), "the loss is nan"),
    "infinite": (lambda s: (s.x * float("inf"), s.y), "the loss is nan"),
    "another shape": (lambda s: (s.x[:, :, :4], s.y), r"expected torch.float32\[B, \*\[1, 8, 8\]\]"),
    "another type": (lambda s: (s.x.double(), s.y), "inputs are torch.float64"),
    "labels of another type": (lambda s: (s.x, s.y.float()), "labels are torch.float32"),
    "labels in columns": (lambda s: (s.x, s.y[:, None]), r"labels are torch.int64\[8, 1\]"),
    "a label too high": (lambda s: (s.x, s.y + 1), "labels are 1 to 3, expected 0 to 2"),
    "a negative label": (lambda s: (s.x, s.y - 100), "labels are -100 to -98, expected 0 to 2"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_a_batch_that_cannot_be_learned_from_is_refused_and_changes_nothing(
    make_model: MakeModel,
    make_samples: MakeSamples,
    spoil: Callable[[Samples], tuple[torch.Tensor, torch.Tensor]],
    message: str,
) -> None:
    model = make_model()
    learner = learner_of(model, spec_of(1, 2, 4, slow={"optimizer": "adam", "learning_rate": 0.001}))
    observe(learner, [make_samples(8, 1)])
    weights, state = state_of(model), learner.state_dict()
    x, y = spoil(make_samples(8, 4))
    with pytest.raises(LearningError, match=message):
        learner.observe(x, y, prior=PRIOR)
    now = learner.state_dict()
    assert all(np.array_equal(weights[name], array) for name, array in state_of(model).items())
    assert now.text == state.text
    assert all(np.array_equal(now.arrays[name], array) for name, array in state.arrays.items())
