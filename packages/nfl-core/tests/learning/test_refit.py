from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nfl_core.errors import LearningError
from nfl_core.learning import NestedModel, Samples, cache_features, refit, score, state_of


def test_a_refit_moves_the_private_head_alone_and_lowers_the_loss(
    make_model: Callable[..., NestedModel], make_samples: Callable[..., Samples]
) -> None:
    module, data = make_model(), make_samples(80)
    before, loss = state_of(module), score(module, data.x, data.y).loss
    refit(
        module,
        cache_features(module, data.x, data.y),
        num_steps=20,
        batch_size=16,
        learning_rate=0.1,
        generator=torch.Generator().manual_seed(0),
    )
    changed = {name for name, array in state_of(module).items() if not np.array_equal(array, before[name])}
    assert changed == {"private.weight", "private.bias"}
    assert score(module, data.x, data.y).loss < loss


def test_the_cache_answers_like_the_model(
    make_model: Callable[..., NestedModel], make_samples: Callable[..., Samples]
) -> None:
    module, data = make_model(), make_samples(10)
    cache = cache_features(module, data.x, data.y)
    assert torch.equal(cache.generic + module.residual(cache.z), module(data.x))
    assert not cache.z.requires_grad


def test_a_refit_without_samples_is_refused(make_model: Callable[..., NestedModel]) -> None:
    module = make_model()
    cache = cache_features(module, torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(LearningError, match="no samples"):
        refit(module, cache, num_steps=1, batch_size=1, learning_rate=0.1, generator=torch.Generator())
