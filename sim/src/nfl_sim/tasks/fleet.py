"""A task through the real agent: owners' samples in device folders, real services and agents in this process.

One version asks every device for one micro-update and one sealed contribution; each leaf serves one region. The root
judges candidates and measures scales with samples that owners' holdouts lend it, never with one they are tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.config import FleetConfig
from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ConfigError
from nfl_core.learning import Samples
from nfl_core.tensors import write_tensors
from nfl_edge.folder import DeviceFolder
from nfl_sim.demo.watch import ANSWERS
from nfl_sim.small_fleet import SmallFleet, found_fleet
from nfl_sim.tasks.task import Task, TaskData

NUM_HELDOUT, NUM_SHADOW = 600, 200
MIN_OWNERS = 2  # of a region: what a leaf opens is a sum
BATCH_MAX = 16  # owners of a region whose contributions are opened together
VERSION_WAIT_S = 300.0  # for one version; a busy machine trains twenty devices in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """What one device made of the task.

    Attributes:
        accuracy: Of its model after its last merge, on its test samples, 0 to 1.
        num_updates: Micro-updates.
        update_cpu_s: CPU seconds of the mean one, in the trainer, files and scoring included, one thread.
        bytes_up: Of all its contributions.
    """

    accuracy: float
    num_updates: int
    update_cpu_s: float
    bytes_up: int


def config_for(task: Task, data: TaskData) -> FleetConfig:
    """Return a fleet.toml for a task: a leaf for each region, a batch of all its owners, patience for a busy machine.

    Raises:
        ConfigError: A region has fewer than two owners, or the task's levels and model are none for a fleet.
    """
    owners = {region: [one for one in data.owners if one.region == region] for region in regions_of(data)}
    for region, mine in owners.items():
        if len(mine) < MIN_OWNERS:
            raise ConfigError(
                f"region {region!r} has {len(mine)} owner, expected {MIN_OWNERS}: a sum of one hides nobody"
            )
    batch = min(BATCH_MAX, *map(len, owners.values()))
    settings = task.settings
    return FleetConfig.model_validate(
        {
            "fleet": {"name": f"task-{task.name}"},
            "leaves": [{"site": f"leaf-{region}", "region": region} for region in regions_of(data)],
            "model": {"name": task.model, "num_classes": task.num_classes, "input_shape": task.input_shape},
            "levels": [level.model_dump() for level in task.spec.levels],
            "learning": {
                "batch_size": settings.batch_size,
                "epochs_per_update": settings.epochs_per_update,
                "refit_steps": settings.refit_steps,
                "learning_rate": settings.learning_rate,
            },
            "privacy": {"n_min": MIN_OWNERS, "batch_size": batch, "batch_max": batch, "window_s": 20.0},
            "keeper": {"n_min": MIN_OWNERS},
            "rollout": {"waves": [1.0], "min_soak_s": 0.1, "max_failure_fraction": 0.4, "wave_deadline_s": 60.0},
            "gates": {"max_drop_points": 10.0, "latency_budget_ms": 500},
            "root": {
                "batches_per_version": sum(len(mine) // batch for mine in owners.values()),
                "enrol_port": 0,
                "flare_port": 0,
                "admin_port": 0,
            },
            "edge": {"poll_s": 0.2, "latency_budget_ms": 500, "max_accuracy_drop": 0.6},
        }
    )


def regions_of(data: TaskData) -> tuple[str, ...]:
    """Return the regions of a task's owners, sorted."""
    return tuple(sorted({owner.region for owner in data.owners}))


def write_folders(home: Path, data: TaskData, *, generator: np.random.Generator) -> None:
    """Write the devices' samples, and the root's, which the owners' holdouts lend it. Raises DurableError."""
    for owner in data.owners:
        splits = {"train": owner.train, "holdout": owner.holdout, "test": owner.test}
        named = {f"{split}.{axis}": value for split, samples in splits.items() for axis, value in _arrays(samples)}
        _write(DeviceFolder(home / "devices" / owner.name).samples, named)
    lent = Samples(
        x=torch.cat([owner.holdout.x for owner in data.owners]), y=torch.cat([owner.holdout.y for owner in data.owners])
    )
    order = torch.from_numpy(generator.permutation(len(lent.y)))
    num_shadow = min(NUM_SHADOW, len(order) // 3)
    parts = {"shadow": order[:num_shadow], "heldout": order[num_shadow : num_shadow + NUM_HELDOUT]}
    for name, rows in parts.items():
        _write(home / f"root/{name}.safetensors", dict(_arrays(Samples(x=lent.x[rows], y=lent.y[rows]))))


async def learn(
    home: Path, task: Task, data: TaskData, *, versions: int, seed: int, say: Callable[[str], None]
) -> Mapping[str, DeviceFigures]:
    """Run a fleet until so many learned versions have reached all devices; return what each device made of it.

    Args:
        home: A new folder for the fleet.
        task: What it learns.
        data: Its owners; each gets a device of its name.
        versions: Learned versions to wait for, >= 1.
        seed: Decides which samples the root is lent.
        say: Takes a line of progress.

    Raises:
        ConfigError: The task makes no fleet.
        FleetStalledError: A version took longer than `VERSION_WAIT_S`.
    """
    config = config_for(task, data)
    found_fleet(home, config)
    write_folders(home, data, generator=np.random.default_rng(seed))
    fleet = SmallFleet(home, config, leaf_of={owner.name: f"leaf-{owner.region}" for owner in data.owners})
    async with fleet.running():
        for number in range(1, versions + 1):
            what = f"learned version {number} of {versions} on every device"
            await fleet.until(partial(_has_answered, fleet, number), what, wait_s=VERSION_WAIT_S)
            accuracies = fleet.watch.state.accuracies()
            say(f"version {number} of {versions} is everywhere: mean accuracy {100 * fmean(accuracies):.1f}")
    return {name: _figures(fleet, name) for name in fleet.devices}


def _has_answered(fleet: SmallFleet, num_versions: int) -> bool:
    """Say whether every device has merged, or refused after a try, so many learned versions."""
    return all(device.num_answers >= num_versions for device in fleet.watch.state.devices.values())


def _figures(fleet: SmallFleet, device: str) -> DeviceFigures:
    mine = [event for event in fleet.watch.events if event.who == device]
    updates = [event.number("cpu_s") for event in mine if event.name == "micro-update"]
    return DeviceFigures(
        accuracy=[event.number("accuracy") for event in mine if event.name in ANSWERS][-1],
        num_updates=len(updates),
        update_cpu_s=sum(updates) / max(1, len(updates)),
        bytes_up=int(sum(event.number("bytes") for event in mine if event.name == "receipt")),
    )


def _arrays(samples: Samples) -> tuple[tuple[str, NDArray[np.generic]], ...]:
    return ("x", samples.x.numpy()), ("y", samples.y.numpy())


def _write(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    make_folder(path.parent)
    write_file(path, write_tensors({name: np.ascontiguousarray(values) for name, values in arrays.items()}))
