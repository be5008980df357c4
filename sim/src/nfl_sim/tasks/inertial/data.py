"""The watch data set of seglearn: ten people do seven shoulder exercises, once with a watch on each wrist.

Every person, exercise and side is one recording of 19 to 52 s: acceleration in g and turning rate in rad/s, three axes
each, 50 Hz. An owner is a watch, on one wrist of one person; its region is the side, because a watch on the other wrist
is mounted the other way round: the first axis of acceleration reads +1 g there where it reads -1 g here.

Windows of 4 s overlap within a split, so a recording is cut by time before it is cut into windows: learn from its
beginning, judge by its middle, test on its end, with a gap of a second between. No reading is in two splits.

Tried in this order; what is unpickled has the pinned SHA-256, or it is not unpickled:

1. the file kept from an earlier run, below `cache`
2. `NFL_DATA`, a folder that holds `watch_dataset.npy` or the wheel of seglearn
3. the wheel, downloaded by pip and never installed

Source: Burns et al., Shoulder physiotherapy exercise recognition, arXiv:1802.01489; seglearn 1.2.5 (BSD licence).
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ContentError
from nfl_core.learning import Samples
from nfl_sim.tasks.task import TaskData, TaskOwner

VERSION = "1.2.5"
FILE, MEMBER = "watch_dataset.npy", "seglearn/data/watch_dataset.npy"
FILE_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WHEEL = f"seglearn-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd"
HINT = f"run `pip download --no-deps seglearn=={VERSION}` and set NFL_DATA to the folder that then holds {WHEEL}"
PIP_S = 300

EXERCISES = ("pendulum", "abduction", "forward elevation", "inner rotation", "outer rotation", "trapezius", "row")
SIDES = ("left", "right")
NUM_AXES, RATE_HZ = 6, 50
WINDOW, STRIDE, GAP = 200, 25, 50  # readings: 4 s, half a second, 1 s
SHARES = {"train": 0.25, "holdout": 0.25, "test": 0.50}  # of a recording without its gaps, in the order of time
SCALE = np.array([1, 1, 1, 2, 2, 2], np.float32)  # g and rad/s: about one deviation of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One exercise of one person with a watch on one side.

    Attributes:
        person: 1 to 10.
        side: "left" or "right".
        exercise: Index into `EXERCISES`.
        readings: float32 [T, 6], T >= 900: acceleration x, y, z in g, turning rate x, y, z in rad/s.
    """

    person: int
    side: str
    exercise: int
    readings: NDArray[np.float32]


def load(cache: Path, generator: np.random.Generator) -> TaskData:
    """Return twenty owners, a watch each. Raises ContentError when the data set is out of reach."""
    recordings = read_recordings(cache)
    owners = []
    for side in SIDES:
        for person in sorted({recording.person for recording in recordings}):
            mine = [one for one in recordings if (one.person, one.side) == (person, side)]
            owners.append(owner_of(f"person-{person:02d}-{side}", mine, region=side, generator=generator))
    return TaskData(owners=tuple(owners))


def load_people(cache: Path, generator: np.random.Generator) -> TaskData:
    """Return ten owners, who wear a watch on each wrist; one region. Raises ContentError like `load`."""
    recordings = read_recordings(cache)
    people = sorted({recording.person for recording in recordings})
    return TaskData(
        owners=tuple(
            owner_of(
                f"person-{person:02d}",
                [one for one in recordings if one.person == person],
                region="all",
                generator=generator,
            )
            for person in people
        )
    )


def owner_of(name: str, recordings: Sequence[Recording], *, region: str, generator: np.random.Generator) -> TaskOwner:
    """Cut an owner's recordings into splits and windows; the generator draws where the first window begins."""
    splits = {}
    for split in SHARES:
        cut = [(_windows(one.readings[span_of(len(one.readings), split)], generator), one) for one in recordings]
        x = np.concatenate([windows for windows, _ in cut])
        y = np.concatenate([np.full(len(windows), one.exercise, np.int64) for windows, one in cut])
        splits[split] = Samples(x=torch.from_numpy(x), y=torch.from_numpy(y))
    return TaskOwner(name=name, region=region, **splits)


def span_of(num_readings: int, split: str) -> slice:
    """Return which readings of a recording belong to a split; spans of two splits are `GAP` apart."""
    usable = num_readings - GAP * (len(SHARES) - 1)
    place = list(SHARES).index(split)
    edges = np.round(np.cumsum([0.0, *SHARES.values()]) * usable).astype(int)
    return slice(int(edges[place]) + place * GAP, int(edges[place + 1]) + place * GAP)


def _windows(readings: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return windows, float32 [N, 6, 1, WINDOW], N >= 1, every `STRIDE` readings from a start that is drawn."""
    first = int(generator.integers(min(STRIDE, len(readings) - WINDOW + 1)))
    starts = np.arange(first, len(readings) - WINDOW + 1, STRIDE)
    windows_NTC = readings[starts[:, None] + np.arange(WINDOW)] / SCALE
    return np.ascontiguousarray(windows_NTC.transpose(0, 2, 1)[:, :, None, :])


def read_recordings(cache: Path) -> tuple[Recording, ...]:
    """Return the 140 recordings. Raises ContentError when no source has them."""
    passed_over = []
    for name, fetch in _sources(cache):
        try:
            data = fetch()
        except (OSError, KeyError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
            passed_over.append(f"{name}: {error}")
            continue
        found = hashlib.sha256(data).hexdigest()
        if found == FILE_SHA256:
            make_folder(cache)
            write_file(cache / FILE, data)
            return _parse(data)
        passed_over.append(f"{name}: SHA-256 is {found[:12]}..., expected {FILE_SHA256[:12]}...")
    raise ContentError(f"the watch data set is out of reach ({'; '.join(passed_over)})", hint=HINT)


def _sources(cache: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name of each source, and what fetches the data set from it."""
    if (cache / FILE).exists():
        yield "the file kept from an earlier run", (cache / FILE).read_bytes
    if os.environ.get("NFL_DATA"):
        folder = Path(os.environ["NFL_DATA"])
        yield "NFL_DATA", (folder / FILE).read_bytes if (folder / FILE).exists() else lambda: _unwrap(folder / WHEEL)
    yield "pip", _download


def _download() -> bytes:
    """Let pip fetch the wheel, which it checks against the pinned SHA-256, and take the data set out of it."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"seglearn=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="ascii")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run(
            [*command, "--require-hashes", "--dest", folder, "--requirement", str(wanted)],
            check=True,
            capture_output=True,
            timeout=PIP_S,
        )
        return _unwrap(Path(folder) / WHEEL)


def _unwrap(path: Path) -> bytes:
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(MEMBER)


def _parse(data: bytes) -> tuple[Recording, ...]:
    # The one place that unpickles: numpy keeps lists of arrays no other way, and the SHA-256 of `data` is pinned.
    table = np.load(io.BytesIO(data), allow_pickle=True).item()  # noqa: TID251
    rows = zip(table["X"], table["y"], table["subject"], table["side"], strict=True)
    return tuple(
        Recording(
            person=int(person), side=SIDES[int(side)], exercise=int(exercise), readings=readings.astype(np.float32)
        )
        for readings, exercise, person, side in rows
    )
