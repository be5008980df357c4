"""A device whose samples file is replaced keeps knowing what the old one held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from nfl_core.config import LearningSection, ModelSection
from nfl_core.errors import DurableError, LearningError
from nfl_core.tensors import write_tensors
from nfl_edge import training
from nfl_edge.requests import EvaluateRequest, InitRequest, MergeRequest, MicroUpdateRequest, Task
from nfl_edge.store import SUFFIX, Checkpoint, load_checkpoint, same_tensors

from .world import SHAPE, default_spec, digits, shared_tensors

REPLAY_BYTES = 40_000


def write_digits(path: Path, *, classes: range) -> None:
    """Write a file that holds these digits alone: 120 to train, 40 holdout, 60 test."""
    x, y = digits()
    places = np.flatnonzero(np.isin(y, list(classes)))
    cuts = {"train": places[:120], "holdout": places[120:160], "test": places[160:220]}
    arrays = {f"{name}.x": np.ascontiguousarray(x[cut]) for name, cut in cuts.items()}
    save_file(arrays | {f"{name}.y": np.ascontiguousarray(y[cut]) for name, cut in cuts.items()}, path)


def task(folder: Path, *, replay_bytes: int = REPLAY_BYTES) -> Task:
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Task(
        checkpoints=str(folder / "checkpoints"),
        samples=str(folder / "samples.safetensors"),
        model=ModelSection(input_shape=SHAPE),
        levels=default_spec().levels,
        learning=LearningSection(batch_size=16, epochs_per_update=3, refit_steps=10, replay_bytes=replay_bytes),
        seed=5,
    )


def first(folder: Path, **options: int) -> str:
    torch.set_num_threads(1)
    (folder / "incoming").write_bytes(write_tensors(shared_tensors(1)))
    request = InitRequest(
        task=task(folder, **options), incoming=str(folder / "incoming"), base_version=1, base_digest="1" * 64
    )
    return training.init(request).checkpoint


def learn(folder: Path, name: str, *, times: int = 1, **options: int) -> str:
    for _ in range(times):
        name = training.learn(MicroUpdateRequest(task=task(folder, **options), checkpoint=name)).checkpoint
    return name


def load(folder: Path, name: str) -> Checkpoint:
    return load_checkpoint(folder / "checkpoints" / f"{name}{SUFFIX}", name)


def accuracy(folder: Path, name: str) -> float:
    return training.evaluate(EvaluateRequest(task=task(folder), checkpoint=name)).accuracy


def merge(folder: Path, name: str) -> training.MergeResult:
    now = load(folder, name)
    near = {tensor: now.tensors[tensor] + np.float32(1e-4) for tensor in now.accepted}  # surely worth a merge
    (folder / "incoming").write_bytes(write_tensors(near))
    return training.merge_in(
        MergeRequest(
            task=task(folder),
            checkpoint=name,
            incoming=str(folder / "incoming"),
            base_version=2,
            base_digest="2" * 64,
            alphas=(1.0,),
            tolerance=1e9,
            max_drop=1.0,
            refit_steps=5,
            refit_learning_rate=0.05,
        )
    )


def test_what_the_old_file_held_is_still_known_after_it_was_replaced(tmp_path: Path) -> None:
    known = {}
    for replay_bytes in (0, REPLAY_BYTES):
        write_digits(tmp_path / "samples.safetensors", classes=range(5))
        name = learn(tmp_path, first(tmp_path, replay_bytes=replay_bytes), times=4, replay_bytes=replay_bytes)
        write_digits(tmp_path / "samples.safetensors", classes=range(5, 10))
        name = learn(tmp_path, name, times=4, replay_bytes=replay_bytes)
        new = accuracy(tmp_path, name)
        write_digits(tmp_path / "samples.safetensors", classes=range(5))
        known[replay_bytes] = (accuracy(tmp_path, name), new)
    assert known[0][0] < 0.3  # forgotten
    assert known[REPLAY_BYTES][0] > 0.7
    assert known[REPLAY_BYTES][1] > 0.8


def test_as_long_as_the_file_is_the_same_memory_changes_nothing(tmp_path: Path) -> None:
    write_digits(tmp_path / "samples.safetensors", classes=range(10))
    with_memory = load(tmp_path, learn(tmp_path, first(tmp_path), times=3))
    without = load(tmp_path, learn(tmp_path, first(tmp_path, replay_bytes=0), times=3, replay_bytes=0))
    assert same_tensors(with_memory.tensors, without.tensors)
    assert with_memory.learner_text == without.learner_text
    assert (without.memory, without.memory_text) == ({}, "")
    assert 0 < sum(array.nbytes for array in with_memory.memory.values()) <= REPLAY_BYTES


def test_the_same_request_gives_the_same_bytes_with_a_memory_too(tmp_path: Path) -> None:
    write_digits(tmp_path / "samples.safetensors", classes=range(5))
    name = learn(tmp_path, first(tmp_path))
    write_digits(tmp_path / "samples.safetensors", classes=range(5, 10))
    name = learn(tmp_path, name)
    assert learn(tmp_path, name) == learn(tmp_path, name)
    whole = load(tmp_path, name)
    assert Checkpoint.from_bytes(whole.to_bytes()).to_bytes() == whole.to_bytes()


def test_a_merge_is_judged_by_what_the_file_has_lost_too_and_answers_are_those_of_the_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path / "samples.safetensors", classes=range(5))
    name = learn(tmp_path, first(tmp_path))
    write_digits(tmp_path / "samples.safetensors", classes=range(5, 10))
    seen, real = {}, training.merge

    def spy(module, *, holdout, train, **rest):
        seen.update(holdout=holdout, train=train)
        return real(module, holdout=holdout, train=train, **rest)

    monkeypatch.setattr(training, "merge", spy)
    merged = merge(tmp_path, name)
    assert set(seen["holdout"].y.tolist()) == set(range(10))
    assert set(seen["train"].y.tolist()) == set(range(10))
    old, new = load(tmp_path, name), load(tmp_path, merged.checkpoint)
    assert (old.memory["train/x"] == new.memory["train/x"]).all()
    assert new.memory["train/known"].all()
    assert (old.memory["train/logits"] != new.memory["train/logits"]).any()
    assert '\\"version\\":2' in new.memory_text


def test_a_memory_without_room_is_off_and_a_broken_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_digits(tmp_path / "samples.safetensors", classes=range(5))
    name = learn(tmp_path, first(tmp_path, replay_bytes=1000), replay_bytes=1000)
    assert load(tmp_path, name).memory == {}
    assert "too few for this model" in caplog.text
    name = learn(tmp_path, name)  # switched on later
    whole = load(tmp_path, name)
    assert whole.memory
    broken = Checkpoint.from_bytes(whole.to_bytes())
    for change, error in (({"memory_text": "{}"}, DurableError), ({"memory": {}}, LearningError)):
        data = {field: getattr(broken, field) for field in Checkpoint.__dataclass_fields__} | change
        path = training.write_checkpoint(tmp_path / "checkpoints", Checkpoint(**data))
        with pytest.raises(error):
            learn(tmp_path, path)
    assert load(tmp_path, learn(tmp_path, name, replay_bytes=0)).memory == {}  # switched off: forgotten


def test_a_file_of_one_class_teaches_the_private_level_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_digits(tmp_path / "samples.safetensors", classes=range(3, 4))
    start = first(tmp_path)
    name = learn(tmp_path, start)
    before, after = load(tmp_path, start), load(tmp_path, name)
    assert "one-class" in caplog.text
    assert same_tensors({t: after.tensors[t] for t in after.accepted}, before.accepted)
    assert (after.tensors["private.bias"] != before.tensors["private.bias"]).any()
    write_digits(tmp_path / "samples.safetensors", classes=range(4, 5))  # with the memory there are two classes now
    again = load(tmp_path, learn(tmp_path, name))
    assert not same_tensors({t: again.tensors[t] for t in again.accepted}, before.accepted)
