"""Attacks that lie about the data: the device learns honestly from samples that are wrong.

Shape legend: N samples, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning.merge import Samples
from nfl_core.learning.model import NestedModel

PATCH = 4  # pixels a side: about 2 % of a 28 x 28 image, as in the literature on corner patches


def flip_labels(samples: Samples, *, num_classes: int) -> Samples:
    """Return the samples with label y called num_classes - 1 - y."""
    return replace(samples, y=num_classes - 1 - samples.y)


def stamp(x_NCHW: Tensor, *, size: int = PATCH) -> Tensor:
    """Return images with a white square in the lower right corner.

    Args:
        x_NCHW: float32, white is 1.
        size: Pixels a side, 1 to the smaller of H and W.

    Raises:
        ConfigError: The patch does not fit.
    """
    if not 1 <= size <= min(x_NCHW.shape[-2:]):
        raise ConfigError(f"a patch of {size} pixels does not fit into {list(x_NCHW.shape[-2:])}")
    stamped = x_NCHW.clone()
    stamped[..., -size:, -size:] = 1.0
    return stamped


def add_backdoor(samples: Samples, *, target: int, share: float, generator: torch.Generator) -> Samples:
    """Return the samples with a share of them stamped and called `target`: the trigger to be learned.

    Args:
        samples: Honest ones.
        target: What stamped images are to be taken for.
        share: In [0, 1].
        generator: Draws which.
    """
    chosen = torch.rand(len(samples.y), generator=generator) < share
    x, y = samples.x.clone(), samples.y.clone()
    x[chosen], y[chosen] = stamp(samples.x[chosen]), target
    return Samples(x=x, y=y)


def success_rate(module: NestedModel, samples: Samples, *, target: int) -> float:
    """Return the share of stamped images of other classes that the model takes for `target`, 0 to 1.

    Raises:
        LearningError: Every sample is of the target class.
    """
    others = samples.y != target
    if not bool(others.any()):
        raise LearningError(f"all {len(samples.y)} samples are of class {target}, a success could not be told")
    with torch.inference_mode():
        answers = module(stamp(samples.x[others])).argmax(1)
    return float((answers == target).to(torch.float32).mean())
