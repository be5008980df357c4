"""IR-SIM behind one small class: a robot with a lidar in one world. The only place that imports `irsim`.

    simulation = Simulation(world, Robot(name="rooms-0", family="rooms", noise_m=0.02, yaw=0.0), seed=0)
    while not simulation.has_ended:
        simulation.step(speed, turn)

Source: IR-SIM, https://github.com/hanruihua/ir-sim (MIT licence).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from nfl_core.errors import ContentError
from nfl_sim.tasks.navigation.expert import CLOSE_M, STEP_S
from nfl_sim.tasks.navigation.worlds import ROBOT_RADIUS_M, SIZE_M, WALL_M, FloatArray, Pose, World

if TYPE_CHECKING:
    from irsim.env import EnvBase

NUM_BEAMS = 48
RANGE_M = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Robot:
    """One robot: where it works, its make, and how its lidar differs from the next one's.

    Attributes:
        name: Of the owner.
        family: Of its worlds; its region.
        noise_m: Deviation of one range.
        yaw: Where its lidar looks, radians from straight ahead: the mount of its make, and how far it is askew.
        is_upside_down: Whether the lidar hangs.
    """

    name: str
    family: str
    noise_m: float
    yaw: float
    is_upside_down: bool = False


class Simulation:
    """One episode.

    Args:
        world: Where.
        robot: Who.
        seed: Of the lidar's noise.

    Raises:
        ContentError: IR-SIM is not installed.
    """

    def __init__(self, world: World, robot: Robot, *, seed: int) -> None:
        self._world = world
        self._turn = -1 if robot.is_upside_down else 1
        with TemporaryDirectory() as folder:
            # IR-SIM takes a file alone. JSON is YAML.
            path = Path(folder) / "world.yaml"
            path.write_text(json.dumps(_scene(world, robot)), encoding="utf-8")
            self._env = _make(path, seed)
        self._robot = self._env.robot

    @property
    def pose(self) -> Pose:
        """Where the robot is."""
        x, y, heading = (float(value) for value in self._robot.state[:3, 0])
        return x, y, heading

    @property
    def has_arrived(self) -> bool:
        """Whether it is at the goal."""
        return bool(np.hypot(*np.subtract(self.pose[:2], self._world.goal)) < CLOSE_M)

    @property
    def has_collided(self) -> bool:
        """Whether it ran into something; it stands still from then on."""
        return bool(self._robot.collision)

    @property
    def has_ended(self) -> bool:
        """Whether it arrived or collided."""
        return self.has_arrived or self.has_collided

    def scan(self) -> FloatArray:
        """Return the ranges of all beams, metres, [48], in the lidar's own order: it starts behind its back.

        It turns counter-clockwise, clockwise when it hangs.
        """
        return np.array(self._robot.lidar.range_data[:: self._turn], dtype=np.float64)

    def place(self, pose: Pose) -> None:
        """Put the robot somewhere and scan from there."""
        self._robot.set_state(np.array(pose)[:, None])
        self._robot.sensor_step()

    def step(self, speed: float, turn: float) -> None:
        """Drive for 0.2 s with a speed in metres a second and a turn in radians a second."""
        self._env.step(np.array([[speed], [turn]]))


def _scene(world: World, robot: Robot) -> dict[str, object]:
    half, outside = SIZE_M / 2, SIZE_M + WALL_M / 2
    frame = [
        (half, -WALL_M / 2, SIZE_M, WALL_M, 0.0),
        (half, outside, SIZE_M, WALL_M, 0.0),
        (-WALL_M / 2, half, SIZE_M, WALL_M, np.pi / 2),
        (outside, half, SIZE_M, WALL_M, np.pi / 2),
    ]
    lidar = {
        "name": "lidar2d",
        "range_min": 0,
        "range_max": RANGE_M,
        "number": NUM_BEAMS,
        "angle_range": 2 * np.pi * (NUM_BEAMS - 1) / NUM_BEAMS,
        "noise": robot.noise_m > 0,
        "std": robot.noise_m,
        "offset": [0, 0, robot.yaw],
    }
    return {
        "world": {"height": SIZE_M, "width": SIZE_M, "step_time": STEP_S, "sample_time": STEP_S},
        "robot": [
            {
                "kinematics": {"name": "diff"},
                "shape": {"name": "circle", "radius": ROBOT_RADIUS_M},
                "vel_max": [1.0, 2.0],
                "vel_min": [-1.0, -2.0],
                "state": list(world.start),
                "goal": [*world.goal, 0.0],
                "goal_threshold": 0.05,  # arrival is ours to say: IR-SIM would stop the robot
                "sensors": [lidar],
            }
        ],
        "obstacle": [
            *({"shape": {"name": "circle", "radius": r}, "state": [x, y, 0.0]} for x, y, r in world.circles),
            *(
                {"shape": {"name": "rectangle", "length": length, "width": width}, "state": [x, y, angle]}
                for x, y, length, width, angle in [*world.boxes, *frame]
            ),
        ],
    }


def _make(path: Path, seed: int) -> EnvBase:
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        # At its import it prints which windows it cannot open.
        with contextlib.redirect_stdout(io.StringIO()):
            import irsim
    except ImportError as e:
        raise ContentError("IR-SIM is not installed", hint="run `pip install ir-sim`") from e
    env: EnvBase = irsim.make(str(path), headless=True, log_level="ERROR", seed=seed)
    # Else its finaliser does it whenever garbage is collected, and waits for ever when that is within loguru's own lock
    # (seen with 2.12.0, while the next environment was made).
    env.logger.close()
    return env
