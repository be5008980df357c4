from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning.continual import ModelIdentity, ReplayBuffer, ReplayMismatchError, bytes_for

HOME = ModelIdentity(schema_fingerprint="a" * 64, version=1)


def buffer(
    num: int = 20, *, side: int = 2, num_classes: int = 3, balanced: bool = False, salt: int = 0
) -> ReplayBuffer:
    shape = (1, side, side)
    return ReplayBuffer(
        max_bytes=bytes_for(num, shape, num_classes=num_classes),
        input_shape=shape,
        num_classes=num_classes,
        identity=HOME,
        salt=salt,
        balanced=balanced,
    )


def numbered(first: int, num: int) -> torch.Tensor:
    """Images [num, 1, 2, 2] of pixels, all different: their number in base 256."""
    number = np.arange(first, first + num)
    pixels = np.stack([number % 256, number // 256, np.zeros(num, int), np.zeros(num, int)], axis=1)
    return torch.from_numpy((pixels.reshape(-1, 1, 2, 2) / np.float32(255)).astype(np.float32))


def numbers(kept: ReplayBuffer) -> np.ndarray:
    x = kept.take(torch.arange(len(kept))).x.numpy().reshape(-1, 4)
    return np.rint(x[:, 0] * 255 + 256 * np.rint(x[:, 1] * 255)).astype(int)


def same(left: ReplayBuffer, right: ReplayBuffer) -> bool:
    a, b = left.state_dict(), right.state_dict()
    equal = all(np.array_equal(a.arrays[n], b.arrays[n]) and a.arrays[n].dtype == b.arrays[n].dtype for n in b.arrays)
    return equal and a.text == b.text


@pytest.mark.parametrize("balanced", [False, True])
def test_every_sample_of_the_stream_is_as_likely_to_stay(balanced: bool) -> None:
    # 400 streams of 100 samples of one class, 20 stay: each place is kept 80 times on average, deviation 8.
    counts = np.zeros(100)
    for salt in range(400):
        kept = buffer(20, balanced=balanced, salt=salt)
        for first in range(0, 100, 10):
            kept.offer(numbered(first, 10), torch.zeros(10, dtype=torch.int64))
        counts[numbers(kept)] += 1
    assert counts.sum() == 400 * 20
    chi_square = float(((counts - 80) ** 2 / (80 * 0.8)).sum())
    assert 60 < chi_square < 145  # 99 degrees of freedom: mean 99, deviation 14; keeping the newest gives thousands
    assert abs(counts[:50].sum() - 4000) < 150  # neither old nor new ones are preferred; deviation about 28


def test_balanced_holds_as_many_of_each_class_and_is_uniform_within_a_class() -> None:
    early = 0
    for salt in range(100):
        kept = buffer(30, balanced=True, salt=salt)
        for first in range(0, 200, 20):
            kept.offer(numbered(first, 20), torch.zeros(20, dtype=torch.int64))  # 200 of class 0 first
        kept.offer(numbered(200, 50), torch.ones(50, dtype=torch.int64))
        kept.offer(numbered(250, 12), torch.full((12,), 2))
        assert torch.bincount(kept.labels, minlength=3).tolist() == [10, 10, 10]
        early += int((numbers(kept) < 100).sum())
    assert abs(early - 500) < 75  # of 1,000 kept of class 0, half came in the first half; deviation 16


def test_offering_again_changes_nothing_and_a_flood_of_copies_pushes_nothing_out() -> None:
    kept = buffer(20)
    x, y = numbered(0, 60), torch.arange(60) % 3
    assert kept.offer(x, y) == 20
    before = kept.state_dict()
    assert kept.offer(x, y) == 0
    assert kept.offer(x[:1].repeat(500, 1, 1, 1), y[:1].repeat(500)) == 0
    assert all(np.array_equal(before.arrays[name], kept.state_dict().arrays[name]) for name in before.arrays)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_order_of_a_stream_does_not_matter_within_a_class(balanced: bool) -> None:
    one, other = buffer(20, balanced=balanced), buffer(20, balanced=balanced)
    x, y = numbered(0, 80), torch.zeros(80, dtype=torch.int64)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    one.offer(x, y)
    for part in torch.split(order, 7):
        other.offer(x[part], y[part])
    assert np.array_equal(numbers(one), numbers(other))


@settings(max_examples=60, deadline=None)
@given(
    max_bytes=st.integers(80, 3000),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    pixels=st.booleans(),
    balanced=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_byte_bound_holds_after_every_offer(
    max_bytes: int, batches: list[int], pixels: bool, balanced: bool, seed: int
) -> None:
    kept = ReplayBuffer(
        max_bytes=max_bytes, input_shape=(1, 2, 2), num_classes=3, identity=HOME, salt=seed, balanced=balanced
    )
    generator = torch.Generator().manual_seed(seed)
    for num in batches:
        x = torch.rand(num, 1, 2, 2, generator=generator)
        if pixels:
            x = (x * 255).round() / 255
        kept.offer(x, torch.randint(3, (num,), generator=generator), logits=torch.zeros(num, 3))
        assert kept.num_bytes <= max_bytes
        assert kept.num_bytes == sum(array.nbytes for array in kept.state_dict().arrays.values())
        assert 1 <= len(kept) <= kept.capacity
    again = ReplayBuffer.restore(kept.state_dict(), max_bytes=max_bytes)
    assert same(kept, again)


def test_pixels_take_a_quarter_of_the_bytes_and_come_back_bit_for_bit() -> None:
    kept = buffer(300, side=16)
    x = torch.randint(0, 256, (100, 1, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    y = torch.zeros(100, dtype=torch.int64)
    kept.offer(x, y)
    assert kept.state_dict().arrays["x"].dtype == np.uint8
    back = kept.take(torch.arange(100)).x
    assert sorted(b.numpy().tobytes() for b in back) == sorted(a.numpy().tobytes() for a in x)
    capacity = kept.capacity
    kept.offer(torch.full((1, 1, 16, 16), 0.1234), torch.tensor([1]))  # no pixel: all go on as float32
    assert kept.state_dict().arrays["x"].dtype == np.float32
    assert kept.capacity < capacity / 3
    back = kept.take(torch.arange(len(kept))).x
    assert {b.numpy().tobytes() for b in back} <= {a.numpy().tobytes() for a in [*x, torch.full((1, 16, 16), 0.1234)]}


def test_restored_it_goes_on_bit_for_bit_and_a_smaller_bound_keeps_the_lowest_ranks() -> None:
    kept = buffer(20, balanced=True)
    x, y = numbered(0, 90), torch.arange(90) % 3
    kept.offer(x[:50], y[:50], logits=torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    again = ReplayBuffer.restore(kept.state_dict(), max_bytes=kept.max_bytes)
    for one in (kept, again):
        one.offer(x[50:], y[50:])
    assert same(kept, again)
    draws = [one.draw(8, generator=torch.Generator().manual_seed(3)) for one in (kept, again)]
    assert all(torch.equal(getattr(draws[0], f), getattr(draws[1], f)) for f in ("x", "y", "logits", "known"))
    smaller = ReplayBuffer.restore(kept.state_dict(), max_bytes=bytes_for(6, (1, 2, 2), num_classes=3))
    assert len(smaller) == 6
    assert set(numbers(smaller)) < set(numbers(kept))


def test_logits_come_back_with_their_samples_and_another_version_drops_them() -> None:
    kept = buffer(20)
    x, y = numbered(0, 10), torch.arange(10) % 3
    kept.offer(x, y, logits=torch.arange(30.0).reshape(10, 3))
    taken = kept.take(torch.arange(10))
    assert torch.equal(taken.logits, torch.arange(30.0).reshape(10, 3)[torch.from_numpy(numbers(kept))])
    assert not kept.adopt(HOME)
    assert bool(kept.take(torch.arange(10)).known.all())
    assert kept.adopt(dataclasses.replace(HOME, version=2))
    taken = kept.take(torch.arange(10))
    assert not bool(taken.known.any())
    assert not bool(taken.logits.any())
    assert len(kept) == 10
    kept.refresh(torch.ones(10, 3))
    assert bool(kept.take(torch.arange(10)).known.all())
    with pytest.raises(LearningError, match="finite"):
        kept.refresh(torch.full((10, 3), torch.nan))


def test_a_buffer_of_another_schema_is_refused_and_unchanged() -> None:
    kept = buffer(20)
    kept.offer(numbered(0, 5), torch.zeros(5, dtype=torch.int64), logits=torch.ones(5, 3))
    with pytest.raises(ReplayMismatchError, match="schema"):
        kept.adopt(ModelIdentity(schema_fingerprint="b" * 64, version=1))
    assert kept.identity == HOME
    assert bool(kept.take(torch.arange(5)).known.all())


def test_what_a_new_file_has_forgotten() -> None:
    kept = buffer(20)
    x, y = numbered(0, 20), torch.arange(20) % 3
    kept.offer(x, y)
    gone = kept.take(kept.outside(x[5:], y[5:]))
    assert sorted(np.rint(gone.x[:, 0, 0, 0].numpy() * 255).astype(int).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("x", "y", "logits", "why"),
    [
        (torch.full((1, 1, 2, 2), torch.nan), torch.tensor([0]), None, "finite"),
        (torch.zeros(1, 1, 2, 3), torch.tensor([0]), None, "inputs"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.tensor([0]), None, "inputs"),
        (torch.zeros(1, 1, 2, 2), torch.tensor([3]), None, "labels"),
        (torch.zeros(1, 1, 2, 2), torch.tensor([-1]), None, "labels"),
        (torch.zeros(1, 1, 2, 2), torch.tensor([0.0]), None, "labels"),
        (torch.zeros(1, 1, 2, 2), torch.tensor([0]), torch.zeros(1, 4), "logits"),
        (torch.zeros(1, 1, 2, 2), torch.tensor([0]), torch.full((1, 3), torch.inf), "logits"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_changes(x, y, logits, why: str) -> None:  # type: ignore[no-untyped-def]
    kept = buffer(20)
    kept.offer(numbered(0, 5), torch.zeros(5, dtype=torch.int64))
    before = kept.state_dict()
    with pytest.raises(LearningError, match=why):
        kept.offer(x, y, logits=logits)
    assert all(np.array_equal(before.arrays[name], kept.state_dict().arrays[name]) for name in before.arrays)


def test_bounds_that_hold_nothing_and_an_empty_buffer_are_named() -> None:
    with pytest.raises(ConfigError, match="room for one sample"):
        ReplayBuffer(max_bytes=40, input_shape=(1, 2, 2), num_classes=3, identity=HOME, salt=0)
    with pytest.raises(LearningError, match="nothing to draw"):
        buffer().draw(1, generator=torch.Generator())
    tight = ReplayBuffer(
        max_bytes=bytes_for(1, (1, 2, 2), num_classes=3), input_shape=(1, 2, 2), num_classes=3, identity=HOME, salt=0
    )
    with pytest.raises(LearningError, match="float32"):
        tight.offer(torch.full((1, 1, 2, 2), 0.123), torch.tensor([0]))


def test_a_state_that_is_none_is_refused() -> None:
    kept = buffer(20)
    kept.offer(numbered(0, 5), torch.zeros(5, dtype=torch.int64))
    state = kept.state_dict()
    wrong = [
        dataclasses.replace(state, text="{}"),
        dataclasses.replace(state, arrays={k: v for k, v in state.arrays.items() if k != "rank"}),
        dataclasses.replace(state, arrays=state.arrays | {"y": state.arrays["y"][:-1]}),
        dataclasses.replace(state, arrays=state.arrays | {"y": state.arrays["y"] + 9}),
    ]
    for one in wrong:
        with pytest.raises(ReplayMismatchError):
            ReplayBuffer.restore(one, max_bytes=kept.max_bytes)
