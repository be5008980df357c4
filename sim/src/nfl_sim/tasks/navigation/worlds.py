"""Small flat worlds for robots, drawn from a generator: four families, each with its own shape, rules and robots.

A family is what makes a region: in a corridor a robot turns with the walls, in rooms it looks for doors and goes
slowly, on an open yard it goes fast and keeps clear. A site also has robots of one make, which carry their lidar as
their deck allows: forwards, backwards, upside down, sideways. So one scan asks for other actions at another site.

    world = make_world(FAMILIES["rooms"], generator=np.random.default_rng(0))
    world.clearance(np.array([world.start[:2]]))        # metres to the nearest wall or obstacle

Units: metres, radians, metres a second. Shape legend: P points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfl_core.errors import LearningError

SIZE_M = 8.0  # worlds are squares
ROBOT_RADIUS_M = 0.2
WALL_M = 0.15  # thickness
START_CLEARANCE_M = 0.4  # start and goal are never in a corner that a robot cannot turn in
MAX_DRAWS = 200  # of a start and goal in one world; a crowded world that gives none is drawn anew
FloatArray = NDArray[np.float64]
Circle = tuple[float, float, float]  # x, y, radius
Box = tuple[float, float, float, float, float]  # x, y of the centre; length, width; angle
Pose = tuple[float, float, float]  # x, y, heading
Shapes = tuple[tuple[Circle, ...], tuple[Box, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of world, the rules of its site and the make of its robots.

    Attributes:
        name: Of the region.
        max_speed: What the site allows.
        margin_m: Clearance that the site wants robots to keep where there is room.
        mount_yaw: Which way the lidar of this make looks, radians from straight ahead.
        is_upside_down: Whether it hangs, and so turns clockwise.
        min_route_m: Straight distance from start to goal, at least.
        draw: Makes circles and boxes, the outer walls apart.
    """

    name: str
    max_speed: float
    margin_m: float
    mount_yaw: float
    is_upside_down: bool
    min_route_m: float
    draw: Callable[[np.random.Generator], Shapes]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One world: what stands in it, where the robot starts and where it is to go."""

    family: str
    circles: tuple[Circle, ...]
    boxes: tuple[Box, ...]
    start: Pose
    goal: tuple[float, float]

    def clearance(self, points_P2: FloatArray) -> FloatArray:
        """Return the distance of points, shape [P, 2], to the nearest wall or obstacle, [P]; negative inside one."""
        return clearance_of(self.circles, self.boxes, points_P2)


def clearance_of(circles: tuple[Circle, ...], boxes: tuple[Box, ...], points_P2: FloatArray) -> FloatArray:
    """Return signed distances, [P], of points to the nearest of these shapes and of the outer walls."""
    nearest_P: FloatArray = np.minimum(points_P2, SIZE_M - points_P2).min(axis=1)
    for x, y, radius in circles:
        nearest_P = np.minimum(nearest_P, np.hypot(points_P2[:, 0] - x, points_P2[:, 1] - y) - radius)
    for x, y, length, width, angle in boxes:
        offset_P2 = points_P2 - (x, y)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        beyond_P2 = np.abs(offset_P2 @ turn) - (length / 2, width / 2)
        outside_P = np.hypot(*np.maximum(beyond_P2, 0).T)
        nearest_P = np.minimum(nearest_P, outside_P + np.minimum(beyond_P2.max(axis=1), 0))
    return nearest_P


def make_world(family: Family, *, generator: np.random.Generator) -> World:
    """Draw a world with a start and a goal that are clear of everything; whether a way leads there is not checked.

    Raises:
        LearningError: The family's worlds leave no room; a fault of the family.
    """
    for _ in range(MAX_DRAWS):
        circles, boxes = family.draw(generator)
        points_P2 = generator.uniform(START_CLEARANCE_M, SIZE_M - START_CLEARANCE_M, (40, 2))
        free_P2 = points_P2[clearance_of(circles, boxes, points_P2) >= START_CLEARANCE_M]
        if len(free_P2) < 2:
            continue
        distances = np.linalg.norm(free_P2[:, None] - free_P2[None], axis=2)
        pairs = np.argwhere(distances >= family.min_route_m)
        if len(pairs):
            start, goal = free_P2[pairs[generator.integers(len(pairs))]]
            heading = float(generator.uniform(-np.pi, np.pi))
            return World(
                family=family.name,
                circles=circles,
                boxes=boxes,
                start=(float(start[0]), float(start[1]), heading),
                goal=(float(goal[0]), float(goal[1])),
            )
    raise LearningError(f"no start and goal in {MAX_DRAWS} worlds of family {family.name!r}")


def _corridor(generator: np.random.Generator) -> Shapes:
    """Return walls that make an S: each leaves a passage at one end, turn about."""
    num_walls = int(generator.integers(2, 4))
    lanes = SIZE_M / (num_walls + 1)
    gap = float(generator.uniform(1.2, 1.7))
    boxes, side = list[Box](), bool(generator.integers(2))
    upright = bool(generator.integers(2))
    for wall in range(num_walls):
        along = (SIZE_M - gap) / 2 + (gap if side else 0.0)
        across = lanes * (wall + 1) + float(generator.uniform(-0.25, 0.25))
        centre = (across, along) if upright else (along, across)
        boxes.append((*centre, SIZE_M - gap, WALL_M, np.pi / 2 if upright else 0.0))
        side = not side
    return (), tuple(boxes)


def _clutter(generator: np.random.Generator) -> Shapes:
    """Return many small things at random places."""
    circles = tuple(
        (float(x), float(y), float(generator.uniform(0.15, 0.35)))
        for x, y in generator.uniform(0.5, SIZE_M - 0.5, (int(generator.integers(14, 20)), 2))
    )
    places = generator.uniform(0.5, SIZE_M - 0.5, (int(generator.integers(4, 8)), 2))
    boxes = tuple(
        (
            float(x),
            float(y),
            float(generator.uniform(0.3, 0.8)),
            float(generator.uniform(0.3, 0.8)),
            float(generator.uniform(0, np.pi)),
        )
        for x, y in places
    )
    return circles, boxes


def _open(generator: np.random.Generator) -> Shapes:
    """Return a few large things on a yard."""
    circles = tuple(
        (float(x), float(y), float(generator.uniform(0.5, 1.0)))
        for x, y in generator.uniform(1.5, SIZE_M - 1.5, (int(generator.integers(2, 5)), 2))
    )
    return circles, ()


def _rooms(generator: np.random.Generator) -> Shapes:
    """Return a cross of walls with a door in each of its four arms, and a piece of furniture in some rooms."""
    half, boxes = SIZE_M / 2, list[Box]()
    for arm in range(4):
        door, place = float(generator.uniform(0.9, 1.2)), float(generator.uniform(0.8, half - 0.8))
        low = half * (arm % 2)
        for begin, end in ((low, low + place - door / 2), (low + place + door / 2, low + half)):
            centre, length = (begin + end) / 2, end - begin
            boxes.append((centre, half, length, WALL_M, 0.0) if arm < 2 else (half, centre, length, WALL_M, np.pi / 2))
    circles = tuple(
        (float(x + half * (room % 2)), float(y + half * (room // 2)), float(generator.uniform(0.2, 0.35)))
        for room, (x, y) in enumerate(generator.uniform(1.0, half - 1.0, (4, 2)))
        if generator.random() < 0.7
    )
    return circles, tuple(boxes)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="corridor",
            max_speed=1.0,
            margin_m=0.6,
            mount_yaw=0.0,
            is_upside_down=False,
            min_route_m=4.0,
            draw=_corridor,
        ),
        Family(
            name="clutter",
            max_speed=0.6,
            margin_m=0.4,
            mount_yaw=np.pi,
            is_upside_down=False,
            min_route_m=4.5,
            draw=_clutter,
        ),
        Family(
            name="open", max_speed=1.0, margin_m=1.0, mount_yaw=0.0, is_upside_down=True, min_route_m=4.5, draw=_open
        ),
        Family(
            name="rooms",
            max_speed=0.6,
            margin_m=0.5,
            mount_yaw=np.pi / 2,
            is_upside_down=False,
            min_route_m=3.5,
            draw=_rooms,
        ),
    )
}
