"""Guard every output: nobody acts on an inference that is not finite, has the wrong shape or comes too late.

The guard answers with the engine in charge; while a new version is on probation it keeps the old engine loaded and
answers with that one when the new one trips. What it saw is counted, and the probation reads it.

    >>> guard = Guard(budget_ms=30.0)
    >>> guard.take(engine)
    >>> guard.infer(x_BCHW).outputs.logits_BK
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfl_edge.errors import EngineError, UnsafeOutputError
from nfl_edge.infer.engine import Engine, Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """A guarded inference.

    Attributes:
        outputs: Safe to act on.
        latency_ms: Wall time of the engine that answered.
        by_standby: Whether the engine in charge tripped and the standby answered.
    """

    outputs: Outputs
    latency_ms: float
    by_standby: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the guard saw of one run: `problem` is empty when the output may be used."""

    outputs: Outputs | None
    latency_ms: float
    problem: str
    finite: bool


class Guard:
    """Holds the engine in charge and the standby.

    Args:
        budget_ms: Longest time of an inference, > 0.
        clock: Seconds, monotonic.
    """

    def __init__(self, *, budget_ms: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._budget_ms = budget_ms
        self._clock = clock
        self._active: Engine | None = None
        self._standby: Engine | None = None
        self.num_inferences = 0
        self.num_guarded = 0

    @property
    def active(self) -> Engine | None:
        """The engine in charge; None before the first version."""
        return self._active

    def take(self, engine: Engine, *, standby: Engine | None = None) -> None:
        """Put an engine in charge, by one assignment, and say who answers when it trips."""
        self._standby = standby
        self._active = engine

    def clear(self) -> None:
        """Have no engine at all: every inference is refused."""
        self._active = self._standby = None

    def infer(self, x_BCHW: NDArray[np.float32]) -> Inference:
        """Infer a batch, float32 [B, C, H, W], and give back only what may be acted on.

        Raises:
            UnsafeOutputError: There is no engine, or neither engine gave a safe output.
        """
        active, standby = self._active, self._standby
        if active is None:
            raise UnsafeOutputError(
                "no version is installed", hint="wait until the device has fetched its first version"
            )
        self.num_inferences += 1
        seen = self.look(active, x_BCHW)
        if not seen.problem and seen.outputs is not None:
            return Inference(outputs=seen.outputs, latency_ms=seen.latency_ms, by_standby=False)
        self.num_guarded += 1
        if standby is not None:
            second = self.look(standby, x_BCHW)
            if not second.problem and second.outputs is not None:
                return Inference(outputs=second.outputs, latency_ms=second.latency_ms, by_standby=True)
        raise UnsafeOutputError(f"the output must not be used: {seen.problem}")

    def look(self, engine: Engine, x_BCHW: NDArray[np.float32]) -> Sight:
        """Run an engine and judge its output, without counting."""
        started = self._clock()
        try:
            outputs = engine.run(x_BCHW)
        except EngineError as error:
            return Sight(outputs=None, latency_ms=1e3 * (self._clock() - started), problem=error.message, finite=False)
        latency_ms = 1e3 * (self._clock() - started)
        shape = (len(x_BCHW), engine.num_classes)
        problem, finite = "", bool(np.isfinite(outputs.logits_BK).all())
        if outputs.logits_BK.shape != shape:
            problem = f"logits have shape {outputs.logits_BK.shape}, expected {shape}"
        elif not finite:
            problem = "logits hold a value that is not finite"
        elif latency_ms > self._budget_ms:
            problem = f"it took {latency_ms:.1f} ms, the budget is {self._budget_ms:.1f} ms"
        return Sight(outputs=outputs, latency_ms=latency_ms, problem=problem, finite=finite)
