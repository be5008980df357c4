"""The same clothes as a frozen EfficientNet-Lite0 sees them: 1,280 features an image, computed once and kept.

The pretrained network is the slowest level of all, so slow that it stands still: its outputs are the inputs of a small
model. On a device they would be computed once a sample, when it is taken.

Shape legend: N images, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_core.durable import make_folder, write_file
from nfl_core.errors import TensorFileError
from nfl_core.tensors import read_tensors, write_tensors
from nfl_sim.data import DataSet
from nfl_sim.data.efficientnet import NUM_FEATURES, embed, load_network
from nfl_sim.tasks.task import TaskData
from nfl_sim.tasks.vision.data import fashion, owners_of

NUM_IMAGES = 2000  # of the 70,000: with good features, few are enough to learn from
IMAGES_PER_OWNER = 75
SIZE = 64  # pixels a side; 6 ms of one core an image, 11 ms at 96
_ORDER_SEED = 0  # which images have features is fixed, so that they are computed once for all seeds
_MAX_BYTES = 1 << 26
_LOG = logging.getLogger(__name__)


def load(cache: Path, generator: np.random.Generator) -> TaskData:
    """Return twenty owners of some 75 images each to learn from and judge with.

    Raises:
        ContentError: Fashion-MNIST or the weights of EfficientNet-Lite0 are out of reach.
        StorageFullError: The cache's disk is full.
    """
    data = some_of(fashion(cache))
    return owners_of(data, features_of(cache, data), images_per_owner=IMAGES_PER_OWNER, generator=generator)


def some_of(data: DataSet, *, num_images: int = NUM_IMAGES) -> DataSet:
    """Return always the same images out of a data set."""
    rows_N = np.random.default_rng(_ORDER_SEED).permutation(len(data.y_N))[:num_images]
    return replace(data, x_NCHW=data.x_NCHW[rows_N], y_N=data.y_N[rows_N])


def features_of(
    cache: Path, data: DataSet, *, size: int = SIZE, say: Callable[[str], None] = _LOG.info
) -> NDArray[np.float32]:
    """Return the features of all images, float32 [N, 1280, 1, 1]; kept in `cache`.

    Raises:
        ContentError: The weights are out of reach.
        StorageFullError: The cache's disk is full.
    """
    num = len(data.y_N)
    path = cache / f"efficientnet-lite0-{data.name}-{num}-{size}.safetensors"
    try:
        kept = read_tensors(path.read_bytes(), {"z": ((num, NUM_FEATURES), "float32")}, max_bytes=_MAX_BYTES)["z"]
    except (FileNotFoundError, TensorFileError):
        kept = embed(load_network(cache, say=say), data.x_NCHW, size=size, say=say)
        make_folder(cache)
        write_file(path, write_tensors({"z": kept}))
    return kept.astype(np.float32, copy=False).reshape(num, NUM_FEATURES, 1, 1)
