"""The model `wide-cnn`: a teacher of a cluster's size for small grey images."""

from __future__ import annotations

from torch import nn

from nfl_core.errors import ConfigError
from nfl_core.learning import FourRooms

HIDDEN = 384


class WideCnn(FourRooms):
    """1.03 million parameters for 28 x 28 grey images: what a cluster can run and most devices cannot."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) != 3 or min(input_shape) < 1 or num_classes < 2:
            raise ConfigError(f"wide-cnn got {num_classes} classes of shape {input_shape}, expected >= 2 of (C, H, W)")
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], 32, 5, stride=2, padding=2),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.GroupNorm(8, 128),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, stride=2, padding=1),
            nn.GroupNorm(8, 128),
            nn.ReLU(),
            nn.Flatten(),
        )
        super().__init__(body, num_classes=num_classes, input_shape=input_shape, hidden=HIDDEN)


def wide_cnn(num_classes: int, input_shape: tuple[int, ...]) -> WideCnn:
    """Make the model; the entry point `wide-cnn` of the group `nfl.models`.

    Raises:
        ConfigError: Fewer than two classes, or a shape that is not (channels, height, width).
    """
    return WideCnn(num_classes=num_classes, input_shape=input_shape)
