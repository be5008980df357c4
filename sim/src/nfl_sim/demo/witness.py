"""Witnesses inside of the demo's device hosts: they write down what the product must keep to itself, for the proof.

- `PutIn` records the integers that go into each mask: `FOLDER/put-in/CONTRIBUTION.safetensors`, int64 [P + 1], weight
- `PrivateValues` records the private levels after each step of learning: `FOLDER/private/DEVICE.f32`
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_core.durable import make_folder
from nfl_core.ids import ContributionId
from nfl_core.tensors import write_tensors
from nfl_edge.learn import Learner
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
from nfl_edge.store import load_checkpoint

PUT_IN, PRIVATE = "put-in", "private"
_LENGTH = struct.Struct("<I")


class PutIn:
    """Takes the place of the egress gate's tap."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / PUT_IN
        make_folder(self._folder)

    def __call__(self, contribution_id: ContributionId, *, counts_P: NDArray[np.int64], weight: int) -> None:
        """Record one contribution."""
        values = np.append(counts_P, np.int64(weight)).astype(np.int64)
        part = self._folder / f"{contribution_id}.part"
        part.write_bytes(write_tensors({"values": values}))
        part.replace(self._folder / f"{contribution_id}.safetensors")


class PrivateValues:
    """A learner that notes the private values of every checkpoint that another learner makes.

    Args:
        inner: Who learns.
        folder: Gets `private/`.
    """

    def __init__(self, inner: Learner, *, folder: Path) -> None:
        self._inner, self._folder = inner, folder / PRIVATE
        make_folder(self._folder)

    async def init(self, request: InitRequest) -> Learnt:
        """Make the first checkpoint."""
        learnt = await self._inner.init(request)
        self._note(request.task, learnt.checkpoint)
        return learnt

    async def micro_update(self, request: MicroUpdateRequest) -> Learnt:
        """Run one micro-update."""
        learnt = await self._inner.micro_update(request)
        self._note(request.task, learnt.checkpoint)
        return learnt

    async def merge(self, request: MergeRequest) -> MergeResult:
        """Try a merge."""
        result = await self._inner.merge(request)
        if result.checkpoint:
            self._note(request.task, result.checkpoint)
        return result

    async def evaluate(self, request: EvaluateRequest) -> Evaluated:
        """Score a checkpoint."""
        return await self._inner.evaluate(request)

    def _note(self, task: Task, checkpoint: str) -> None:
        folder = Path(task.checkpoints)
        kept = load_checkpoint(folder / f"{checkpoint}.safetensors", checkpoint)
        private = [values.reshape(-1) for name, values in sorted(kept.tensors.items()) if name not in kept.accepted]
        data = np.concatenate(private).astype("<f4").tobytes() if private else b""
        # One write of a whole record: a kill leaves at most a torn last one, which the reader leaves out.
        with (self._folder / f"{device_of(folder)}.f32").open("ab") as file:
            file.write(_LENGTH.pack(len(data)) + data)


def read_private(path: Path) -> Iterator[NDArray[np.float32]]:
    """Yield the private values of a device after each step, float32 [V]; nothing when there is no record."""
    data, offset = path.read_bytes() if path.exists() else b"", 0
    while offset + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if offset + length > len(data):
            return
        yield np.frombuffer(data, "<f4", count=length // 4, offset=offset).astype(np.float32)
        offset += length


def device_of(checkpoints: Path) -> str:
    """Return the device that a folder of checkpoints belongs to."""
    return checkpoints.parents[1].name
