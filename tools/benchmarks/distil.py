"""Teaching both ways: `-- distil [SEEDS]`. One seed is small, some three CPU minutes; three are full, some fifteen.

Every student stands beside its teacher and beside itself without one: on images with all labels and with one in ten
(Fashion-MNIST, a wide model of ours; EfficientNet-Lite0), and on sounds without a label (CREPE). Upwards the ensemble
of a fleet's students stands beside their average. What cannot be had here is left out, and said so.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _measure import finish

from nfl_core.errors import ContentError
from nfl_core.learning import create_model
from nfl_sim.data import DataSet, load_images
from nfl_sim.teaching import (
    FULL,
    NUM_CLASSES,
    PITCH_FULL,
    PITCH_SMALL,
    PRETRAINED_FULL,
    PRETRAINED_SMALL,
    SHAPE,
    SMALL,
    STUDENT,
    Split,
    ask_crepe,
    downwards,
    embed_images,
    few_labels,
    make_teacher,
    teach_pitch,
    upwards,
)

CACHE = Path(__file__).resolve().parents[2] / ".nfl/data"
Runs = list[dict[str, float]]


def main(seeds: int = 1) -> None:
    """Measure with `seeds` seeds and print one JSON line."""
    torch.set_num_threads(1)
    started, is_small = time.process_time(), seeds == 1
    data = load_images(CACHE, say=say)
    parts: dict[str, Callable[[], Runs]] = {
        "pitch": lambda: pitch_runs(seeds, is_small=is_small),
        "pretrained": lambda: pretrained_runs(data, seeds, is_small=is_small),
    }
    runs = image_runs(data, seeds, is_small=is_small)
    left_out = []
    for name, part in parts.items():
        try:
            runs[name] = part()
        except ContentError as error:
            left_out.append(name)
            say(f"LEFT OUT: {name}. {error.message}; {error.hint}")
    mean = {part: told(part, found) for part, found in runs.items()}
    ours, against = figures(mean)
    finish(
        "distil",
        ours={**ours, "num_left_out": len(left_out), "cpu_s": time.process_time() - started},
        against=against,
        runs=seeds,
    )
    if left_out:
        say(f"LEFT OUT: {', '.join(left_out)}; the reasons are above")


def image_runs(data: DataSet, seeds: int, *, is_small: bool) -> dict[str, Runs]:
    """Return what a wide model taught and what a fleet's ensemble taught, a dictionary a seed."""
    size = SMALL if is_small else FULL
    split = Split.of(data, size=size)
    teacher = make_teacher(split, size=size, seed=0, say=say)
    say(f"wide teacher: {num_parameters(teacher):,} parameters")
    return {
        "down": [downwards(split, teacher, size=size, seed=seed, say=say) for seed in range(seeds)],
        "up": [upwards(data, split, size=size, seed=seed, say=say) for seed in range(seeds)],
    }


def pretrained_runs(data: DataSet, seeds: int, *, is_small: bool) -> Runs:
    """Return what EfficientNet-Lite0 taught. Raises ContentError when its weights are out of reach."""
    size = PRETRAINED_SMALL if is_small else PRETRAINED_FULL
    images = embed_images(CACHE, data, size=size, say=say)
    return [few_labels(images, size=size, seed=seed, say=say) for seed in range(seeds)]


def pitch_runs(seeds: int, *, is_small: bool) -> Runs:
    """Return what CREPE taught. Raises ContentError when torchcrepe is not installed."""
    size = PITCH_SMALL if is_small else PITCH_FULL
    lessons = ask_crepe(CACHE, size=size, say=say)
    return [teach_pitch(lessons, size=size, seed=seed, say=say) for seed in range(seeds)]


def told(part: str, runs: Runs) -> dict[str, float]:
    """Print the mean and the deviation over the seeds of each figure, in points; return the means."""
    mean = {}
    for name in runs[0]:
        points = [100 * one[name] for one in runs]
        mean[name] = statistics.mean(points)
        say(f"{part + ' ' + name:28} {mean[name]:6.2f} +- {statistics.stdev(points) if len(points) > 1 else 0:.2f}")
    return mean


def figures(mean: dict[str, dict[str, float]]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return ours and, beside it, the teachers, the students alone, the average and the ensemble."""
    down, up = mean["down"], mean["up"]
    student = create_model(STUDENT, num_classes=NUM_CLASSES, input_shape=SHAPE, seed=0)
    ours = {
        "accuracy_points": down["taught"],
        "few_labels_accuracy_points": down["taught_few_labels"],
        "num_parameters": num_parameters(student),
        "fused_accuracy_points": up["fused"],
    }
    teacher, alone = {"accuracy_points": down["teacher"]}, {"accuracy_points": down["alone"]}
    alone["few_labels_accuracy_points"] = down["alone_few_labels"]
    for part in ("pitch", "pretrained"):
        if part in mean:
            ours[f"{part}_accuracy_points"] = mean[part]["taught"]
            teacher[f"{part}_accuracy_points"] = mean[part]["teacher"]
            alone[f"{part}_accuracy_points"] = mean[part]["alone"]
    if "taught_speech" in mean.get("pitch", {}):
        ours["pitch_agreement_points"] = mean["pitch"]["taught_speech"]
        alone["pitch_agreement_points"] = mean["pitch"]["alone_speech"]
    return ours, {
        "teacher": teacher,
        "alone": alone,
        "average": {"fused_accuracy_points": up["average"]},
        "ensemble": {"fused_accuracy_points": up["ensemble"]},
    }


def num_parameters(module: torch.nn.Module) -> int:
    """Return how many numbers a module has learned."""
    return sum(parameter.numel() for parameter in module.parameters())


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
