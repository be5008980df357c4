"""The expert that robots imitate: it knows the whole map, they see a scan and the direction of the goal.

A route field gives every place the cost of the cheapest way to the goal, dearer near obstacles (Dijkstra over a grid).
At each step the expert rolls every action out for a moment and takes the one that ends best: a dynamic window on a
global field. It chooses among the very classes that the model learns, so nothing is lost to rounding.

Units: metres, radians, metres and radians a second. Shape legend: A actions, T instants, P points, G grid cells a side.

Source: Fox et al., The Dynamic Window Approach, 1997; Brock and Khatib, the global dynamic window approach, 1999.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from nfl_sim.tasks.navigation.worlds import ROBOT_RADIUS_M, SIZE_M, Family, FloatArray, Pose, World

SLOW = 0.2  # metres a second; the other speed is what the site allows
TURNS = (-1.4, -0.6, 0.0, 0.6, 1.4)
NUM_ACTIONS = 2 * len(TURNS)
CELL_M = 0.1
LOOK_S = np.arange(0.2, 1.01, 0.2)  # instants at which a rolled-out action is checked
STEP_S = 0.2  # of one action
CLOSE_M = 0.4  # so near is at the goal
SPARE_M = 0.05  # beyond the robot's radius
NEAR_COST = 3.0  # a way along a wall costs up to so much more than one with the site's margin
AHEAD_M = 0.4  # the heading at the end counts by the place so far ahead
UNREACHABLE = 1e3


class Expert:
    """Drives in one world by the rules of its family.

    Args:
        world: Where to drive.
        family: Its rules.
    """

    def __init__(self, world: World, family: Family) -> None:
        self._world = world
        self._actions_A2 = actions_of(family)
        self._cost_GG = route_costs(world, family)

    def cost_to_go(self, points_P2: FloatArray) -> FloatArray:
        """Return the cost of the cheapest way to the goal, [P]; about metres, `UNREACHABLE` where there is none."""
        costs_P: FloatArray = map_coordinates(self._cost_GG, points_P2.T / CELL_M - 0.5, order=1, mode="nearest")
        return costs_P

    @property
    def is_solvable(self) -> bool:
        """Whether a way leads from the start to the goal."""
        return bool(self.cost_to_go(np.array([self._world.start[:2]]))[0] < UNREACHABLE / 2)

    def way(self, *, max_steps: int) -> FloatArray:
        """Return the poses from the start on that the expert would drive through, [steps, 3], without a simulator."""
        poses = [self._world.start]
        while len(poses) < max_steps and np.hypot(*np.subtract(poses[-1][:2], self._world.goal)) > CLOSE_M:
            x, y, heading = poses[-1]
            speed, turn = self._actions_A2[self.choose(poses[-1])]
            heading += float(turn) * STEP_S
            poses.append(
                (x + speed * STEP_S * float(np.cos(heading)), y + speed * STEP_S * float(np.sin(heading)), heading)
            )
        return np.array(poses)

    def choose(self, pose: Pose) -> int:
        """Return the index in `actions_of` of the best action at a pose."""
        places_AT2, headings_A = _roll_out(pose, self._actions_A2)
        flat_P2 = places_AT2.reshape(-1, 2)
        clear_A = self._world.clearance(flat_P2).reshape(places_AT2.shape[:2]).min(axis=1)
        ends_A2 = places_AT2[:, -1]
        ahead_A2 = ends_A2 + AHEAD_M * np.stack([np.cos(headings_A), np.sin(headings_A)], axis=1)
        value_A = self.cost_to_go(ends_A2) + 0.5 * np.minimum(self.cost_to_go(ahead_A2), self.cost_to_go(ends_A2) + 2)
        value_A += np.where(clear_A < ROBOT_RADIUS_M + SPARE_M, UNREACHABLE - clear_A, 0.0)
        return int(value_A.argmin())


def actions_of(family: Family) -> FloatArray:
    """Return what a robot can do at a site, [A, 2]: slow, then at the site's speed, each with every turn."""
    return np.array([(speed, turn) for speed in (SLOW, family.max_speed) for turn in TURNS])


def route_costs(world: World, family: Family) -> FloatArray:
    """Return the cost of the cheapest way to the goal from every cell, [G, G]; index [x, y]."""
    side = round(SIZE_M / CELL_M)
    axis = (np.arange(side) + 0.5) * CELL_M
    points_P2 = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    clear_P = world.clearance(points_P2)
    near_P = np.clip((family.margin_m - clear_P) / family.margin_m, 0, 1)
    price_GG = (1 + NEAR_COST * near_P**2).reshape(side, side)
    free_GG = (clear_P > ROBOT_RADIUS_M + SPARE_M).reshape(side, side)
    goal = tuple(min(side - 1, int(value / CELL_M)) for value in world.goal)
    free_GG[goal] = True
    graph = _graph(price_GG, free_GG)
    costs_P = dijkstra(graph, indices=goal[0] * side + goal[1])
    reached_GG: FloatArray = np.where(np.isfinite(costs_P), costs_P, UNREACHABLE).reshape(side, side)
    return reached_GG


def _graph(price_GG: FloatArray, free_GG: np.ndarray) -> csr_array:
    """Return the grid as a graph: eight neighbours, a step costs its length times the mean price of its ends."""
    side = len(price_GG)
    index_GG = np.arange(side * side).reshape(side, side)
    rows, columns, costs = [], [], []
    for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1)):
        a = (slice(0, side - dx), slice(max(0, -dy), side - max(0, dy)))
        b = (slice(dx, side), slice(max(0, dy), side - max(0, -dy)))
        open_ = free_GG[a] & free_GG[b]
        rows.append(index_GG[a][open_])
        columns.append(index_GG[b][open_])
        costs.append((CELL_M * np.hypot(dx, dy) * (price_GG[a] + price_GG[b]) / 2)[open_])
    one_way = csr_array(
        (np.concatenate(costs), (np.concatenate(rows), np.concatenate(columns))), shape=(side * side, side * side)
    )
    return one_way + one_way.T


def _roll_out(pose: Pose, actions_A2: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the places [A, T, 2] and the last headings [A] of every action held for a moment."""
    x, y, heading = pose
    speed_A1, turn_A1 = actions_A2[:, :1], actions_A2[:, 1:]
    middle_AT = heading + turn_A1 * (LOOK_S - LOOK_S[0] / 2)
    step_AT = speed_A1 * LOOK_S[0] * np.ones_like(middle_AT)
    xs_AT = x + np.cumsum(step_AT * np.cos(middle_AT), axis=1)
    ys_AT = y + np.cumsum(step_AT * np.sin(middle_AT), axis=1)
    return np.stack([xs_AT, ys_AT], axis=-1), heading + actions_A2[:, 1] * LOOK_S[-1]
