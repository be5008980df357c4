from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from nfl_core.errors import ContentError
from nfl_sim.data.voices import NOISE_DB, RANGE_HZ, speech, voices


def test_the_same_seed_makes_the_same_sounds() -> None:
    one, two, other = (voices(20, generator=np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one.x_NT.tobytes() == two.x_NT.tobytes()
    assert one.x_NT.tobytes() != other.x_NT.tobytes()
    assert (one.x_NT.shape, one.x_NT.dtype, one.hz_N.dtype) == ((20, 1024), np.float32, np.float32)
    assert np.abs(one.x_NT.mean(axis=1)).max() < 1e-5
    assert one.hz_N.min() >= RANGE_HZ[0]
    assert one.hz_N.max() <= RANGE_HZ[1]
    assert NOISE_DB[0] <= one.noise_db_N.min() <= one.noise_db_N.max() <= NOISE_DB[1]


def test_the_pitch_is_what_is_said() -> None:
    """A sound that repeats itself with its pitch is like itself one period later."""
    made = voices(200, generator=np.random.default_rng(2))
    clear = (made.noise_db_N > 20) & (made.hz_N < 400)
    for x_T, hz in zip(made.x_NT[clear], made.hz_N[clear], strict=True):
        lag = round(16_000 / hz)
        assert np.corrcoef(x_T[200:700], x_T[200 + lag : 700 + lag])[0, 1] > 0.5


def test_speech_is_cut_out_of_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NFL_DATA", raising=False)
    (tmp_path / "recordings").mkdir()
    seconds = np.arange(1600) / 8000
    samples = (9000 * np.sin(2 * np.pi * 200 * seconds) * (seconds > 0.1)).astype("<i2")
    for digit in range(10):
        for take in range(50):
            with wave.open(str(tmp_path / f"recordings/{digit}_theo_{take}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(samples.tobytes())
    frames = speech(tmp_path, speakers=("theo",), num=510, generator=np.random.default_rng(0))
    assert (frames.shape, frames.dtype) == ((510, 1024), np.float32)
    assert np.allclose(frames.std(axis=1, ddof=1), 1, atol=1e-4)  # a pause was never taken
    with pytest.raises(ContentError, match=r"lacks \d_george_"):
        speech(tmp_path, speakers=("george",), num=1000, generator=np.random.default_rng(0))
    with pytest.raises(ContentError, match="no free-spoken-digit"):
        speech(tmp_path / "absent", speakers=("theo",), num=1, generator=np.random.default_rng(0))
