"""Exercises seen by a watch; an owner is a watch on one wrist of one person, its region is the side."""

from __future__ import annotations

from nfl_core.learning import LearningSettings
from nfl_core.levels import Level, NestedSpec, Scope
from nfl_sim.tasks.inertial.data import EXERCISES, NUM_AXES, WINDOW, load
from nfl_sim.tasks.task import Task

# What a wrist changes is what the sensors say, so the first layers are the region's; what an exercise is, is not.
SPEC = NestedSpec.of(
    [
        Level(name="reflex", params=("private.*",), scope=Scope.PRIVATE),
        Level(name="senses", params=("body.*",), scope=Scope.REGION),
        Level(name="concept", params=("middle.*", "head.*"), scope=Scope.GLOBAL),
    ]
)
TASK = Task(
    name="inertial",
    title="Shoulder exercises seen by a watch (seglearn's watch data set)",
    owner="a watch on one wrist of one person",
    regions="the side: on the other wrist a watch is mounted the other way round",
    model="watch-cnn",
    num_classes=len(EXERCISES),
    input_shape=(NUM_AXES, 1, WINDOW),
    spec=SPEC,
    settings=LearningSettings(epochs_per_update=3),
    rounds=30,
    load=load,
)
