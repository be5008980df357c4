"""Images of clothes through a frozen, pretrained network; owners are drawn as in task `vision`."""

from __future__ import annotations

from nfl_core.learning import LearningSettings, default_spec
from nfl_sim.data.efficientnet import NUM_FEATURES
from nfl_sim.tasks.features.data import load
from nfl_sim.tasks.task import Task

TASK = Task(
    name="features",
    title="Clothes (Fashion-MNIST) by the features of EfficientNet-Lite0",
    owner="a drawn share",
    regions="one: drawn owners have none",
    model="feature-net",
    num_classes=10,
    input_shape=(NUM_FEATURES, 1, 1),
    spec=default_spec(),
    settings=LearningSettings(epochs_per_update=2),
    rounds=8,
    load=load,
)
