from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from nfl_core.learning import LearningSettings, Samples, default_spec
from nfl_sim.tasks.task import Task, TaskData, TaskOwner


def samples_of(task: Task, num: int, generator: torch.Generator) -> Samples:
    """Return inputs whose class shows in their mean."""
    y = torch.arange(num) % task.num_classes
    x = 0.3 * torch.randn(num, *task.input_shape, generator=generator) + y.view(-1, 1, 1, 1) / task.num_classes
    return Samples(x=x, y=y)


def data_of(task: Task, *, regions: tuple[str, ...], num: int = 24, seed: int = 0) -> TaskData:
    """Return an owner for each region that is named, with made-up data in the task's form."""
    generator = torch.Generator().manual_seed(seed)
    owners = []
    for place, region in enumerate(regions):
        splits = {split: samples_of(task, num, generator) for split in ("train", "holdout", "test")}
        owners.append(TaskOwner(name=f"owner-{place}", region=region, **splits))
    return TaskData(owners=tuple(owners))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As everywhere that learns; more threads only wait for each other on models of this size."""
    torch.set_num_threads(1)


@pytest.fixture
def task() -> Task:
    """A task of small made-up images: two regions of two owners."""
    made = Task(
        name="made-up",
        title="Made up",
        owner="nobody",
        regions="two",
        model="small-cnn",
        num_classes=3,
        input_shape=(1, 8, 8),
        spec=default_spec(),
        settings=LearningSettings(epochs_per_update=1, batch_size=8, refit_steps=3),
        rounds=2,
        load=lambda cache, generator: TaskData(owners=()),
    )

    def load(cache: object, generator: np.random.Generator) -> TaskData:
        return data_of(made, regions=("north", "north", "south", "south"), seed=int(generator.integers(1000)))

    return replace(made, load=load)


@pytest.fixture
def make_data() -> Callable[..., TaskData]:
    return data_of
