"""What a device knows of versions is in its checkpoint, and poisoned versions are refused with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nfl_core.config import LearningSection, ModelSection
from nfl_core.errors import DurableError
from nfl_core.learning import MergeReport, Refusal, Track
from nfl_core.tensors import write_tensors
from nfl_edge import training
from nfl_edge.requests import InitRequest, MergeRequest, MergeResult, MicroUpdateRequest, Task
from nfl_edge.store import SUFFIX, Checkpoint, load_checkpoint, same_tensors, write_checkpoint
from nfl_edge.track import load_track, save_track

from .world import SHAPE, default_spec, shared_tensors, write_samples

Shared = dict[str, np.ndarray]


def task(folder: Path) -> Task:
    torch.set_num_threads(1)
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Task(
        checkpoints=str(folder / "checkpoints"),
        samples=str(folder / "samples.safetensors"),
        model=ModelSection(input_shape=SHAPE),
        levels=default_spec().levels,
        learning=LearningSection(batch_size=16, epochs_per_update=2, refit_steps=5),
        seed=5,
    )


def incoming(folder: Path, shared: Shared) -> str:
    (folder / "incoming").write_bytes(write_tensors(shared))
    return str(folder / "incoming")


def first(folder: Path) -> str:
    request = InitRequest(
        task=task(folder), incoming=incoming(folder, shared_tensors(1)), base_version=1, base_digest="1" * 64
    )
    return training.init(request).checkpoint


def learn(folder: Path, name: str) -> str:
    return training.learn(MicroUpdateRequest(task=task(folder), checkpoint=name)).checkpoint


def load(folder: Path, name: str) -> Checkpoint:
    return load_checkpoint(folder / "checkpoints" / f"{name}{SUFFIX}", name)


def track_of(checkpoint: Checkpoint) -> Track | None:
    return load_track(checkpoint.track, checkpoint.track_text, accepted=checkpoint.accepted)


def merge(folder: Path, name: str, shared: Shared, *, version: int) -> MergeResult:
    return training.merge_in(
        MergeRequest(
            task=task(folder),
            checkpoint=name,
            incoming=incoming(folder, shared),
            base_version=version,
            base_digest=str(version) * 64,
            alphas=(1.0,),
            tolerance=1e9,
            max_drop=1.0,
            refit_steps=0,
            refit_learning_rate=0.05,
        )
    )


def after_two_versions(folder: Path) -> str:
    name = learn(folder, first(folder))
    for version in (2, 3):
        name = learn(folder, merge(folder, name, shared_tensors(version), version=version).checkpoint)
    return name


def test_a_poisoned_version_is_refused_even_where_its_own_rules_tolerate_all(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.safetensors")
    name = after_two_versions(tmp_path)
    base, good = shared_tensors(3), shared_tensors(4)
    poison = {
        "step-length": {n: base[n] + 10 * (good[n] - base[n]) for n in good},
        "step-direction": {n: base[n] - np.float32(0.9) * (good[n] - base[n]) for n in good},
    }
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    for refusal, shared in poison.items():
        refused = merge(tmp_path, name, shared, version=4)
        assert (refused.refusal, refused.checkpoint, refused.seen, refused.alpha) == (refusal, "", "", 0.0)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == files
    assert merge(tmp_path, name, good, version=4).refusal == ""


def test_a_device_without_samples_judges_the_step(tmp_path: Path) -> None:
    name = first(tmp_path)
    for version in (2, 3):
        name = merge(tmp_path, name, shared_tensors(version), version=version).checkpoint
    far = merge(tmp_path, name, {n: 100 * part for n, part in shared_tensors(4).items()}, version=4)
    assert (far.refusal, far.checkpoint) == ("step-length", "")
    assert merge(tmp_path, name, shared_tensors(4), version=4).checkpoint


def test_what_is_known_of_versions_survives_in_the_checkpoint(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.safetensors")
    checkpoint = load(tmp_path, after_two_versions(tmp_path))
    track = track_of(checkpoint)
    assert track is not None
    assert (track.version, len(track.lengths), len(track.contents)) == (3, 2, 3)
    assert same_tensors(dict(track.published), shared_tensors(3))
    assert not [name for name in checkpoint.track if name.startswith("published/")]  # it stands there as accepted
    assert Checkpoint.from_bytes(checkpoint.to_bytes()).to_bytes() == checkpoint.to_bytes()


def test_a_version_that_is_refused_for_the_owners_sake_is_known_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_samples(tmp_path / "samples.safetensors")
    name = after_two_versions(tmp_path)
    before = load(tmp_path, name)
    report = MergeReport(
        accepted=False,
        alpha=0.0,
        shock=0.1,
        loss_before=1.0,
        loss_after=1.0,
        accuracy_before=0.9,
        accuracy_after=0.9,
        refit_steps=0,
        num_trials=1,
        refusal=Refusal.HOLDOUT,
    )
    with monkeypatch.context() as patch:
        patch.setattr(training, "merge", lambda *_, **__: report)
        strict = merge(tmp_path, name, shared_tensors(5), version=4)
    assert (strict.refusal, strict.checkpoint) == ("holdout", "")
    seen = load(tmp_path, strict.seen)
    assert same_tensors(seen.tensors, before.tensors)
    assert same_tensors(seen.accepted, before.accepted)
    assert seen.meta == before.meta
    track = track_of(seen)
    assert track is not None
    assert track.version == 4
    assert same_tensors(dict(track.published), shared_tensors(5))
    assert merge(tmp_path, strict.seen, shared_tensors(6), version=5).checkpoint


def test_a_checkpoint_from_before_there_was_a_track_begins_one_with_its_next_version(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.safetensors")
    checkpoint = replace(load(tmp_path, learn(tmp_path, first(tmp_path))), track={}, track_text="")
    name = learn(tmp_path, write_checkpoint(tmp_path / "checkpoints", checkpoint))
    assert load(tmp_path, name).track_text == ""
    merged = merge(tmp_path, name, {n: 3 * part for n, part in shared_tensors(2).items()}, version=2)
    track = track_of(load(tmp_path, merged.checkpoint))
    assert track is not None
    assert (track.version, track.lengths) == (2, ())


@pytest.mark.parametrize("text", ["{}", "[", '{"version": 1, "lengths": 3, "contents": [], "apart": false}'])
def test_a_track_that_cannot_be_read_is_an_error_by_name(text: str) -> None:
    with pytest.raises(DurableError, match="track"):
        load_track({}, text, accepted=shared_tensors(1))


def test_a_track_of_another_model_is_an_error_by_name() -> None:
    arrays, text = save_track(Track.begin({"w": np.zeros(3, np.float32)}, version=1), accepted={})
    with pytest.raises(DurableError, match="other tensors"):
        load_track(arrays, text, accepted=shared_tensors(1))
