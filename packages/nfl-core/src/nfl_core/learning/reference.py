"""The reference model `small-cnn` and the default levels it is trained with.

About 48 thousand parameters for 28 x 28 grey images: three strided convolutions with GroupNorm, one hidden layer, a
shared head and a private residual head that starts at zero. Which levels it has and why: docs/adr/0003.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfl_core.config import DEFAULT_LEVELS
from nfl_core.errors import ConfigError
from nfl_core.learning.model import NestedModel
from nfl_core.levels import Level, NestedSpec

HIDDEN = 64


class FourRooms(NestedModel):
    """The usual shape of a nested model: a body, one hidden layer, a shared head and a private residual head of zeros.

    Args:
        body: Makes float32 [B, D] of float32 [B, *input_shape]; may be of any kind.
        num_classes: Number of classes K.
        input_shape: Shape of one input, (channels, height, width).
        hidden: Width of the hidden layer, which both heads see.
    """

    def __init__(self, body: nn.Module, *, num_classes: int, input_shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.body = body
        with torch.no_grad():
            width = int(body(torch.zeros(1, *input_shape)).shape[1])
        self.middle = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, num_classes)
        self.private = nn.Linear(hidden, num_classes)
        nn.init.zeros_(self.private.weight)
        nn.init.zeros_(self.private.bias)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return float32 [B, hidden] from float32 [B, C, H, W]."""
        z_BD: Tensor = self.middle(self.body(x_BCHW))
        return z_BD

    def generic(self, z_BD: Tensor) -> Tensor:
        """Return the shared logits, float32 [B, K], from float32 [B, hidden]."""
        logits_BK: Tensor = self.head(z_BD)
        return logits_BK


class SmallCnn(FourRooms):
    """Three strided convolutions with GroupNorm, for inputs [C, H, W]."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) != 3 or min(input_shape) < 1 or num_classes < 2:
            raise ConfigError(f"small-cnn got {num_classes} classes of shape {input_shape}, expected >= 2 of (C, H, W)")
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], 16, 5, stride=2, padding=2),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Flatten(),
        )
        super().__init__(body, num_classes=num_classes, input_shape=input_shape, hidden=HIDDEN)


def small_cnn(num_classes: int, input_shape: tuple[int, ...]) -> SmallCnn:
    """Make the model; the entry point `small-cnn` of the group `nfl.models`.

    Raises:
        ConfigError: Fewer than two classes, or a shape that is not (channels, height, width).
    """
    return SmallCnn(num_classes=num_classes, input_shape=input_shape)


def default_levels() -> tuple[Level, ...]:
    """Return the levels that fleet.toml has when it names none, fastest first; they fit this model."""
    return DEFAULT_LEVELS


def default_spec() -> NestedSpec:
    """Return `default_levels` as a validated spec."""
    return NestedSpec.of(default_levels())
