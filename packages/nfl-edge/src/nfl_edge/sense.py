"""Give a device's samples to those who may see them: its own trainer and its own engine.

A file of samples is a safetensors file with three splits: `train` to learn from, `holdout` to judge merges and
probation, `test` for the journal alone. Inputs are pixels, uint8, which become float32 in [0, 1] by
`nfl_core.tensors.to_input` and nowhere else, or features, float32, which stay as they are: so what is learned and what
is inferred see the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nfl_core.errors import MalformedError
from nfl_core.tensors import to_input
from nfl_edge.errors import SamplesError

SPLITS = ("train", "holdout", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Labelled samples: `x_BCHW` float32, finite, shape [B, C, H, W]; `y_B` int64, shape [B]."""

    x_BCHW: NDArray[np.float32]
    y_B: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y_B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a device sensed."""

    train: Split
    holdout: Split
    test: Split


class SampleSource(Protocol):
    """Where samples come from. The trainer reads the file by itself, so that pixels cross no pipe."""

    @property
    def path(self) -> Path:
        """Safetensors file with the present samples."""

    def revision(self) -> str:
        """Return a name of the present samples that changes when they do; empty: there are none."""


class FileSource:
    """Samples of a file that is replaced as a whole when there are new ones.

    Args:
        path: Safetensors file; may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def revision(self) -> str:
        """Return inode, length and time of the last change; empty when there is no file."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return ""
        return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"


def read_samples(path: Path) -> Samples:
    """Read and check a file of samples. Raises SamplesError."""
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SamplesError(f"samples in {path.name} cannot be read: {error}") from error
    wanted = {f"{split}.{axis}" for split in SPLITS for axis in "xy"}
    if arrays.keys() != wanted:
        raise SamplesError(f"samples hold {sorted(arrays)}, expected {sorted(wanted)}")
    return Samples(**{split: _split(arrays[f"{split}.x"], arrays[f"{split}.y"], split) for split in SPLITS})


def _split(x: NDArray[np.generic], y: NDArray[np.generic], name: str) -> Split:
    if x.ndim != 4 or y.dtype != np.int64 or y.shape != x.shape[:1]:
        raise SamplesError(
            f"{name} is {x.dtype}{list(x.shape)} with {y.dtype}{list(y.shape)}, expected [N,C,H,W] with int64 [N]"
        )
    if not len(y) or int(y.min()) < 0:
        raise SamplesError(
            f"{name} holds {len(y)} samples with labels from {y.min() if len(y) else None}, expected 1 or more from 0"
        )
    try:
        return Split(x_BCHW=to_input(x), y_B=y.astype(np.int64, copy=False))
    except MalformedError as error:
        raise SamplesError(f"{name}: {error.message}") from error
