"""Who owns what: laws that hold for every draw."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfl_core.errors import ConfigError
from nfl_core.tensors import read_tensors
from nfl_edge.sense import read_samples
from nfl_sim.data import DataSet, Shares, share_out, write_owner, write_shadow

MAX_BYTES = 1 << 24


def made_up(num: int, *, seed: int = 0) -> DataSet:
    """Images whose first two bytes are their number, so that each can be told from all others."""
    generator = np.random.default_rng(seed)
    x_NCHW = generator.integers(0, 256, (num, 1, 28, 28)).astype(np.uint8)
    x_NCHW[:, 0, 0, 0], x_NCHW[:, 0, 0, 1] = np.arange(num) % 256, np.arange(num) // 256
    return DataSet(name="made-up", source="a test", x_NCHW=x_NCHW, y_N=generator.integers(0, 10, num))


DATA = made_up(6000)


def draw(num_owners: int, concentration: float, images: int, seed: int) -> Shares:
    return share_out(
        DATA,
        num_owners=num_owners,
        concentration=concentration,
        images_per_owner=images,
        generator=np.random.default_rng(seed),
    )


def parts_of(shares: Shares) -> list[np.ndarray]:
    owned = [part for owner in shares.owners for part in (owner.train, owner.holdout, owner.test)]
    return [*owned, shares.heldout, shares.shadow]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.floats(0.3, 10), st.integers(60, 300), st.integers(0, 2**32 - 1))
def test_no_row_belongs_to_two(num_owners: int, concentration: float, images: int, seed: int) -> None:
    rows = np.concatenate(parts_of(draw(num_owners, concentration, images, seed)))
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < len(DATA.y_N)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.floats(0.3, 10), st.integers(60, 300), st.integers(0, 2**32 - 1))
def test_every_owner_can_learn_judge_and_be_tested(
    num_owners: int, concentration: float, images: int, seed: int
) -> None:
    for owner in draw(num_owners, concentration, images, seed).owners:
        total = len(owner.train) + len(owner.holdout) + len(owner.test)
        assert len(owner.train) > len(owner.test) > len(owner.holdout) > 0
        assert abs(len(owner.test) - total / 4) <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_same_seed_gives_the_same_shares(num_owners: int, seed: int) -> None:
    one, two = (parts_of(draw(num_owners, 0.5, 200, seed)) for _ in range(2))
    assert all(np.array_equal(left, right) for left, right in zip(one, two, strict=True))


def test_all_that_was_asked_for_is_given_out() -> None:
    shares = draw(10, 0.5, 300, seed=1)
    assert sum(len(part) for owner in shares.owners for part in (owner.train, owner.holdout, owner.test)) == 4000
    assert (len(shares.heldout), len(shares.shadow)) == (1000, 300)


def test_a_small_concentration_makes_owners_differ() -> None:
    def most_common(concentration: float) -> float:
        owners = draw(8, concentration, 300, seed=2).owners
        return float(np.mean([np.bincount(DATA.y_N[owner.train]).max() / len(owner.train) for owner in owners]))

    assert most_common(0.3) > 1.5 * most_common(100)


def test_a_small_data_set_gives_everybody_less() -> None:
    small = made_up(1797)
    shares = share_out(
        small, num_owners=20, concentration=0.5, images_per_owner=300, generator=np.random.default_rng(0)
    )
    assert sum(map(len, parts_of(shares))) <= len(small.y_N)
    assert min(len(owner.train) for owner in shares.owners) > 10


@pytest.mark.parametrize(("owners", "concentration", "images"), [(0, 0.5, 300), (20, 0.0, 300), (20, 0.5, 0)])
def test_numbers_out_of_range_are_refused(owners: int, concentration: float, images: int) -> None:
    with pytest.raises(ConfigError, match="expected all above 0"):
        draw(owners, concentration, images, seed=0)


def test_more_owners_than_images_can_feed_is_refused() -> None:
    with pytest.raises(ConfigError, match="use fewer owners"):
        share_out(
            made_up(400), num_owners=60, concentration=0.5, images_per_owner=300, generator=np.random.default_rng(0)
        )


def test_the_device_reads_what_was_written_for_it(tmp_path: Path) -> None:
    owner = draw(4, 0.5, 100, seed=3).owners[1]
    write_owner(tmp_path / "robot/samples.safetensors", DATA, owner)
    samples = read_samples(tmp_path / "robot/samples.safetensors")
    for split, rows in ((samples.train, owner.train), (samples.holdout, owner.holdout), (samples.test, owner.test)):
        assert np.array_equal(split.y_B, DATA.y_N[rows])
        assert np.array_equal(split.x_BCHW, DATA.x_NCHW[rows].astype(np.float32) / np.float32(255))


def test_no_picture_of_a_device_is_at_the_root(tmp_path: Path) -> None:
    shares = draw(4, 0.5, 100, seed=4)
    for name, rows in (("heldout", shares.heldout), ("shadow", shares.shadow)):
        write_shadow(tmp_path / name, DATA, rows)
    pictures = [
        read_tensors((tmp_path / name).read_bytes(), None, max_bytes=MAX_BYTES)["x"] for name in ("heldout", "shadow")
    ]
    at_root = [{picture.tobytes() for picture in part} for part in pictures]
    owned = [{DATA.x_NCHW[row].tobytes() for row in owner.train} for owner in shares.owners]
    assert all(one.isdisjoint(two) for one, two in combinations([*at_root, *owned], 2))
