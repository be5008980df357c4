"""Our FedAvg, FedRep and Ditto beside those of fluke-fl: same owners, same first weights, same order of samples.

fluke-fl runs in an environment of its own, `.nfl/peers/fluke`, made at the first run from tools/requirements-fluke.txt.
What was matched, and what fluke does otherwise by default, stands in docs/ml/honest-limits.md.

Columns: mean accuracy over owners after the last merge, with its deviation over seeds; the difference; the largest
difference of one owner; the largest difference of a weight, shared or personal, after the FIRST round. From there on
rounding alone drives the two apart. Fails when a mean differs by more than a point, or such a weight by more than 1e-5.
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
NUM_OWNERS, IMAGES_PER_OWNER, CONCENTRATION, NUM_ROUNDS, EPOCHS, BATCH_SIZE, RATE, PULL = (
    20,
    300,
    0.5,
    6,
    2,
    16,
    0.05,
    0.1,
)
HALF = EPOCHS // 2  # passes of the body in FedRep and of the shared model in Ditto; the rest are the owner's own
ALLOWED_DIFFERENCE = 0.01  # one point of accuracy
ALLOWED_WEIGHT_DIFFERENCE = 1e-5  # one round of float32 steps in the same order; measured 2.4e-7

Arrays = Mapping[str, np.ndarray]


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
    data = load_images(REPO / ".nfl/data/fashion-mnist")
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


def run_ours(arrays: Arrays, *, seed: int) -> tuple[dict[str, tuple[float, ...]], dict[str, np.ndarray]]:
    """Return accuracies of the owners after the last merge, by method, and all weights after the first round."""

    def make() -> NestedModel:
        return create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=seed)

    def samples(place: int, split: str) -> Samples:
        x, y = (torch.from_numpy(arrays[f"{place}.{split}.{axis}"]) for axis in "xy")
        return Samples(x=x, y=y)

    owners = [Owner(region="all", train=samples(i, "train"), test=samples(i, "test")) for i in range(NUM_OWNERS)]
    settings = LearningSettings(learning_rate=RATE, batch_size=BATCH_SIZE, epochs_per_update=EPOCHS, refit_steps=0)
    found, weights = {}, {}
    for method, strategy in strategies().items():
        cohort = Cohort(make, strategy=strategy, settings=settings, owners=owners, seed=seed, weigh_by_samples=True)
        for number in range(1, NUM_ROUNDS + 1):
            report = cohort.run_round(scored=number == NUM_ROUNDS)
            if number == 1:
                weights |= {f"{method}.{name}": array for name, array in weights_of(cohort).items()}
        found[method] = report.after_merge
    return found, weights


def run_fluke(arrays: Arrays, *, seed: int) -> tuple[dict[str, tuple[float, ...]], dict[str, np.ndarray]]:
    """Return the same from fluke."""
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
        found = json.loads((folder / "fluke.json").read_text())
        return {method: tuple(rounds[-1]) for method, rounds in found.items()}, load_file(folder / "fluke.safetensors")


def mean_and_deviation(values: list[float]) -> str:
    """Return percentages for the table; a deviation needs two seeds."""
    deviation = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


def main(seeds: int = 1) -> None:
    """Compare over `seeds` seeds; about two minutes a seed on two idle cores."""
    torch.set_num_threads(1)
    methods = list(strategies())
    means: dict[str, dict[str, list[float]]] = {side: {m: [] for m in methods} for side in ("ours", "fluke")}
    apart: dict[str, float] = dict.fromkeys(methods, 0.0)
    moved: dict[str, float] = dict.fromkeys(methods, 0.0)
    for seed in range(seeds):
        arrays = draw_owners(seed)
        (ours, our_weights), (theirs, their_weights) = run_ours(arrays, seed=seed), run_fluke(arrays, seed=seed)
        for method in methods:
            means["ours"][method].append(statistics.fmean(ours[method]))
            means["fluke"][method].append(statistics.fmean(theirs[method]))
            apart[method] = max(apart[method], *(abs(a - b) for a, b in zip(ours[method], theirs[method], strict=True)))
            names = [name for name in our_weights if name.startswith(f"{method}.")]
            difference = max(float(np.abs(our_weights[name] - their_weights[name]).max()) for name in names)
            moved[method] = max(moved[method], difference)
    print(f"{'method':8}  {'ours':>14}  {'fluke':>14}  {'difference':>10}  {'one owner':>9}  {'weights 1':>9}")
    differences = {m: statistics.fmean(means["ours"][m]) - statistics.fmean(means["fluke"][m]) for m in methods}
    for m in methods:
        row = f"{m:8}  {mean_and_deviation(means['ours'][m]):>14}  {mean_and_deviation(means['fluke'][m]):>14}"
        print(f"{row}  {100 * differences[m]:>+10.2f}  {100 * apart[m]:>9.2f}  {moved[m]:>9.1e}")
    finish(
        "outside",
        ours={f"accuracy_fraction_{m}": statistics.fmean(means["ours"][m]) for m in methods},
        against={"fluke-fl-0.8.1": {f"accuracy_fraction_{m}": statistics.fmean(means["fluke"][m]) for m in methods}},
        runs=seeds,
    )
    wrong = [m for m in methods if abs(differences[m]) > ALLOWED_DIFFERENCE or moved[m] > ALLOWED_WEIGHT_DIFFERENCE]
    if wrong:
        raise SystemExit(f"ours and fluke's are not the same method: {', '.join(wrong)}")
