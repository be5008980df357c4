"""Exercises seen by a watch; an owner is a watch on one wrist of one person, its region is the side."""

from __future__ import annotations

from nfl_core.learning import LearningSettings, default_spec
from nfl_sim.tasks.inertial.data import EXERCISES, NUM_AXES, WINDOW, load
from nfl_sim.tasks.task import Task

TASK = Task(
    name="inertial",
    title="Shoulder exercises seen by a watch (seglearn's watch data set)",
    owner="a watch on one wrist of one person",
    regions="the side: on the other wrist a watch is mounted the other way round",
    model="watch-cnn",
    num_classes=len(EXERCISES),
    input_shape=(NUM_AXES, 1, WINDOW),
    spec=default_spec(),
    settings=LearningSettings(epochs_per_update=2),
    rounds=20,
    load=load,
)
