"""Load Fashion-MNIST: 70,000 images of clothes, 28 x 28, ten classes; or say so and load scikit-learn's digits.

Tried in this order, every file checked against its pinned SHA-256 before it is read:

1. files kept from an earlier run, below `cache`
2. `NFL_DATA`, a folder that holds the four files
3. an installed Debian package `dataset-fashion-mnist`
4. the same package, downloaded and unpacked without root, where apt is there
5. the data set's public address
6. scikit-learn's 1,797 digits, enlarged to 28 x 28

Source: Xiao et al., Fashion-MNIST, arXiv:1708.07747 (MIT licence).
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ContentError

FILES = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
# The authors' repository of the data set.
PUBLIC_ADDRESS = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
APT_S, DOWNLOAD_S = 120, 60
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Labelled images.

    Attributes:
        name: "fashion-mnist" or "digits".
        source: Where they came from, for people.
        x_NCHW: uint8, shape [N, 1, 28, 28].
        y_N: int64, shape [N], 0 to 9.
    """

    name: str
    source: str
    x_NCHW: NDArray[np.uint8]
    y_N: NDArray[np.int64]


def load_images(cache: Path, *, say: Callable[[str], None] = _LOG.info) -> DataSet:
    """Return Fashion-MNIST from the first source that has it, else digits.

    Args:
        cache: Folder that keeps the files for the next run.
        say: Takes one line about what is tried and why a source was passed over.

    Raises:
        StorageFullError: The cache's disk is full.
    """
    for name, source in _sources(cache, say):
        try:
            parts = [_read(source, file) for file in FILES]
        except (OSError, ContentError) as error:
            say(f"{name}: passed over ({error})")
            continue
        if source != cache:
            make_folder(cache)
            for file in FILES:
                write_file(cache / file, (source / file).read_bytes())
        x_NCHW = np.concatenate([parts[0], parts[2]]).reshape(-1, 1, 28, 28)
        return DataSet(
            name="fashion-mnist", source=name, x_NCHW=x_NCHW, y_N=np.concatenate([parts[1], parts[3]]).astype(np.int64)
        )
    say("Fashion-MNIST is out of reach here; going on with scikit-learn's digits, figures will differ")
    return enlarged_digits()


def _sources(cache: Path, say: Callable[[str], None]) -> Iterator[tuple[str, Path]]:
    """Yield (name, folder) of the sources that are there; the costly ones are fetched only when they are reached."""
    if all((cache / file).exists() for file in FILES):
        yield "files kept from an earlier run", cache
    if os.environ.get("NFL_DATA"):
        yield "NFL_DATA", Path(os.environ["NFL_DATA"])
    if INSTALLED.is_dir():
        yield f"installed package {PACKAGE}", INSTALLED
    fetching = cache.with_name(cache.name + ".fetching")
    for name, fetch in (
        (f"Debian package {PACKAGE}", _fetch_package),
        ("the data set's public address", _fetch_public),
    ):
        shutil.rmtree(fetching, ignore_errors=True)
        make_folder(fetching)
        try:
            say(f"fetching {name} ...")
            yield name, fetch(fetching)
        except (OSError, subprocess.SubprocessError, urllib.error.URLError, ContentError) as error:
            say(f"{name}: passed over ({error})")
        finally:
            shutil.rmtree(fetching, ignore_errors=True)


def _fetch_package(folder: Path) -> Path:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ContentError("apt is not on this machine")
    try:
        _run(folder, "apt-get", "download", "-qq", PACKAGE)
    except subprocess.CalledProcessError:
        # No package lists on this machine: read them into a folder of our own, which needs no root.
        state = ["-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache", "-o", "APT::Sandbox::User="]
        for place in ("state/lists/partial", "cache/archives/partial"):
            (folder / place).mkdir(parents=True)
        _run(folder, "apt-get", *state, "update", "-qq")
        _run(folder, "apt-get", *state, "download", "-qq", PACKAGE)
    package = next(folder.glob(f"{PACKAGE}_*.deb"), None)
    if package is None:
        raise ContentError("apt left no package behind")
    _run(folder, "dpkg-deb", "-x", package.name, "unpacked")
    return folder / "unpacked" / INSTALLED.relative_to("/")


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=APT_S)


def _fetch_public(folder: Path) -> Path:
    for file in FILES:
        with urllib.request.urlopen(PUBLIC_ADDRESS + file, timeout=DOWNLOAD_S) as answer:  # noqa: S310  a constant https address
            write_file(folder / file, answer.read())
    return folder


def _read(folder: Path, file: str) -> NDArray[np.uint8]:
    """Return the values of one IDX file of bytes. Raises ContentError when it is not the published file."""
    packed = (folder / file).read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != FILES[file]:
        raise ContentError(f"{folder / file} has SHA-256 {found[:12]}..., expected {FILES[file][:12]}...")
    header_bytes = 16 if "images" in file else 8
    return np.frombuffer(gzip.decompress(packed), np.uint8, offset=header_bytes)


def enlarged_digits() -> DataSet:
    """Return scikit-learn's digits, enlarged to 28 x 28: what is there when nothing else is."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    return DataSet(name="digits", source="scikit-learn", x_NCHW=large[:, None], y_N=labels.astype(np.int64))
