"""From a task to a table: one fleet of real agents beside the methods it is compared with, or methods over seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import torch

from nfl_core.learning import FedAvg, LocalOnly
from nfl_sim.demo.run import take_over
from nfl_sim.tasks.fleet import DeviceFigures, learn
from nfl_sim.tasks.measure import TUNE_EPOCHS, Figures, measure, newcomers, run_method
from nfl_sim.tasks.task import Task

AGENTS = "nested, by real agents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method over the seeds.

    Attributes:
        method: For people.
        mean: Test accuracy of the mean owner, 0 to 1.
        worst: Of the owner who is served worst.
        mean_deviation: Of `mean` over the seeds; 0 with one seed.
        worst_deviation: Of `worst`.
        accuracies: Of each owner, mean over the seeds.
        bytes_up: An owner, over all rounds; sealed for the agents, float32 for the others.
        update_cpu_s: CPU seconds of one micro-update at one thread.
    """

    method: str
    mean: float
    worst: float
    mean_deviation: float
    worst_deviation: float
    accuracies: tuple[float, ...]
    bytes_up: int
    update_cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """What was measured of a task."""

    task: str
    owners: tuple[str, ...]
    rounds: int
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]


def run_task(task: Task, *, home: Path, rounds: int, seed: int, say: Callable[[str], None]) -> TaskReport:
    """Run a fleet of real agents below `home`, then the methods it is compared with.

    Args:
        task: What to learn.
        home: Gets `data` and `tasks/NAME`, which an earlier run's fleet makes room for.
        rounds: Versions to learn, >= 1.
        seed: Decides everything but the agents' pace.
        say: Takes a line of progress.

    Raises:
        ContentError: The data are out of reach.
        ConflictError: Another run of the task is under way there.
        NflError: The fleet failed.
    """
    torch.set_num_threads(1)
    data = task.load(home / "data", np.random.default_rng(seed))
    folder = home / "tasks" / task.name
    take_over(folder)
    try:
        say(f"a fleet of {len(data.owners)} devices in {folder}")
        found = asyncio.run(learn(folder, task, data, versions=rounds, seed=seed, say=say))
    finally:
        (folder / "pid").unlink(missing_ok=True)
    num_updates = round(fmean(device.num_updates for device in found.values()))
    say(f"each device made about {num_updates} micro-updates; now the same number without agents")
    figures = [_of_agents(found)]
    for name, strategy in {"local only": LocalOnly(), "FedAvg, fine-tuned": FedAvg(tune_epochs=TUNE_EPOCHS)}.items():
        figures.append(run_method(task, data, name=name, strategy=strategy, rounds=num_updates, seed=seed))
    return TaskReport(
        task=task.name,
        owners=tuple(owner.name for owner in data.owners),
        rounds=rounds,
        seeds=(seed,),
        rows=tuple(row_of([one]) for one in figures),
    )


def measure_task(
    task: Task, *, home: Path, rounds: int, seeds: Sequence[int], shots: int, say: Callable[[str], None]
) -> TaskReport:
    """Measure all methods for each seed, and newcomers with `shots` samples of each class unless that is 0.

    Raises:
        ContentError: The data are out of reach.
    """
    torch.set_num_threads(1)
    found: dict[str, list[Figures]] = {}
    for seed in seeds:
        data = task.load(home / "data", np.random.default_rng(seed))
        figures = measure(task, data, rounds=rounds, seed=seed, say=say)
        if shots:
            figures += newcomers(task, data, shots=shots, rounds=rounds, seed=seed, say=say)
        for one in figures:
            found.setdefault(one.method, []).append(one)
        say(f"seed {seed} is done")
    return TaskReport(
        task=task.name,
        owners=tuple(owner.name for owner in data.owners),
        rounds=rounds,
        seeds=tuple(seeds),
        rows=tuple(row_of(runs) for runs in found.values()),
    )


def row_of(runs: Sequence[Figures]) -> Row:
    """Return one method's figures over the seeds."""
    means, worsts = [run.mean for run in runs], [run.worst for run in runs]
    return Row(
        method=runs[0].method,
        mean=fmean(means),
        worst=fmean(worsts),
        mean_deviation=pstdev(means),
        worst_deviation=pstdev(worsts),
        accuracies=tuple(fmean(of_owner) for of_owner in zip(*(run.accuracies for run in runs), strict=True)),
        bytes_up=round(fmean(run.bytes_up for run in runs)),
        update_cpu_s=fmean(run.update_cpu_s for run in runs),
    )


def _of_agents(found: Mapping[str, DeviceFigures]) -> Figures:
    return Figures(
        method=AGENTS,
        accuracies=tuple(device.accuracy for device in found.values()),
        bytes_up=round(fmean(device.bytes_up for device in found.values())),
        update_cpu_s=fmean(device.update_cpu_s for device in found.values()),
    )
