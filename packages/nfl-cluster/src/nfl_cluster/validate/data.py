"""The root's own samples: `heldout.safetensors` to judge with, `shadow.safetensors` to measure scales with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_core.durable import read_file
from nfl_core.errors import ConfigError, MalformedError
from nfl_core.tensors import read_tensors, to_input

MAX_SAMPLES_BYTES = 512 * 1024 * 1024
HELDOUT, SHADOW = "heldout.safetensors", "shadow.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Labelled inputs.

    Attributes:
        x: float32 [N, C, H, W]; pixels are in [0, 1].
        y: int64 [N].
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def read_samples(path: Path, *, input_shape: tuple[int, ...], num_classes: int) -> Samples:
    """Read the samples of a file.

    Args:
        path: Holds `x`, uint8 or float32 [N, *input_shape], and `y`, int64 [N].
        input_shape: Of one input.
        num_classes: Labels are below it.

    Raises:
        NotFoundError: There is no such file.
        TensorFileError: It is no strict tensor file.
        ConfigError: It holds something else than samples of this model.
    """
    tensors = read_tensors(read_file(path), None, max_bytes=MAX_SAMPLES_BYTES)
    x, y = tensors.get("x"), tensors.get("y")
    if x is None or y is None or set(tensors) != {"x", "y"}:
        raise ConfigError(f"{path} holds {sorted(tensors)[:5]}, expected x and y")
    if y.ndim != 1 or y.dtype != np.int64 or not len(y) or x.shape != (len(y), *input_shape):
        raise ConfigError(
            f"{path} holds {x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}, "
            f"expected [N, {', '.join(map(str, input_shape))}] and int64 [N]"
        )
    labels = y.astype(np.int64)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ConfigError(f"{path} has labels {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    try:
        return Samples(x=to_input(x), y=labels)
    except MalformedError as error:
        raise ConfigError(f"{path}: {error.message}") from error
