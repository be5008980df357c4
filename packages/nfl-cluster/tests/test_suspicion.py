"""What leaves make of the root's scores, in a whole fleet and alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nfl_cluster.aggregate.suspicion import RoundScores, Suspicion
from nfl_cluster.events import read_events
from nfl_core.errors import DurableError, MalformedError

from .world import LEAVES, ROOT, World, make_config

DEVICES = {f"d{number}": LEAVES[number % 2] for number in range(6)}


def _round(world: World) -> None:
    for name, leaf in DEVICES.items():
        world.contribute(name, leaf, base=world.hello(name, leaf).newest_digest)
    world.settle()


def _world(home: Path, rule: str, direction: NDArray[np.float32] | None) -> World:
    world = World(home, config=make_config(root={"robust": rule, "max_attacker_fraction": 0.4}))
    world.judges.direction = direction
    world.settle()
    world.install_everywhere(DEVICES, seconds=3)
    return world


def _norms(world: World) -> Mapping[str, tuple[float, ...]]:
    return world.brain._store.state.norms


@pytest.mark.parametrize("rule", ["norm-bound", "dnc", "geometric-median", "nnm-trimmed-mean", "shadow-trust", "mean"])
def test_the_root_uses_the_rule_it_is_told(tmp_path: Path, rule: str) -> None:
    world = _world(tmp_path / "home", rule, None)
    _round(world)
    assert [event["version"] for event in world.events("published")] == [1, 2]
    said = [str(event["why"]) for event in world.events("rule-degraded") if event["scope"] == "global"]
    if rule == "shadow-trust":
        assert said[0] == "there is no shadow update, batches are averaged within their bound"
    else:
        assert said == ["2 of 2 batches of all regions may be bad, they are averaged"]
    assert bool(_norms(world)) == (rule != "mean")


def test_a_shadow_that_no_batch_agrees_with_moves_nothing(tmp_path: Path) -> None:
    world = _world(tmp_path / "home", "shadow-trust", None)
    sums: list[NDArray[np.float64]] = []
    world.judges.shadow = lambda content: _against(world, sums)  # type: ignore[method-assign]
    before = world.events("published")[-1]["digests"]
    _round(world)
    assert world.events("published")[-1]["digests"] == before
    assert "none of 2 batches agrees" in str(world.events("rule-degraded")[0]["why"])


def _against(world: World, sums: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    batches = [world.counts(str(event["batch"])).astype(np.float64) for event in world.events("batch-received")]
    sums += batches
    # Minus the pseudo-inverse of ones: a direction whose product with every batch is below zero.
    return np.asarray(-np.linalg.pinv(np.stack(batches)) @ np.ones(len(batches)), np.float32)


def test_leaves_hear_scores_of_their_own_batches_once(tmp_path: Path) -> None:
    world = _world(tmp_path / "home", "norm-bound", np.ones(20, np.float32))
    _round(world)
    for leaf in LEAVES:
        suspicion = world.leaves[leaf]._suspicion
        ((_, (observation,)),) = suspicion._memory.state.rounds
        assert observation.members == tuple(sorted(name for name, where in DEVICES.items() if where == leaf))
        assert len(observation.figures) == 2
        world.restart(leaf)
        assert world.leaves[leaf]._suspicion._memory == suspicion._memory
    again = RoundScores(number=1, scores={})
    assert world.leaves[LEAVES[0]]._suspicion.hear(again, members={}) == ()
    world.tick(ROOT)


def test_a_leaf_advises_its_operator_and_says_when_it_is_over(tmp_path: Path) -> None:
    world = _world(tmp_path / "home", "norm-bound", None)
    leaf, generator = world.leaves[LEAVES[0]], np.random.default_rng(0)
    names, log = [f"x{number}" for number in range(12)], leaf.log
    for number in range(1, 40):
        rosters = generator.permutation(names).reshape(6, 2)
        members = {f"b{place}": tuple(map(str, roster)) for place, roster in enumerate(rosters)}
        scores = {
            batch: (9.0 * ("x3" in roster) + float(generator.normal()), float(generator.normal()))
            for batch, roster in members.items()
        }
        rows = [_Row(batch, device) for batch, roster in members.items() for device in roster]
        log.accepted = lambda rows=rows: rows  # type: ignore[method-assign]
        leaf._hear(RoundScores(number=number, scores=scores))
    said = [
        (event["event"], event["device"])
        for event in read_events(world.folders[LEAVES[0]].state / "events.jsonl")
        if str(event["event"]).startswith("quarantine")
    ]
    assert said[:2] == [("quarantine-advised", "x3"), ("quarantine-over", "x3")]
    assert {device for _, device in said} == {"x3"}


class _Row:
    def __init__(self, batch_id: str, device: str) -> None:
        self.batch_id, self.device = batch_id, device


def test_what_is_no_record_and_no_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="no batch scores"):
        RoundScores.decode(b'{"number": 1}')
    suspicion = Suspicion(tmp_path / "record")
    suspicion._record.store(b"{}x")
    with pytest.raises(DurableError, match="cannot be read"):
        Suspicion(tmp_path / "record")
