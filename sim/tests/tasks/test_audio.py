from __future__ import annotations

import io
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nfl_core.errors import ContentError
from nfl_sim.tasks.audio import TASK, data
from nfl_sim.tasks.audio.features import NUM_BANDS, NUM_FRAMES, RATE_HZ, log_mel


def tone(hz: float, *, num: int = 4000, volume: float = 9000) -> np.ndarray:
    return (volume * np.sin(2 * np.pi * hz * np.arange(num) / RATE_HZ)).astype(np.int16)


def wav(samples: np.ndarray, *, rate: int = RATE_HZ) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One speaker's recordings below NFL_DATA: each digit has its own tone."""
    monkeypatch.setattr(data, "SPEAKERS", ("george",))
    monkeypatch.setenv("NFL_DATA", str(tmp_path))
    folder = tmp_path / "recordings"
    folder.mkdir()
    for digit in range(data.NUM_DIGITS):
        for take in range(data.NUM_TAKES):
            samples = tone(300 * (digit + 1), num=300 + take)
            (folder / f"{digit}_george_{take}.wav").write_bytes(wav(samples))
    return folder


def test_features_have_one_scale_however_loud_and_long_a_word_was() -> None:
    features = log_mel(tone(1000))
    assert features.shape == TASK.input_shape == (1, NUM_BANDS, NUM_FRAMES)
    assert features.dtype == np.float32
    assert abs(float(features.mean())) < 1e-5  # float32 sums of 1,536 values
    assert float(features.std()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(log_mel(tone(1000, volume=2250)), features, atol=0.05)  # 16 bits round a quiet tone
    np.testing.assert_allclose(log_mel(tone(1000, num=9000))[0].argmax(0), features[0].argmax(0))


def test_a_higher_tone_stands_in_a_higher_band() -> None:
    bands = [int(log_mel(tone(hz)).mean(axis=(0, 2)).argmax()) for hz in (200, 500, 1000, 2000, 3500)]
    assert bands == sorted(set(bands))


@pytest.mark.parametrize("samples", [np.zeros(4000, np.int16), np.zeros(1, np.int16), tone(500, num=20)])
def test_silence_and_clicks_are_finite(samples: np.ndarray) -> None:
    features = log_mel(samples)
    assert features.shape == TASK.input_shape
    assert np.isfinite(features).all()


def test_no_recording_is_in_two_splits() -> None:
    takes = np.arange(500, dtype=np.float32).reshape(10, 50, 1, 1, 1)
    owner = data.owner_of("george", takes, generator=np.random.default_rng(0))
    seen = {split: set(getattr(owner, split).x.ravel().tolist()) for split in data.SPLITS}
    assert [len(seen[split]) for split in data.SPLITS] == [10 * num for num in data.SPLITS.values()]
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))
    for split in data.SPLITS:
        samples = getattr(owner, split)
        assert (samples.x.ravel() // 50).tolist() == samples.y.tolist()


def test_the_generator_decides_the_split() -> None:
    takes = np.arange(500, dtype=np.float32).reshape(10, 50, 1, 1, 1)
    first, again, other = (data.owner_of("g", takes, generator=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.train.x.equal(again.train.x)
    assert not first.train.x.equal(other.train.x)


def test_recordings_are_read_from_a_folder_and_from_an_archive(recordings: Path, tmp_path: Path) -> None:
    from_folder = TASK.load(tmp_path / "none", np.random.default_rng(0)).owners[0]
    cache = tmp_path / "cache"
    cache.mkdir()
    with zipfile.ZipFile(cache / data.ARCHIVE, "w") as archive:
        for path in recordings.iterdir():
            archive.write(path, f"free-spoken-digit-dataset-master/recordings/{path.name}")
    from_archive = TASK.load(cache, np.random.default_rng(0)).owners[0]
    assert from_folder.train.x.equal(from_archive.train.x)
    assert from_folder.train.x.shape == (10 * data.SPLITS["train"], *TASK.input_shape)


def test_without_data_the_error_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NFL_DATA", raising=False)
    with pytest.raises(ContentError, match=r"no free-spoken-digit-dataset\.zip") as caught:
        TASK.load(tmp_path, np.random.default_rng(0))
    assert "NFL_DATA" in caught.value.hint


def test_wrong_recordings_are_named(recordings: Path, tmp_path: Path) -> None:
    bad = recordings / "3_george_7.wav"
    for content, message in (
        (wav(tone(500), rate=16_000), "3_george_7.wav has"),
        (b"RIFF", "3_george_7.wav is no WAV file"),
        (wav(tone(500)[:0]), "3_george_7.wav has"),
    ):
        bad.write_bytes(content)
        with pytest.raises(ContentError, match=message):
            TASK.load(tmp_path / "none", np.random.default_rng(0))
    bad.unlink()
    with pytest.raises(ContentError, match=r"lacks 3_george_7\.wav"):
        TASK.load(tmp_path / "none", np.random.default_rng(0))


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / data.ARCHIVE).write_bytes(b"no archive")
    with pytest.raises(ContentError, match="is no archive"):
        TASK.load(tmp_path, np.random.default_rng(0))
    with zipfile.ZipFile(tmp_path / data.ARCHIVE, "w") as archive:
        archive.writestr("recordings/readme.md", "nothing")
    with pytest.raises(ContentError, match=r"lacks 0_george_0\.wav"):
        TASK.load(tmp_path, np.random.default_rng(0))
