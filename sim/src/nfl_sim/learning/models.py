"""The network of the published comparison: PFLlib's four-layer CNN, 582,026 parameters for 28 x 28 grey images.

Without normalisation, as published. The private residual head comes on top and is not counted: a fresh one answers with
zeros.

Source: `FedAvgCNN` of PFLlib (Zhang et al., JMLR 26(50), 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfl_core.errors import ConfigError
from nfl_core.learning import FourRooms

HIDDEN = 512


class PublishedCnn(FourRooms):
    """Two convolutions with pooling, one hidden layer, one head; inputs [C, H, W] with H and W of at least 16."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) != 3 or min(input_shape[1:]) < 16 or num_classes < 2:
            raise ConfigError(f"published-cnn got {num_classes} classes of shape {input_shape}, expected images >= 16")
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        super().__init__(body, num_classes=num_classes, input_shape=input_shape, hidden=HIDDEN)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return float32 [B, 512]; products in bfloat16, weights and sums in float32, which takes half the time."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z_BD = super().features(x_BCHW.contiguous(memory_format=torch.channels_last))
        return z_BD.to(torch.float32)


def published_cnn(num_classes: int, input_shape: tuple[int, ...]) -> PublishedCnn:
    """Make the model; the entry point `published-cnn` of the group `nfl.models`.

    Raises:
        ConfigError: Fewer than two classes, or a shape that is not that of an image.
    """
    module = PublishedCnn(num_classes=num_classes, input_shape=input_shape)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 4:  # a quarter faster on a processor, the same sums
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module
