"""The Free Spoken Digit Dataset: six people say the digits 0 to 9 in English, 50 times each.

An owner is a speaker. A recording is in one split of one owner or in none; which is where is drawn anew from the
generator for each digit of each speaker. Few recordings are for learning, as with a device that was spoken to for a
quarter of an hour: who has hundreds of labelled words of its own needs no fleet.

Looked for below `cache`, then below the folder that `NFL_DATA` names: the archive `free-spoken-digit-dataset.zip`, or
the folder `recordings` out of it.

Source: Jackson et al., Free Spoken Digit Dataset, v1.0.10 (CC BY-SA 4.0).
"""

from __future__ import annotations

import io
import os
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.errors import ContentError
from nfl_core.learning import Samples
from nfl_sim.tasks.audio.features import RATE_HZ, log_mel
from nfl_sim.tasks.task import TaskData, TaskOwner

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
NUM_DIGITS, NUM_TAKES = 10, 50
SPLITS = {"train": 10, "holdout": 5, "test": 35}  # recordings of each digit
ARCHIVE, FOLDER = "free-spoken-digit-dataset.zip", "recordings"
HINT = (
    f"get {ARCHIVE} (github.com/Jakobovski/free-spoken-digit-dataset, 'Download ZIP' will do, or clone it) and set "
    "NFL_DATA to the folder that holds it, or that holds its folder `recordings`"
)
Read = Callable[[str], bytes]


def load(cache: Path, generator: np.random.Generator) -> TaskData:
    """Return the six speakers. Raises ContentError when the recordings are out of reach or are others."""
    read = _reader(cache)
    takes = {speaker: _takes(read, speaker) for speaker in SPEAKERS}
    return TaskData(owners=tuple(owner_of(name, x, generator=generator) for name, x in takes.items()))


def owner_of(name: str, takes: NDArray[np.float32], *, generator: np.random.Generator) -> TaskOwner:
    """Split one speaker's recordings.

    Args:
        name: Of the speaker.
        takes: Features, float32 [digits, takes, 1, bands, frames], as many takes as `SPLITS` asks for.
        generator: Draws which recording is in which split.
    """
    orders = [generator.permutation(takes.shape[1]) for _ in range(len(takes))]
    splits, start = {}, 0
    for split, num in SPLITS.items():
        rows = [takes[digit, order[start : start + num]] for digit, order in enumerate(orders)]
        y = torch.arange(len(takes)).repeat_interleave(num)
        splits[split] = Samples(x=torch.from_numpy(np.concatenate(rows)), y=y)
        start += num
    return TaskOwner(name=name, region="all", **splits)


def recordings(cache: Path) -> Callable[[str], NDArray[np.int16]]:
    """Return what reads a recording, for instance `3_theo_17.wav`: its samples at `RATE_HZ`, int16 [T].

    Raises:
        ContentError: The recordings are out of reach; what is returned raises it for one that is missing or is another.
    """
    read = _reader(cache)
    return lambda name: _samples(name, read(name))


def _takes(read: Read, speaker: str) -> NDArray[np.float32]:
    names = [[f"{digit}_{speaker}_{take}.wav" for take in range(NUM_TAKES)] for digit in range(NUM_DIGITS)]
    return np.stack([np.stack([log_mel(_samples(name, read(name))) for name in row]) for row in names])


def _samples(name: str, data: bytes) -> NDArray[np.int16]:
    """Return the samples of a WAV file, int16 [T]. Raises ContentError."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            samples = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ContentError(f"{name} is no WAV file: {error}", hint=HINT) from error
    if form != (RATE_HZ, 1, 2) or not samples:
        raise ContentError(f"{name} has {form} Hz, channels and bytes, expected {RATE_HZ}, 1 and 2", hint=HINT)
    return np.frombuffer(samples, "<i2").astype(np.int16)


def _reader(cache: Path) -> Read:
    for folder in _folders(cache):
        if (folder / FOLDER).is_dir():
            return _from_folder(folder / FOLDER)
        if (folder / ARCHIVE).is_file():
            return _from_archive(folder / ARCHIVE)
    raise ContentError(f"no {ARCHIVE} and no folder {FOLDER} in {' or '.join(map(str, _folders(cache)))}", hint=HINT)


def _folders(cache: Path) -> Iterator[Path]:
    yield cache
    if os.environ.get("NFL_DATA"):
        yield Path(os.environ["NFL_DATA"])


def _from_folder(folder: Path) -> Read:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise ContentError(f"{folder} lacks {name}: {error}", hint=HINT) from error

    return read


def _from_archive(path: Path) -> Read:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ContentError(f"{path} is no archive: {error}", hint=HINT) from error
    # The public archive has one more folder around: the file's own name is what counts.
    members = {Path(name).name: name for name in archive.namelist() if Path(name).parent.name == FOLDER}

    def read(name: str) -> bytes:
        try:
            return archive.read(members[name])
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise ContentError(f"{path} lacks {name}: {error!r}", hint=HINT) from error

    return read
