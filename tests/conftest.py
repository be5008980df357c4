"""The story of a small fleet, played once: an attack, a bad version, a killed leaf, and the proof at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from nfl_cluster.operations import send
from nfl_core.config import FleetConfig
from nfl_edge.host import Wiring
from nfl_edge.learn import Learner
from nfl_edge.runtime import World
from nfl_sim.data import enlarged_digits, share_out, write_owner, write_shadow
from nfl_sim.demo.proof import prove
from nfl_sim.demo.report import Proof
from nfl_sim.demo.witness import PrivateValues, PutIn
from nfl_sim.faults import SignFlipLearner, break_graph, sense_again
from nfl_sim.small_fleet import SmallFleet, found_fleet

LEAVES = ("leaf-1", "leaf-2")
NUM_DEVICES = 6


def small_config() -> FleetConfig:
    """Two leaves, batches of three, little patience."""
    return FleetConfig.model_validate(
        {
            "fleet": {"name": "small"},
            "leaves": [{"site": leaf, "region": f"region-{number}"} for number, leaf in enumerate(LEAVES, 1)],
            "learning": {"epochs_per_update": 2},
            "privacy": {"n_min": 2, "batch_size": 3, "batch_max": 4, "window_s": 2.0},
            "keeper": {"n_min": 2},
            "rollout": {"waves": [0.34, 1.0], "min_soak_s": 0.1, "max_failure_fraction": 0.4, "min_reports": 2},
            "gates": {"max_drop_points": 3.0, "latency_budget_ms": 500},
            "root": {"batches_per_version": 2, "enrol_port": 0, "flare_port": 0, "admin_port": 0},
            "edge": {"poll_s": 0.1, "latency_budget_ms": 500, "max_accuracy_drop": 0.6},
        }
    )


def make_small_fleet(home: Path, *, attackers: set[str], num_devices: int = NUM_DEVICES, seed: int = 0) -> SmallFleet:
    """Make keys, first version, data; devices named in `attackers`, now or later, attack."""
    config = small_config()
    found_fleet(home, config)
    devices = [f"robot-{number}" for number in range(1, num_devices + 1)]
    data = enlarged_digits()
    shares = share_out(
        data,
        num_owners=num_devices,
        concentration=5.0,
        images_per_owner=180,
        generator=np.random.default_rng(seed),
        num_heldout=300,
        num_shadow=100,
    )
    for name, owner in zip(devices, shares.owners, strict=True):
        write_owner(home / "devices" / name / "samples.safetensors", data, owner)
    write_shadow(home / "root/heldout.safetensors", data, shares.heldout)
    write_shadow(home / "root/shadow.safetensors", data, shares.shadow)
    taps = home / "taps"

    def wrap(trainer: Learner) -> Learner:
        faulty = SignFlipLearner(trainer, attacks=lambda folder: folder.parents[1].name in attackers)
        return PrivateValues(faulty, folder=taps)

    return SmallFleet(
        home,
        config,
        leaf_of={name: LEAVES[place % len(LEAVES)] for place, name in enumerate(devices)},
        wrap=wrap,
        wiring=Wiring(world=World(egress_tap=PutIn(taps)), tap_folder=taps),
    )


@dataclass(slots=True)
class Played:
    """What is left of a small fleet's story.

    Attributes:
        fleet: Stopped; its folders are as the story left them.
        proof: Of its end.
    """

    fleet: SmallFleet
    proof: Proof


async def _play(home: Path) -> Played:
    attackers: set[str] = set()
    fleet = make_small_fleet(home, attackers=attackers)
    view = fleet.watch.state
    async with fleet.running():
        await fleet.until(lambda: len([v for v in view.complete if v > 1]) >= 1, "the first learned version everywhere")
        receipts = sum(device.num_receipts for device in view.devices.values())
        await fleet.until(
            lambda: sum(device.num_receipts for device in view.devices.values()) > receipts, "a receipt to kill between"
        )
        await fleet.kill("leaf-1")
        await fleet.until(lambda: len([v for v in view.complete if v > 1]) >= 2, "a version after the kill")

        broken = home / "broken.onnx"
        broken.write_bytes(break_graph(_graph_of(fleet)))
        send(home, "override-publish", candidate="running", graph=str(broken), reason="the test lets it through")
        await fleet.until(lambda: bool(view.rolled_back), "the broken version to be rolled back")
        await fleet.until(lambda: view.restoring[0] in view.complete, "the restored version everywhere")

        attackers |= {name for name in fleet.devices if fleet.leaf_of[name] == "leaf-2"}
        await fleet.until(lambda: bool(view.refused), "a gate to refuse the poisoned candidate")
        former = sorted(attackers)
        attackers.clear()
        for name in former:
            sense_again(home / "devices" / name / "samples.safetensors")
        complete = len(view.complete)
        await fleet.until(lambda: len(view.complete) > complete, "a version after the attack")
        send(home, "pause")
        await fleet.until(lambda: bool(fleet.root_events("order")[1:]), "the pause")
        proof = prove(home, fleet.config, taps=home / "taps")
    return Played(fleet=fleet, proof=proof)


def _graph_of(fleet: SmallFleet) -> bytes:
    from nfl_core.learning import create_model, export_graph, schema_of

    model = fleet.config.model
    module = create_model(model.name, num_classes=model.num_classes, input_shape=model.input_shape, seed=0)
    return export_graph(module, schema_of(module, fleet.config.spec))


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """The whole story, played once for all tests that look at it."""
    return asyncio.run(_play(tmp_path_factory.mktemp("a fleet") / "home"))
