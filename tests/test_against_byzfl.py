"""Our rules beside those of byzfl 0.0.11, an independent implementation.

byzfl's own `__init__` pulls torchvision and plots, so its modules are loaded one by one. It belongs to the shared test
environment (`pip install --no-deps byzfl==0.0.11`); where it is missing these tests fail.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.metadata import distribution

import numpy as np
import pytest
from numpy.typing import NDArray

from nfl_cluster.aggregate.robust import rules
from nfl_sim.attacks import vectors

TOLERANCE = 1e-6  # both are float64; what is left is the order of sums
CASES = [(5, 1), (9, 2), (12, 3), (20, 9)]


def _byzfl(name: str) -> types.ModuleType:
    if "byzfl" not in sys.modules:
        installed = distribution("byzfl")
        assert installed.version == "0.0.11"
        package = types.ModuleType("byzfl")
        package.__path__ = [str(installed.locate_file("byzfl"))]
        sys.modules["byzfl"] = package
    return importlib.import_module(f"byzfl.{name}")


AGGREGATORS = _byzfl("aggregators.aggregators")
BEFORE = _byzfl("aggregators.preaggregators")
ATTACKS = _byzfl("attacks.attacks")


@pytest.fixture(params=CASES, ids=lambda case: f"n{case[0]}-f{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    n, num_bad = request.param
    generator = np.random.default_rng(n)
    x_nP = generator.normal(size=(n, 301))
    x_nP[:num_bad] += 3 * generator.normal(size=(num_bad, 301))
    return x_nP, np.ones(n), num_bad


def _same(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_the_rules_agree(case: tuple[NDArray[np.float64], NDArray[np.float64], int]) -> None:
    x_nP, ones_n, f = case
    _same(rules.mean(x_nP, ones_n), AGGREGATORS.Average()(x_nP))
    _same(rules.median(x_nP, ones_n), AGGREGATORS.Median()(x_nP))
    _same(rules.trimmed_mean(x_nP, ones_n, f), AGGREGATORS.TrMean(f)(x_nP))
    _same(rules.krum(x_nP, ones_n, f), AGGREGATORS.Krum(f)(x_nP))
    _same(rules.multi_krum(x_nP, ones_n, f), AGGREGATORS.MultiKrum(f)(x_nP))
    _same(rules.mixed(x_nP, rules.neighbour_shares(x_nP, ones_n, f)), BEFORE.NNM(f)(x_nP))
    _same(rules.nnm_trimmed_mean(x_nP, ones_n, f), AGGREGATORS.TrMean(f)(BEFORE.NNM(f)(x_nP)))


@pytest.mark.parametrize("num_steps", [1, 3, 40])
def test_geometric_median_and_clipping_agree_step_by_step(
    case: tuple[NDArray[np.float64], NDArray[np.float64], int], num_steps: int
) -> None:
    x_nP, ones_n, _ = case
    centre_P = x_nP.mean(axis=0)  # theirs starts at zero, ours at the mean; both move with the vectors
    theirs = centre_P + AGGREGATORS.GeometricMedian(nu=0.1, T=num_steps)(x_nP - centre_P)
    _same(rules.geometric_median(x_nP, ones_n, smoothing=0.1, num_steps=num_steps), theirs)
    clipped = AGGREGATORS.CenteredClipping(L=num_steps, tau=8.0)(x_nP)
    _same(rules.centred_clipping(x_nP, ones_n, radius=8.0, num_steps=num_steps), clipped)


def test_the_attacks_agree(case: tuple[NDArray[np.float64], NDArray[np.float64], int]) -> None:
    honest_nP, _, f = case
    _same(vectors.sign_flip(honest_nP), ATTACKS.SignFlipping()(honest_nP))
    _same(vectors.inner_product(honest_nP, 2.0), ATTACKS.InnerProductManipulation(2.0)(honest_nP))
    _same(vectors.little_is_enough(honest_nP, 1.5), ATTACKS.ALittleIsEnough(1.5)(honest_nP))
    _same(vectors.mimic(honest_nP, whom=1), ATTACKS.Mimic(1)(honest_nP))
    for make, theirs in (
        (vectors.inner_product, ATTACKS.Optimal_InnerProductManipulation),
        (vectors.little_is_enough, ATTACKS.Optimal_ALittleIsEnough),
    ):
        strongest = vectors.strongest(lambda factor, make=make: _harm(make(honest_nP, factor), honest_nP, f))
        peer = theirs(agg=AGGREGATORS.TrMean(f), pre_agg_list=[], f=f)
        _same(make(honest_nP, strongest), peer(honest_nP))


def _harm(vector_P: NDArray[np.float64], honest_nP: NDArray[np.float64], num_bad: int) -> float:
    rows = np.concatenate([honest_nP, np.repeat(vector_P[None], num_bad, axis=0)])
    return float(np.linalg.norm(rules.trimmed_mean(rows, np.ones(len(rows)), num_bad) - honest_nP.mean(axis=0)))
