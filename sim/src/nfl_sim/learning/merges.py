"""What merges cost their owners: shock, price of what was accepted, how much was refused, over many merges.

The strategy is the device's own: samples are set apart, a shadow is refitted and judged, the largest tolerable share
wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfl_core.learning import Cohort, GatedNested, create_model
from nfl_sim.learning.methods import MOMENTUM
from nfl_sim.learning.scenes import NUM_CLASSES, scene_of


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeFigures:
    """Merges of all owners and rounds of one run; points are percent of accuracy.

    Attributes:
        num: Merges tried.
        num_refused: Of them.
        mean_alpha: Mean share of the new levels in accepted merges.
        shock: Points of holdout accuracy that the whole new levels cost before any refit: median, 90th percentile.
        price: Points of holdout accuracy that accepted merges cost: median, 90th percentile, largest.
        num_over_2: Accepted merges that cost more than 2 points of the holdout.
        test_price: The same on test samples, which judged nothing: median, 90th percentile.
        weighted: Accuracy over all test samples after the last merges.
    """

    num: int
    num_refused: int
    mean_alpha: float
    shock: tuple[float, float]
    price: tuple[float, float, float]
    num_over_2: int
    test_price: tuple[float, float]
    weighted: float


def measure_merges(scene_name: str, *, seed: int, cache: Path) -> MergeFigures:
    """Run the default with gated merges in one scene. Raises NotFoundError, ConfigError."""
    scene = scene_of(scene_name)
    owners = scene.owners(cache, seed=seed)
    strategy = GatedNested()
    shape = tuple(owners[0].train.x.shape[1:])
    cohort = Cohort(
        lambda: create_model(scene.model, num_classes=NUM_CLASSES, input_shape=shape, seed=seed),
        strategy=strategy,
        settings=scene.settings,
        owners=owners,
        seed=seed,
        weigh_by_samples=True,
        learned_scope=True,
        server_momentum=MOMENTUM,
    )
    rounds = [cohort.run_round() for _ in range(scene.rounds)]
    taken = [report for report in strategy.reports if report.accepted]
    price = 100 * np.array([report.accuracy_before - report.accuracy_after for report in taken])
    shock = 100 * np.array([report.shock for report in strategy.reports])
    on_test = 100 * np.concatenate([np.subtract(r.after_local, r.after_merge) for r in rounds])
    sizes = [len(owner.test.y) for owner in owners]
    return MergeFigures(
        num=len(strategy.reports),
        num_refused=len(strategy.reports) - len(taken),
        mean_alpha=float(np.mean([report.alpha for report in taken])),
        shock=_percentiles(shock, 50, 90),
        price=_percentiles(price, 50, 90, 100),
        num_over_2=int((price > 2).sum()),
        test_price=_percentiles(on_test, 50, 90),
        weighted=100 * float(np.average(rounds[-1].after_merge, weights=sizes)),
    )


def _percentiles(values: np.ndarray, *at: int) -> tuple:  # type: ignore[type-arg]  # as many floats as asked for
    return tuple(round(float(value), 2) for value in np.percentile(values, at))
