"""Training over many versions: what every method of a long scene gets, so that samples and steps stay the same for all.

Images are mirrored and shifted anew in each round, and the learning rate falls as half a cosine.

Shape legend: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nfl_core.learning import Cohort, Owner, Samples

MAX_SHIFT = 2  # pixels, each way
LEAST_PACE = 0.01  # a level may be slow, but it may not stand still


def vary(cohort: Cohort, owners: Sequence[Owner], *, progress: float, seed: int) -> None:
    """Give every member fresh views of its owner's training images, and the learning rate of this moment.

    Args:
        cohort: Before its next round.
        owners: Its owners, in order.
        progress: Share of all rounds that are over, 0 to 1.
        seed: Decides the views.
    """
    generator = torch.Generator().manual_seed(seed)
    pace = max(LEAST_PACE, 0.5 * (1.0 + math.cos(math.pi * progress)))
    for member, owner in zip(cohort.members, owners, strict=True):
        member.train = Samples(x=shifted(mirrored(owner.train.x, generator), generator), y=owner.train.y)
        member.learner.pace({level.name: pace for level in cohort.strategy.spec.levels})


def mirrored(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, each mirrored left to right or not."""
    flips_N = torch.rand(len(x_NCHW), generator=generator) < 0.5
    return torch.where(flips_N[:, None, None, None], x_NCHW.flip(3), x_NCHW)


def shifted(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, each shifted by up to `MAX_SHIFT` pixels; what comes in is dark."""
    num, _, height, width = x_NCHW.shape
    padded = torch.nn.functional.pad(x_NCHW, (MAX_SHIFT,) * 4)
    moves_2N = torch.randint(0, 2 * MAX_SHIFT + 1, (2, num), generator=generator)
    rows_NH = moves_2N[0][:, None] + torch.arange(height)
    columns_NW = moves_2N[1][:, None] + torch.arange(width)
    places_N = torch.arange(num)[:, None, None]
    moved_NHWC = padded.permute(0, 2, 3, 1)[places_N, rows_NH[:, :, None], columns_NW[:, None, :]]
    return moved_NHWC.permute(0, 3, 1, 2).contiguous()
