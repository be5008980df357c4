from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nfl_core.cli.app import main
from nfl_core.errors import ConfigError, ExitCode
from nfl_core.learning import Samples
from nfl_edge.sense import read_samples
from nfl_sim.tasks import find_task, task_names
from nfl_sim.tasks.fleet import NUM_SHADOW, config_for, write_folders
from nfl_sim.tasks.report import AGENTS, run_task
from nfl_sim.tasks.task import Task, TaskData


def test_a_region_gets_a_leaf_and_a_version_one_batch_of_each(task: Task) -> None:
    data = task.load(Path(), np.random.default_rng(0))
    config = config_for(task, data)
    assert [(leaf.site, leaf.region) for leaf in config.leaves] == [("leaf-north", "north"), ("leaf-south", "south")]
    assert config.privacy.batch_size == 2
    assert config.root.batches_per_version == 2
    assert config.spec == task.spec
    assert (config.learning.batch_size, config.learning.epochs_per_update) == (8, 1)


def test_a_region_of_one_owner_makes_no_fleet(task: Task, make_data: Callable[..., TaskData]) -> None:
    with pytest.raises(ConfigError, match="region 'south' has 1 owner"):
        config_for(task, make_data(task, regions=("north", "north", "south")))


def test_devices_get_their_own_samples_and_the_root_none_that_are_tested(task: Task, tmp_path: Path) -> None:
    data = task.load(Path(), np.random.default_rng(0))
    write_folders(tmp_path, data, generator=np.random.default_rng(0))
    for owner in data.owners:
        samples = read_samples(tmp_path / "devices" / owner.name / "samples.safetensors")
        for split in ("train", "holdout", "test"):
            mine: Samples = getattr(owner, split)
            assert getattr(samples, split).x_BCHW.tobytes() == mine.x.numpy().tobytes()
    lent = {row.tobytes() for owner in data.owners for row in owner.holdout.x.numpy()}
    from nfl_cluster.validate.data import read_samples as read_root

    parts = {
        name: read_root(tmp_path / f"root/{name}.safetensors", input_shape=task.input_shape, num_classes=3)
        for name in ("heldout", "shadow")
    }
    rows = [row.tobytes() for part in parts.values() for row in part.x]
    assert set(rows) <= lent
    assert len(set(rows)) == len(rows)
    assert 0 < len(parts["shadow"].y) <= NUM_SHADOW


def test_tasks_are_listed_and_unknown_ones_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["task", "list", "--output", "json"])
    assert not ended.value.code
    assert {row["name"] for row in json.loads(capsys.readouterr().out)["data"]} == set(task_names())
    with pytest.raises(SystemExit) as ended:
        main(["task", "run", "cooking"])
    assert ended.value.code == ExitCode.NOT_FOUND
    assert "expected one of" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["task", "run", "--help"])
    shown = capsys.readouterr().out
    assert "nfl task run audio" in shown
    assert "NFL_DATA" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "inertial"])
def test_real_agents_learn_a_version(
    name: str, tmp_path: Path, make_data: Callable[..., TaskData], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    task = find_task(name)
    regions = ("left", "left", "right", "right") if name == "inertial" else ("all", "all", "all")
    made_up = replace(task, load=lambda cache, generator: make_data(task, regions=regions, num=30))
    lines: list[str] = []
    report = run_task(made_up, home=tmp_path, rounds=1, seed=1, say=lines.append)
    assert [row.method for row in report.rows] == [AGENTS, "local only", "FedAvg, fine-tuned"]
    agents = report.rows[0]
    assert len(agents.accuracies) == len(regions)
    num_values = 64_000 if name == "audio" else 42_000
    assert num_values / 8 < agents.bytes_up / 2 < num_values  # a byte or less a value, one or two contributions
    assert agents.update_cpu_s > 0
    assert any("version 1 of 1 is everywhere" in line for line in lines)
