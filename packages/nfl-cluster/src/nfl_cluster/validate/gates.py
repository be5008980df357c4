"""The gates: what a candidate has to show before any device gets it. Run on the graph that devices run, without torch.

Rules:

* every output is finite; accuracy of the shared head on held-out data is at most so many points below what runs now, in
  every region; the slow end of single inferences is within budget; the bundle is small enough;
* a graph that cannot be run fails its gates; it never stops the root;
* a gate that cannot be measured fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nfl_cluster.validate.data import Samples
from nfl_core.config import GatesSection
from nfl_core.errors import LearningError
from nfl_core.ids import RegionId
from nfl_ota import GateResult

NUM_TIMED = 50  # single inferences; the p99 of 50 is their maximum, a strict reading of the budget
NUM_TRIES = 3  # what else the machine does is not the fault of a candidate
BATCH = 256
Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the gates found.

    Attributes:
        gates: Every gate, passed or not.
        accuracy: Of the shared head on held-out data, a fraction, by region; empty where the graph did not run.
    """

    gates: tuple[GateResult, ...]
    accuracy: Mapping[RegionId, float]

    @property
    def refused(self) -> tuple[GateResult, ...]:
        """The gates that did not pass."""
        return tuple(gate for gate in self.gates if not gate.passed)


class GraphError(LearningError):
    """An inference graph cannot be loaded or run."""

    code = "gates.graph"
    hint = "export the graph again; the version before it still runs"


class SharedModel:
    """A graph with shared tensors in place and private ones at zero: its logits are the generic head's.

    Args:
        graph: Serialised ONNX graph.
        tensors: Shared tensors.

    Raises:
        GraphError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, graph: bytes, tensors: Tensors) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The runtime keeps pointers to these, so they live as long as the session.
        self._arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()}
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._arrays.values()]
        options.add_external_initializers(list(self._arrays), self._values)
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no common parent
            raise GraphError(f"the graph cannot be loaded: {str(error)[:200]}") from error

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits, float32 [N, K], of inputs, float32 [N, C, H, W]. Raises GraphError."""
        result: NDArray[np.float32] = np.concatenate([self._run(x[at : at + BATCH]) for at in range(0, len(x), BATCH)])
        return result

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            logits: NDArray[np.float32] = self._session.run(["logits"], {"x": x})[0]
        except Exception as error:  # the runtime's exceptions have no common parent
            raise GraphError(f"the graph cannot be run: {str(error)[:200]}") from error
        if logits.ndim != 2 or len(logits) != len(x):
            raise GraphError(f"the graph gives logits of shape {logits.shape} for {len(x)} inputs")
        return logits

    def latency_ms(self, x: NDArray[np.float32], *, timer: Callable[[], float]) -> float:
        """Return the p99 of single inferences in milliseconds, of the calmest of a few tries. Raises GraphError."""
        return min(self._p99_ms(x, timer=timer) for _ in range(NUM_TRIES))

    def _p99_ms(self, x: NDArray[np.float32], *, timer: Callable[[], float]) -> float:
        spans = []
        for index in range(NUM_TIMED):
            one = x[index % len(x)][None]
            started = timer()
            self._run(one)
            spans.append(timer() - started)
        return float(np.percentile(spans[1:], 99) * 1000)


def accuracy_of(graph: bytes, tensors: Tensors, samples: Samples) -> float:
    """Return the fraction of samples that the generic head gets right. Raises GraphError."""
    return float(np.mean(SharedModel(graph, tensors).logits(samples.x).argmax(axis=1) == samples.y))


def judge(
    *,
    graph: bytes,
    candidate: Mapping[RegionId, Tensors],
    running: Mapping[RegionId, float],
    samples: Samples,
    bundle_bytes: Mapping[RegionId, int],
    settings: GatesSection,
    timer: Callable[[], float] = time.perf_counter,
) -> Judgement:
    """Put a candidate through every gate.

    Args:
        graph: Inference graph.
        candidate: Shared tensors by region.
        running: Accuracy of what runs now on the same samples, by region.
        samples: Held-out data.
        bundle_bytes: What a device without any chunk would download, by region.
        settings: Limits.
        timer: Seconds, for the latency.
    """
    gates: list[GateResult] = []
    accuracy: dict[RegionId, float] = {}
    latencies = []
    for region, tensors in candidate.items():
        gates.append(_gate(f"size-{region}", bundle_bytes[region], settings.max_bundle_bytes))
        try:
            model = SharedModel(graph, tensors)
            logits = model.logits(samples.x)
            latencies.append(model.latency_ms(samples.x, timer=timer))
        except GraphError:
            gates.append(GateResult(name=f"runs-{region}"[:63], passed=False, value=0.0, limit=1.0))
            continue
        num_bad = float(np.count_nonzero(~np.isfinite(logits)))
        gates.append(_gate(f"finite-{region}", num_bad, 0.0))
        accuracy[region] = float(np.mean(logits.argmax(axis=1) == samples.y))
        drop = 100 * (running[region] - accuracy[region])
        gates.append(_gate(f"accuracy-{region}", drop, settings.max_drop_points))
    if latencies:
        gates.append(_gate("latency", max(latencies), settings.latency_budget_ms))
    return Judgement(gates=tuple(gates), accuracy=accuracy)


def _gate(name: str, value: float, limit: float) -> GateResult:
    return GateResult(name=name[:63], passed=value <= limit, value=round(float(value), 6), limit=float(limit))
