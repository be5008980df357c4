"""Streams of tasks: what ours and the usual replay remember, and what a fleet remembers: `-- continual [SEEDS]`.

Split Fashion-MNIST, 8,000 training images, two passes a task, batches of 16, 200 images kept, 4,000 test images.
`NFL_CONTINUAL` names other methods (`all`, or a list with commas), `NFL_CONTINUAL_IMAGES` another number of images.
"""

import os
import statistics
from pathlib import Path

import torch
from _measure import finish

from nfl_sim.continual.fleet import run_fleet
from nfl_sim.continual.methods import METHODS
from nfl_sim.continual.run import Outcome, learn_stream
from nfl_sim.continual.split import split_fashion
from nfl_sim.data.fashion import DataSet, load_images

CACHE = Path(os.environ.get("NFL_CACHE", Path.home() / ".cache" / "nfl"))
MAIN = ("naive", "er", "der", "er-ace", "nested", "nested-slow", "joint")


def main(seeds: int = 3) -> None:
    """Learn the stream with every method at each seed, print the table and one JSON line."""
    torch.set_num_threads(1)
    asked = os.environ.get("NFL_CONTINUAL", ",".join(MAIN))
    names = list(METHODS) if asked == "all" else asked.split(",")
    images = int(os.environ.get("NFL_CONTINUAL_IMAGES", "8000"))
    data = load_images(CACHE)
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    print("seed | method | class-inc. acc / BWT / learned | task-inc. acc / BWT | CPU s", flush=True)
    for seed in range(seeds):
        stream = split_fashion(data, seed=seed, num_train=images)
        for name in names:
            outcome = learn_stream(METHODS[name], stream, seed=seed)
            found[name].append(outcome)
            c, t = outcome.by_class, outcome.by_task
            print(
                f"{seed} | {name} | {c.accuracy:.1f} / {c.backward_transfer:+.1f} / {c.learned:.1f} | "
                f"{t.accuracy:.1f} / {t.backward_transfer:+.1f} | {outcome.cpu_s:.1f}",
                flush=True,
            )
    if "nested" in names:
        print_fleet(data, seeds=seeds)
    figures = {name: figures_of(outcomes) for name, outcomes in found.items()}
    print("mean +- deviation over seeds, points")
    for name, outcomes in found.items():
        print(f"{name} | " + " | ".join(spread(outcomes, *path) for path in COLUMNS))
    ours = figures.pop("nested", {})
    finish("continual", ours=ours, against=figures, runs=seeds)


def print_fleet(data: DataSet, *, seeds: int) -> None:
    """Print what a fleet remembers: owners join at versions 0, 3 and 6, classes arrive in three phases."""
    print(
        "fleet: seed | images kept | all classes seen, before merge mean / worst | after merge | first phase's classes"
    )
    for seed in range(seeds):
        for kept in (0, 100):
            last = run_fleet(data, seed=seed, remembers=kept)[-1]
            shown = (last.before_merge, last.after_merge, last.oldest)
            columns = (f"{100 * statistics.mean(owners):.1f} / {100 * min(owners):.1f}" for owners in shown)
            print(f"{seed} | {kept} | " + " | ".join(columns), flush=True)


COLUMNS = (
    ("by_class", "accuracy"),
    ("by_class", "backward_transfer"),
    ("by_task", "accuracy"),
    ("by_task", "backward_transfer"),
)


def spread(outcomes: list[Outcome], way: str, figure: str) -> str:
    """Return "mean +- deviation" of a figure."""
    values = [getattr(getattr(outcome, way), figure) for outcome in outcomes]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{way} {figure} {statistics.mean(values):.1f} +- {deviation:.1f}"


def figures_of(outcomes: list[Outcome]) -> dict[str, float]:
    """Return the means over seeds by their full names."""
    return {
        f"{way.removeprefix('by_')}_incremental_{figure}_points": statistics.mean(
            getattr(getattr(outcome, way), figure) for outcome in outcomes
        )
        for way, figure in COLUMNS
    } | {"cpu_s_per_stream": statistics.mean(outcome.cpu_s for outcome in outcomes)}
