"""The inference graph of a model, free of weights: one graph for every version.

The graph has the input `x`, float32 [batch, *input_shape], and two outputs: `logits`, float32 [batch, K], and
`features`, float32 [batch, D]. Rules kept here:

* Every parameter is an initialiser under its own name. Shared ones are external: the file names them and holds no
  value, so a session must be given them (`SessionOptions.add_external_initializers`) and refuses to load without.
* Private ones are zeros, and graph inputs as well: ONNX Runtime lists them among the overridable initialisers, and they
  are fed anew at each run. A device that has learned nothing yet need not feed them.
* The bytes depend on the architecture and the versions of the exporter alone: they are made from a copy of the model
  whose parameters are zero, so nothing learned can leak into them, and notes that name source files are removed.

    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in shared.values()]
    options.add_external_initializers(list(shared), values)     # keep `shared` and `values` as long as the session
    session = onnxruntime.InferenceSession(graph, options)
    logits, features = session.run(None, {"x": x, **private})

Two hazards for whoever makes the session. `SessionOptions.add_initializer` is no substitute: it replaces values after
constants were folded and convolutions repacked, so with optimisation on the zeros of the file are used in silence
(onnxruntime 1.32). And `ortvalue_from_numpy` keeps a pointer to the array but does not keep it alive: hold private,
contiguous, read-only copies for as long as the session lives.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nfl_core.errors import LearningError
from nfl_core.learning.model import NestedModel
from nfl_core.schema import TensorSchema

OPSET = 18  # the newest that onnxruntime 1.18, the last for Python 3.10 boards, reads in full
INPUT, LOGITS, FEATURES = "x", "logits", "features"
SHARED_LOCATION = "shared"  # no file has this name; the runtime wants one to be named


class _Traced(nn.Module):
    def __init__(self, module: NestedModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.module.features(x)
        return self.module.generic(z) + self.module.residual(z), z


def export_graph(module: NestedModel, schema: TensorSchema) -> bytes:
    """Return the ONNX file of a model, the same bytes whatever it has learned.

    Args:
        module: Not changed.
        schema: Says which parameters are private; see `schema_of`.

    Raises:
        LearningError: The model cannot be traced, or the exporter lost or merged one of its parameters.
    """
    blank = copy.deepcopy(module).eval()
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    traced = _Traced(blank)
    try:
        graph = _trace(traced)
    except Exception as e:  # the exporter promises no type, and all it does is this one step
        raise LearningError(
            f"model {type(module).__name__} cannot be exported: {e}", hint="use operators that ONNX has"
        ) from e
    own = {id(parameter): name for name, parameter in blank.named_parameters()}
    _clean(graph, names={name: own[id(parameter)] for name, parameter in traced.named_parameters()})
    _check(graph, schema)
    onnx.checker.check_model(graph)
    _open_private(graph, schema)
    _take_out_shared(graph, schema)
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


def _trace(traced: _Traced) -> onnx.ModelProto:
    sample = torch.zeros(2, *traced.module.input_shape)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        program = torch.onnx.export(
            traced,
            (sample,),
            dynamo=True,
            verbose=False,
            optimize=False,
            input_names=[INPUT],
            output_names=[LOGITS, FEATURES],
            opset_version=OPSET,
            dynamic_shapes=({0: batch},),
        )
    if program is None:
        raise LearningError("the exporter returned no program")
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its own deprecations away from the caller; failures still raise."""
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        loud.setLevel(level)


def _clean(model: onnx.ModelProto, *, names: Mapping[str, str]) -> None:
    """Give parameters their own names and remove everything that says where the model was made."""
    graph = model.graph
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
        _strip(tensor)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        _strip(node)
    for value in (*graph.input, *graph.output):
        _strip(value)
    del graph.value_info[:]
    del model.metadata_props[:]
    del graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    graph.name = "nested"


def _strip(part: onnx.TensorProto | onnx.NodeProto | onnx.ValueInfoProto) -> None:
    del part.metadata_props[:]
    part.doc_string = ""


def _check(model: onnx.ModelProto, schema: TensorSchema) -> None:
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    used = {name for node in model.graph.node for name in node.input}
    for tensor in schema.tensors:
        if tensor.name not in held or tensor.name not in used or tuple(held[tensor.name].dims) != tensor.shape:
            raise LearningError(f"the exporter lost parameter {tensor.name!r}, expected an initialiser that is used")
        if held[tensor.name].data_type != TensorProto.FLOAT or np.any(numpy_helper.to_array(held[tensor.name])):
            raise LearningError(f"parameter {tensor.name!r} is not float32 zeros in the graph")


def _open_private(model: onnx.ModelProto, schema: TensorSchema) -> None:
    inputs: Sequence[onnx.ValueInfoProto] = [
        helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.shape)) for tensor in schema.private
    ]
    model.graph.input.extend(inputs)


def _take_out_shared(model: onnx.ModelProto, schema: TensorSchema) -> None:
    names = {tensor.name for tensor in schema.shared}
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        num_bytes = 4 * int(np.prod(tensor.dims))
        for key, value in (("location", SHARED_LOCATION), ("offset", "0"), ("length", str(num_bytes))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
