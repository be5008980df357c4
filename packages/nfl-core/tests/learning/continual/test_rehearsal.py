from __future__ import annotations

import pytest
import torch

from nfl_core.errors import ConfigError
from nfl_core.learning import joint_loss, label_prior
from nfl_core.learning.continual import (
    ModelIdentity,
    Rehearsal,
    RehearsalSettings,
    ReplayBuffer,
    bytes_for,
    mix_priors,
    shift,
    shift_and_flip,
)

SHAPE = (1, 8, 8)


def buffer(num: int = 50) -> ReplayBuffer:
    return ReplayBuffer(
        max_bytes=bytes_for(num, SHAPE, num_classes=3) * 4,
        input_shape=SHAPE,
        num_classes=3,
        identity=ModelIdentity(schema_fingerprint="a" * 64, version=1),
        salt=0,
    )


def test_without_anything_to_draw_it_is_the_joint_loss_bit_for_bit(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    module, samples = make_model(), make_samples(16)
    prior = label_prior(samples.y, num_classes=3)
    kept = buffer()
    generator = torch.Generator().manual_seed(0)
    chance = generator.get_state()
    expected = joint_loss(module, samples.x, samples.y, prior)
    got = Rehearsal(kept, generator=generator)(module, samples.x, samples.y, prior)
    assert torch.equal(got, expected)
    for one, other in zip(
        torch.autograd.grad(got, list(module.parameters())),
        torch.autograd.grad(expected, list(module.parameters())),
        strict=True,
    ):
        assert torch.equal(one, other)
    kept.offer(samples.x, samples.y)
    nothing = Rehearsal(kept, generator=generator, among=torch.zeros(0, dtype=torch.int64))
    assert torch.equal(nothing(module, samples.x, samples.y, prior), expected)
    assert torch.equal(generator.get_state(), chance)


def test_memory_counts_as_its_weight_and_logits_pull(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    module, new, old = make_model(), make_samples(16), make_samples(1, seed=5)
    prior = label_prior(new.y, num_classes=3)
    kept = buffer()
    kept.offer(old.x, old.y, logits=torch.full((1, 3), 2.0))
    settings = RehearsalSettings(num_replayed=4, weight=0.5, logit_weight=0.25)
    got = Rehearsal(kept, generator=torch.Generator().manual_seed(0), settings=settings)(module, new.x, new.y, prior)
    mixture = mix_priors(prior, label_prior(old.y, num_classes=3), weight=0.5)
    expected = joint_loss(module, new.x, new.y, mixture) + 0.5 * joint_loss(module, old.x, old.y, mixture)
    expected = expected + 0.25 * (module.generic(module.features(old.x)) - 2.0).square().mean()
    assert got.item() == pytest.approx(expected.item(), abs=1e-5)  # another order of fp32 sums
    kept.adopt(ModelIdentity(schema_fingerprint="a" * 64, version=2))  # logits dropped
    got = Rehearsal(kept, generator=torch.Generator().manual_seed(0), settings=settings)(module, new.x, new.y, prior)
    expected = joint_loss(module, new.x, new.y, mixture) + 0.5 * joint_loss(module, old.x, old.y, mixture)
    assert got.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_mixture_of_priors_is_a_distribution() -> None:
    one, other = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.1, 0.8])
    mixed = mix_priors(one.log(), other.log(), weight=3.0).exp()
    assert torch.allclose(mixed, (one + 3.0 * other) / 4.0)


def test_augmentation_keeps_shape_draws_from_its_generator_and_moves_as_said() -> None:
    x = torch.rand(20, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    moved = shift(x, torch.Generator().manual_seed(0), max_shift=2)
    assert moved.shape == x.shape
    assert torch.equal(moved, shift(x, torch.Generator().manual_seed(0), max_shift=2))
    centre = x[:, :, 6:10, 6:10]
    for one, image in zip(centre, moved, strict=True):
        places = [(i, j) for i in range(4, 9) for j in range(4, 9) if torch.equal(image[:, i : i + 4, j : j + 4], one)]
        assert len(places) == 1
    flat = torch.rand(3, 1, 1, 20, generator=torch.Generator().manual_seed(1))  # a series: its only row stays
    assert shift(flat, torch.Generator().manual_seed(0)).shape == flat.shape
    assert bool(shift(flat, torch.Generator().manual_seed(0)).abs().sum(-1).gt(0).all())
    mirrored = shift_and_flip(x, torch.Generator().manual_seed(0), max_shift=0)
    is_same = [torch.equal(a, b) for a, b in zip(mirrored, x, strict=True)]
    is_flip = [torch.equal(a, b.flip(-1)) for a, b in zip(mirrored, x, strict=True)]
    assert any(is_same)
    assert any(is_flip)
    assert all(s != f for s, f in zip(is_same, is_flip, strict=True))


@pytest.mark.parametrize("wrong", [{"num_replayed": 0}, {"weight": 0.0}, {"logit_weight": -1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        RehearsalSettings(**wrong)
