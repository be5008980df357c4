"""Laws of nested learning, bit for bit where the arithmetic allows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from nfl_core.errors import LearningError
from nfl_core.learning import LearnerState, LearningSettings, NestedLearner, NestedModel, Samples, state_of
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


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_rebooted_device_resumes_in_mid_chunk_bit_for_bit(
    make_model: MakeModel, make_samples: MakeSamples, optimizer: str, cut: int
) -> None:
    spec = spec_of(1, 2, 4, slow={"optimizer": optimizer, "prox": 0.1})
    batches = [make_samples(8, seed) for seed in range(7)]
    straight = make_model()
    observe(learner := learner_of(straight, spec, seed=5), batches)
    learner.flush()

    first = make_model()
    observe(interrupted := learner_of(first, spec, seed=5), batches[:cut])
    saved, weights = interrupted.state_dict(), state_of(first)
    observe(interrupted, batches[cut:])  # what happens after saving must not reach the copy
    rebooted = make_model(seed=9)
    resumed = learner_of(rebooted, spec, seed=6)
    with torch.no_grad():
        for name, array in weights.items():
            rebooted.get_parameter(name).copy_(torch.from_numpy(array))
    resumed.load_state_dict(saved)
    observe(resumed, batches[cut:])
    resumed.flush()
    assert same(straight, rebooted)
    assert resumed.state_dict().text == learner.state_dict().text
    later = resumed.generator, learner.generator
    assert torch.equal(torch.rand(3, generator=later[0]), torch.rand(3, generator=later[1]))


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


@pytest.mark.parametrize(("policy", "share"), [("keep", 1.0), ("rescale", 0.25), ("reset", 0.0)])
def test_a_merge_treats_memory_as_the_level_says(
    make_model: MakeModel, make_samples: MakeSamples, policy: str, share: float
) -> None:
    learner = learner_of(make_model(), spec_of(1, 1, 1, slow={"optimizer": "momentum", "state": policy}))
    observe(learner, [make_samples(8)])
    before = learner.state_dict().arrays["memory.momentum.head.weight"]
    learner.accept(alpha=0.75)
    after = learner.state_dict().arrays["memory.momentum.head.weight"]
    assert np.abs(before).max() > 0
    np.testing.assert_array_equal(after, before * np.float32(share))


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
