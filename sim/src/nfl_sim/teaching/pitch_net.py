"""The model `pitch-net`: pitch bins from a frame of sound, some 7 thousand parameters.

Nothing is learned about how sound becomes pitch in the first place: a bin sees the spectrum at its own frequency, at an
octave below and at its next harmonics, and how alike the frame is to itself one period later. Those seven rows stand
side by side for each of 360 bins of 20 cents, so a voice that is higher looks the same, moved: convolutions along the
bins are enough, and what is learned of one pitch holds for all.

Measured beside it: a strided convolution over the raw samples, with 2.7 times the parameters, loses 7 points.

Shape legend: B batch, T samples, F frequencies, C channels, K pitch bins, H harmonics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfl_core.errors import ConfigError
from nfl_core.learning import NestedModel
from nfl_sim.data.crepe import CENTS_PER_BIN, FRAME, LOWEST_CENTS, NUM_BINS, RATE_HZ

HARMONICS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
SPECTRUM = 4 * FRAME  # samples, zeros included: a value every 3.9 Hz to interpolate between
WIDTH, KERNEL, DILATIONS = 16, 11, (1, 2, 4)
_SMALLEST = 1e-9


class HarmonicStack(nn.Module):
    """Seven rows of 360 bins for each frame; constants alone, nothing is learned."""

    window_T: Tensor
    envelope_T: Tensor
    places_P: Tensor
    audible_P: Tensor
    lags_K: Tensor

    def __init__(self) -> None:
        super().__init__()
        hz_K = 10 * 2 ** ((torch.arange(NUM_BINS) * CENTS_PER_BIN + LOWEST_CENTS) / 1200)
        places_P = torch.cat([harmonic * hz_K for harmonic in HARMONICS]) * SPECTRUM / RATE_HZ
        window_T = torch.hann_window(FRAME)
        constants = {
            "window_T": window_T,
            # What a window's own fall takes from the likeness at each lag.
            "envelope_T": _likeness(window_T[None])[0].clamp(min=0.01),
            "places_P": places_P.clamp(max=SPECTRUM // 2 - 1),
            "audible_P": (places_P < SPECTRUM // 2 - 1).to(torch.float32),
            "lags_K": RATE_HZ / hz_K,
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x_BT: Tensor) -> Tensor:
        """Return float32 [B, 7, K] of frames, whatever their loudness."""
        x_BT = (x_BT - x_BT.mean(dim=1, keepdim=True)) * self.window_T
        x_BT = x_BT / x_BT.norm(dim=1, keepdim=True).clamp(min=_SMALLEST) * FRAME**0.5
        loudness_BF = torch.log1p(torch.fft.rfft(x_BT, n=SPECTRUM).abs())
        loudness_BF = loudness_BF - loudness_BF.mean(dim=1, keepdim=True)
        loudness_BF = loudness_BF / loudness_BF.std(dim=1, keepdim=True).clamp(min=0.001)
        harmonics_BHK = (_between(loudness_BF, self.places_P) * self.audible_P).reshape(-1, len(HARMONICS), NUM_BINS)
        likeness_BK = _between(_likeness(x_BT) / self.envelope_T, self.lags_K)
        return torch.cat([harmonics_BHK, likeness_BK[:, None]], dim=1)


class PitchNet(NestedModel):
    """Convolutions along the bins, a shared head of one weight a channel, and a private one that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.input_shape = NUM_BINS, (FRAME,)
        channels, layers = len(HARMONICS) + 1, list[nn.Module]()
        for dilation in DILATIONS:
            padding = KERNEL // 2 * dilation
            layers += [nn.Conv1d(channels, WIDTH, KERNEL, padding=padding, dilation=dilation), nn.ReLU()]
            channels = WIDTH
        self.stack, self.body = HarmonicStack(), nn.Sequential(*layers)
        self.head, self.private = nn.Conv1d(WIDTH, 1, 1), nn.Conv1d(WIDTH, 1, 1)
        nn.init.zeros_(self.private.weight)
        assert self.private.bias is not None
        nn.init.zeros_(self.private.bias)

    def features(self, x_BT: Tensor) -> Tensor:
        """Return float32 [B, channels * K] from float32 [B, T]."""
        z_BD: Tensor = self.body(self.stack(x_BT)).flatten(1)
        return z_BD

    def generic(self, z_BD: Tensor) -> Tensor:
        """Return the shared logits, float32 [B, K]."""
        logits_B1K: Tensor = self.head(z_BD.reshape(-1, WIDTH, NUM_BINS))
        return logits_B1K[:, 0]

    def residual(self, z_BD: Tensor) -> Tensor:
        """Return what the owner's private head adds, float32 [B, K]."""
        logits_B1K: Tensor = self.private(z_BD.reshape(-1, WIDTH, NUM_BINS))
        return logits_B1K[:, 0]


def pitch_net(num_classes: int, input_shape: tuple[int, ...]) -> PitchNet:
    """Make the model; the entry point `pitch-net` of the group `nfl.models`.

    Raises:
        ConfigError: Not 360 classes, or inputs that are not frames of 1,024 samples.
    """
    if num_classes != NUM_BINS or tuple(input_shape) != (FRAME,):
        raise ConfigError(
            f"pitch-net got {num_classes} classes of shape {input_shape}, expected {NUM_BINS} of ({FRAME},)"
        )
    return PitchNet()


def _likeness(x_BT: Tensor) -> Tensor:
    """Return the autocorrelation at every lag, float32 [B, T]; 1 at lag 0."""
    power_BF = torch.fft.rfft(x_BT, n=2 * FRAME).abs().square()
    found_BT = torch.fft.irfft(power_BF, n=2 * FRAME)[:, :FRAME]
    likeness_BT: Tensor = found_BT / found_BT[:, :1].clamp(min=_SMALLEST)
    return likeness_BT


def _between(values_BF: Tensor, places_P: Tensor) -> Tensor:
    """Return values at places between the given ones, float32 [B, P]."""
    left_P = places_P.long()
    share_P = places_P - left_P
    return values_BF[:, left_P] * (1 - share_P) + values_BF[:, left_P + 1] * share_P
