"""Attacks: what they make, what of it leaves a device, and a small fleet that is attacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nfl_cluster.aggregate.reputation import Settings
from nfl_core.errors import ConfigError, DeltaError, LearningError
from nfl_core.learning import LearningSettings, Samples, create_model
from nfl_sim.attacks import vectors
from nfl_sim.attacks.attack import ATTACKS
from nfl_sim.attacks.channel import Channel
from nfl_sim.attacks.data import add_backdoor, flip_labels, stamp, success_rate
from nfl_sim.attacks.fleet import Fleet, FleetSettings, OwnerSamples
from nfl_sim.attacks.vectors import AttackFactorError
from nfl_sim.attacks.versions import KINDS, Workshop, offer

SHAPE, NUM_OWNERS = (1, 8, 8), 6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Batches this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _samples(seed: int, num: int = 16) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 10, (num,), generator=generator)
    x = torch.rand((num, *SHAPE), generator=generator) * 0.3
    x[torch.arange(num), 0, y // 4, y % 4] += 1.0  # each class lights a pixel of its own
    return Samples(x=x, y=y)


OWNERS = [
    OwnerSamples(train=_samples(3 * n), holdout=_samples(3 * n + 1), test=_samples(3 * n + 2))
    for n in range(NUM_OWNERS)
]


def _fleet(attack: str, **settings: object) -> Fleet:
    chosen = replace(FleetSettings(rule="mean", num_attackers=1, batch_size=2), **settings)  # type: ignore[arg-type]
    return Fleet(OWNERS, shadow=_samples(99), settings=chosen, attack=ATTACKS[attack], seed=1)


@pytest.mark.parametrize("factor", [1e308, float("inf"), float("nan")])
def test_a_factor_that_makes_infinity_is_refused_by_name(factor: float) -> None:
    honest_nP = np.full((3, 4), 1e3)
    honest_nP[0] *= -1
    for make in (vectors.inner_product, vectors.little_is_enough):
        with pytest.raises(AttackFactorError, match="makes values that are not finite"):
            make(honest_nP, factor)
    with pytest.raises(AttackFactorError):
        vectors.replacement(honest_nP, factor=factor)


def test_the_line_search_climbs_to_the_top() -> None:
    tried: list[float] = []

    def harm(factor: float) -> float:
        tried.append(factor)
        return -abs(factor - 37.0)

    assert vectors.strongest(harm) == pytest.approx(37.0, abs=7.0)  # it never turns back, like its peer
    assert len(tried) == 20


def test_jittered_colluders_look_less_alike_and_mean_the_same() -> None:
    wish_P = np.random.default_rng(0).normal(size=2000)
    sent_mP = vectors.jitter(wish_P, 4, share=0.5, generator=np.random.default_rng(1))
    one, other = sent_mP[0], sent_mP[1]
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) == pytest.approx(0.8, abs=0.03)
    assert vectors.jitter(wish_P, 2, share=0.0, generator=np.random.default_rng(1)).tolist() == [wish_P.tolist()] * 2


def test_who_is_mimicked_must_exist() -> None:
    with pytest.raises(ConfigError, match="one of 3"):
        vectors.mimic(np.zeros((3, 2)), whom=3)


def test_nothing_leaves_a_device_beyond_one_step_of_the_scale() -> None:
    scales_P = np.full(5, 0.1, np.float32)
    sent_P = Channel(bits=2).send(np.float64([1e9, -1e9, 0.04, 0.06, 0.0]), scales_P)
    np.testing.assert_allclose(sent_P, [0.1, -0.1, 0.0, 0.1, 0.0], rtol=1e-6)
    assert Channel(bits=None).send(np.float64([1e9]), scales_P).tolist() == [1e9]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_gate_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(DeltaError, match="not finite"):
        Channel(bits=2).send(vectors.not_finite(5, value=value), np.full(5, 0.1, np.float32))


def test_a_device_that_goes_beyond_its_range_meets_honest_neighbours_at_theirs() -> None:
    """So the root refuses its batch: some sum lies beyond what the weight of four allows."""
    generator, num_values, size = np.random.default_rng(0), 47_946, 4
    honest = generator.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=(size - 1, num_values)).sum(axis=0)
    assert np.count_nonzero(np.abs(honest + 1) > size) == 0
    assert np.count_nonzero(np.abs(honest + 2) > size) > 0


def test_flipped_labels_flip_back() -> None:
    samples = _samples(0)
    flipped = flip_labels(samples, num_classes=10)
    assert (flipped.y != samples.y).all()
    assert torch.equal(flip_labels(flipped, num_classes=10).y, samples.y)


def test_a_trigger_is_a_white_corner_and_nothing_else() -> None:
    samples = _samples(0)
    stamped = stamp(samples.x, size=2)
    assert (stamped[..., -2:, -2:] == 1).all()
    stamped[..., -2:, -2:] = samples.x[..., -2:, -2:]
    assert torch.equal(stamped, samples.x)
    with pytest.raises(ConfigError, match="does not fit"):
        stamp(samples.x, size=9)


def test_a_backdoor_stamps_and_renames_a_share() -> None:
    samples, generator = _samples(0, 400), torch.Generator().manual_seed(0)
    bad = add_backdoor(samples, target=7, share=0.5, generator=generator)
    changed = (bad.x != samples.x).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6
    assert (bad.y[changed] == 7).all()
    assert torch.equal(bad.y[~changed], samples.y[~changed])


def test_success_counts_images_of_other_classes_alone() -> None:
    module = create_model("small-cnn", num_classes=10, input_shape=SHAPE, seed=0)
    with torch.no_grad():
        module.head.bias[3] = 1e3  # type: ignore[union-attr,index,operator]
    assert success_rate(module, _samples(0), target=3) == 1.0
    assert success_rate(module, _samples(0), target=4) == 0.0
    only = Samples(x=_samples(0).x, y=torch.full((16,), 3))
    with pytest.raises(LearningError, match="of class 3"):
        success_rate(module, only, target=3)


def test_the_same_seed_gives_the_same_version() -> None:
    one, other = _fleet("ipm-optimal"), _fleet("ipm-optimal")
    assert one.run_version() == other.run_version()
    assert one.shared_P.tobytes() == other.shared_P.tobytes()


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_every_attack_runs_and_scores_the_honest_alone(attack: str) -> None:
    fleet = _fleet(attack, rule="dnc")
    report = fleet.run_version()
    if "replay" in attack:  # there is something to replay in the second round alone
        report = fleet.run_version()
    assert len(report.accuracy) == NUM_OWNERS - 1
    assert np.isfinite(fleet.shared_P).all()
    assert report.num_batches == (2 if attack == "not-finite" else 3)


def test_without_a_quantiser_an_attack_carries_the_mean_away_and_not_a_rule_that_outvotes_it() -> None:
    def length(rule: str) -> float:
        fleet = _fleet("ipm-optimal", rule=rule, batch_size=1, bits=None)
        start_P = fleet.shared_P
        return float(np.linalg.norm(fleet.make_version() - start_P))

    assert length("mean") > 100 * length("dnc")


def test_a_quarantined_device_is_in_no_roster() -> None:
    fleet = _fleet("gaussian", rule="dnc", batch_size=1, reputation=Settings(threshold=1.0))
    for _ in range(4):
        fleet.make_version()
    away = fleet._quarantined()
    assert away
    assert fleet.run_version().num_batches == NUM_OWNERS - len(away)


def test_devices_judge_a_poisoned_version_themselves() -> None:
    fleet = _fleet("none", num_attackers=0)
    fleet.run_version()
    base_P: NDArray[np.float32] = fleet.shared_P
    good_P = fleet.make_version()
    shop = Workshop(fleet.standings()[0].module, _samples(99), base_P=base_P, good_P=good_P, seed=1, epochs=1)
    before = [(d.module.state_dict()["head.weight"].clone()) for d in fleet.standings()]
    seen = {
        kind.name: offer(kind, shop=shop, devices=fleet.standings(), settings=LearningSettings(), seed=1)
        for kind in KINDS
    }
    assert seen["not a number"].num_refused == NUM_OWNERS
    assert seen["not a number"].lost == 0.0
    assert seen["good"].num_refused <= seen["scaled step x10"].num_refused
    after = [d.module.state_dict()["head.weight"] for d in fleet.standings()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
