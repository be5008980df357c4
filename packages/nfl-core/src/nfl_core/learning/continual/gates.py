"""What a device refuses to learn from, and what it learns from with care. Pure: a batch in, a verdict out.

| batch | verdict |
|---|---|
| empty, another shape or type, NaN or infinity, a label outside the schema | refused: `StreamRefusedError` |
| stream and memory together hold one class | `one-class`: private levels learn, shared ones are protected |
| most of it is the same picture again | `flood`: one of each is learned from |

    >>> x, y = torch.zeros(4, 1, 4, 4), torch.tensor([1, 1, 1, 1])
    >>> judge(x, y, num_classes=3, input_shape=(1, 4, 4), known_classes=frozenset()).degradations
    ('one-class', 'flood')

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nfl_core.learning.continual.errors import StreamRefusedError

Degradation = Literal["one-class", "flood"]
_COARSE = 4  # cells a side: noise of single pixels averages out
_ALIKE = 0.01  # mean difference of the cells, as a fraction of the batch's range: a picture and itself with some noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What may be learned from a batch.

    Attributes:
        places: Samples to learn from, int64, rising, not empty.
        protect_shared: Whether only private levels may learn.
        degradations: Names of what is wrong, for the journal; empty: nothing.
    """

    places: Tensor
    protect_shared: bool
    degradations: tuple[Degradation, ...]


def judge(
    x: Tensor,
    y: Tensor,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    known_classes: frozenset[int],
    max_repeated_fraction: float = 0.5,
) -> Admission:
    """Say what may be learned from a batch.

    Args:
        x: float32 [B, *input_shape].
        y: int64 [B].
        num_classes: K of the schema.
        input_shape: C, H, W of the schema.
        known_classes: Classes that the stream showed lately or the memory holds.
        max_repeated_fraction: Of samples that look like one before them in the batch; 1 turns this gate off.

    Raises:
        StreamRefusedError: The batch must not be learned from.
    """
    _refuse(x, y, num_classes=num_classes, input_shape=input_shape)
    degradations: list[Degradation] = []
    protect_shared = len(known_classes | set(y.tolist())) < 2
    if protect_shared:
        degradations.append("one-class")
    places = torch.arange(len(y))
    first = _first_of_each(x, y)
    if 1.0 - len(first) / len(y) > max_repeated_fraction:
        degradations.append("flood")
        places = first
    return Admission(places=places, protect_shared=protect_shared, degradations=tuple(degradations))


def _refuse(x: Tensor, y: Tensor, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
    if not len(y):
        raise StreamRefusedError("the stream gave an empty batch, expected at least one sample")
    if x.dtype is not torch.float32 or tuple(x.shape) != (len(y), *input_shape):
        raise StreamRefusedError(f"inputs are {x.dtype}{list(x.shape)}, expected torch.float32{[len(y), *input_shape]}")
    if y.dtype is not torch.int64 or y.ndim != 1 or not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise StreamRefusedError(
            f"labels are {y.dtype}{list(y.shape)} from {y.min()} to {y.max()}, expected 0 to {num_classes - 1}"
        )
    num_bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
    if num_bad:
        raise StreamRefusedError(f"{num_bad} of {len(y)} inputs hold NaN or infinity, expected finite numbers")


def _first_of_each(x: Tensor, y: Tensor) -> Tensor:
    """Return the places of samples that look like none before them with the same label, when made coarse."""
    coarse_BF = adaptive_avg_pool2d(x, _COARSE).flatten(1)
    spread = float(coarse_BF.amax() - coarse_BF.amin())
    apart_BB = torch.cdist(coarse_BF, coarse_BF, p=1) / coarse_BF.shape[1]
    alike_BB = (apart_BB <= _ALIKE * spread) & (y[:, None] == y[None, :])
    return torch.nonzero(~alike_BB.tril(diagonal=-1).any(dim=1)).flatten()
