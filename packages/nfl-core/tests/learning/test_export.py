from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from nfl_core.errors import LearningError
from nfl_core.learning import NestedModel, create_model, default_spec, export_graph, load_state, schema_of, state_of
from nfl_core.levels import Level, NestedSpec, Scope

ATOL = 1e-5  # two implementations of the same float32 sums over at most 512 products


@pytest.fixture(scope="module")
def learned() -> NestedModel:
    """A model whose every parameter differs from its start and from zero."""
    module = create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return module


@pytest.fixture(scope="module")
def graph(learned: NestedModel) -> bytes:
    return export_graph(learned, schema_of(learned, default_spec()))


class Engine:
    """A session as a device makes it; keeps alive what onnxruntime only points to."""

    def __init__(self, graph: bytes, module: NestedModel, level: ort.GraphOptimizationLevel) -> None:
        schema, state = schema_of(module, default_spec()), state_of(module)
        self.shared = {tensor.name: state[tensor.name] for tensor in schema.shared}
        self.private = {tensor.name: state[tensor.name] for tensor in schema.private}
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.shared.values()]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        options.add_external_initializers(list(self.shared), self.values)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, x: Tensor, private: dict[str, np.ndarray] | None = None) -> list[np.ndarray]:
        feed = {"x": x.numpy(), **(self.private if private is None else private)}
        outputs: list[np.ndarray] = self.session.run(["logits", "features"], feed)
        return outputs


@pytest.fixture(params=["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def engine(request: pytest.FixtureRequest, graph: bytes, learned: NestedModel) -> Iterator[Engine]:
    return Engine(graph, learned, getattr(ort.GraphOptimizationLevel, request.param))


@pytest.mark.parametrize("num", [1, 7])
def test_the_graph_answers_like_torch_at_every_optimisation_level(
    engine: Engine, learned: NestedModel, num: int
) -> None:
    x = torch.rand(num, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    logits, features = engine(x)
    with torch.no_grad():
        np.testing.assert_allclose(logits, learned(x).numpy(), atol=ATOL)
        np.testing.assert_allclose(features, learned.features(x).numpy(), atol=ATOL)
    assert np.abs(logits).max() > 0.1


def test_private_levels_are_swapped_between_runs_and_zero_when_not_fed(engine: Engine, learned: NestedModel) -> None:
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    assert {value.name for value in engine.session.get_overridable_initializers()} == {"private.weight", "private.bias"}
    with torch.no_grad():
        generic = learned.generic(learned.features(x)).numpy()
    np.testing.assert_allclose(engine(x, private={})[0], generic, atol=ATOL)
    other = {"private.weight": np.zeros((10, 64), np.float32), "private.bias": np.full(10, 2, np.float32)}
    np.testing.assert_allclose(engine(x, private=other)[0], generic + 2, atol=ATOL)


def test_the_bytes_are_the_same_for_every_version(graph: bytes, learned: NestedModel) -> None:
    fresh = create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=2)
    assert export_graph(fresh, schema_of(fresh, default_spec())) == graph
    before = {name: array.copy() for name, array in state_of(learned).items()}
    assert all(np.array_equal(array, before[name]) for name, array in state_of(learned).items())


def test_the_graph_holds_no_weight_and_no_trace_of_where_it_was_made(graph: bytes, learned: NestedModel) -> None:
    assert len(graph) < 20_000  # the weights alone are 194 kB
    assert b".py" not in graph
    assert b"/" not in graph.replace(b"\x00", b"")[:2000] or b"home" not in graph
    model = onnx.load_from_string(graph)
    schema = schema_of(learned, default_spec())
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    assert set(held) == {tensor.name for tensor in schema.tensors}
    for tensor in schema.shared:
        assert held[tensor.name].data_location == onnx.TensorProto.EXTERNAL
        assert not held[tensor.name].raw_data
    for tensor in schema.private:
        assert not np.any(onnx.numpy_helper.to_array(held[tensor.name]))
    assert [value.name for value in model.graph.input] == ["x", *(tensor.name for tensor in schema.private)]


def test_a_session_without_the_shared_levels_refuses_to_load(graph: bytes) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="External data"):
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def test_values_under_the_runtime_are_aliased_so_whoever_feeds_it_must_own_copies(learned: NestedModel) -> None:
    """Pins the hazard that the module's notes warn of; when this fails, the notes are out of date."""
    array = state_of(learned)["head.bias"]
    value = ort.OrtValue.ortvalue_from_numpy(array)
    array[:] = 7
    assert float(value.numpy()[0]) == 7


def test_another_split_of_levels_gives_other_overridable_inputs(learned: NestedModel) -> None:
    spec = NestedSpec.of(
        [
            Level(name="own", params=("private.*", "head.*"), scope=Scope.PRIVATE),
            Level(name="fleet", params=("body.*", "middle.*"), scope=Scope.GLOBAL),
        ]
    )
    model = onnx.load_from_string(export_graph(learned, schema_of(learned, spec)))
    assert {value.name for value in model.graph.input} == {
        "x", "head.weight", "head.bias", "private.weight", "private.bias",
    }  # fmt: skip


class Wasteful(NestedModel):
    """Owns a parameter that no answer depends on: the exporter drops it, and a device would miss it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.input_shape = 2, (4,)
        self.head, self.private, self.spare = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)

    def features(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW

    def generic(self, z_BD: Tensor) -> Tensor:
        logits: Tensor = self.head(z_BD)
        return logits


class Branching(Wasteful):
    def features(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW if float(x_BCHW.sum()) > 0 else -x_BCHW


@pytest.mark.parametrize(("kind", "match"), [(Wasteful, "lost parameter"), (Branching, "cannot be exported")])
def test_a_model_that_cannot_be_exported_whole_is_refused(kind: type[NestedModel], match: str) -> None:
    module = kind()
    spec = NestedSpec.of([Level(name="all", params=("*",), scope=Scope.GLOBAL)])
    with pytest.raises(LearningError, match=match):
        export_graph(module, schema_of(module, spec))


def test_load_state_reaches_the_graph_through_the_names(graph: bytes, learned: NestedModel) -> None:
    """A bundle carries tensors by name; the names of torch are the names of the graph."""
    twin = create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=8)
    load_state(twin, state_of(learned))
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(5))
    one = Engine(graph, learned, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)(x)
    two = Engine(graph, twin, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)(x)
    assert np.array_equal(one[0], two[0])
