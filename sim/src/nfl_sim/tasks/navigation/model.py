"""The model `lidar-net`: from one lidar scan and the direction of the goal to one of a few actions.

Some 34 thousand parameters. The body convolves around the scan, which has no ends: beams wrap. The middle joins what
it finds with the goal.

Shape legend: B batch, L beams, D features, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfl_core.errors import ConfigError
from nfl_core.learning import FourRooms

NUM_GOAL_FEATURES = 3
HIDDEN = 64
MIN_BEAMS = 8


class Around(nn.Module):
    """Convolutions over the beams of a scan; what follows the beams in the input is passed on unchanged."""

    def __init__(self, num_beams: int) -> None:
        super().__init__()
        self.num_beams = num_beams
        self.convolutions = nn.Sequential(
            nn.Conv1d(1, 16, 5, stride=2, padding=2, padding_mode="circular"),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv1d(16, 32, 3, stride=2, padding=1, padding_mode="circular"),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv1d(32, 32, 3, padding=1, padding_mode="circular"),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Flatten(),
        )

    def forward(self, x_B11L: Tensor) -> Tensor:
        """Return float32 [B, D] from float32 [B, 1, 1, beams + goal features]."""
        x_B1L = x_B11L.flatten(2)
        found_BD = self.convolutions(x_B1L[..., : self.num_beams])
        return torch.cat([found_BD, x_B1L[:, 0, self.num_beams :]], dim=1)


class LidarNet(FourRooms):
    """The four rooms body, middle, head and private, for inputs [1, 1, beams + 3]."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
        least = MIN_BEAMS + NUM_GOAL_FEATURES
        if len(input_shape) != 3 or input_shape[:2] != (1, 1) or input_shape[2] < least or num_classes < 2:
            raise ConfigError(
                f"lidar-net got {num_classes} classes of shape {input_shape}, expected >= 2 of (1, 1, >= {least})"
            )
        body = Around(input_shape[2] - NUM_GOAL_FEATURES)
        super().__init__(body, num_classes=num_classes, input_shape=input_shape, hidden=HIDDEN)


def lidar_net(num_classes: int, input_shape: tuple[int, ...]) -> LidarNet:
    """Make the model; the entry point `lidar-net` of the group `nfl.models`.

    Raises:
        ConfigError: Fewer than two classes, or a shape that is not (1, 1, beams and goal features).
    """
    return LidarNet(num_classes=num_classes, input_shape=input_shape)
