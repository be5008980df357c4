"""Sixteen robots in four families of worlds, and what each saw its expert do.

Every robot has worlds of its own for each split: no world, start or goal of `test` was in `train` or `holdout`. It is
put at places scattered about the expert's way through a world, scans there, and the expert says what to do: so the
samples show how to recover, too.

Source: noise about the expert's way, so that the learner meets its own mistakes: Laskey et al., DART, arXiv:1703.09327.

Samples are drawn once for a seed and kept, one file a robot: an interrupted drawing goes on with the next robot.

    data = load(cache, np.random.default_rng(0))
    plans = plans_of(seed)                      # the same robots and worlds, without driving

Shape legend: N samples.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.durable import make_folder, write_file
from nfl_core.errors import TensorFileError
from nfl_core.learning import Samples
from nfl_core.tensors import read_tensors, write_tensors
from nfl_sim.tasks.navigation.expert import Expert
from nfl_sim.tasks.navigation.simulator import NUM_BEAMS, RANGE_M, Robot, Simulation
from nfl_sim.tasks.navigation.worlds import FAMILIES, ROBOT_RADIUS_M, SIZE_M, FloatArray, Pose, World, make_world
from nfl_sim.tasks.task import TaskData, TaskOwner

ROBOTS_PER_FAMILY = 4
SPLITS = {"train": 600, "holdout": 60, "test": 150}  # samples of one robot
NUM_GOAL_FEATURES = 3
NUM_INPUTS = NUM_BEAMS + NUM_GOAL_FEATURES
PLACES_PER_WORLD = 50
SCATTER_M, SCATTER_RAD = 0.3, 0.6  # deviations of a place from the way
LEAST_CLEARANCE_M = ROBOT_RADIUS_M + 0.02  # a robot cannot be put into a wall
MAX_STEPS = 100  # of one episode; the expert needs some 50
MAX_BYTES = 1 << 24
FORMAT = 4  # of the kept files; rises with every change of worlds, expert or samples
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One robot and the seeds of its worlds: everything about an owner but the driving.

    Attributes:
        robot: Who.
        seeds: For each split, the root of the seeds of its worlds.
    """

    robot: Robot
    seeds: dict[str, np.random.SeedSequence]

    def worlds(self, split: str) -> Iterator[World]:
        """Yield this robot's worlds of one split, without end, always the same; all have a way to the goal."""
        generator = np.random.default_rng(self.seeds[split])
        family = FAMILIES[self.robot.family]
        while True:
            world = make_world(family, generator=generator)
            if Expert(world, family).is_solvable:
                yield world


def plans_of(seed: int, *, robots_per_family: int = ROBOTS_PER_FAMILY) -> tuple[Plan, ...]:
    """Return all robots of a seed, family by family."""
    names = [(family, place) for family in FAMILIES for place in range(robots_per_family)]
    roots = np.random.SeedSequence(seed).spawn(len(names))
    return tuple(_plan(f"{family}-{place}", family, root) for (family, place), root in zip(names, roots, strict=True))


def _plan(name: str, family: str, root: np.random.SeedSequence) -> Plan:
    own, *splits = root.spawn(1 + len(SPLITS))
    generator = np.random.default_rng(own)
    robot = Robot(
        name=name,
        family=family,
        noise_m=float(generator.uniform(0.01, 0.05)),
        yaw=FAMILIES[family].mount_yaw + float(generator.uniform(-0.15, 0.15)),
        is_upside_down=FAMILIES[family].is_upside_down,
    )
    return Plan(robot=robot, seeds=dict(zip(SPLITS, splits, strict=True)))


def observe(simulation: Simulation, goal: tuple[float, float]) -> NDArray[np.float32]:
    """Return what the model sees, float32 [1, 1, 51]: nearness of each beam's return, then distance and bearing.

    Nearness is 1 at the robot and 0 at the lidar's range; the distance is a fraction of the world's size; the bearing
    is given as cosine and sine.
    """
    x, y, heading = simulation.pose
    dx, dy = goal[0] - x, goal[1] - y
    bearing = np.arctan2(dy, dx) - heading
    aim = np.array([np.hypot(dx, dy) / SIZE_M, np.cos(bearing), np.sin(bearing)])
    return np.concatenate([1 - simulation.scan() / RANGE_M, aim]).astype(np.float32).reshape(1, 1, NUM_INPUTS)


def ask_expert(plan: Plan, split: str, *, num_samples: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scan about the expert's ways through a robot's worlds of one split until there are enough samples.

    Returns:
        What was seen, float32 [N, 1, 1, 51], and what the expert chose, int64 [N], 0 to 9.

    Raises:
        ContentError: IR-SIM is not installed.
    """
    family = FAMILIES[plan.robot.family]
    generator = np.random.default_rng([1, *plan.seeds[split].generate_state(4)])
    seen, chosen = list[NDArray[np.float32]](), list[int]()
    for world in plan.worlds(split):
        expert = Expert(world, family)
        simulation = Simulation(world, plan.robot, seed=int(generator.integers(2**31)))
        for pose in _places(world, expert.way(max_steps=MAX_STEPS), generator):
            simulation.place(pose)
            seen.append(observe(simulation, world.goal))
            chosen.append(expert.choose(pose))
            if len(chosen) == num_samples:
                return np.stack(seen), np.array(chosen, np.int64)
    raise AssertionError("worlds never end")


def _places(world: World, way_S3: FloatArray, generator: np.random.Generator) -> Iterator[Pose]:
    """Yield poses scattered about a way, those without room left out."""
    picks_P3 = way_S3[generator.integers(len(way_S3), size=PLACES_PER_WORLD)]
    poses_P3 = picks_P3 + generator.normal(0, (SCATTER_M, SCATTER_M, SCATTER_RAD), picks_P3.shape)
    for x, y, heading in poses_P3[world.clearance(poses_P3[:, :2]) > LEAST_CLEARANCE_M]:
        yield float(x), float(y), float(heading)


def load(cache: Path, generator: np.random.Generator) -> TaskData:
    """Return all robots' samples; drawn anew when the cache has none for what `generator` says.

    Raises:
        ContentError: IR-SIM is not installed.
        StorageFullError: The cache's disk is full.
    """
    return load_seed(cache, seed=seed_of(generator))


def seed_of(generator: np.random.Generator) -> int:
    """Return the seed of robots and worlds that `load` takes from this generator."""
    return int(generator.integers(2**31))


def load_seed(
    cache: Path,
    *,
    seed: int,
    robots_per_family: int = ROBOTS_PER_FAMILY,
    say: Callable[[str], None] = _LOG.info,
) -> TaskData:
    """Return all robots' samples of one seed; see `load`. `say` takes a line of progress for every robot."""
    folder = cache / f"navigation-{FORMAT}-{seed}"
    make_folder(folder)
    owners = list[TaskOwner]()
    plans = plans_of(seed, robots_per_family=robots_per_family)
    for place, plan in enumerate(plans):
        splits = _read_or_draw(folder / f"{plan.robot.name}.safetensors", plan)
        owners.append(TaskOwner(name=plan.robot.name, region=plan.robot.family, **splits))
        say(f"navigation: {place + 1} of {len(plans)} robots have samples")
    return TaskData(owners=tuple(owners))


def _read_or_draw(path: Path, plan: Plan) -> dict[str, Samples]:
    expected = {
        f"{split}.{axis}": shape
        for split, num in SPLITS.items()
        for axis, shape in (("x", ((num, 1, 1, NUM_INPUTS), "float32")), ("y", ((num,), "int64")))
    }
    try:
        arrays = read_tensors(path.read_bytes(), expected, max_bytes=MAX_BYTES)
    except (FileNotFoundError, TensorFileError):
        drawn = {split: ask_expert(plan, split, num_samples=num) for split, num in SPLITS.items()}
        arrays = {f"{split}.{axis}": pair[axis == "y"] for split, pair in drawn.items() for axis in "xy"}
        write_file(path, write_tensors(arrays))
    return {
        split: Samples(x=torch.from_numpy(arrays[f"{split}.x"]), y=torch.from_numpy(arrays[f"{split}.y"]))
        for split in SPLITS
    }


def digest_of_world(world: World) -> str:
    """Return a digest of everything in a world: two splits share one when they share a world."""
    return hashlib.sha256(repr(world).encode("ascii")).hexdigest()
