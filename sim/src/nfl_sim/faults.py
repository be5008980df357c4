"""Devices that misbehave on purpose, for the demo and for attack tests.

A faulty device is the real agent around another learner; certificates, gate, masks and transport are the product's. So
what the fleet sees is what it would see of a hacked device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nfl_edge.learn import Learner
from nfl_edge.requests import (
    Evaluated,
    EvaluateRequest,
    InitRequest,
    Learnt,
    MergeRequest,
    MergeResult,
    MicroUpdateRequest,
)
from nfl_edge.store import Checkpoint, load_checkpoint, write_checkpoint

SATURATION = 1e3  # moves every value beyond the shared scale, so each becomes the largest step the gate lets through


class SignFlipLearner:
    """Learn honestly, then contribute the opposite, as strongly as the gate allows.

    The honest checkpoint is kept in memory and used for the next update and merge, so the attacker's own model stays
    good: a free rider that harms the others. What was poisoned is sent again under every policy until the device learns
    again (see `sense_again`).

    Args:
        inner: The learner that does the work.
        attacks: Whether the device with this checkpoint folder attacks right now.

    Source: the sign-flipping attack, for instance Li et al., RSA, arXiv:1811.03761.
    """

    def __init__(self, inner: Learner, *, attacks: Callable[[Path], bool]) -> None:
        self._inner, self._attacks = inner, attacks
        self._honest: dict[str, Checkpoint] = {}

    async def init(self, request: InitRequest) -> Learnt:
        """Make the first checkpoint."""
        return await self._inner.init(request)

    async def micro_update(self, request: MicroUpdateRequest) -> Learnt:
        """Run one micro-update; turn its displacement around while attacking."""
        folder = Path(request.task.checkpoints)
        learnt = await self._inner.micro_update(
            request.model_copy(update={"checkpoint": self._true_name(folder, request.checkpoint)})
        )
        if not self._attacks(folder):
            return learnt
        honest = load_checkpoint(folder / f"{learnt.checkpoint}.safetensors", learnt.checkpoint)
        flipped = {
            name: accepted - np.float32(SATURATION) * np.sign(honest.tensors[name] - accepted)
            for name, accepted in honest.accepted.items()
        }
        poisoned = Checkpoint(
            tensors={**honest.tensors, **flipped},
            accepted=honest.accepted,
            learner=honest.learner,
            learner_text=honest.learner_text,
            meta=honest.meta,
        )
        name = write_checkpoint(folder, poisoned)
        self._honest[name] = honest
        return learnt.model_copy(update={"checkpoint": name})

    async def merge(self, request: MergeRequest) -> MergeResult:
        """Try a merge, from what was honestly learned."""
        folder = Path(request.task.checkpoints)
        return await self._inner.merge(
            request.model_copy(update={"checkpoint": self._true_name(folder, request.checkpoint)})
        )

    async def evaluate(self, request: EvaluateRequest) -> Evaluated:
        """Score what was honestly learned."""
        folder = Path(request.task.checkpoints)
        return await self._inner.evaluate(
            request.model_copy(update={"checkpoint": self._true_name(folder, request.checkpoint)})
        )

    def _true_name(self, folder: Path, name: str) -> str:
        honest = self._honest.get(name)
        # The store drops files that nobody points to, the honest one among them: written again, under the same name.
        return name if honest is None else write_checkpoint(folder, honest)


def sense_again(samples: Path) -> None:
    """Make a device believe that its samples are new, so that it learns from them once more."""
    os.utime(samples)


def break_graph(graph: bytes) -> bytes:
    """Return an ONNX graph that yields infinities instead of logits: an export gone wrong that no tensor check sees."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(graph)
    output = next(value.name for value in model.graph.output if value.name == "logits")
    for node in model.graph.node:
        node.output[:] = ["sound_logits" if name == output else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "no_scale"))
    model.graph.node.append(helper.make_node("Div", ["sound_logits", "no_scale"], [output], name="export_gone_wrong"))
    return bytes(model.SerializeToString())
