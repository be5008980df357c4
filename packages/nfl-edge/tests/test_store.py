from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nfl_core.errors import DurableError
from nfl_edge.store import Checkpoint, CheckpointMeta, Store, displacement, same_tensors, write_checkpoint


def checkpoint(value: float = 1.0, *, updates: int = 0) -> Checkpoint:
    tensors = {"body.w": np.full((2, 3), value, np.float32), "private.w": np.full(4, -value, np.float32)}
    return Checkpoint(
        tensors=tensors,
        accepted={"body.w": np.zeros((2, 3), np.float32)},
        learner={"sum.body.w": np.ones((2, 3), np.float32)},
        learner_text='{"clock": 3}',
        meta=CheckpointMeta(base_version=1, base_digest="1" * 64, schema_fingerprint="f" * 64, num_updates=updates),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "checkpoints").mkdir()
    return Store(tmp_path / "checkpoints", tmp_path / "pointer")


def put(store: Store, value: float) -> str:
    return write_checkpoint(store.path("x").parent, checkpoint(value))


def test_a_checkpoint_reads_back_bit_for_bit() -> None:
    one = checkpoint(0.1)
    back = Checkpoint.from_bytes(one.to_bytes())
    assert {one.to_bytes() for _ in range(20)} == {back.to_bytes()}
    assert same_tensors(back.tensors, one.tensors)
    assert (back.meta, back.learner_text) == (one.meta, one.learner_text)
    assert list(back.learner) == ["sum.body.w"]


def test_displacement_is_measured_from_what_was_accepted() -> None:
    moved = displacement(checkpoint(2.0))
    assert list(moved) == ["body.w"]
    assert (moved["body.w"] == 2.0).all()


def test_commit_keeps_one_step_back(store: Store) -> None:
    first, learned, merged = put(store, 1), put(store, 2), put(store, 3)
    store.commit(first)
    store.advance(learned)
    store.commit(merged)
    store.commit(merged)  # a reboot repeats it
    assert (store.pointer().current, store.pointer().previous) == (merged, learned)
    store.return_to(learned)
    store.return_to(learned)
    current = store.current()
    assert current is not None
    assert (current.tensors["private.w"] == -2).all()
    assert (current.tensors["body.w"] == 2).all()


def test_advance_keeps_the_step_back(store: Store) -> None:
    first, merged, learned = put(store, 1), put(store, 2), put(store, 3)
    store.commit(first)
    store.commit(merged)
    store.advance(learned)
    assert (store.pointer().current, store.pointer().previous) == (learned, first)


def test_collect_deletes_what_nobody_needs(store: Store) -> None:
    first, merged, shadow, stray = put(store, 1), put(store, 2), put(store, 3), put(store, 4)
    store.commit(first)
    store.commit(merged)
    assert store.collect((shadow,)) == 1
    assert not store.path(stray).exists()
    assert all(store.path(name).exists() for name in (first, merged, shadow))


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other"])
def test_a_damaged_checkpoint_is_refused(store: Store, damage: str) -> None:
    name = put(store, 1)
    path = store.path(name)
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        path.write_bytes(checkpoint(9.0).to_bytes())
    else:
        path.write_bytes(data[:-3] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DurableError, match=name[:12]):
        store.load(name)
    with pytest.raises(DurableError):
        store.commit(name)
    assert store.pointer().current == ""


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\x02\0\0\0\0\0\0\0{}", b"nonsense" * 9])
def test_bytes_that_are_no_checkpoint_are_refused(data: bytes) -> None:
    with pytest.raises(DurableError, match="cannot be read"):
        Checkpoint.from_bytes(data)
