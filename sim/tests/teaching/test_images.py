from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from nfl_core.errors import ConfigError
from nfl_sim.data import DataSet, enlarged_digits
from nfl_sim.teaching import SMALL, Split, WideCnn, downwards, make_teacher, mirrored, upwards, wide_cnn

TINY = replace(
    SMALL,
    num_train=600,
    num_test=300,
    teacher_epochs=4,
    student_epochs=2,
    num_owners=3,
    images_per_owner=100,
    rounds=1,
    local_epochs=2,
    num_proxy=150,
    proxy_epochs=2,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return enlarged_digits()


def test_the_teacher_is_more_than_twenty_times_the_student() -> None:
    from nfl_core.learning import create_model

    teacher, student = (
        wide_cnn(10, (1, 28, 28)),
        create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=0),
    )
    large, small = (sum(p.numel() for p in module.parameters()) for module in (teacher, student))
    assert large >= 20 * small
    with pytest.raises(ConfigError):
        WideCnn(num_classes=1, input_shape=(1, 28, 28))
    with pytest.raises(ConfigError):
        WideCnn(num_classes=10, input_shape=(28, 28))


def test_the_split_shares_no_image(digits: DataSet) -> None:
    split = Split.of(digits, size=TINY)
    assert (len(split.y), len(split.y_test)) == (600, 300)
    learned = {image.tobytes() for image in digits.x_NCHW[:600]}
    unseen = {image.tobytes() for image in digits.x_NCHW[-300:]}
    assert not learned & unseen


def test_a_mirror_image_is_one(digits: DataSet) -> None:
    x = Split.of(digits, size=TINY).x[:5]
    both = mirrored(x)
    assert np.array_equal(both[5:], x[..., ::-1])
    assert np.array_equal(both[:5], x)


def test_downwards_says_what_it_measured(digits: DataSet) -> None:
    split = Split.of(digits, size=TINY)
    teacher = make_teacher(split, size=TINY, seed=0)
    found = downwards(split, teacher, size=TINY, seed=0)
    assert set(found) == {"teacher", "taught", "taught_few_labels", "alone", "alone_few_labels"}
    assert found["teacher"] > 0.6
    assert all(value > 0.1 for value in found.values())


def test_upwards_says_what_it_measured(digits: DataSet) -> None:
    found = upwards(digits, Split.of(digits, size=TINY), size=TINY, seed=0)
    assert set(found) == {"mean_student", "average", "ensemble", "fused", "teacher", "teacher_taught"}
    assert found["ensemble"] > found["mean_student"]
