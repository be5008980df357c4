"""Who teaches and on what: files that cannot run code, or what an installed package offers."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from nfl_cluster.validate.data import MAX_SAMPLES_BYTES
from nfl_cluster.validate.gates import GraphError
from nfl_core.durable import read_file
from nfl_core.errors import ConfigError, TensorFileError
from nfl_core.learning import NestedModel, create_model, load_state, state_of
from nfl_core.learning.distil import Answer, InputShapeError, ModelTeacher, Teacher
from nfl_core.tensors import Array, read_tensors

TEACHERS_GROUP = "nfl.teachers"
MAX_TEACHER_BYTES = 4 * 1024**3
PRIVATE = "private."


class TeacherError(ConfigError):
    """A teacher is neither an installed one nor a file that can be run."""

    code = "distil.teacher"
    hint = "give an ONNX file with input `x` and output `logits`, a safetensors file with its model, or a name"


class ProxyError(ConfigError):
    """A file holds something else than proxy data."""

    code = "distil.proxy"
    hint = "a proxy file holds x, uint8 or float32 [N, ...], and may hold y, int64 [N], -1 where unknown"


class GraphTeacher:
    """An ONNX graph as a teacher: input `x`, output `logits`, and `features` where it has them.

    Args:
        graph: Serialised.
        tensors: Values that the graph names and does not hold.
        name: For messages.

    Raises:
        TeacherError: It is no graph, lacks tensors, or its inputs or outputs are not these.
    """

    def __init__(self, graph: bytes, tensors: dict[str, NDArray[np.float32]], *, name: str) -> None:
        _check_graph(graph, tensors, name=name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # The runtime keeps pointers to these, so they live as long as the session.
        self._arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._arrays.values()]
        options.add_external_initializers(list(self._arrays), self._values)
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no common parent
            raise TeacherError(f"{name} cannot be loaded: {str(error)[:200]}") from error
        inputs = {one.name: one.shape for one in self._session.get_inputs()}
        outputs = {one.name: one.shape for one in self._session.get_outputs()}
        shape, logits = inputs.get("x", []), outputs.get("logits", [])
        if set(inputs) != {"x"} or len(logits) != 2 or not all(isinstance(n, int) for n in (*shape[1:], logits[1])):
            raise TeacherError(
                f"{name} has inputs {inputs} and outputs {outputs}, expected x [batch, ...] and logits [batch, K]"
            )
        self._outputs = [one for one in ("logits", "features") if one in outputs]
        self._name, self.input_shape, self.num_classes = name, tuple(shape[1:]), int(logits[1])

    def answer(self, x: NDArray[np.float32]) -> Answer:
        """Answer about float32 [B, *input_shape]. Raises GraphError."""
        try:
            logits_BK, *shown = self._session.run(self._outputs, {"x": x})
        except Exception as error:  # the runtime's exceptions have no common parent
            raise GraphError(f"{self._name} cannot be run: {str(error)[:200]}") from error
        return Answer(logits_NK=logits_BK, features_ND=shown[0].reshape(len(x), -1) if shown else None)


def open_teacher(
    reference: str, *, model: str, graph: Path | None, num_classes: int, shape: tuple[int, ...]
) -> Teacher:
    """Return the teacher of that name or file.

    Args:
        reference: An `.onnx` file, a `.safetensors` file, or an entry point.
        model: Of the tensors of a `.safetensors` file.
        graph: Run with these tensors instead of the model.
        num_classes: Of what is not a graph.
        shape: Of one input of what is not a graph.

    Raises:
        TeacherError: It is neither installed nor a file that can be run.
        NotFoundError: A file is missing.
        TensorFileError: A file is no strict tensor file.
        SchemaError: Tensors are those of another model.
        ConfigError: The model is not installed.
    """
    path = Path(reference)
    if path.suffix == ".onnx":
        return GraphTeacher(read_file(path), {}, name=reference)
    if path.suffix == ".safetensors":
        if graph is not None:
            tensors = _float_tensors(path)
            shared = {name: array for name, array in tensors.items() if not name.startswith(PRIVATE)}
            return GraphTeacher(read_file(graph), shared, name=f"{graph} with {reference}")
        module = create_model(model, num_classes=num_classes, input_shape=shape, seed=0)
        load_state(module, weights_of(path, module), partial=True)
        return ModelTeacher(module)
    found = {point.name: point for point in entry_points(group=TEACHERS_GROUP)}
    if reference not in found:
        raise TeacherError(
            f"teacher {reference!r} is no .onnx or .safetensors file, and none of the installed {sorted(found)}"
        )
    teacher: Teacher = found[reference].load()(num_classes, shape)
    return teacher


def read_proxy(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Return x, float32 [N, ...] (bytes become 0 to 1), and y, int64 [N] with -1 where unknown, or None.

    Raises:
        NotFoundError: There is no such file.
        TensorFileError: It is no strict tensor file.
        ProxyError: It holds something else.
    """
    tensors = read_tensors(read_file(path), None, max_bytes=MAX_SAMPLES_BYTES)
    x, y = tensors.get("x"), tensors.get("y")
    if x is None or not set(tensors) <= {"x", "y"} or x.dtype not in (np.uint8, np.float32) or x.ndim < 2:
        held = {name: f"{array.dtype}{list(array.shape)}" for name, array in tensors.items()}
        raise ProxyError(f"{path} holds {held}, expected x, uint8 or float32 [N, ...], and perhaps y")
    if y is not None and (y.dtype != np.int64 or y.shape != (len(x),)):
        raise ProxyError(f"{path} holds y, {y.dtype}{list(y.shape)}, expected int64[{len(x)}]")
    scaled = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)
    return scaled, None if y is None else y.astype(np.int64)


def read_heldout(path: Path, *, input_shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return labelled samples, x float32 [N, *input_shape] and y int64 [N].

    Raises:
        InputShapeError: Inputs have another shape.
        ProxyError: A sample has no label.
        NflError: What `read_proxy` raises.
    """
    x, y = read_proxy(path)
    if tuple(x.shape[1:]) != input_shape:
        raise InputShapeError(f"samples in {path} are {list(x.shape[1:])}, the proxy data {list(input_shape)}")
    if y is None or not len(y) or y.min() < 0:
        raise ProxyError(f"{path} holds samples without a label, expected one for each to score by")
    return x, y


def weights_of(path: Path, module: NestedModel) -> dict[str, NDArray[np.float32]]:
    """Return a file's weights for a model; only private ones may be missing. Raises TeacherError or TensorFileError."""
    tensors = _float_tensors(path)
    missing = [name for name in state_of(module) if name not in tensors and not name.startswith(PRIVATE)]
    if missing:
        raise TeacherError(f"{path} lacks {missing[:3]} of model {type(module).__name__}")
    return tensors


def _float_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    tensors: dict[str, Array] = read_tensors(read_file(path), None, max_bytes=MAX_TEACHER_BYTES)
    other = [name for name, array in tensors.items() if array.dtype != np.float32]
    if other:
        raise TensorFileError(f"{path} holds {other[:3]} that are not float32")
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def _check_graph(graph: bytes, tensors: dict[str, NDArray[np.float32]], *, name: str) -> None:
    """Refuse a graph that would read other files, or that lacks some of `tensors`."""
    try:
        parsed = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's and onnx's have no common parent
        raise TeacherError(f"{name} is no ONNX graph: {str(error)[:200]}") from error
    held = {one.name: one for one in parsed.graph.initializer}
    outside = [
        key for key, one in held.items() if one.data_location == onnx.TensorProto.EXTERNAL and key not in tensors
    ]
    unknown = sorted(set(tensors) - set(held))
    if outside or unknown:
        raise TeacherError(f"{name} lacks the values of {outside[:3]} and does not know {unknown[:3]}")
