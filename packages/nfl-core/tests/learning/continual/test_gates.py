from __future__ import annotations

import pytest
import torch

from nfl_core.learning.continual import Admission, StreamRefusedError, judge

SHAPE = (1, 8, 8)


def verdict(x: torch.Tensor, y: torch.Tensor, known: set[int] = frozenset({0, 1})) -> Admission:  # type: ignore[assignment]
    return judge(x, y, num_classes=3, input_shape=SHAPE, known_classes=frozenset(known))


def images(num: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num, *SHAPE, generator=torch.Generator().manual_seed(seed))


def with_value(value: float) -> torch.Tensor:
    x = images(4)
    x[2, 0, 3, 3] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64), "empty"),
        (torch.zeros(2, 1, 8, 7), torch.tensor([0, 1]), "inputs"),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.tensor([0, 1]), "inputs"),
        (torch.zeros(3, *SHAPE), torch.tensor([0, 1]), "inputs"),
        (torch.zeros(2, *SHAPE), torch.tensor([0, 3]), "labels"),
        (torch.zeros(2, *SHAPE), torch.tensor([0, -100]), "labels"),
        (torch.zeros(2, *SHAPE), torch.tensor([0.0, 1.0]), "labels"),
        (with_value(float("nan")), torch.tensor([0, 1, 2, 0]), "1 of 4 inputs"),
        (with_value(float("-inf")), torch.tensor([0, 1, 2, 0]), "1 of 4 inputs"),
    ],
)
def test_what_must_not_be_learned_is_refused(x: torch.Tensor, y: torch.Tensor, why: str) -> None:
    with pytest.raises(StreamRefusedError, match=why) as caught:
        verdict(x, y)
    assert caught.value.code == "stream.refused"


def test_a_good_batch_is_learned_whole() -> None:
    found = verdict(images(8), torch.arange(8) % 3, known=set())
    assert (found.places.tolist(), found.protect_shared, found.degradations) == (list(range(8)), False, ())


def test_one_class_protects_what_is_shared_until_another_was_seen() -> None:
    y = torch.ones(4, dtype=torch.int64)
    assert verdict(images(4), y, known={1}).degradations == ("one-class",)
    assert verdict(images(4), y, known={1}).protect_shared
    assert not verdict(images(4), y, known={0}).protect_shared


def test_a_flood_of_near_copies_counts_once_and_different_pictures_do_not_make_one() -> None:
    generator = torch.Generator().manual_seed(1)
    copies = images(1).repeat(12, 1, 1, 1) + 0.004 * torch.randn(12, *SHAPE, generator=generator)
    found = verdict(torch.cat([copies, images(4, seed=2)]), torch.tensor([0] * 12 + [1] * 4))
    assert found.degradations == ("flood",)
    assert set(found.places.tolist()) >= {0, 12, 13, 14, 15}
    assert len(found.places) < 12
    assert verdict(images(16), torch.zeros(16, dtype=torch.int64)).degradations == ()
