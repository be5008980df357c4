"""Spoken digits; an owner is a speaker."""

from __future__ import annotations

from nfl_core.learning import LearningSettings, default_spec
from nfl_sim.tasks.audio.data import NUM_DIGITS, load
from nfl_sim.tasks.audio.features import NUM_BANDS, NUM_FRAMES
from nfl_sim.tasks.task import Task

TASK = Task(
    name="audio",
    title="Spoken digits (Free Spoken Digit Dataset)",
    owner="a speaker",
    regions="one: six speakers are too few to tell accents from people",
    model="small-cnn",
    num_classes=NUM_DIGITS,
    input_shape=(1, NUM_BANDS, NUM_FRAMES),
    spec=default_spec(),
    settings=LearningSettings(epochs_per_update=2),
    rounds=20,
    load=load,
)
