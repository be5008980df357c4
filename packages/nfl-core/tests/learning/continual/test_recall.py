from __future__ import annotations

import numpy as np
import pytest
import torch

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning import cache_features, refit, state_of
from nfl_core.learning.continual import RecallShelf, Signature, private_state, signature_of


def world(make_model, make_samples, *, turn: int):  # type: ignore[no-untyped-def]
    """The same model and inputs, with labels renamed by `turn`: the features stay, the private level does not."""
    module, samples = make_model(), make_samples(60)
    y = (samples.y + turn) % 3
    cache = cache_features(module, samples.x, y)
    refit(module, cache, num_steps=60, batch_size=16, learning_rate=0.5, generator=torch.Generator().manual_seed(0))
    return module, cache


def test_the_old_fast_level_comes_back_at_once(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    home, at_home = world(make_model, make_samples, turn=0)
    away, _ = world(make_model, make_samples, turn=1)
    shelf = RecallShelf()
    shelf.keep(signature_of(at_home, num_classes=3), private_state(home))
    shared = {name: array for name, array in state_of(away).items() if not name.startswith("private.")}
    report = shelf.recall(away, at_home)
    assert report.recalled
    assert report.loss_after < 0.3 < 1.0 < report.loss_before
    assert all(np.array_equal(private_state(away)[name], array) for name, array in private_state(home).items())
    assert all(np.array_equal(state_of(away)[name], array) for name, array in shared.items())


def test_a_snapshot_that_is_not_better_is_not_taken(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    home, _ = world(make_model, make_samples, turn=0)
    away, abroad = world(make_model, make_samples, turn=1)
    shelf = RecallShelf()
    shelf.keep(signature_of(abroad, num_classes=3), private_state(home))  # the signature alone is no reason
    before = private_state(away)
    report = shelf.recall(away, abroad)
    assert (report.recalled, report.num_tried, report.loss_after) == (False, 1, report.loss_before)
    assert all(np.array_equal(before[name], array) for name, array in private_state(away).items())


def test_the_shelf_is_bounded_and_one_world_has_one_snapshot(make_model) -> None:  # type: ignore[no-untyped-def]
    module = make_model()
    shelf = RecallShelf(max_snapshots=2)
    for turn in (0, 1, 0, 2):
        labels = np.zeros(3, np.float32)
        labels[turn] = 1
        shelf.keep(Signature(mean=np.ones(64, np.float32), labels=labels), private_state(module))
    assert len(shelf) == 2
    arrays, _ = shelf.state_dict()
    kept = {int(arrays[f"{place}:labels"].argmax()) for place in range(2)}
    assert kept == {0, 2}  # 1 was not used for longest


def test_a_saved_shelf_recalls_the_same(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    home, at_home = world(make_model, make_samples, turn=0)
    shelf, again = RecallShelf(), RecallShelf()
    shelf.keep(signature_of(at_home, num_classes=3), private_state(home))
    again.load_state_dict(*shelf.state_dict())
    one, other = make_model(), make_model()
    assert shelf.recall(one, at_home) == again.recall(other, at_home)
    assert all(np.array_equal(private_state(one)[name], array) for name, array in private_state(other).items())
    arrays, _ = shelf.state_dict()
    for wrong in ("{}", '{"num": 5}', "no"):
        with pytest.raises(LearningError, match="cannot be read"):
            again.load_state_dict(arrays, wrong)
    assert len(again) == 1


def test_wrong_input_is_named(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    home, at_home = world(make_model, make_samples, turn=0)
    shelf = RecallShelf()
    with pytest.raises(LearningError, match="no recent samples"):
        shelf.recall(home, cache_features(home, make_samples(1).x[:0], make_samples(1).y[:0]))
    shelf.keep(signature_of(at_home, num_classes=3), {"private.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(LearningError, match="does not fit"):
        shelf.recall(home, at_home)
    for wrong in ({"max_snapshots": 0}, {"margin": 1.0}, {"same_world": -1.0}):
        with pytest.raises(ConfigError):
            RecallShelf(**wrong)
