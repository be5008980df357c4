"""Robots that find their way; an owner is a robot, a region is a site with its own kind of world."""

from __future__ import annotations

from nfl_core.learning import LearningSettings, default_spec
from nfl_sim.tasks.navigation.data import NUM_INPUTS, load
from nfl_sim.tasks.navigation.expert import NUM_ACTIONS
from nfl_sim.tasks.task import Task

TASK = Task(
    name="navigation",
    title="Navigation by lidar, imitating a planner (IR-SIM)",
    owner="a robot",
    regions="four sites: corridor, clutter, open yard, rooms; each with its rules and its make of robot",
    model="lidar-net",
    num_classes=NUM_ACTIONS,
    input_shape=(1, 1, NUM_INPUTS),
    spec=default_spec(),
    settings=LearningSettings(learning_rate=0.2, refit_learning_rate=0.2, batch_size=32, epochs_per_update=2),
    rounds=6,
    load=load,
)
