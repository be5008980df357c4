"""The proof at the demo's end is worth something only if it fails when something is wrong. Here something is."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nfl_cluster.registry import Registry
from nfl_core.errors import NotFoundError
from nfl_core.tensors import read_tensors, write_tensors
from nfl_edge.link import FileTap
from nfl_sim.demo.proof import prove
from nfl_sim.demo.report import Proof
from nfl_sim.demo.witness import read_private

if TYPE_CHECKING:
    from tests.conftest import Played

MAX_BYTES = 1 << 24


@pytest.fixture
def copy(played: Played, tmp_path: Path) -> Path:
    """The small fleet's home as the story left it, to spoil."""
    home = tmp_path / "home"
    shutil.copytree(played.fleet.home, home, ignore=shutil.ignore_patterns("slots", "cache"))
    return home


def proof_of(played: Played, home: Path) -> Proof:
    return prove(home, played.fleet.config, taps=home / "taps")


def edit(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    arrays = read_tensors(path.read_bytes(), None, max_bytes=MAX_BYTES)
    arrays[name] = change(arrays[name].copy())
    path.write_bytes(write_tensors(arrays))


def counted_batch(home: Path) -> str:
    registry = Registry.open(home / "root/registry.sqlite")
    try:
        return next(row.batch_id for row in registry.batches() if row.status == "used")
    finally:
        registry.close()


def plus_one(values: np.ndarray) -> np.ndarray:
    values[123] += 1
    return values


def test_the_copy_holds_as_it_is(played: Played, copy: Path) -> None:
    proof = proof_of(played, copy)
    assert proof.holds
    assert proof.batches >= played.proof.batches  # what was on its way when the fleet was asked has arrived since


def test_one_integer_off_at_the_root_is_seen(played: Played, copy: Path) -> None:
    edit(copy / "root/state/batches" / f"{counted_batch(copy)}.safetensors", "counts", plus_one)
    proof = proof_of(played, copy)
    assert (proof.batches_exact, proof.holds) == (proof.batches - 1, False)


def test_a_device_that_puts_in_another_value_than_it_says_is_seen(played: Played, copy: Path) -> None:
    witness = min((copy / "taps/put-in").glob("*.safetensors"))
    edit(witness, "values", plus_one)
    proof = proof_of(played, copy)
    assert (proof.batches_exact, proof.holds) == (proof.batches - 1, False)


def test_a_receipt_for_nothing_is_seen(played: Played, copy: Path) -> None:
    journal = next(iter(sorted((copy / "devices").glob("*/journal/events.jsonl"))))
    with journal.open("a") as file:
        file.write('{"at": "2026-01-01T00:00:00+00:00", "event": "receipt", "contribution": "%s"}\n' % ("a" * 32))
    proof = proof_of(played, copy)
    assert (proof.receipts_unaccounted, proof.holds) == (1, False)


def test_a_leaf_that_forgot_what_it_gave_receipts_for_is_seen(played: Played, copy: Path) -> None:
    (copy / "leaves/leaf-1/state/batches.journal").unlink()
    proof = proof_of(played, copy)
    assert proof.receipts_unaccounted > 0
    assert not proof.holds


def test_a_device_that_sends_private_values_is_seen(played: Played, copy: Path) -> None:
    record = min((copy / "taps/private").glob("*.f32"))
    *_, newest = read_private(record)
    start = int(np.flatnonzero(newest)[0])
    FileTap(copy / "taps/robot-1.tap")("Report", b"counters" + newest[start : start + 2].astype("<f4").tobytes())
    proof = proof_of(played, copy)
    assert (proof.found, proof.holds) == (1, False)


def test_a_device_that_sends_pixels_is_seen(played: Played, copy: Path) -> None:
    samples = read_tensors((copy / "devices/robot-2/samples.safetensors").read_bytes(), None, max_bytes=MAX_BYTES)
    picture = samples["train.x"][0].tobytes()
    FileTap(copy / "taps/robot-2.tap")("Hello", b"\x0a\x05hello" + picture)
    proof = proof_of(played, copy)
    assert proof.found > 5
    assert not proof.holds


def test_without_any_record_there_is_nothing_to_prove(played: Played, copy: Path) -> None:
    shutil.rmtree(copy / "taps")
    (copy / "taps/put-in").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="nothing to prove"):
        proof_of(played, copy)


def test_a_tap_records_what_can_be_read_again(tmp_path: Path) -> None:
    FileTap(tmp_path / "tap")("Hello", b"abc")
    assert (tmp_path / "tap").read_bytes() == struct.pack(">I", 9) + b"Hello\0abc"
