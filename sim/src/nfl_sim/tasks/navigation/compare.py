"""What nested learning is worth to robots: accuracy on held-out worlds, and how often they arrive or collide.

    python -m nfl_sim.tasks.navigation.compare --cache CACHE --out rows.json --seeds 0 1 2

Each row is one method with one seed; rows that stand in the file already are not run again, so a run that was cut goes
on. Every method takes the same passes over the same samples. A seed decides robots, worlds, initial weights and order.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from nfl_core.durable import make_folder, write_file
from nfl_core.learning import FedAvg, LocalOnly, Nested, Owner, Strategy
from nfl_core.levels import Scope
from nfl_sim.tasks.measure import TUNE_EPOCHS, cohort_of, in_one_scope
from nfl_sim.tasks.navigation import TASK
from nfl_sim.tasks.navigation.data import load_seed, plans_of
from nfl_sim.tasks.navigation.drive import Policy, drive, expert_of, policy_of
from nfl_sim.tasks.navigation.picture import picture

EXPERT = "expert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method with one seed; fractions of 1, accuracies one a robot.

    Attributes:
        method: See `METHODS`, or the expert.
        seed: Of everything.
        accuracies: On test samples; empty for the expert.
        successes: Fraction of its episodes in which each robot arrived.
        collisions: The same for collisions.
        update_cpu_s: CPU seconds of one robot's round, training and merging.
        update_wall_s: Wall seconds of the same, on whatever else the machine did.
    """

    method: str
    seed: int
    accuracies: tuple[float, ...]
    successes: tuple[float, ...]
    collisions: tuple[float, ...]
    update_cpu_s: float
    update_wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a method made of all robots: test accuracies, drivers, and what one robot's round cost."""

    accuracies: tuple[float, ...]
    policies: tuple[Policy, ...]
    update_cpu_s: float
    update_wall_s: float


_ROWS = TypeAdapter(list[Row])


METHODS: Mapping[str, Callable[[], Strategy]] = {
    "local only": LocalOnly,
    "FedAvg, fine-tuned": lambda: FedAvg(tune_epochs=TUNE_EPOCHS),
    "nested, two levels: private, global": lambda: Nested(spec=in_one_scope(TASK.spec, Scope.GLOBAL)),
    "nested, two levels: private, regional": lambda: Nested(spec=in_one_scope(TASK.spec, Scope.REGION)),
    "nested": lambda: Nested(spec=TASK.spec),
}


def run_one(method: str, *, cache: Path, seed: int, num_episodes: int, rounds: int = TASK.rounds) -> Row:
    """Train one method's robots, score them and let them drive.

    Args:
        method: A key of `METHODS`, or `EXPERT`.
        cache: Keeps the samples.
        seed: Of everything.
        num_episodes: Of each robot, in its test worlds; 0: none.
        rounds: Micro-updates of each robot.

    Raises:
        ContentError: IR-SIM is not installed.
    """
    if method == EXPERT:
        return _row(method, seed, (), [expert_of(plan) for plan in plans_of(seed)], num_episodes, (0.0, 0.0))
    trained = train(method, cache=cache, seed=seed, rounds=rounds)
    costs = (trained.update_cpu_s, trained.update_wall_s)
    return _row(method, seed, trained.accuracies, trained.policies, num_episodes, costs)


def train(method: str, *, cache: Path, seed: int, rounds: int = TASK.rounds) -> Trained:
    """Train one method's robots; arguments and errors as for `run_one`."""
    data = load_seed(cache, seed=seed)
    owners = [Owner(region=owner.region, train=owner.train, test=owner.test) for owner in data.owners]
    cohort = cohort_of(TASK, METHODS[method](), owners, seed=seed)
    cpu_s, started = 0.0, time.perf_counter()
    for number in range(1, rounds + 1):
        report = cohort.run_round(scored=number == rounds)
        cpu_s += report.cpu_s
    num_updates = rounds * len(cohort.members)
    return Trained(
        accuracies=report.after_merge,
        policies=tuple(policy_of(cohort.strategy.answer(member)) for member in cohort.members),
        update_cpu_s=cpu_s / num_updates,
        update_wall_s=(time.perf_counter() - started) / num_updates,
    )


def _row(
    method: str,
    seed: int,
    accuracies: tuple[float, ...],
    policies: Sequence[Policy],
    num_episodes: int,
    costs: tuple[float, float],
) -> Row:
    outcomes = [
        drive(policy, plan, num_episodes=num_episodes)
        for policy, plan in zip(policies, plans_of(seed), strict=True)
        if num_episodes
    ]
    return Row(
        method=method,
        seed=seed,
        accuracies=accuracies,
        successes=tuple(outcome.success_fraction for outcome in outcomes),
        collisions=tuple(outcome.collision_fraction for outcome in outcomes),
        update_cpu_s=costs[0],
        update_wall_s=costs[1],
    )


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table: mean over seeds +- standard deviation over seeds, in percent."""
    lines = [
        "| method | accuracy, mean robot | worst robot | arrives | collides |",
        "|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        cells = [
            _spread([float(np.mean(row.accuracies)) for row in mine if row.accuracies]),
            _spread([min(row.accuracies) for row in mine if row.accuracies]),
            _spread([float(np.mean(row.successes)) for row in mine if row.successes]),
            _spread([float(np.mean(row.collisions)) for row in mine if row.collisions]),
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return f"{100 * float(np.mean(values)):.1f} +- {100 * deviation:.1f}"


def run(out: Path, *, cache: Path, seeds: Sequence[int], methods: Sequence[str], num_episodes: int) -> list[Row]:
    """Run what does not stand in `out` yet, seed by seed, and write each row at once."""
    make_folder(out.parent)
    rows = _ROWS.validate_json(out.read_bytes()) if out.exists() else []
    for seed in seeds:
        for method in methods:
            if any((row.method, row.seed) == (method, seed) for row in rows):
                continue
            rows.append(run_one(method, cache=cache, seed=seed, num_episodes=num_episodes))
            write_file(out, _ROWS.dump_json(rows, indent=1))
            sys.stderr.write(f"seed {seed}, {method}: done\n")
    return rows


def draw(path: Path, *, cache: Path, seed: int, num_episodes: int) -> str | None:
    """Draw the first test world in which nested learning arrives and local-only does not; return the robot's name.

    It is picked to show the difference: how often there is one says the table. None when there is no such world.
    """
    ways = {method: train(method, cache=cache, seed=seed).policies for method in ("nested", "local only")}
    for place, plan in enumerate(plans_of(seed)):
        found = {name: drive(policies[place], plan, num_episodes=num_episodes) for name, policies in ways.items()}
        for nested, local in zip(found["nested"].episodes, found["local only"].episodes, strict=True):
            if nested.arrived and not local.arrived:
                write_file(path, picture({"nested": nested, "local only": local}).encode("ascii"), mode=0o644)
                return plan.robot.name
    return None


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[EXPERT, *METHODS], choices=[EXPERT, *METHODS])
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--draw", type=Path, help="only draw an episode with the first seed, into this SVG file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.draw:
        robot = draw(chosen.draw, cache=chosen.cache, seed=chosen.seeds[0], num_episodes=chosen.episodes)
        sys.stdout.write(f"{robot or 'no such episode'}\n")
        return
    rows = run(chosen.out, cache=chosen.cache, seeds=chosen.seeds, methods=chosen.methods, num_episodes=chosen.episodes)
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
