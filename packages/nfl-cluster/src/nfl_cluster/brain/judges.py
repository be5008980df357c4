"""The two judges of the root that need samples: gates on held-out data, scales from a shadow update."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nfl_cluster.brain.content import Content, Tensors
from nfl_cluster.validate.data import HELDOUT, SHADOW, Samples, read_samples
from nfl_cluster.validate.gates import GraphError, Judgement, accuracy_of, judge
from nfl_core.config import FleetConfig
from nfl_core.errors import NotFoundError
from nfl_core.ids import RegionId
from nfl_ota import GateResult

_LOG = logging.getLogger(__name__)


class Judges(Protocol):
    """What the root asks about content."""

    def judge(
        self, candidate: Mapping[RegionId, Tensors], *, running: Content, bundle_bytes: Mapping[RegionId, int]
    ) -> Judgement:
        """Put a candidate through the gates."""

    def accuracy(self, graph: bytes, tensors: Mapping[RegionId, Tensors]) -> dict[RegionId, float]:
        """Return the accuracy on held-out data by region; empty when there are no such data."""

    def scales(self, content: Content) -> tuple[float, ...] | None:
        """Return the scales for the next policy; None while there is nothing to measure them with."""

    def shadow(self, content: Content) -> NDArray[np.float32] | None:
        """Return where the root's own samples lead, float32 [P]; None while there are none."""


class SampleJudges:
    """Judges with the samples in the root's folder.

    Args:
        config: Of the fleet.
        folder: Holds `heldout.safetensors` and `shadow.safetensors`, now or later.
    """

    def __init__(self, config: FleetConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._samples: dict[str, Samples] = {}
        self._running: tuple[int, dict[RegionId, float]] | None = None
        self._moved: tuple[int, Tensors] | None = None

    def judge(
        self, candidate: Mapping[RegionId, Tensors], *, running: Content, bundle_bytes: Mapping[RegionId, int]
    ) -> Judgement:
        """Put a candidate through the gates. Raises ConfigError or TensorFileError when the samples are none."""
        samples = self._read(HELDOUT)
        if samples is None:
            missing = GateResult(name="heldout", passed=False, value=0.0, limit=1.0)
            return Judgement(gates=(missing,), accuracy={})
        if self._running is None or self._running[0] != running.version:
            self._running = (running.version, self.accuracy(running.graph, running.tensors))
        return judge(
            graph=running.graph,
            candidate=candidate,
            running=self._running[1],
            samples=samples,
            bundle_bytes=bundle_bytes,
            settings=self._config.gates,
        )

    def accuracy(self, graph: bytes, tensors: Mapping[RegionId, Tensors]) -> dict[RegionId, float]:
        """Return the accuracy by region; a graph that does not run is right about nothing."""
        samples = self._read(HELDOUT)
        if samples is None:
            return {}
        result = {}
        for region, mine in tensors.items():
            try:
                result[region] = accuracy_of(graph, mine, samples)
            except GraphError as error:
                _LOG.warning("with the tensors of region %s: %s", region, error.message)
                result[region] = 0.0
        return result

    def scales(self, content: Content) -> tuple[float, ...] | None:
        """Measure the scales in the first region. Raises LearningError, ConfigError or TensorFileError."""
        moved = self._shadow_update(content)
        if moved is None:
            return None
        from nfl_cluster.validate.shadow import scales_of

        return scales_of(moved)

    def shadow(self, content: Content) -> NDArray[np.float32] | None:
        """Learn from the root's samples in the first region; the same each time. Raises like `scales`."""
        moved = self._shadow_update(content)
        return None if moved is None else content.schema.flatten(moved)

    def _shadow_update(self, content: Content) -> Tensors | None:
        samples = self._read(SHADOW)
        if samples is None:
            return None
        if self._moved is None or self._moved[0] != content.version:
            from nfl_cluster.validate.shadow import shadow_update

            moved = shadow_update(self._config, content.tensors[min(content.tensors)], samples)
            self._moved = (int(content.version), moved)
        return self._moved[1]

    def _read(self, name: str) -> Samples | None:
        if name not in self._samples:
            model = self._config.model
            try:
                self._samples[name] = read_samples(
                    self._folder / name, input_shape=model.input_shape, num_classes=model.num_classes
                )
            except NotFoundError:
                return None
        return self._samples[name]
