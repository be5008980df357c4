from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.errors import DeltaError
from nfl_core.pooling import Unit, own_share, pool


def units_of(centre: np.ndarray, num: int, generator: np.random.Generator, noise: float = 1.0) -> list[Unit]:
    return [Unit(mean_P=centre + noise * generator.normal(size=centre.shape), weight=1.0) for _ in range(num)]


def fleet(apart: float, *, seed: int, num_regions: int = 4, num_units: int = 5) -> dict[str, list[Unit]]:
    generator = np.random.default_rng(seed)
    return {
        f"region-{r}": units_of(apart * generator.normal(size=400), num_units, generator) for r in range(num_regions)
    }


@pytest.mark.parametrize("seed", range(5))
def test_regions_that_are_alike_are_pooled_and_others_are_not(seed: int) -> None:
    assert own_share(fleet(0.0, seed=seed)) < 0.25
    assert own_share(fleet(3.0, seed=seed)) > 0.95


def test_the_share_estimates_how_much_of_the_scatter_is_the_region() -> None:
    """Regions scatter by 1, a mean of five units by 1 / 5: of what is seen, 5 / 6 is the region."""
    shares = [own_share(fleet(1.0, seed=seed, num_regions=20)) for seed in range(5)]
    assert np.mean(shares) == pytest.approx(5 / 6, abs=0.03)  # 400 values, 20 regions, five draws


def test_pooling_beats_both_extremes_on_new_units() -> None:
    generator = np.random.default_rng(1)
    truth = {f"region-{r}": 0.4 * generator.normal(size=400) for r in range(6)}
    seen = {region: units_of(centre, 4, generator) for region, centre in truth.items()}
    steps, _ = pool(seen)
    own = {region: np.mean([unit.mean_P for unit in units], axis=0) for region, units in seen.items()}
    common = np.mean(list(own.values()), axis=0)
    errors = [
        sum(float(np.sum((guess[region] - truth[region]) ** 2)) for region in truth)
        for guess in (steps, own, dict.fromkeys(truth, common))
    ]
    assert errors[0] < 0.9 * errors[1]
    assert errors[0] < 0.95 * errors[2]


@given(st.lists(st.floats(0.1, 10.0), min_size=6, max_size=6), st.floats(0.1, 100.0))
def test_only_proportions_of_weights_count(weights: list[float], factor: float) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(6, 50))

    def share(scale: float) -> float:
        made = [Unit(mean_P=v, weight=w * scale) for v, w in zip(values, weights, strict=True)]
        return own_share({"a": made[:3], "b": made[3:]})

    assert share(1.0) == pytest.approx(share(factor), abs=1e-9)
    assert 0.0 <= share(1.0) <= 1.0


def test_a_region_keeps_its_own_when_nothing_tells_chance_from_difference() -> None:
    one = Unit(mean_P=np.ones(3, np.float32), weight=2.0)
    two = Unit(mean_P=np.zeros(3, np.float32), weight=1.0)
    assert own_share({"a": [one, two]}) == 1.0
    assert own_share({"a": [one], "b": [two]}) == 1.0
    steps, share = pool({"a": [one], "b": [two], "nobody": []})
    assert share == 1.0
    assert steps["a"].tolist() == [1.0] * 3
    assert not steps["nobody"].any()
    steps, share = pool({**fleet(0.0, seed=0), "nobody": []})
    assert share < 0.25
    np.testing.assert_allclose(
        steps["nobody"], (1 - share) * np.mean([u.mean_P for us in fleet(0.0, seed=0).values() for u in us], axis=0)
    )


def test_nobody_and_weightless_units_are_named() -> None:
    with pytest.raises(DeltaError, match="no region has a unit"):
        pool({"a": []})
    with pytest.raises(DeltaError, match="not above 0"):
        own_share({"a": [Unit(mean_P=np.ones(2), weight=0.0)]})
