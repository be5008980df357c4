"""From a teacher to a version: distil, propose, the real gates on the real graph, and devices that are offered it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from nfl_cluster.brain.judges import SampleJudges
from nfl_cluster.distil import DistilPlan, run_plan
from nfl_cluster.first import seed_first_version
from nfl_cluster.proposal import propose
from nfl_cluster.validate.data import HELDOUT
from nfl_core.config import write_fleet
from nfl_core.learning.distil import DistilSettings
from nfl_core.tensors import write_tensors

from .world import LEAVES, ROOT, World, make_config

K, SHAPE = 3, (1, 8, 8)
DEVICES = {f"d{n}": LEAVES[n % 2] for n in range(6)}


class RealWorld(World):
    """A world whose versions are a real model, judged by the real gates."""

    def _publish_first(self) -> None:
        folder = self.folders[ROOT]
        seed_first_version(self.config, folder, clock=self.clock)
        x, y = _samples(150, seed=1)
        (folder.path / HELDOUT).write_bytes(write_tensors({"x": x, "y": y}))
        write_fleet(self.home / "fleet.toml", self.config)


def _patterns() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 2, (K, *SHAPE)).astype(np.uint8)


def _samples(num: int, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, K, num)
    return (_patterns()[y] * 155 + generator.integers(0, 100, (num, *SHAPE))).astype(np.uint8), y


def _teacher() -> bytes:
    """Return a graph that compares an image with each class's pattern."""
    weights = 0.5 * (_patterns().reshape(K, -1).T.astype(np.float32) - 0.5)
    steps = (("Flatten", ["x"], ["flat"]), ("MatMul", ["flat", "w"], ["logits"]))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*step) for step in steps],
        "teacher",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *SHAPE])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", K])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.slow
def test_what_a_teacher_taught_becomes_a_version_and_what_nobody_taught_does_not(tmp_path: Path) -> None:
    config = make_config(
        model={"num_classes": K, "input_shape": list(SHAPE)},
        gates={"latency_budget_ms": 1000.0, "max_drop_points": 2.0},
    )
    world = RealWorld(tmp_path / "home", config=config)
    world.judges = SampleJudges(config, world.folders[ROOT].path)  # type: ignore[assignment]  # the real ones
    world.restart(ROOT)
    world.settle()
    world.install_everywhere(DEVICES, seconds=3)

    (tmp_path / "big.onnx").write_bytes(_teacher())
    (tmp_path / "proxy.safetensors").write_bytes(write_tensors({"x": _samples(300, seed=2)[0]}))
    plan = DistilPlan(
        student=config.model.name,
        num_classes=K,
        teachers=(str(tmp_path / "big.onnx"),),
        proxy=tmp_path / "proxy.safetensors",
        out=tmp_path / "student.safetensors",
        settings=DistilSettings(epochs=8, batch_size=16),
    )
    assert run_plan(plan).agreement > 0.95
    propose(world.home, plan.out, reason="taught by the large model")
    world.settle()
    published = world.events("published")[-1]
    assert published["version"] == 2
    accuracy = published["accuracy"]
    assert isinstance(accuracy, dict)
    assert min(accuracy.values()) > 0.9
    world.install_everywhere(DEVICES, seconds=6)
    assert [event["version"] for event in world.events("rollout-complete")] == [1, 2]

    untaught = replace(plan, out=tmp_path / "worse.safetensors", settings=DistilSettings(epochs=1, learning_rate=1e-9))
    propose(world.home, run_plan(untaught).out, reason="a control that must fail")
    world.settle()
    assert {str(event["gate"])[:8] for event in world.events("gate-refused")} == {"accuracy"}
    assert [event["version"] for event in world.events("published")] == [1, 2]
