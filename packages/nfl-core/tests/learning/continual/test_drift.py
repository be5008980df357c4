from __future__ import annotations

import sys

import pytest
import torch

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning.continual import Drift, DriftSettings, DriftWatch, MissingExtraError, Monitor, Response, decide

pytest.importorskip("river")


def noise(num: int, *, mean: float, seed: int) -> list[float]:
    return (mean + 0.2 * torch.randn(num, generator=torch.Generator().manual_seed(seed))).tolist()


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley"])
def test_a_shift_is_found_soon_and_a_stationary_stream_raises_no_alarm(detector: str) -> None:
    for seed in range(5):
        monitor = Monitor(DriftSettings(detector=detector, threshold=5.0))
        assert not any(monitor.update(value) for value in noise(300, mean=0.5, seed=seed))
        found = [place for place, value in enumerate(noise(60, mean=1.5, seed=99 + seed)) if monitor.update(value)]
        assert found
        assert found[0] < 25


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley"])
def test_a_loss_that_falls_is_learning(detector: str) -> None:
    monitor = Monitor(DriftSettings(detector=detector, threshold=5.0))
    falling = noise(100, mean=2.0, seed=0) + noise(100, mean=1.0, seed=1) + noise(100, mean=0.3, seed=2)
    assert not any(monitor.update(value) for value in falling)


def test_the_history_is_bounded_and_goes_on_where_it_was_saved() -> None:
    values = noise(1500, mean=0.5, seed=1)
    one, saved = Monitor(DriftSettings()), Monitor(DriftSettings())
    for place, value in enumerate(values):
        if place == 1100:
            saved = Monitor(DriftSettings(), values=one.values)
        one.update(value)
        if place >= 1100:
            saved.update(value)
    assert one.values == saved.values
    assert len(one.values) <= 1024
    jump = noise(40, mean=1.5, seed=2)
    assert [one.update(v) for v in jump] == [saved.update(v) for v in jump]


def test_features_that_move_ask_for_a_sync_and_a_loss_that_rises_alone_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    watch, found = DriftWatch(), []
    for batch in range(260):
        mean = torch.randn(8, generator=generator) * 0.1 + (2.0 if batch >= 200 else 0.0)
        drift = watch.observe(loss=0.5 + 0.05 * float(torch.randn(1, generator=generator)), mean=mean)
        found.append(drift)
    assert not any(drift.features or drift.loss for drift in found[:200])
    assert any(drift.features for drift in found[200:])
    assert not any(drift.loss for drift in found)
    watch, found = DriftWatch(), []
    for batch in range(260):
        loss = (2.0 if batch >= 200 else 0.5) + 0.05 * float(torch.randn(1, generator=generator))
        found.append(watch.observe(loss=loss, mean=torch.randn(8, generator=generator) * 0.1))
    assert any(drift.loss for drift in found[200:])
    assert not any(drift.features for drift in found)


def test_a_watch_goes_on_where_it_was_saved() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = DriftWatch(), DriftWatch()
    for batch in range(120):
        if batch == 70:
            other.load_json(one.to_json())
        loss, mean = 0.5 + 0.01 * batch, torch.randn(4, generator=generator)
        drift = one.observe(loss=loss, mean=mean)
        if batch >= 70:
            assert other.observe(loss=loss, mean=mean) == drift
    assert one.to_json() == other.to_json()
    before = one.to_json()
    with pytest.raises(LearningError, match="cannot be read"):
        one.load_json('{"loss": 3}')
    with pytest.raises(LearningError, match="finite"):
        one.observe(loss=float("nan"), mean=torch.zeros(4))
    with pytest.raises(LearningError, match="finite"):
        one.observe(loss=1.0, mean=torch.full((4,), torch.inf))
    with pytest.raises(LearningError, match="finite"):
        Monitor(DriftSettings()).update(float("inf"))
    assert one.to_json() == before


def test_decide() -> None:
    settings = DriftSettings(boost_batches=7, rate_factor=2.0)
    quiet = Response(boost_batches=0, rate_factor=1.0, wants_sync=False)
    assert decide(Drift(loss=False, features=False), settings) == quiet
    local = Response(boost_batches=7, rate_factor=2.0, wants_sync=False)
    assert decide(Drift(loss=True, features=False), settings) == local
    shared = Response(boost_batches=7, rate_factor=2.0, wants_sync=True)
    assert decide(Drift(loss=False, features=True), settings) == shared
    assert decide(Drift(loss=True, features=True), settings) == shared


def test_without_river_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(MissingExtraError, match="river") as caught:
        DriftWatch()
    assert "nfl-core[drift]" in caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"sensitivity": 0.0},
        {"threshold": 0.0},
        {"min_batches": 1},
        {"boost_batches": -1},
        {"rate_factor": 0.5},
        {"rate_factor": float("inf")},
        {"memory": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        DriftSettings(**wrong)
