"""Our FedAvg, FedRep and Ditto beside those of fluke-fl: same owners, same first weights, same order of samples.

fluke-fl runs in an environment of its own, `.nfl/peers/fluke`, made at the first run from tools/requirements-fluke.txt.
What was matched, and what fluke does otherwise by default, stands in docs/ml/honest-limits.md.

Columns: mean accuracy over owners after the last merge, with its deviation over seeds; the difference; the largest
difference of one owner; then the weights after the FIRST round, in parts (what is shared, and what each owner keeps):
the median over parts of the largest difference, and how many parts are the same within 1e-5. A part that is not was
driven apart by rounding: the order of an addition decides a ReLU, and training takes it from there. Two controls, ours
made wrong on purpose, must be told apart. Fails when a mean differs by more than a point, when the shared part is
another or more than one part in ten is, or when a control is not caught.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _measure import finish
from safetensors.numpy import load_file, save_file

from nfl_core.learning import (
    Cohort,
    Ditto,
    FedAvg,
    FedRep,
    LearningSettings,
    NestedModel,
    Owner,
    Samples,
    Strategy,
    create_model,
    state_of,
)
from nfl_sim.data import load_images, share_out

REPO = Path(__file__).resolve().parents[2]
CONSTRAINTS, REQUIREMENTS = REPO / "constraints.txt", REPO / "tools/requirements-fluke.txt"
FLUKE = "fluke-fl==0.8.1"
NUM_OWNERS, IMAGES_PER_OWNER, CONCENTRATION = 20, 300, 0.5
NUM_ROUNDS, EPOCHS, BATCH_SIZE, RATE, PULL = 6, 2, 16, 0.05, 0.1
HALF = EPOCHS // 2  # passes of the body in FedRep and of the shared model in Ditto; the rest are the owner's own
ALLOWED_DIFFERENCE = 0.01  # one point of accuracy
SAME_WEIGHTS = 1e-5  # one round of float32 steps in the same order; measured 0 to 2.4e-7, or a ReLU that flipped
SAME_PARTS = 0.9  # of the parts; measured 62 of 63 for Ditto, all others

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one method gave: accuracies of the owners after the last merge, and weights after round one, `PART.NAME`."""

    accuracies: tuple[float, ...]
    weights: Arrays


def strategies() -> dict[str, Strategy]:
    """Return ours by fluke's names."""
    return {"fedavg": FedAvg(), "fedrep": FedRep(), "ditto": Ditto(prox=PULL)}


def fluke_epochs() -> dict[str, dict[str, float]]:
    """Return fluke's arguments that mean what our strategies do."""
    return {
        "fedavg": {"local_epochs": EPOCHS},
        "fedrep": {"local_epochs": EPOCHS - HALF, "tau": HALF},
        "ditto": {"local_epochs": HALF, "tau": EPOCHS - HALF, "lam": PULL},
    }


def fluke_python() -> Path:
    """Return the Python of the peer's environment, made when it is not there or its requirements changed."""
    folder = REPO / ".nfl/peers/fluke"
    python, mark = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), folder / "made-from"
    stamp = hashlib.sha256(CONSTRAINTS.read_bytes() + REQUIREMENTS.read_bytes() + (FLUKE + sys.version).encode())
    if not (mark.is_file() and mark.read_text() == stamp.hexdigest()):
        print(f"setting up {folder.relative_to(REPO)} ...", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
        for wanted in (["-r", str(REQUIREMENTS)], ["--no-deps", FLUKE]):
            subprocess.run([*pip, *wanted], cwd=REPO, check=True)
        mark.write_text(stamp.hexdigest())
    return python


def draw_owners(seed: int) -> dict[str, np.ndarray]:
    """Return `PLACE.SPLIT.AXIS` arrays; x float32 [N, 1, 28, 28] within [0, 1], y int64 [N]."""
    data = load_images(REPO / ".nfl/data")
    shares = share_out(
        data,
        num_owners=NUM_OWNERS,
        concentration=CONCENTRATION,
        images_per_owner=IMAGES_PER_OWNER,
        generator=np.random.default_rng(seed),
    )
    arrays: dict[str, np.ndarray] = {}
    for place, owner in enumerate(shares.owners):
        for split, rows in (("train", owner.train), ("test", owner.test)):
            arrays[f"{place}.{split}.x"] = data.x_NCHW[rows].astype(np.float32) / np.float32(255)
            arrays[f"{place}.{split}.y"] = data.y_N[rows]
    return arrays


def weights_of(cohort: Cohort) -> dict[str, np.ndarray]:
    """Return `shared.NAME`, and `PLACE.NAME` of what an owner keeps; without the residual head, which fluke lacks."""
    found = {f"shared.{name}": array for name, array in cohort.published["all"].items()}
    for member in cohort.members:
        own = cohort.strategy.current(member)
        merged = cohort.published["all"] if own is member.module else {}
        found |= {f"{member.place}.{name}": array for name, array in state_of(own).items() if name not in merged}
    return {name: array for name, array in found.items() if ".private." not in name}


def run_ours(
    strategy: Strategy, arrays: Arrays, *, seed: int, rounds: int = NUM_ROUNDS, weighted: bool = True
) -> Outcome:
    """Run one of our strategies."""

    def make() -> NestedModel:
        return create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=seed)

    def samples(place: int, split: str) -> Samples:
        x, y = (torch.from_numpy(arrays[f"{place}.{split}.{axis}"]) for axis in "xy")
        return Samples(x=x, y=y)

    owners = [Owner(region="all", train=samples(i, "train"), test=samples(i, "test")) for i in range(NUM_OWNERS)]
    settings = LearningSettings(learning_rate=RATE, batch_size=BATCH_SIZE, epochs_per_update=EPOCHS, refit_steps=0)
    cohort = Cohort(make, strategy=strategy, settings=settings, owners=owners, seed=seed, weigh_by_samples=weighted)
    report = cohort.run_round(scored=rounds == 1)
    weights = weights_of(cohort)
    for number in range(2, rounds + 1):
        report = cohort.run_round(scored=number == rounds)
    return Outcome(accuracies=report.after_merge, weights=weights)


def run_fluke(arrays: Arrays, *, seed: int) -> dict[str, Outcome]:
    """Run fluke's three methods."""
    setting = {
        "owners": NUM_OWNERS, "rounds": NUM_ROUNDS, "batch_size": BATCH_SIZE, "learning_rate": RATE, "seed": seed,
        "methods": fluke_epochs(),
    }  # fmt: skip
    initial = state_of(create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=seed))
    with tempfile.TemporaryDirectory(prefix="nfl-fluke-") as name:
        folder = Path(name)
        save_file(dict(arrays), folder / "owners.safetensors")
        save_file(initial, folder / "initial.safetensors")
        (folder / "setting.json").write_text(json.dumps(setting))
        command = [str(fluke_python()), str(Path(__file__).with_name("_fluke.py")), name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found, weights = json.loads((folder / "fluke.json").read_text()), load_file(folder / "fluke.safetensors")
    return {
        method: Outcome(
            accuracies=tuple(rounds[-1]),
            weights={k.removeprefix(f"{method}."): v for k, v in weights.items() if k.startswith(f"{method}.")},
        )
        for method, rounds in found.items()
    }


def part_differences(ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """Return the largest difference of a weight in each part of ours."""
    parts: dict[str, float] = {}
    for name, array in ours.weights.items():
        part = name.partition(".")[0]
        parts[part] = max(parts.get(part, 0.0), float(np.abs(array - theirs.weights[name]).max()))
    return parts


def is_same(parts: Mapping[str, float]) -> bool:
    """Say whether these parts are those of one method; see the module."""
    num_same = sum(difference <= SAME_WEIGHTS for difference in parts.values())
    return parts["shared"] <= SAME_WEIGHTS and num_same >= SAME_PARTS * len(parts)


def mean_and_deviation(values: list[float]) -> str:
    """Return percentages for the table; a deviation needs two seeds."""
    deviation = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


def uncaught_controls(arrays: Arrays, theirs: Mapping[str, Outcome]) -> list[str]:
    """Return which of our methods, made wrong on purpose, look like fluke's."""
    wrong = {
        "fedavg averaged evenly": ("fedavg", run_ours(FedAvg(), arrays, seed=0, rounds=1, weighted=False)),
        "ditto without its pull": ("ditto", run_ours(Ditto(prox=0.0), arrays, seed=0, rounds=1)),
    }
    return [name for name, (method, ours) in wrong.items() if is_same(part_differences(ours, theirs[method]))]


def main(seeds: int = 1) -> None:
    """Compare over `seeds` seeds; about 90 CPU seconds a seed."""
    torch.set_num_threads(1)
    ours: dict[str, list[Outcome]] = {method: [] for method in strategies()}
    fluke: dict[str, list[Outcome]] = {method: [] for method in strategies()}
    uncaught: list[str] = []
    for seed in range(seeds):
        arrays = draw_owners(seed)
        theirs = run_fluke(arrays, seed=seed)
        for method, strategy in strategies().items():
            ours[method].append(run_ours(strategy, arrays, seed=seed))
            fluke[method].append(theirs[method])
        if seed == 0:
            uncaught = uncaught_controls(arrays, theirs)
    print(
        f"{'method':8}  {'ours':>14}  {'fluke':>14}  {'difference':>10}  {'one owner':>9}  {'weights':>8}  {'parts':>6}"
    )
    means: dict[str, tuple[float, float]] = {}
    wrong = [f"control not caught: {name}" for name in uncaught]
    for method, outcomes in ours.items():
        mine, other = ([statistics.fmean(o.accuracies) for o in side] for side in (outcomes, fluke[method]))
        means[method] = statistics.fmean(mine), statistics.fmean(other)
        pairs = list(zip(outcomes, fluke[method], strict=True))
        one = max(abs(a - b) for o, f in pairs for a, b in zip(o.accuracies, f.accuracies, strict=True))
        parts = [part_differences(o, f) for o, f in pairs]
        every = [difference for seed_parts in parts for difference in seed_parts.values()]
        same = f"{sum(difference <= SAME_WEIGHTS for difference in every)}/{len(every)}"
        difference = means[method][0] - means[method][1]
        row = f"{method:8}  {mean_and_deviation(mine):>14}  {mean_and_deviation(other):>14}  {100 * difference:>+10.2f}"
        print(f"{row}  {100 * one:>9.2f}  {statistics.median(every):>8.1e}  {same:>6}")
        if abs(difference) > ALLOWED_DIFFERENCE or not all(map(is_same, parts)):
            wrong.append(f"{method} is not fluke's")
    finish(
        "outside",
        ours={f"accuracy_fraction_{method}": mean for method, (mean, _) in means.items()},
        against={"fluke-fl-0.8.1": {f"accuracy_fraction_{method}": mean for method, (_, mean) in means.items()}},
        runs=seeds,
    )
    if wrong:
        raise SystemExit("; ".join(wrong))
