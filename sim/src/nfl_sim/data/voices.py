"""Sounds with a known pitch, and frames of real speech: what a teacher of pitch is asked about.

    sounds = voices(1000, generator=np.random.default_rng(0))     # sounds.x_NT, sounds.hz_N
    x_NT = speech(cache, speakers=("george",), num=500, generator=np.random.default_rng(0))

A frame is 1,024 samples at 16 kHz with mean 0 and deviation 1. A made sound has harmonics with random phases under a
spectrum that falls and has resonances, glides a little, and stands in noise. Its pitch is that of its middle.

Source: speech is the Free Spoken Digit Dataset (see nfl_sim.tasks.audio.data), 8 kHz, resampled.
Shape legend: N frames, T samples of a frame, H harmonics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly

from nfl_sim.data.crepe import FRAME, RATE_HZ, normalised
from nfl_sim.tasks.audio.data import NUM_DIGITS, NUM_TAKES, recordings
from nfl_sim.tasks.audio.features import RATE_HZ as SPEECH_HZ

RANGE_HZ = (60.0, 800.0)
GLIDE = 0.5  # semitones over a frame, at most, up or down
NOISE_DB = (-3.0, 30.0)  # of sound over noise
TONE_FRACTION = 0.1  # of the sounds are a single sine
NUM_HARMONICS, NUM_RESONANCES = 40, 3
QUIET = 0.1  # of a recording's loudest frame: less is a pause


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Voices:
    """Made sounds.

    Attributes:
        x_NT: float32, mean 0, deviation 1.
        hz_N: Their pitch in the middle of the frame, float32.
        noise_db_N: How far the sound is above the noise, float32.
    """

    x_NT: NDArray[np.float32]
    hz_N: NDArray[np.float32]
    noise_db_N: NDArray[np.float32]


def voices(num: int, *, generator: np.random.Generator) -> Voices:
    """Make `num` sounds, half of them voices without anything above 4 kHz, as a telephone hears them."""
    made = [_sound(generator) for _ in range(num)]
    x_NT = torch.from_numpy(np.stack([one[0] for one in made]).astype(np.float32))
    return Voices(
        x_NT=normalised(x_NT).numpy(),
        hz_N=np.asarray([one[1] for one in made], np.float32),
        noise_db_N=np.asarray([one[2] for one in made], np.float32),
    )


def speech(cache: Path, *, speakers: Sequence[str], num: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return `num` frames of speech, float32 [N, T]: a frame of each of as many recordings, pauses left out.

    Raises:
        ContentError: The recordings are out of reach or are others.
    """
    read = recordings(cache)
    names = [
        f"{digit}_{who}_{take}.wav" for who in speakers for digit in range(NUM_DIGITS) for take in range(NUM_TAKES)
    ]
    repeats = -(-num // len(names))
    order = np.concatenate([generator.permutation(len(names)) for _ in range(repeats)])[:num]
    frames = [_frame(read(names[place]), generator) for place in order]
    return normalised(torch.from_numpy(np.stack(frames).astype(np.float32))).numpy()


def _sound(generator: np.random.Generator) -> tuple[NDArray[np.float64], float, float]:
    """Return a frame, its pitch in Hz and how far it is above the noise in dB."""
    hz = float(np.exp(generator.uniform(*np.log(RANGE_HZ))))
    seconds_T = (np.arange(FRAME) - (FRAME - 1) / 2) / RATE_HZ
    slope = generator.uniform(-GLIDE, GLIDE) / 12 * np.log(2) / (FRAME / RATE_HZ)
    # The phase of a pitch hz * exp(slope t), to second order: glides are small.
    turns_T = hz * (seconds_T + slope * seconds_T**2 / 2)
    is_tone, is_narrow = generator.random() < TONE_FRACTION, generator.random() < 0.5
    highest = SPEECH_HZ / 2 if is_narrow else RATE_HZ / 2
    num = 1 if is_tone else max(1, min(NUM_HARMONICS, int(0.95 * highest / hz)))
    order_H = np.arange(1, num + 1, dtype=np.float64)
    loudness_H = order_H ** -generator.uniform(0.5, 2.0) * _resonances(hz * order_H, generator)
    phase_H = generator.uniform(0, 2 * np.pi, num)
    clean_T = loudness_H @ np.sin(2 * np.pi * order_H[:, None] * turns_T + phase_H[:, None])
    decibels = float(generator.uniform(*NOISE_DB))
    noise_T = generator.standard_normal(FRAME)
    if generator.random() < 0.5:
        noise_T = np.convolve(noise_T, np.full(8, 0.125), mode="same")
    scale = clean_T.std() / noise_T.std() * 10 ** (-decibels / 20)
    return clean_T + scale * noise_T, hz, decibels


def _resonances(hz_H: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    middles = np.exp(generator.uniform(np.log(250), np.log(3800), NUM_RESONANCES))
    widths = generator.uniform(60, 400, NUM_RESONANCES)
    shape_H: NDArray[np.float64] = 0.1 + sum(
        1 / (1 + ((hz_H - middle) / width) ** 2) for middle, width in zip(middles, widths, strict=True)
    )
    return shape_H


def _frame(samples_T: NDArray[np.int16], generator: np.random.Generator) -> NDArray[np.float64]:
    wave_T = resample_poly(samples_T.astype(np.float64), RATE_HZ // SPEECH_HZ, 1)
    wave_T = np.pad(wave_T, (0, max(0, FRAME - len(wave_T))))
    starts = np.arange(0, len(wave_T) - FRAME + 1, RATE_HZ // 100)
    loud = np.asarray([wave_T[start : start + FRAME].std() for start in starts])
    start = generator.choice(starts[loud >= QUIET * loud.max()])
    return wave_T[start : start + FRAME]
