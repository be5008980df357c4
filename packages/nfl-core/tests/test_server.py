from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.server import server_step


def test_with_rate_one_and_no_momentum_it_is_plain_averaging() -> None:
    current, moved = np.float32([1, 2]), np.float32([0.5, -0.5])
    new, velocity = server_step(current, moved, np.float32([9, 9]), learning_rate=1.0, momentum=0.0)
    assert new.tolist() == [1.5, 1.5]
    assert velocity.tolist() == moved.tolist()


def test_the_step_looks_ahead_along_the_velocity() -> None:
    current, moved = np.float32([1, 2]), np.float32([0.5, -0.5])
    new, velocity = server_step(current, moved, None, learning_rate=1.0, momentum=0.5)
    assert (new.tolist(), velocity.tolist()) == ([1.75, 1.25], [0.5, -0.5])
    new, velocity = server_step(new, moved, velocity, learning_rate=2.0, momentum=0.5)
    assert velocity.tolist() == [0.75, -0.75]
    assert new.tolist() == [1.75 + 2 * 0.875, 1.25 - 2 * 0.875]


@given(st.floats(0.0, 0.9), st.floats(0.1, 2.0))
def test_a_steady_direction_is_taken_so_many_times_as_far_and_no_farther(momentum: float, rate: float) -> None:
    values, velocity, moved = np.zeros(1, np.float32), None, np.ones(1, np.float32)
    for _ in range(200):
        before = values
        values, velocity = server_step(values, moved, velocity, learning_rate=rate, momentum=momentum)
        assert values[0] - before[0] <= rate / (1 - momentum) * 1.001
    assert values[0] - before[0] == pytest.approx(rate / (1 - momentum), rel=1e-2)
