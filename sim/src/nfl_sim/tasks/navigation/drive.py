"""Closed loop: let a model, or the expert, drive a robot through worlds it never learned from.

    outcome = drive(lambda simulation, world: choose(module, observe(simulation, world.goal)), plan, num_episodes=8)
    print(outcome.success_fraction, outcome.collision_fraction)

An episode ends at the goal, at a collision, or after `MAX_STEPS`: late, neither a success nor a collision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from nfl_core.learning import NestedModel
from nfl_sim.tasks.navigation.data import MAX_STEPS, Plan, observe
from nfl_sim.tasks.navigation.expert import Expert, actions_of
from nfl_sim.tasks.navigation.simulator import Simulation
from nfl_sim.tasks.navigation.worlds import FAMILIES, Pose, World

Policy = Callable[[Simulation, World], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One way through one world; `path` holds the poses from the start on."""

    world: World
    path: tuple[Pose, ...]
    arrived: bool
    collided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Some episodes of one robot."""

    episodes: tuple[Episode, ...]

    @property
    def success_fraction(self) -> float:
        """Of the episodes that ended at the goal."""
        return sum(episode.arrived for episode in self.episodes) / len(self.episodes)

    @property
    def collision_fraction(self) -> float:
        """Of the episodes that ended at an obstacle."""
        return sum(episode.collided for episode in self.episodes) / len(self.episodes)

    def __add__(self, other: Self) -> Outcome:
        """Put the episodes of several robots together."""
        return Outcome(episodes=self.episodes + other.episodes)


def policy_of(module: NestedModel) -> Policy:
    """Return what drives by the likeliest action of a model."""
    return lambda simulation, world: choose(module, observe(simulation, world.goal))


def choose(module: NestedModel, seen_11L: NDArray[np.float32]) -> int:
    """Return the model's likeliest action for one observation, float32 [1, 1, beams + goal features]."""
    with torch.inference_mode():
        return int(module(torch.from_numpy(seen_11L)[None]).argmax())


def expert_of(plan: Plan) -> Policy:
    """Return what drives like the expert: what imitation can reach at best."""
    family, known = FAMILIES[plan.robot.family], dict[World, Expert]()

    def policy(simulation: Simulation, world: World) -> int:
        if world not in known:
            known[world] = Expert(world, family)
        return known[world].choose(simulation.pose)

    return policy


def drive(policy: Policy, plan: Plan, *, num_episodes: int, split: str = "test", max_steps: int = MAX_STEPS) -> Outcome:
    """Drive a robot through its first worlds of one split.

    Args:
        policy: Returns the index of an action.
        plan: The robot and its worlds.
        num_episodes: Worlds, one episode each, >= 1.
        split: Whose worlds.
        max_steps: Steps of 0.2 s after which an episode is late.

    Raises:
        ContentError: IR-SIM is not installed.
    """
    worlds = islice(plan.worlds(split), num_episodes)
    return Outcome(
        episodes=tuple(
            _episode(policy, plan, world, seed=place, max_steps=max_steps) for place, world in enumerate(worlds)
        )
    )


def _episode(policy: Policy, plan: Plan, world: World, *, seed: int, max_steps: int) -> Episode:
    actions_A2 = actions_of(FAMILIES[plan.robot.family])
    simulation = Simulation(world, plan.robot, seed=seed)
    path = [simulation.pose]
    while not simulation.has_ended and len(path) <= max_steps:
        speed, turn = actions_A2[policy(simulation, world)]
        simulation.step(speed, turn)
        path.append(simulation.pose)
    return Episode(
        world=world,
        path=tuple(path),
        arrived=simulation.has_arrived and not simulation.has_collided,
        collided=simulation.has_collided,
    )
