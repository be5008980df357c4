"""Teaching both ways on Fashion-MNIST: student beside teacher and beside itself alone, ensemble beside average.

One seed is small: about two CPU minutes. Two seeds and more use all 70,000 images: six minutes and about four a seed.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from _measure import finish

from nfl_core.learning import create_model
from nfl_sim.data import load_images
from nfl_sim.teaching import FULL, NUM_CLASSES, SHAPE, SMALL, STUDENT, Split, downwards, make_teacher, upwards

CACHE = Path(__file__).resolve().parents[2] / ".nfl/data"


def main(seeds: int = 1) -> None:
    """Measure with `seeds` seeds and print one JSON line."""
    torch.set_num_threads(1)
    size, started = SMALL if seeds == 1 else FULL, time.process_time()
    data = load_images(CACHE, say=say)
    split = Split.of(data, size=size)
    teacher = make_teacher(split, size=size, seed=0, say=say)
    down = [downwards(split, teacher, size=size, seed=seed, say=say) for seed in range(seeds)]
    up = [upwards(data, split, size=size, seed=seed, say=say) for seed in range(seeds)]
    points: dict[str, list[float]] = {}
    for prefix, runs in (("down", down), ("up", up)):
        points |= {f"{prefix}_{name}": [100 * one[name] for one in runs] for name in runs[0]}
    mean = {name: statistics.mean(values) for name, values in points.items()}
    for name, values in points.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        say(f"{name:24} {mean[name]:6.2f} +- {spread:.2f}")
    student = create_model(STUDENT, num_classes=NUM_CLASSES, input_shape=SHAPE, seed=0)
    num_student, num_teacher = (sum(p.numel() for p in module.parameters()) for module in (student, teacher))
    finish(
        "distil",
        ours={
            "accuracy_points": mean["down_taught"],
            "few_labels_accuracy_points": mean["down_taught_few_labels"],
            "num_parameters": num_student,
            "fused_accuracy_points": mean["up_fused"],
            "cpu_s": time.process_time() - started,
        },
        against={
            "teacher": {"accuracy_points": mean["down_teacher"], "num_parameters": num_teacher},
            "alone": {
                "accuracy_points": mean["down_alone"],
                "few_labels_accuracy_points": mean["down_alone_few_labels"],
            },
            "average": {"fused_accuracy_points": mean["up_average"]},
            "ensemble": {"fused_accuracy_points": mean["up_ensemble"]},
        },
        runs=seeds,
    )


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
