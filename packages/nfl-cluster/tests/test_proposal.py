from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nfl_cluster.operations import send
from nfl_cluster.proposal import FOLDER, ProposalError, propose
from nfl_core.config import write_fleet
from nfl_core.errors import ConfigError, NotFoundError, TensorFileError
from nfl_core.tensors import write_tensors

from .world import LEAVES, ROOT, SHAPES, World

DEVICES = {f"d{n}": LEAVES[n % 2] for n in range(6)}


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "home")
    write_fleet(made.home / "fleet.toml", made.config)
    made.settle()
    made.install_everywhere(DEVICES, seconds=3)
    return made


def _weights(value: float = 0.5) -> dict[str, NDArray[np.float32]]:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


def _file(world: World, arrays: dict[str, NDArray[np.float32]]) -> Path:
    path = world.home / "student.safetensors"
    path.write_bytes(write_tensors(arrays))
    return path


def test_a_proposal_that_passes_the_gates_becomes_the_next_version_everywhere(world: World) -> None:
    propose(world.home, _file(world, _weights()), reason="taught by the cluster")
    world.settle()
    assert world.judges.num_judged == 1
    published = world.events("published")[-1]
    assert (published["version"], published["override"]) == (2, None)
    content = world.brain._contents.of(2)
    for tensors in content.tensors.values():
        assert set(tensors) == {name for name in SHAPES if not name.startswith("private.")}
        assert all(np.all(array == np.float32(0.5)) for array in tensors.values())
    assert all(manifest.gates for manifest in content.manifests.values())
    (row,) = [row for row in world.brain._registry.versions() if row.version == 2]
    assert row.candidate_id == published["candidate"]


def test_a_proposal_that_fails_a_gate_is_kept_and_never_published(world: World) -> None:
    world.judges.refuses = True
    propose(world.home, _file(world, _weights()), reason="worth a try")
    world.settle()
    assert [event["gate"] for event in world.events("gate-refused")] == ["toy"]
    assert [event["version"] for event in world.events("published")] == [1]
    assert world.brain._store.state.candidate.status == "refused"  # type: ignore[union-attr]


def test_the_fleet_learns_on_from_what_was_proposed(world: World) -> None:
    propose(world.home, _file(world, _weights()), reason="taught by the cluster")
    world.settle()
    world.install_everywhere(DEVICES, seconds=6)
    for name, leaf in DEVICES.items():
        world.contribute(name, leaf, base=world.hello(name, leaf).newest_digest)
    world.settle()
    assert [event["version"] for event in world.events("published")] == [1, 2, 3]


def test_a_proposal_waits_for_a_rollout(world: World) -> None:
    propose(world.home, _file(world, _weights(1.0)), reason="first")
    world.settle()
    assert world.events("published")[-1]["version"] == 2
    propose(world.home, _file(world, _weights(2.0)), reason="second")
    world.settle()
    assert world.judges.num_judged == 1, "the first is still on its way to the devices"
    world.install_everywhere(DEVICES, seconds=6)
    assert world.events("published")[-1]["version"] == 3


def test_a_root_that_is_killed_behind_the_proposal_goes_on(world: World) -> None:
    propose(world.home, _file(world, _weights()), reason="taught by the cluster")
    for message in world.mailbox(ROOT).incoming():
        world.brain._take(message)
    world.brain._commit()  # and the process ends before the gates, with the message still in the box
    world.restart(ROOT)
    world.settle()
    assert [event["version"] for event in world.events("published")] == [1, 2]


@pytest.mark.parametrize("spoil", ["missing", "shape", "dtype", "unknown"])
def test_weights_of_another_model_are_refused_before_they_are_ordered(world: World, spoil: str) -> None:
    arrays = _weights()
    match spoil:
        case "missing":
            del arrays["middle.w"]
        case "shape":
            arrays["middle.w"] = np.zeros(6, np.float32)
        case "dtype":
            arrays["middle.w"] = np.zeros(5, np.float64)  # type: ignore[assignment]
        case "unknown":
            arrays["tail.w"] = np.zeros(5, np.float32)
    with pytest.raises(ProposalError):
        propose(world.home, _file(world, arrays), reason="r")
    assert not list(world.mailbox(ROOT).incoming())


def test_what_is_no_proposal_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        propose(world.home, tmp_path / "nothing", reason="r")
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x00" * 20)
    with pytest.raises(TensorFileError):
        propose(world.home, broken, reason="r")
    with pytest.raises(ConfigError):
        propose(tmp_path / "no fleet", _file(world, _weights()), reason="r")


def test_an_order_for_a_proposal_that_is_not_there_is_refused_by_name(world: World) -> None:
    send(world.home, "propose", candidate="0" * 64)
    send(world.home, "propose", candidate="../../etc/passwd")
    propose(world.home, _file(world, _weights()), reason="r")
    (stored,) = (world.folders[ROOT].state / FOLDER).iterdir()
    stored.write_bytes(stored.read_bytes()[:-1])
    world.settle()
    codes = [event["code"] for event in world.events("mail-refused")]
    assert codes == ["not-found", "not-found", "tensors.malformed"]
    assert [event["version"] for event in world.events("published")] == [1]
