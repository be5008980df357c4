from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nfl_core.learning import Nested, create_model, schema_of
from nfl_core.levels import Scope
from nfl_sim.tasks.measure import Figures, few_of, in_one_scope, measure, newcomers, run_method
from nfl_sim.tasks.report import measure_task, row_of
from nfl_sim.tasks.task import Task, TaskData


def test_methods_are_compared_on_the_same_budget(task: Task) -> None:
    data = task.load(Path(), np.random.default_rng(0))
    figures = {one.method: one for one in measure(task, data, rounds=2, seed=1)}
    assert list(figures) == [
        "nested",
        "local only",
        "nested, all shared globally",
        "nested, all shared in regions",
        "FedAvg, fine-tuned",
    ]
    assert all(len(one.accuracies) == 4 for one in figures.values())
    module = create_model(task.model, num_classes=3, input_shape=task.input_shape, seed=1)
    schema = schema_of(module, task.spec)
    everything = sum(parameter.numel() for parameter in module.parameters())
    assert figures["local only"].bytes_up == 0
    assert figures["nested"].bytes_up == 2 * 4 * schema.num_shared
    assert figures["FedAvg, fine-tuned"].bytes_up == 2 * 4 * everything


def test_the_same_seed_gives_the_same_figures(task: Task) -> None:
    data = task.load(Path(), np.random.default_rng(0))
    first, again, other = (
        run_method(task, data, name="nested", strategy=Nested(), rounds=1, seed=seed) for seed in (1, 1, 2)
    )
    assert first.accuracies == again.accuracies
    assert first.accuracies != other.accuracies


def test_one_region_compares_no_regions(task: Task, make_data: Callable[..., TaskData]) -> None:
    data = make_data(task, regions=("all", "all"))
    names = {one.method for one in measure(task, data, rounds=1, seed=1)}
    assert names == {"nested", "local only", "FedAvg, fine-tuned"}
    scopes = [level.scope for level in in_one_scope(task.spec, Scope.GLOBAL).levels]
    assert scopes == [Scope.PRIVATE, Scope.GLOBAL, Scope.GLOBAL]


def test_a_newcomer_learns_from_few_samples_that_the_fleet_never_saw(task: Task) -> None:
    data = task.load(Path(), np.random.default_rng(0))
    few = few_of(data.owners[0].train, shots=2)
    assert few.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(few_of(data.owners[0].train, shots=1000).y) == len(data.owners[0].train.y)
    lines: list[str] = []
    figures = newcomers(task, data, shots=2, rounds=1, seed=1, say=lines.append)
    assert [one.method for one in figures] == ["newcomer, at once", "newcomer, taught", "newcomer, alone"]
    assert [line.split(":")[0] for line in lines] == [owner.name for owner in data.owners]
    assert all(len(one.accuracies) == len(data.owners) for one in figures)


def test_a_row_says_mean_worst_and_their_deviation() -> None:
    runs = [
        Figures(method="m", accuracies=accuracies, bytes_up=10, update_cpu_s=0.5)
        for accuracies in ((0.5, 0.9), (0.7, 0.9))
    ]
    row = row_of(runs)
    assert (row.mean, row.worst) == pytest.approx((0.75, 0.6))
    assert (row.mean_deviation, row.worst_deviation) == pytest.approx((0.05, 0.1))
    assert row.accuracies == pytest.approx((0.6, 0.9))


def test_seeds_are_gathered(task: Task, tmp_path: Path) -> None:
    report = measure_task(task, home=tmp_path, rounds=1, seeds=(1, 2), shots=1, say=lambda _: None)
    assert report.seeds == (1, 2)
    assert len(report.owners) == 4
    assert [row.method for row in report.rows][-3:] == ["newcomer, at once", "newcomer, taught", "newcomer, alone"]
    assert any(row.mean_deviation > 0 for row in report.rows)
