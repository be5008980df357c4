"""The model `watch-cnn`: a small network over time, for the readings of a watch, [axes, 1, time].

About 42 thousand parameters: three strided convolutions along time with GroupNorm, means over a fifth of what is left
(an exercise has no beginning in a window), then the hidden layer and heads of `small-cnn`.
"""

from __future__ import annotations

from torch import nn

from nfl_core.errors import ConfigError
from nfl_core.learning import FourRooms

WIDTH, HIDDEN, NUM_PARTS = 48, 64, 5
SHORTEST = 8 * NUM_PARTS  # readings: three strides of two, then one value a part


class WatchCnn(FourRooms):
    """The four rooms body, middle, head and private, for inputs [C, 1, W]."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) != 3 or input_shape[1] != 1 or input_shape[2] % SHORTEST or num_classes < 2:
            raise ConfigError(
                f"watch-cnn got {num_classes} classes of shape {input_shape}, "
                f"expected >= 2 of (C, 1, a multiple of {SHORTEST})"
            )
        body = nn.Sequential(
            *_block(input_shape[0], kernel=9),
            *_block(WIDTH, kernel=5),
            *_block(WIDTH, kernel=5),
            nn.AvgPool2d((1, input_shape[2] // SHORTEST)),
            nn.Flatten(),
        )
        super().__init__(body, num_classes=num_classes, input_shape=input_shape, hidden=HIDDEN)


def _block(channels: int, *, kernel: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, WIDTH, (1, kernel), stride=(1, 2), padding=(0, kernel // 2))
    return convolution, nn.GroupNorm(8, WIDTH), nn.ReLU()


def watch_cnn(num_classes: int, input_shape: tuple[int, ...]) -> WatchCnn:
    """Make the model; the entry point `watch-cnn` of the group `nfl.models`.

    Raises:
        ConfigError: Fewer than two classes, or a shape that is not (channels, 1, a multiple of 40).
    """
    return WatchCnn(num_classes=num_classes, input_shape=input_shape)
