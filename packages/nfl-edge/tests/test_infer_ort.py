from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import nfl_secure  # noqa: F401 - before grpc
from nfl_core.learning.model import load_state, state_of
from nfl_edge.errors import EngineError
from nfl_edge.infer import OrtEngine

from .world import SHAPE, graph, model


def parts(seed: int = 1, *, private: float = 0.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    module, schema = model(seed)
    state = state_of(module)
    shared = {tensor.name: state[tensor.name] for tensor in schema.shared}
    fast = {tensor.name: state[tensor.name] + np.float32(private) for tensor in schema.private}
    return shared, fast


def build(seed: int = 1, *, private: float = 0.0) -> OrtEngine:
    shared, fast = parts(seed, private=private)
    return OrtEngine.build(graph(), shared=shared, private=fast, input_shape=SHAPE)


def inputs(num: int = 5) -> np.ndarray:
    return np.random.default_rng(2).random((num, *SHAPE), dtype=np.float32)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_engine_answers_like_the_module(seed: int) -> None:
    module, _ = model(seed)
    shared, fast = parts(seed, private=0.3)
    twin, _ = model(99)
    load_state(twin, {**state_of(module), **shared, **fast})
    with torch.inference_mode():
        expected = twin(torch.from_numpy(inputs())).numpy()
    outputs = OrtEngine.build(graph(), shared=shared, private=fast, input_shape=SHAPE).run(inputs())
    # float32 sums of a few hundred terms in another order
    np.testing.assert_allclose(outputs.logits_BK, expected, atol=1e-4)
    assert len(outputs.features_BD) == 5


def test_private_tensors_are_swapped_without_rebuilding() -> None:
    engine, other = build(private=0.0), build(private=0.5)
    before = engine.run(inputs()).logits_BK
    engine.swap_private(parts(private=0.5)[1])
    after = engine.run(inputs()).logits_BK
    assert not np.allclose(before, after)
    np.testing.assert_array_equal(after, other.run(inputs()).logits_BK)


def test_nobody_can_change_the_tensors_of_an_engine_from_outside() -> None:
    shared, fast = parts(private=0.3)
    engine = OrtEngine.build(graph(), shared=shared, private=fast, input_shape=SHAPE)
    before = engine.run(inputs()).logits_BK
    for array in (*shared.values(), *fast.values()):
        array[...] = 7.0  # what a trainer that updates in place would do
    del shared, fast
    junk = [np.full(50_000, 9.0, np.float32) for _ in range(50)]
    np.testing.assert_array_equal(engine.run(inputs()).logits_BK, before)
    assert junk


def test_tensors_that_do_not_fit_are_refused_when_they_enter() -> None:
    engine = build()
    _, fast = parts()
    name = next(iter(fast))
    before = engine.run(inputs()).logits_BK
    for bad in (
        {**fast, name: np.zeros((1, 1), np.float32)},
        {**fast, "extra": np.zeros(1, np.float32)},
        {key: value for key, value in fast.items() if key != name},
        {**fast, name: np.full_like(fast[name], np.nan)},
        {**fast, name: fast[name].astype(np.float64)},
    ):
        with pytest.raises(EngineError):
            engine.swap_private(bad)
    np.testing.assert_array_equal(engine.run(inputs()).logits_BK, before)


def test_a_graph_without_its_tensors_does_not_load() -> None:
    shared, fast = parts()
    missing = dict(list(shared.items())[1:])
    with pytest.raises(EngineError):
        OrtEngine.build(graph(), shared=missing, private=fast, input_shape=SHAPE)
    with pytest.raises(EngineError):
        OrtEngine.build(graph(), shared=shared, private={}, input_shape=SHAPE)
    with pytest.raises(EngineError, match="cannot be loaded"):
        OrtEngine.build(b"no graph", shared=shared, private=fast, input_shape=SHAPE)


def test_an_input_of_another_shape_is_an_error_of_ours() -> None:
    with pytest.raises(EngineError, match="cannot run"):
        build().run(np.zeros((1, 3, 5), np.float32))


def test_swapping_while_inferring_never_mixes_versions() -> None:
    engine = build(private=0.0)
    one, two = parts(private=0.0)[1], parts(private=0.5)[1]
    answers = [engine.run(inputs()).logits_BK]
    engine.swap_private(two)
    answers.append(engine.run(inputs()).logits_BK)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            engine.swap_private(one)
            engine.swap_private(two)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            got = engine.run(inputs()).logits_BK
            assert any(np.array_equal(got, answer) for answer in answers)
    finally:
        stop.set()
        thread.join()
