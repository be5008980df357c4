from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from nfl_edge.errors import EngineError, UnsafeOutputError
from nfl_edge.infer.engine import Outputs
from nfl_edge.safety import Guard

X = np.zeros((2, 1, 4, 4), np.float32)


class Scripted:
    """An engine that answers what it is told to."""

    num_classes = 3

    def __init__(
        self, logits: np.ndarray | None = None, *, seconds: float = 0.0, clock: list[float] | None = None
    ) -> None:
        self.logits = np.zeros((2, 3), np.float32) if logits is None else logits
        self.seconds, self.clock = seconds, clock

    def run(self, x_BCHW: np.ndarray) -> Outputs:
        if self.clock is not None:
            self.clock[0] += self.seconds
        if self.logits.size == 0:
            raise EngineError("broken")
        return Outputs(logits_BK=self.logits, features_BD=np.zeros((2, 1), np.float32))

    def swap_private(self, private: Mapping[str, np.ndarray]) -> None:
        raise AssertionError


BAD = {
    "nan": np.full((2, 3), np.nan, np.float32),
    "inf": np.array([[0, 0, np.inf]] * 2, np.float32),
    "shape": np.zeros((2, 4), np.float32),
    "batch": np.zeros((1, 3), np.float32),
    "error": np.zeros(0, np.float32),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_output_is_never_given_out(kind: str) -> None:
    guard = Guard(budget_ms=1e6)
    guard.take(Scripted(BAD[kind]))
    with pytest.raises(UnsafeOutputError):
        guard.infer(X)
    assert (guard.num_inferences, guard.num_guarded) == (1, 1)


@pytest.mark.parametrize("kind", BAD)
def test_the_standby_answers_while_the_new_engine_trips(kind: str) -> None:
    guard = Guard(budget_ms=1e6)
    guard.take(Scripted(BAD[kind]), standby=Scripted())
    answer = guard.infer(X)
    assert answer.by_standby
    assert answer.outputs.logits_BK.shape == (2, 3)
    assert guard.num_guarded == 1


def test_an_output_that_is_late_is_not_given_out() -> None:
    now = [0.0]
    guard = Guard(budget_ms=30.0, clock=lambda: now[0])
    guard.take(Scripted(seconds=0.029, clock=now))
    assert guard.infer(X).latency_ms == pytest.approx(29)
    guard.take(Scripted(seconds=0.031, clock=now))
    with pytest.raises(UnsafeOutputError, match=r"31.0 ms, the budget is 30.0 ms"):
        guard.infer(X)


def test_without_an_engine_nothing_is_answered() -> None:
    guard = Guard(budget_ms=30.0)
    with pytest.raises(UnsafeOutputError, match="no version"):
        guard.infer(X)
    guard.take(Scripted())
    guard.clear()
    with pytest.raises(UnsafeOutputError, match="no version"):
        guard.infer(X)
