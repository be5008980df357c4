"""Where the images come from: the order of sources, the pinned digests, and honest fallbacks."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from typing_extensions import Self

from nfl_sim.data import fashion, load_images

COUNTS = {"train": 12, "t10k": 4}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A tiny data set in the real form, pinned instead of the real one."""
    made = {}
    for part, count in COUNTS.items():
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).tobytes()
        made[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(bytes(16) + pixels, mtime=0)
        made[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(bytes(8) + bytes(i % 10 for i in range(count)), mtime=0)
    monkeypatch.setattr(fashion, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in made.items()})
    return made


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither an installed package, nor apt, nor a network."""
    monkeypatch.delenv("NFL_DATA", raising=False)
    monkeypatch.setattr(fashion, "INSTALLED", tmp_path / "not installed")
    monkeypatch.setattr(fashion.shutil, "which", lambda _: None)

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(fashion.urllib.request, "urlopen", no_network)


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_that_is_named_is_read_and_kept(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NFL_DATA", str(put(tmp_path / "mine", files)))
    data = load_images(tmp_path / "cache")
    assert (data.name, data.source) == ("fashion-mnist", "NFL_DATA")
    assert data.x_NCHW.shape == (16, 1, 28, 28)
    assert data.x_NCHW.dtype == np.uint8
    assert data.x_NCHW[0, 0, 0, :3].tolist() == [0, 1, 2]
    assert data.y_N.tolist() == [*range(10), 0, 1, 0, 1, 2, 3]
    assert data.y_N.dtype == np.int64
    monkeypatch.delenv("NFL_DATA")
    again = load_images(tmp_path / "cache")
    assert again.source == "files kept from an earlier run"
    assert np.array_equal(again.x_NCHW, data.x_NCHW)


def test_the_cache_comes_first(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "cache", files)
    monkeypatch.setenv("NFL_DATA", str(put(tmp_path / "mine", files)))
    assert load_images(tmp_path / "cache").source == "files kept from an earlier run"


def test_an_installed_package_is_used(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "INSTALLED", put(tmp_path / "usr/share/datasets/fashion-mnist", files))
    assert "installed package" in load_images(tmp_path / "cache").source


@pytest.mark.parametrize("name", list(fashion.FILES))
def test_one_changed_byte_is_passed_over(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    changed = {**files, name: files[name][:-1] + bytes([files[name][-1] ^ 1])}
    put(tmp_path / "cache", changed)
    said: list[str] = []
    assert load_images(tmp_path / "cache", say=said.append).name == "digits"
    assert any("SHA-256" in line and name in line for line in said)


def test_a_cut_cache_is_replaced_by_a_whole_source(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "cache", {name: data[: len(data) // 2] for name, data in files.items()})
    monkeypatch.setenv("NFL_DATA", str(put(tmp_path / "mine", files)))
    assert load_images(tmp_path / "cache").source == "NFL_DATA"
    assert {name: (tmp_path / "cache" / name).read_bytes() for name in files} == files


def test_without_any_source_it_says_so_and_goes_on_with_digits(tmp_path: Path) -> None:
    said: list[str] = []
    data = load_images(tmp_path / "cache", say=said.append)
    assert data.name == "digits"
    assert data.x_NCHW.shape == (1797, 1, 28, 28)
    assert data.x_NCHW.max() == 255
    assert sorted(set(data.y_N.tolist())) == list(range(10))
    assert any("apt is not on this machine" in line for line in said)
    assert any("no network here" in line for line in said)
    assert "going on with scikit-learn's digits" in said[-1]
    assert not list(tmp_path.glob("*fetching*"))


def test_the_public_address_is_the_last_resort(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Answer:
        def __init__(self, address: str) -> None:
            self._name = address.rpartition("/")[2]

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self) -> bytes:
            return files[self._name]

    def urlopen(address: str, *, timeout: float) -> Answer:
        assert address.startswith("https://")
        assert timeout > 0
        asked.append(address)
        return Answer(address)

    monkeypatch.setattr(fashion.urllib.request, "urlopen", urlopen)
    assert load_images(tmp_path / "cache").source == "the data set's public address"
    assert len(asked) == 4
    assert all((tmp_path / "cache" / name).exists() for name in files)


def test_the_package_is_unpacked_without_root_even_without_package_lists(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulator of apt and dpkg: no lists on the machine, so the first download fails."""
    ran: list[list[str]] = []

    def run(command: tuple[str, ...], *, cwd: Path, **_: object) -> None:
        ran.append(list(command))
        own_lists = any(part.startswith("Dir::State=") for part in command)
        if "download" in command:
            if not own_lists:
                raise subprocess.CalledProcessError(100, command)
            (cwd / f"{fashion.PACKAGE}_1_all.deb").write_bytes(b"")
        if command[0] == "dpkg-deb":
            put(cwd / "unpacked" / fashion.INSTALLED.relative_to("/"), files)

    monkeypatch.setattr(fashion.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(fashion.subprocess, "run", run)
    data = load_images(tmp_path / "cache")
    assert data.name == "fashion-mnist"
    assert "Debian package" in data.source
    assert [command[0] for command in ran] == ["apt-get", "apt-get", "apt-get", "dpkg-deb"]
    assert not any("sudo" in command for command in ran)
    for command in ran[1:3]:
        places = [part.split("=", 1)[1] for part in command if part.startswith(("Dir::State", "Dir::Cache"))]
        assert len(places) == 2
        assert all(str(tmp_path) in place for place in places)


@pytest.mark.net
def test_the_real_images_are_what_they_are_known_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = load_images(tmp_path / "cache")
    if data.name == "digits":
        pytest.skip("no source of Fashion-MNIST on this machine")
    assert data.x_NCHW.shape == (70_000, 1, 28, 28)
    assert np.bincount(data.y_N).tolist() == [7000] * 10
