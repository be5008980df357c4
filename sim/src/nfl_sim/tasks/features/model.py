"""The model `feature-net`: a small adapter and head on the features of a frozen network.

Some 45 thousand parameters for 1,280 features. The frozen network itself is no part of it.

Shape legend: B batch, D features, K classes.
"""

from __future__ import annotations

import math

from torch import nn

from nfl_core.errors import ConfigError
from nfl_core.learning import FourRooms

ADAPTED, HIDDEN = 32, 64


class FeatureNet(FourRooms):
    """The four rooms body, middle, head and private, for inputs [C, H, W] that are features, most often [D, 1, 1]."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) != 3 or min(input_shape) < 1 or num_classes < 2:
            raise ConfigError(
                f"feature-net got {num_classes} classes of shape {input_shape}, expected >= 2 of (C, H, W)"
            )
        width = math.prod(input_shape)
        # Each image's features to mean 0 and deviation 1, without parameters.
        body = nn.Sequential(nn.Flatten(), nn.GroupNorm(1, width, affine=False), nn.Linear(width, ADAPTED), nn.ReLU())
        super().__init__(body, num_classes=num_classes, input_shape=input_shape, hidden=HIDDEN)


def feature_net(num_classes: int, input_shape: tuple[int, ...]) -> FeatureNet:
    """Make the model; the entry point `feature-net` of the group `nfl.models`.

    Raises:
        ConfigError: Fewer than two classes, or a shape that is not (channels, height, width).
    """
    return FeatureNet(num_classes=num_classes, input_shape=input_shape)
