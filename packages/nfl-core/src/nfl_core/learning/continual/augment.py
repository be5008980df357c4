"""Small changes of remembered images, so that a few of them are not learned by heart.

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> shift_and_flip(x, torch.Generator().manual_seed(0), max_shift=1).shape
    torch.Size([1, 1, 4, 4])

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad


class Augment(Protocol):
    """Changes inputs without changing what they show."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return new inputs of the same shape, float32 [B, C, H, W]."""
        ...


def shift(x: Tensor, generator: torch.Generator, *, max_shift: int = 2) -> Tensor:
    """Move each image by up to `max_shift` pixels each way; zeros come in.

    Args:
        x: float32 [B, C, H, W].
        generator: Draws the shifts.
        max_shift: Pixels, >= 0; an axis shorter than 8 times that stays as it is.
    """
    num, _, height, width = x.shape
    by_H, by_W = (max_shift if size >= 8 * max_shift else 0 for size in (height, width))
    padded = pad(x, (by_W, by_W, by_H, by_H))
    top = torch.randint(2 * by_H + 1, (num, 1), generator=generator)
    left = torch.randint(2 * by_W + 1, (num, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    at = torch.arange(num)[:, None, None]
    return padded.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def shift_and_flip(x: Tensor, generator: torch.Generator, *, max_shift: int = 2) -> Tensor:
    """Move each image as `shift` does and mirror every second one, left to right; not for digits or letters."""
    moved = shift(x, generator, max_shift=max_shift)
    flipped = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], moved.flip(-1), moved)
