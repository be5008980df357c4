"""Keep what a device has learned: checkpoints that survive a power cut, and one step back.

A checkpoint is a value in a content-addressed file: all tensors, the accepted shared tensors that displacements are
measured from, the state of the learner, and what they belong to. The store is a durable pointer to the present one and
to the one before the last merge. So to commit is to move a pointer, to roll back is to move it again, and a trainer
that is killed while it writes leaves nothing but a file that nobody points to.

Rules kept here:

* The digest of a checkpoint is verified whenever it is loaded.
* Only the agent moves the pointer; the trainer writes files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nfl_core.durable import DualRecord, write_file
from nfl_core.errors import DurableError
from nfl_core.ids import Digest

Tensors = dict[str, NDArray[np.float32]]
Arrays = dict[str, NDArray[np.generic]]

_NOW, _ACCEPTED, _LEARNER, _MEMORY, _TRACK = "now:", "accepted:", "learner:", "memory:", "track:"
_META = "nfl"  # one entry: safetensors writes several in an order that changes
SUFFIX = ".safetensors"


class CheckpointMeta(BaseModel):
    """What a checkpoint belongs to.

    Attributes:
        base_version: Version whose merge made it.
        base_digest: Content digest of that version's shared tensors, as published.
        schema_fingerprint: Fingerprint of the tensor schema.
        num_updates: Micro-updates since the first checkpoint; seeds the next one.
        num_updates_here: Micro-updates since the last merge; 0: nothing to contribute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_version: int
    base_digest: str
    schema_fingerprint: str
    num_updates: int = 0
    num_updates_here: int = 0


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    meta: CheckpointMeta
    learner_text: str
    memory_text: str = ""  # checkpoints from before there was a memory have none
    track_text: str = ""  # likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything that a device has learned.

    Attributes:
        tensors: All tensors of the model as they are now, float32.
        accepted: Shared tensors as the last merge left them, float32: displacements start here.
        learner: Accumulators and optimizer state by name.
        learner_text: Clocks and random generator, as the learner writes them.
        meta: What it belongs to.
        memory: What it remembers of samples that are gone.
        memory_text: Whose that is, as the trainer writes it; empty: nothing is remembered.
        track: What it knows of the versions that it saw.
        track_text: The rest of that, as the trainer writes it; empty: nothing is known.
    """

    tensors: Tensors
    accepted: Tensors
    learner: Arrays
    learner_text: str
    meta: CheckpointMeta
    memory: Arrays = field(default_factory=dict)
    memory_text: str = ""
    track: Arrays = field(default_factory=dict)
    track_text: str = ""

    def to_bytes(self) -> bytes:
        """Return the file form; equal checkpoints give equal bytes."""
        arrays: Arrays = {_NOW + name: value for name, value in self.tensors.items()}
        arrays |= {_ACCEPTED + name: value for name, value in self.accepted.items()}
        arrays |= {_LEARNER + name: value for name, value in self.learner.items()}
        arrays |= {_MEMORY + name: value for name, value in self.memory.items()}
        arrays |= {_TRACK + name: value for name, value in self.track.items()}
        head = _Head(
            meta=self.meta,
            learner_text=self.learner_text,
            memory_text=self.memory_text,
            track_text=self.track_text,
        )
        ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
        return save(ordered, metadata={_META: head.model_dump_json()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read the file form. Raises DurableError when it is not one."""
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            head = _Head.model_validate_json(header["__metadata__"][_META])
            arrays = load(data)
        except (SafetensorError, ValidationError, ValueError, KeyError, TypeError) as error:
            raise DurableError(f"a checkpoint cannot be read: {error}") from error
        return cls(
            tensors=_part(arrays, _NOW),
            accepted=_part(arrays, _ACCEPTED),
            learner=_part(arrays, _LEARNER),
            learner_text=head.learner_text,
            meta=head.meta,
            memory=_part(arrays, _MEMORY),
            memory_text=head.memory_text,
            track=_part(arrays, _TRACK),
            track_text=head.track_text,
        )


class Pointer(BaseModel):
    """Names of the present checkpoint and of the one before the last merge; empty: there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    current: str = ""
    previous: str = ""


class Store:
    """Checkpoints of one device.

    Args:
        folder: Folder of the checkpoint files, exists.
        record: Path of the durable pointer.
    """

    def __init__(self, folder: Path, record: Path) -> None:
        self._folder = folder
        self._record = DualRecord(record)

    def pointer(self) -> Pointer:
        """Return what the store points to. Raises DurableError."""
        payload = self._record.load()
        return Pointer() if payload is None else Pointer.model_validate_json(payload)

    def current(self) -> Checkpoint | None:
        """Load the present checkpoint; None when there is none. Raises DurableError."""
        name = self.pointer().current
        return self.load(name) if name else None

    def load(self, name: str) -> Checkpoint:
        """Load a checkpoint by name. Raises DurableError when it is missing or damaged."""
        return load_checkpoint(self.path(name), name)

    def path(self, name: str) -> Path:
        """Return the path of a checkpoint file."""
        return self._folder / f"{name}{SUFFIX}"

    def advance(self, name: str) -> None:
        """Make a later state of the same base the present one; the step back stays. Raises DurableError."""
        self._point(Pointer(current=name, previous=self.pointer().previous))

    def commit(self, name: str) -> None:
        """Make a merged checkpoint the present one and keep the present one for the step back. Safe to repeat."""
        pointer = self.pointer()
        if pointer.current != name:
            self._point(Pointer(current=name, previous=pointer.current))

    def return_to(self, name: str) -> None:
        """Go back to a checkpoint from before a merge; empty: to none. Safe to repeat. Raises DurableError."""
        if self.pointer().current != name:
            self._point(Pointer(current=name, previous=""))

    def collect(self, keep: tuple[str, ...] = ()) -> int:
        """Delete files that nobody points to. Returns how many."""
        pointer = self.pointer()
        wanted = {pointer.current, pointer.previous, *keep}
        gone = [path for path in self._folder.glob(f"*{SUFFIX}") if path.name.removesuffix(SUFFIX) not in wanted]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def _point(self, pointer: Pointer) -> None:
        if pointer.current:
            self.load(pointer.current)
        self._record.store(pointer.model_dump_json().encode())


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint durably and return its name. Raises StorageFullError, DurableError."""
    data = checkpoint.to_bytes()
    name = hashlib.sha256(data).hexdigest()
    write_file(folder / f"{name}{SUFFIX}", data)
    return name


def load_checkpoint(path: Path, name: str) -> Checkpoint:
    """Load the checkpoint `name` from `path`. Raises DurableError when it is missing or not what its name says."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DurableError(f"checkpoint {name[:12]} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != name:
        raise DurableError(f"checkpoint {name[:12]} is damaged: its content has another digest")
    return Checkpoint.from_bytes(data)


def displacement(checkpoint: Checkpoint) -> Tensors:
    """Return how far each shared tensor moved since the merge that accepted it, float32, shapes of the schema."""
    return {name: checkpoint.tensors[name] - accepted for name, accepted in checkpoint.accepted.items()}


def same_tensors(left: Mapping[str, NDArray[np.float32]], right: Mapping[str, NDArray[np.float32]]) -> bool:
    """Say whether two sets of tensors are equal bit for bit."""
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def base_digest_of(checkpoint: Checkpoint) -> Digest:
    """Return the content digest of the published version that the checkpoint started from."""
    return Digest(checkpoint.meta.base_digest)


def _part(arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray]:  # type: ignore[type-arg]  # float32 or any
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
