"""Clothes, as pixels and as features of a frozen network: owners share no image, loaders name what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nfl_core.errors import ConfigError, ContentError
from nfl_core.learning import create_model, schema_of
from nfl_sim.data import DataSet, enlarged_digits
from nfl_sim.data.efficientnet import NUM_FEATURES, EfficientNetLite0
from nfl_sim.tasks import features, vision
from nfl_sim.tasks.features.data import features_of, some_of
from nfl_sim.tasks.features.model import FeatureNet
from nfl_sim.tasks.vision.data import owners_of


def _numbered(num: int) -> DataSet:
    """Return images that each hold their own number, so that a leak shows."""
    x = np.zeros((num, 1, 28, 28), np.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = np.arange(num) % 256, np.arange(num) // 256
    return DataSet(name="fashion-mnist", source="test", x_NCHW=x, y_N=(np.arange(num) % 10).astype(np.int64))


def test_no_image_is_in_two_splits_or_with_two_owners() -> None:
    data = _numbered(1200)
    drawn = owners_of(data, data.x_NCHW, images_per_owner=150, num_owners=5, generator=np.random.default_rng(0))
    splits = [samples.x[:, 0, 0, :2] for o in drawn.owners for samples in (o.train, o.holdout, o.test)]
    seen = torch.cat(splits)
    assert len(seen) == len(torch.unique(seen, dim=0)) == 1000
    assert seen.max() <= 1.0
    assert [o.name for o in drawn.owners] == [f"owner-{place}" for place in range(5)]


def test_owners_follow_from_the_generator() -> None:
    data = _numbered(1200)
    one, same, other = (
        owners_of(data, data.x_NCHW, images_per_owner=150, num_owners=5, generator=np.random.default_rng(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.owners[0].train.x, same.owners[0].train.x)
    assert len(one.owners[0].train.y) != len(other.owners[0].train.y) or not torch.equal(
        one.owners[0].train.x, other.owners[0].train.x
    )


@pytest.mark.parametrize("task", [vision.TASK, features.TASK], ids=lambda task: task.name)
def test_digits_never_stand_in_for_clothes(task: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfl_sim.tasks.vision.data.load_images", lambda _: enlarged_digits())
    with pytest.raises(ContentError, match="Fashion-MNIST is in no source") as caught:
        task.load(tmp_path, np.random.default_rng(0))  # type: ignore[attr-defined]
    assert "NFL_DATA" in caught.value.hint


def test_features_are_computed_once_and_a_cut_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def network(*_: object, **__: object) -> EfficientNetLite0:
        calls.append(1)
        torch.manual_seed(0)
        return EfficientNetLite0()

    monkeypatch.setattr("nfl_sim.tasks.features.data.load_network", network)
    data = some_of(_numbered(100), num_images=3)
    first, kept = features_of(tmp_path, data, size=32), features_of(tmp_path, data, size=32)
    assert first.shape == (3, *features.TASK.input_shape)
    assert np.array_equal(first, kept)
    assert len(calls) == 1
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4])
    assert np.array_equal(features_of(tmp_path, data, size=32), first)
    assert len(calls) == 2


@pytest.mark.parametrize("task", [vision.TASK, features.TASK], ids=lambda task: task.name)
def test_models_fit_their_tasks(task: object) -> None:
    module = create_model(task.model, num_classes=10, input_shape=task.input_shape, seed=0)  # type: ignore[attr-defined]
    schema_of(module, task.spec)  # type: ignore[attr-defined]
    assert 10_000 <= sum(p.numel() for p in module.parameters()) <= 60_000
    assert module(torch.rand(2, *task.input_shape)).shape == (2, 10)  # type: ignore[attr-defined]


def test_a_shape_without_three_axes_is_refused() -> None:
    with pytest.raises(ConfigError, match="feature-net got"):
        FeatureNet(num_classes=10, input_shape=(NUM_FEATURES,))
