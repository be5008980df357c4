"""Images of clothes; owners are drawn as in published comparisons."""

from __future__ import annotations

from nfl_core.learning import LearningSettings, default_spec
from nfl_sim.tasks.task import Task
from nfl_sim.tasks.vision.data import load

TASK = Task(
    name="vision",
    title="Clothes (Fashion-MNIST), classes by a Dirichlet draw",
    owner="a drawn share",
    regions="one: drawn owners have none",
    model="small-cnn",
    num_classes=10,
    input_shape=(1, 28, 28),
    spec=default_spec(),
    settings=LearningSettings(epochs_per_update=2),
    rounds=8,
    load=load,
)
