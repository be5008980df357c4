from __future__ import annotations

import numpy as np
import pytest

from nfl_core.errors import DeltaError
from nfl_core.learning import FewBits, Whole

SHAPES = {"body.weight": (40, 30), "head.bias": (50,)}


def moved(seed: int, scale: float = 1e-2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(0, scale, shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_whole_displacements_arrive_unchanged_at_four_bytes_a_value() -> None:
    sent = moved(0)
    arrived, num_bytes = Whole().send(sent, place=0)
    assert all(arrived[name] is sent[name] for name in sent)
    assert num_bytes == 4 * (1200 + 50)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_feedback_loses_nothing_over_time(bits: int) -> None:
    """What arrived in all rounds differs from what was sent by the rest of the last round alone, one step at most."""
    transport, total_sent, total_arrived = FewBits(bits=bits), 0.0, 0.0
    for seed in range(40):
        sent = {"body.weight": moved(seed, 1e-3)["body.weight"] + np.float32(2e-3)}
        arrived, _ = transport.send(sent, place=0)
        total_sent = total_sent + sent["body.weight"].astype(np.float64)
        total_arrived = total_arrived + arrived["body.weight"].astype(np.float64)
    without = FewBits(bits=bits, feedback=False)
    lossy = sum(
        without.send({"body.weight": moved(s, 1e-3)["body.weight"] + np.float32(2e-3)}, place=0)[0]["body.weight"]
        for s in range(40)
    )
    kept, lost = np.abs(total_arrived - total_sent).max(), np.abs(lossy - total_sent).max()
    step = 2.5 * 2.3e-3 / (2 ** (bits - 1) - 1)
    assert kept < step
    assert bits == 8 or lost > 3 * kept


def test_owners_share_a_scale_and_keep_their_own_rest() -> None:
    transport = FewBits(bits=2)
    first, _ = transport.send(moved(0), place=0)
    second, _ = transport.send(moved(1), place=1)
    for name in SHAPES:
        steps = {
            round(float(value), 9) for value in np.abs(np.concatenate([first[name].ravel(), second[name].ravel()]))
        }
        assert len(steps) == 2  # nothing, or one step of the common scale


def test_the_scale_follows_the_norm_of_the_mean() -> None:
    transport = FewBits(bits=2)
    transport.send(moved(0), place=0)
    steps = []
    for norm in (1.0, 0.5, 0.5, 5.0):
        transport.summed({name: np.full(shape, norm, np.float32) for name, shape in SHAPES.items()})
        arrived, _ = transport.send(moved(2, 1.0), place=1)
        steps.append(float(np.abs(arrived["head.bias"]).max()))
    assert steps[1] == pytest.approx(steps[0] / 2**0.5)
    assert steps[2] == pytest.approx(steps[1])
    assert steps[3] == pytest.approx(2**0.5 * steps[2])  # a norm counts as doubled at most


def test_bytes_are_those_of_packed_values() -> None:
    sent = moved(0)
    _, unsealed = FewBits(bits=2).send(sent, place=0)
    _, sealed = FewBits(bits=2, sealed_batch=32).send(sent, place=0)
    assert sealed == -(-7 * 1250 // 8)
    assert unsealed < 0.3 * sealed
    assert unsealed > 1250 * 1.0 / 8  # three symbols at these odds hold more than one bit


def test_bits_out_of_range_are_named() -> None:
    with pytest.raises(DeltaError, match="bits"):
        FewBits(bits=1)
