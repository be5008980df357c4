from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nfl_cluster.teachers import open_teacher
from nfl_core.errors import ConfigError
from nfl_core.tensors import write_tensors
from nfl_sim.data import enlarged_digits
from nfl_sim.data.efficientnet import NUM_GRID, EfficientNetLite0
from nfl_sim.teaching import PretrainedSize, embed_images, few_labels, pretrained

TINY = PretrainedSize(num_train=300, num_test=100, epochs=4)


@pytest.fixture(autouse=True)
def random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The architecture without its published weights: random features of a digit still tell it apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EfficientNetLite0().eval()
    monkeypatch.setattr(pretrained, "load_network", lambda *_, **__: network)
    monkeypatch.setattr(pretrained, "PIXELS", 32)


def test_few_labels_says_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = enlarged_digits()
    images = embed_images(tmp_path, data, size=TINY)
    assert images.z_ND.shape == (400, NUM_GRID)
    found = few_labels(images, size=TINY, seed=0)
    assert set(found) == {"teacher", "taught", "alone", "alone_all_labels"}
    assert min(found.values()) > 0.1
    monkeypatch.setattr(pretrained, "load_network", lambda *_, **__: pytest.fail("the features were not kept"))
    assert np.array_equal(embed_images(tmp_path, data, size=TINY).z_ND, images.z_ND)


def test_the_command_takes_it_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = enlarged_digits()
    file = tmp_path / "few.safetensors"
    file.write_bytes(write_tensors({"x": data.x_NCHW[:60], "y": data.y_N[:60]}))
    monkeypatch.setenv(pretrained.LABELLED, str(file))
    teacher = open_teacher("efficientnet-lite0", model="small-cnn", graph=None, num_classes=10, shape=(1, 28, 28))
    x = data.x_NCHW[:60].astype(np.float32) / np.float32(255)
    assert (teacher.answer(x).logits_NK.argmax(1) == data.y_N[:60]).mean() > 0.5
    with pytest.raises(ConfigError, match="10 classes, expected 7"):
        open_teacher("efficientnet-lite0", model="small-cnn", graph=None, num_classes=7, shape=(1, 28, 28))


def test_without_labelled_samples_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pretrained.LABELLED, raising=False)
    with pytest.raises(ConfigError) as caught:
        open_teacher("efficientnet-lite0", model="small-cnn", graph=None, num_classes=10, shape=(1, 28, 28))
    assert pretrained.LABELLED in caught.value.hint
