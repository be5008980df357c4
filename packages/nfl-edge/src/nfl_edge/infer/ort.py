"""Run a bundle's graph with ONNX Runtime: shared tensors are built in, private ones are inputs.

The graph arrives without weights. Shared tensors are given as external initialisers when the session is built;
private tensors stay overridable inputs, so new ones take effect by one assignment, in microseconds.

Rules kept here:

* ONNX Runtime aliases the memory of numpy arrays, for initialisers and for inputs: every tensor that enters is copied
  into an array of our own that is read-only, and is kept as long as the session lives.
* Names, shapes and types are checked when tensors enter; ONNX Runtime would notice a wrong one at the next inference
  only.
* One thread: the processor belongs to the robot.

    >>> engine = OrtEngine.build(graph, shared=shared, private=private, input_shape=(1, 28, 28))
    >>> engine.run(np.zeros((1, 1, 28, 28), np.float32)).logits_BK.shape
    (1, 10)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from typing_extensions import Self

from nfl_edge.errors import EngineError
from nfl_edge.infer.engine import Outputs

INPUT, LOGITS, FEATURES = "x", "logits", "features"
_FATAL_ONLY = 4  # onnxruntime's own log goes to stderr unasked; what matters reaches us as an exception


class OrtEngine:
    """An ONNX Runtime session with a device's tensors. Make it with `build`."""

    def __init__(
        self,
        session: ort.InferenceSession,
        *,
        kept_alive: Iterable[object],
        private: Mapping[str, NDArray[np.float32]],
        num_classes: int,
    ) -> None:
        self._session = session
        self._kept_alive = tuple(kept_alive)
        self._shapes = {name: value.shape for name, value in private.items()}
        self._private = private
        self._num_classes = num_classes

    @classmethod
    def build(
        cls,
        graph: bytes,
        *,
        shared: Mapping[str, NDArray[np.float32]],
        private: Mapping[str, NDArray[np.float32]],
        input_shape: tuple[int, ...],
    ) -> Self:
        """Build a session and warm it up.

        Args:
            graph: ONNX model with input `x` float32 [B, *input_shape] and outputs `logits` [B, K] and `features` [B,
                D].
            shared: Shared tensors by name, float32; copied.
            private: Private tensors by name, float32; copied. Exactly the overridable inputs of the graph.
            input_shape: Shape of one input without the batch.

        Raises:
            EngineError: The graph is not one, or the tensors are not its tensors.
        """
        own = _own(private)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _FATAL_ONLY
        owned = _own(shared)
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in owned.values()]
        # Not `add_initializer`: it comes after constants were folded, and the file's blanks are used in silence.
        options.add_external_initializers(list(owned), values)
        try:
            session = ort.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"the graph cannot be loaded: {str(error).splitlines()[0][:200]}") from error
        _check_ports(session, private)
        engine = cls(session, kept_alive=(owned, values), private=own, num_classes=0)
        # The first run lays out memory and takes several times as long: not with a robot waiting for it.
        first = engine.run(np.zeros((1, *input_shape), np.float32))
        engine._num_classes = int(first.logits_BK.shape[1])
        return engine

    @property
    def num_classes(self) -> int:
        """K."""
        return self._num_classes

    def run(self, x_BCHW: NDArray[np.float32]) -> Outputs:
        """Infer a batch, float32 [B, C, H, W]. Raises EngineError."""
        feeds: dict[str, object] = {INPUT: x_BCHW, **self._private}
        try:
            logits, features = self._session.run([LOGITS, FEATURES], feeds)
        except Exception as error:
            raise EngineError(f"the graph cannot run: {str(error).splitlines()[0][:200]}") from error
        return Outputs(logits_BK=logits, features_BD=features)

    def swap_private(self, private: Mapping[str, NDArray[np.float32]]) -> None:
        """Run with these private tensors from the next inference on. Raises EngineError when they do not fit."""
        own = _own(private)
        shapes = {name: value.shape for name, value in own.items()}
        if shapes != self._shapes:
            raise EngineError(f"private tensors are {shapes}, the graph has {self._shapes}")
        self._private = own


def _own(tensors: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
    """Return copies that nobody can write to."""
    own = {}
    for name, array in tensors.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise EngineError(
                f"tensor {name!r} is {array.dtype} and may hold values that are not finite, expected finite float32"
            )
        own[name] = np.array(array, dtype=np.float32, order="C", copy=True)
        own[name].setflags(write=False)
    return MappingProxyType(own)


def _check_ports(session: ort.InferenceSession, private: Mapping[str, NDArray[np.float32]]) -> None:
    inputs = [port.name for port in session.get_inputs()]
    outputs = {port.name for port in session.get_outputs()}
    if inputs != [INPUT] or not {LOGITS, FEATURES} <= outputs:
        raise EngineError(
            f"the graph has inputs {inputs} and outputs {sorted(outputs)}, expected {INPUT} to {LOGITS} and {FEATURES}"
        )
    ports = {port.name: tuple(port.shape) for port in session.get_overridable_initializers()}
    shapes = {name: array.shape for name, array in private.items()}
    if ports != shapes:
        raise EngineError(f"the graph's private tensors are {ports}, the device has {shapes}")
