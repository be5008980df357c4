"""A small world for learning: tiny images of three classes that a small model learns in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from nfl_core.learning import NestedModel, Samples, create_model

NUM_CLASSES, SHAPE = 3, (1, 8, 8)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Bit-for-bit laws hold for one number of threads; one is the number that devices use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model() -> Callable[..., NestedModel]:
    def make(seed: int = 0) -> NestedModel:
        return create_model("small-cnn", num_classes=NUM_CLASSES, input_shape=SHAPE, seed=seed)

    return make


@pytest.fixture
def make_samples() -> Callable[..., Samples]:
    def make(num: int = 60, seed: int = 0, noise: float = 0.5) -> Samples:
        patterns = torch.randn(NUM_CLASSES, *SHAPE, generator=torch.Generator().manual_seed(77))
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(0, NUM_CLASSES, (num,), generator=generator)
        return Samples(x=patterns[y] + noise * torch.randn(num, *SHAPE, generator=generator), y=y)

    return make
