"""The comparison of methods for robots: its table, and that a cut run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfl_core.learning import create_model, schema_of
from nfl_core.levels import Scope
from nfl_sim.tasks.navigation import TASK, compare
from nfl_sim.tasks.navigation.compare import EXPERT, METHODS, Row, Trained, draw, run, table
from nfl_sim.tasks.navigation.data import plans_of
from nfl_sim.tasks.navigation.drive import expert_of


def _row(method: str, seed: int, accuracies: tuple[float, ...] = (0.5, 0.7)) -> Row:
    return Row(
        method=method,
        seed=seed,
        accuracies=accuracies,
        successes=(1.0, 0.5),
        collisions=(0.0, 0.5),
        update_cpu_s=0.1,
        update_wall_s=0.2,
    )


def test_the_table_gives_mean_and_deviation_over_seeds_and_the_worst_robot() -> None:
    rows = [_row(EXPERT, 0, ()), _row("nested", 0), _row("nested", 1, (0.6, 0.8))]
    assert table(rows).splitlines()[2:] == [
        "| expert | - | - | 75.0 +- nan | 25.0 +- nan |",
        "| nested | 65.0 +- 7.1 | 55.0 +- 7.1 | 75.0 +- 0.0 | 25.0 +- 0.0 |",
    ]


def test_a_run_that_was_cut_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    def one(method: str, *, cache: Path, seed: int, num_episodes: int) -> Row:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((method, seed))
        return _row(method, seed)

    monkeypatch.setattr(compare, "run_one", one)
    out, methods = tmp_path / "new" / "rows.json", ["local only", "nested"]
    with pytest.raises(KeyboardInterrupt):
        run(out, cache=tmp_path, seeds=[0, 1], methods=methods, num_episodes=1)
    done.pop()
    rows = [*run(out, cache=tmp_path, seeds=[0], methods=methods, num_episodes=1)]
    assert done == [("local only", 0)]
    assert rows == [_row("local only", 0), _row("nested", 0)]


def test_the_compared_specs_fit_the_model() -> None:
    module = create_model(TASK.model, num_classes=TASK.num_classes, input_shape=TASK.input_shape, seed=0)
    for make in METHODS.values():
        schema_of(module, make().spec)
    scopes = [{level.scope for level in make().spec.levels} for make in METHODS.values()]
    assert scopes.index({Scope.PRIVATE, Scope.REGION, Scope.GLOBAL}) == len(scopes) - 1
    assert {Scope.PRIVATE, Scope.REGION} in scopes
    assert {Scope.PRIVATE, Scope.GLOBAL} in scopes


def test_the_picture_is_of_a_world_where_one_arrives_and_the_other_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans_of(0)[0]
    still, expert = (lambda *_: 2), expert_of(plan)
    drivers = {"nested": expert, "local only": still}

    def trained(method: str, *, cache: Path, seed: int) -> Trained:
        return Trained(accuracies=(), policies=(drivers[method],) * 16, update_cpu_s=0.0, update_wall_s=0.0)

    monkeypatch.setattr(compare, "train", trained)
    monkeypatch.setattr(compare, "plans_of", lambda _: (plan,))
    path = tmp_path / "way.svg"
    assert draw(path, cache=tmp_path, seed=0, num_episodes=1) == plan.robot.name
    assert "nested: arrives" in path.read_text()
    assert "local only: is late" in path.read_text() or "local only: collides" in path.read_text()
    drivers["nested"] = still
    assert draw(path, cache=tmp_path, seed=0, num_episodes=1) is None
