"""Gates and shadow update on the real reference model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nfl_cluster.brain.content import Content, Contents
from nfl_cluster.brain.judges import SampleJudges
from nfl_cluster.first import seed_first_version
from nfl_cluster.service import SiteFolder, utc_now
from nfl_cluster.validate.data import read_samples
from nfl_core.config import FleetConfig
from nfl_core.errors import ConfigError, NotFoundError
from nfl_core.ids import RegionId
from nfl_core.tensors import write_tensors
from nfl_ota import Repository

NORTH = RegionId("north")
CONFIG = FleetConfig.model_validate(
    {"fleet": {"name": "test"}, "leaves": [{"site": "leaf-1", "region": "north"}], "gates": {"latency_budget_ms": 1000}}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    site = SiteFolder(path)
    assert seed_first_version(CONFIG, site) == 1
    assert seed_first_version(CONFIG, site) == 1
    rng = np.random.default_rng(0)
    for name in ("heldout", "shadow"):
        samples = {"x": rng.integers(0, 255, (64, 1, 28, 28)).astype(np.uint8), "y": rng.integers(0, 10, 64)}
        (path / f"{name}.safetensors").write_bytes(write_tensors(samples))
    return path


@pytest.fixture(scope="module")
def content(folder: Path) -> Content:
    site = SiteFolder(folder)
    repository = Repository.open(site.repository, site.tuf_keys, utc_now)
    return Contents(repository, site.repository).of(1)


def test_what_runs_passes_its_own_gates(folder: Path, content: Content) -> None:
    judgement = SampleJudges(CONFIG, folder).judge(content.tensors, running=content, bundle_bytes={NORTH: 1000})
    assert not judgement.refused
    names = [gate.name for gate in judgement.gates]
    assert names == ["size-north", "finite-north", "accuracy-north", "latency"]


def test_a_poisoned_candidate_is_refused(folder: Path, content: Content) -> None:
    judges = SampleJudges(CONFIG, folder)
    # The control is a model that is right more often than the poisoned one: labels are what version 1 says.
    from nfl_cluster.validate.gates import SharedModel

    samples = read_samples(folder / "heldout.safetensors", input_shape=(1, 28, 28), num_classes=10)
    labels = SharedModel(content.graph, content.tensors[NORTH]).logits(samples.x).argmax(axis=1).astype(np.int64)
    other = folder.parent / f"{folder.name}-labelled"
    other.mkdir(exist_ok=True)
    pixels = (samples.x * 255).round().astype(np.uint8)
    (other / "heldout.safetensors").write_bytes(write_tensors({"x": pixels, "y": labels}))
    judges = SampleJudges(CONFIG, other)
    poisoned = {
        name: -3 * array if name.startswith("head.") else array for name, array in content.tensors[NORTH].items()
    }
    judgement = judges.judge({NORTH: poisoned}, running=content, bundle_bytes={NORTH: 1000})
    assert [gate.name for gate in judgement.refused] == ["accuracy-north"]
    assert judgement.refused[0].value > 50


def test_values_that_are_not_finite_and_a_bundle_that_is_too_large_are_refused(folder: Path, content: Content) -> None:
    broken = {name: np.full_like(array, np.float32(3e38)) for name, array in content.tensors[NORTH].items()}
    judges = SampleJudges(CONFIG, folder)
    judgement = judges.judge({NORTH: broken}, running=content, bundle_bytes={NORTH: 10**9})
    assert {"size-north", "finite-north"} <= {gate.name for gate in judgement.refused}


def test_without_held_out_data_no_candidate_passes(tmp_path: Path, content: Content) -> None:
    judgement = SampleJudges(CONFIG, tmp_path).judge(content.tensors, running=content, bundle_bytes={NORTH: 1})
    assert [gate.name for gate in judgement.refused] == ["heldout"]


def test_a_graph_that_does_not_load_fails_its_gate_and_stops_nobody(folder: Path, content: Content) -> None:
    from dataclasses import replace

    bad = replace(content, graph=b"no graph")
    judgement = SampleJudges(CONFIG, folder).judge(content.tensors, running=bad, bundle_bytes={NORTH: 1})
    assert [gate.name for gate in judgement.refused] == ["runs-north"]


def test_a_shadow_update_measures_scales_and_changes_nothing(folder: Path, content: Content) -> None:
    before = {name: array.copy() for name, array in content.tensors[NORTH].items()}
    judges = SampleJudges(CONFIG, folder)
    scales = judges.scales(content)
    assert scales is not None
    assert len(scales) == len(content.schema.shared)
    assert all(0 < scale < 1 for scale in scales)
    assert judges.scales(content) == scales
    assert all(np.array_equal(before[name], array) for name, array in content.tensors[NORTH].items())


def test_without_shadow_data_there_are_no_scales(tmp_path: Path, content: Content) -> None:
    assert SampleJudges(CONFIG, tmp_path).scales(content) is None


def test_features_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    features = np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3)
    path.write_bytes(write_tensors({"x": features, "y": np.zeros(2, np.int64)}))
    assert read_samples(path, input_shape=(3,), num_classes=2).x.tobytes() == features.tobytes()
    path.write_bytes(write_tensors({"x": features.astype(np.float64), "y": np.zeros(2, np.int64)}))
    with pytest.raises(ConfigError, match="inputs are float64"):
        read_samples(path, input_shape=(3,), num_classes=2)


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(write_tensors({"x": np.zeros((2, 3), np.uint8), "y": np.zeros(2, np.int64)}))
    with pytest.raises(ConfigError):
        read_samples(path, input_shape=(1, 28, 28), num_classes=10)
    with pytest.raises(NotFoundError):
        read_samples(tmp_path / "none", input_shape=(1, 28, 28), num_classes=10)
