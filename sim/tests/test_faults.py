"""Devices that misbehave on purpose: what they send, what they keep, and how they stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from nfl_core.config import DEFAULT_LEVELS, LearningSection, ModelSection
from nfl_edge.requests import (
    Evaluated,
    EvaluateRequest,
    InitRequest,
    Learnt,
    MergeRequest,
    MergeResult,
    MicroUpdateRequest,
    Task,
)
from nfl_edge.sense import FileSource
from nfl_edge.store import Checkpoint, CheckpointMeta, displacement, load_checkpoint, write_checkpoint
from nfl_sim.demo.witness import PrivateValues, read_private
from nfl_sim.faults import SATURATION, SignFlipLearner, break_graph, sense_again

META = CheckpointMeta(base_version=1, base_digest="1" * 64, schema_fingerprint="f" * 64)


class Steady:
    """A learner that moves every tensor by one, and says which checkpoint it was asked to start from."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def init(self, request: InitRequest) -> Learnt:
        raise NotImplementedError

    async def micro_update(self, request: MicroUpdateRequest) -> Learnt:
        return Learnt(checkpoint=self._step(request.task, request.checkpoint), accuracy=0.5, cpu_s=0.0)

    async def merge(self, request: MergeRequest) -> MergeResult:
        self.asked.append(request.checkpoint)
        raise NotImplementedError

    async def evaluate(self, request: EvaluateRequest) -> Evaluated:
        self.asked.append(request.checkpoint)
        return Evaluated(accuracy=0.5, loss=0.0)

    def _step(self, task: Task, name: str) -> str:
        self.asked.append(name)
        folder = Path(task.checkpoints)
        kept = load_checkpoint(folder / f"{name}.safetensors", name)
        return write_checkpoint(
            folder, replace(kept, tensors={key: value + np.float32(1) for key, value in kept.tensors.items()})
        )


@pytest.fixture
def task(tmp_path: Path) -> Task:
    folder = tmp_path / "robot-7/state/checkpoints"
    folder.mkdir(parents=True)
    return Task(
        checkpoints=str(folder),
        samples=str(tmp_path / "samples"),
        model=ModelSection(),
        levels=DEFAULT_LEVELS,
        learning=LearningSection(),
        seed=0,
    )


def first(task: Task) -> str:
    accepted = {"body.w": np.zeros(3, np.float32), "head.w": np.zeros(2, np.float32)}
    tensors = {**accepted, "private.w": np.full(2, 0.25, np.float32)}
    checkpoint = Checkpoint(tensors=tensors, accepted=accepted, learner={}, learner_text="{}", meta=META)
    return write_checkpoint(Path(task.checkpoints), checkpoint)


def load(task: Task, name: str) -> Checkpoint:
    return load_checkpoint(Path(task.checkpoints) / f"{name}.safetensors", name)


async def test_an_attacker_sends_the_opposite_as_strongly_as_it_can(task: Task) -> None:
    learner = SignFlipLearner(Steady(), attacks=lambda folder: folder.parents[1].name == "robot-7")
    learnt = await learner.micro_update(MicroUpdateRequest(task=task, checkpoint=first(task)))
    poisoned = load(task, learnt.checkpoint)
    assert all(np.array_equal(value, np.full_like(value, -SATURATION)) for value in displacement(poisoned).values())
    assert poisoned.tensors["private.w"].tolist() == [1.25, 1.25], "what it keeps to itself is honest"


async def test_others_are_left_alone(task: Task) -> None:
    learner = SignFlipLearner(Steady(), attacks=lambda _: False)
    learnt = await learner.micro_update(MicroUpdateRequest(task=task, checkpoint=first(task)))
    assert all(
        np.array_equal(value, np.ones_like(value)) for value in displacement(load(task, learnt.checkpoint)).values()
    )


async def test_an_attacker_goes_on_from_what_it_honestly_learned(task: Task) -> None:
    """Also when the store has thrown the honest checkpoint away meanwhile."""
    inner, attacks = Steady(), True
    learner = SignFlipLearner(inner, attacks=lambda _: attacks)
    learnt = await learner.micro_update(MicroUpdateRequest(task=task, checkpoint=first(task)))
    for path in Path(task.checkpoints).glob("*.safetensors"):
        if path.stem != learnt.checkpoint:
            path.unlink()
    await learner.evaluate(EvaluateRequest(task=task, checkpoint=learnt.checkpoint))
    assert inner.asked[-1] != learnt.checkpoint
    attacks = False
    again = await learner.micro_update(MicroUpdateRequest(task=task, checkpoint=learnt.checkpoint))
    assert all(
        np.array_equal(value, np.full_like(value, 2)) for value in displacement(load(task, again.checkpoint)).values()
    )


async def test_private_values_are_witnessed_after_every_step(task: Task, tmp_path: Path) -> None:
    learner = PrivateValues(Steady(), folder=tmp_path / "taps")
    name = first(task)
    for _ in range(3):
        name = (await learner.micro_update(MicroUpdateRequest(task=task, checkpoint=name))).checkpoint
    record = tmp_path / "taps/private/robot-7.f32"
    assert [values.tolist() for values in read_private(record)] == [[1.25, 1.25], [2.25, 2.25], [3.25, 3.25]]
    record.write_bytes(record.read_bytes()[:-3])  # a kill in the middle of a write
    assert [values.tolist() for values in read_private(record)] == [[1.25, 1.25], [2.25, 2.25]]


def test_sensing_again_makes_samples_new_without_changing_them(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    path.write_bytes(b"the same")
    source = FileSource(path)
    before = source.revision()
    sense_again(path)
    assert source.revision() != before
    assert path.read_bytes() == b"the same"


def test_a_broken_graph_still_loads_and_yields_nothing_finite() -> None:
    node = onnx.helper.make_node("Mul", ["x", "two"], ["logits"])
    two = onnx.numpy_helper.from_array(np.array([2.0], np.float32), "two")
    x, logits = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 3]) for name in ("x", "logits"))
    graph = onnx.helper.make_graph([node], "sound", [x], [logits], [two])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    sound = model.SerializeToString()
    given = np.array([[1.0, -2.0, 0.0]], np.float32)

    def run(data: bytes) -> np.ndarray:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"x": given})[0]

    assert np.isfinite(run(sound)).all()
    assert not np.isfinite(run(break_graph(sound))).any()
