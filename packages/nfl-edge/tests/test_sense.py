from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nfl_edge.errors import SamplesError
from nfl_edge.sense import FileSource, read_samples


def arrays(num: int = 3) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for split in ("train", "holdout", "test"):
        made[f"{split}.x"] = np.full((num, 1, 4, 4), 255, np.uint8)
        made[f"{split}.y"] = np.arange(num, dtype=np.int64)
    return made


def test_pixels_become_floats_from_zero_to_one(tmp_path: Path) -> None:
    save_file(arrays(), tmp_path / "s")
    samples = read_samples(tmp_path / "s")
    assert samples.train.x_BCHW.dtype == np.float32
    assert (samples.train.x_BCHW == 1.0).all()
    assert len(samples.holdout) == 3


def test_features_stay_as_they_are(tmp_path: Path) -> None:
    features = np.linspace(-3, 3, 48, dtype=np.float32).reshape(3, 1, 4, 4)
    save_file(arrays() | {"train.x": features, "test.x": np.asfortranarray(features)}, tmp_path / "s")
    samples = read_samples(tmp_path / "s")
    assert samples.train.x_BCHW.tobytes() == features.tobytes()
    assert (samples.holdout.x_BCHW == 1.0).all()  # each split says by its type what it holds


def test_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    save_file(arrays() | {"test.x": np.full((3, 1, 4, 4), np.inf, np.float32)}, tmp_path / "s")
    with pytest.raises(SamplesError, match="test: inputs hold a value that is not finite"):
        read_samples(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [
        {"train.x": np.zeros((3, 1, 4, 4), np.float64)},
        {"train.x": np.zeros((3, 1, 4, 4), np.int8)},
        {"train.x": np.full((3, 1, 4, 4), np.nan, np.float32)},
        {"holdout.x": np.full((3, 1, 4, 4), -np.inf, np.float32)},
        {"train.x": np.zeros((3, 16), np.float32)},
        {"train.x": np.zeros((3, 16), np.uint8)},
        {"train.y": np.zeros(2, np.int64)},
        {"train.y": np.zeros(3, np.int32)},
        {"test.y": np.full(3, -1, np.int64)},
        {"holdout.x": np.zeros((0, 1, 4, 4), np.uint8), "holdout.y": np.zeros(0, np.int64)},
        {"extra": np.zeros(1, np.uint8)},
    ],
)
def test_bad_samples_are_refused(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    save_file(arrays() | change, tmp_path / "s")
    with pytest.raises(SamplesError):
        read_samples(tmp_path / "s")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"not samples")
    with pytest.raises(SamplesError, match="cannot be read"):
        read_samples(tmp_path / "s")


def test_revision_changes_with_the_file(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "s")
    assert source.revision() == ""
    save_file(arrays(), tmp_path / "s")
    first = source.revision()
    save_file(arrays(4), tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "s")
    assert "" != first != source.revision()
