"""What attackers cost the honest owners of a sealed fleet, by attack and defence: `nox -s bench -- robust [SEEDS]`.

20 owners of Fashion-MNIST (8,000 images, Dirichlet 0.5), 4 of them attack, 10 versions of the default settings.
Each cell is a whole fleet that learns for 10 versions: half a minute of one processor. The plain mean is the positive
control: where it is not hurt, an attack is none. Then kinds of poisoned versions are offered to every device's merge,
and honest ones in four scenes of the learning benchmark, to count those that are doubted wrongly.

A finished cell is a line of `cells.jsonl` in the folder `--out` and is not run again as long as its settings mean the
same. On stderr: a line a cell, with the time that is left. On stdout: the tables, and as last line one JSON object.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from _measure import finish

from nfl_cluster.aggregate.reputation import Settings
from nfl_cluster.aggregate.robust.rules import DNC_FACTOR, DNC_LENGTH
from nfl_core.config import RootSection
from nfl_core.durable import make_folder
from nfl_core.ids import digest_of
from nfl_core.learning import Cohort, GatedNested, LearningSettings, Refusal, create_model
from nfl_sim.attacks.attack import ATTACKS
from nfl_sim.attacks.fleet import Fleet, FleetSettings, VersionReport
from nfl_sim.attacks.versions import KINDS, Offered, Workshop, offer
from nfl_sim.attacks.world import World, make_world
from nfl_sim.learning.run import meaning_of as meaning_of_scene
from nfl_sim.learning.scenes import NUM_CLASSES, scene_of

NUM_VERSIONS = 10
POISONED_AFTER = 5  # versions
CELLS_FILE = "cells.jsonl"
POISON = "poisoned versions"  # stands for the defence in the lines of those
HONEST = "honest versions"  # stands for the attack in the lines of those, their scene for the defence
SCENES = ("dir-0.1", "dir-0.5", "dir-5", "rotated")
_SEALED = FleetSettings(rule="dnc", batch_size=2, reputation=Settings())
DEFENCES = {
    "mean": FleetSettings(rule="mean", with_gate=False),
    "mean, merge gate": FleetSettings(rule="mean"),
    "dnc, batches of 2": FleetSettings(rule="dnc", batch_size=2, with_gate=False, reputation=Settings()),
    "dnc, batches of 2, merge gate": _SEALED,
    "shadow-trust": FleetSettings(rule="shadow-trust", with_gate=False, reputation=Settings()),
}
CONTROL, OURS, GATED = "mean", "dnc, batches of 2", "dnc, batches of 2, merge gate"
STRONG = (
    "ipm-optimal",
    "ipm-jittered",
    "alie-optimal",
    "scaled-label-flip",
    "scaled-backdoor",
    "gaussian",
    "lying-leaf",
)
MILD = ("sign-flip", "alie", "label-flip", "backdoor", "mimic", "free-rider-zero", "free-rider-replay", "stale-replay")
CELLS = (
    *(("none", defence) for defence in (CONTROL, OURS, GATED)),
    *((attack, defence) for attack in STRONG for defence in (OURS, GATED)),
    # Scaled and noisy values end at one step of the scale: the mean is not hurt by them either, measured before.
    *((attack, CONTROL) for attack in STRONG if attack not in {"ipm-jittered", "scaled-label-flip", "gaussian"}),
    *((attack, OURS) for attack in MILD),
    ("ipm-optimal", "mean, merge gate"),
    ("alie-optimal", "mean, merge gate"),
    ("ipm-optimal", "shadow-trust"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One fleet after its last version; accuracies are of the last three versions' mean, in points."""

    mean: float
    worst: float
    success: float
    refused: int
    implausible: int
    quarantined: tuple[int, ...]
    wrongly: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Honest:
    """Honest versions: how many merges all owners made, and how many were refused by which check."""

    num_merges: int
    reasons: dict[str, int]


class Results:
    """Finished cells in a folder, by seed, attack and defence; those of other settings are not seen.

    Args:
        folder: Made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._path = folder / CELLS_FILE

    def read(self) -> dict[tuple[int, str, str], dict]:
        """Return what is finished; a line that was cut off is not."""
        found = {}
        for text in self._path.read_text().splitlines() if self._path.exists() else ():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if line["meaning"] == meaning_of(line["defence"]):
                found[line["seed"], line["attack"], line["defence"]] = line["cell"]
        return found

    def add(self, seed: int, attack: str, defence: str, cell: Cell | Offered | Honest) -> None:
        """Keep a finished cell."""
        line = {"seed": seed, "attack": attack, "defence": defence, "meaning": meaning_of(defence)}
        with self._path.open("a") as file:
            file.write(json.dumps({**line, "cell": asdict(cell)}) + "\n")


def meaning_of(defence: str) -> str:
    """Return a digest of all settings that a cell depends on, its attack apart."""
    fleet = DEFENCES.get(defence)
    told = meaning_of_scene(scene_of(defence)) if defence in SCENES else fleet
    said: tuple[object, ...] = (told, NUM_VERSIONS, POISONED_AFTER, LearningSettings(), RootSection())
    if fleet is not None and fleet.rule == "dnc":
        said = (*said, DNC_FACTOR, DNC_LENGTH)
    return digest_of(repr(said).encode())[:16]


def play(world: World, attack: str, defence: str, *, seed: int, num_versions: int = NUM_VERSIONS) -> Cell:
    """Let one fleet learn under one attack."""
    fleet = Fleet(world.owners, shadow=world.shadow, settings=DEFENCES[defence], attack=ATTACKS[attack], seed=seed)
    reports = [fleet.run_version() for _ in range(num_versions)]
    return summary(reports, num_attackers=DEFENCES[defence].num_attackers)


def summary(reports: list[VersionReport], *, num_attackers: int) -> Cell:
    """Return what is printed of a fleet."""
    accuracy = 100 * np.mean([report.accuracy for report in reports[-3:]], axis=0)
    since = {device: version for version, report in reversed([*enumerate(reports, 1)]) for device in report.quarantined}
    return Cell(
        mean=float(accuracy.mean()),
        worst=float(accuracy.min()),
        success=float(np.mean([report.success for report in reports[-3:]])),
        refused=sum(report.num_refused for report in reports),
        implausible=sum(report.num_implausible for report in reports),
        quarantined=tuple(sorted(version for device, version in since.items() if device < num_attackers)),
        wrongly=sum(device >= num_attackers for device in since),
    )


def offer_poison(world: World, *, seed: int, num_versions: int = POISONED_AFTER) -> Iterable[Offered]:
    """Let an honest fleet learn, then offer it poisoned versions, kind by kind."""
    settings = FleetSettings(rule="mean", num_attackers=0)
    fleet = Fleet(world.owners, shadow=world.shadow, settings=settings, attack=ATTACKS["none"], seed=seed)
    for _ in range(num_versions):
        fleet.run_version()
    base_P, good_P = fleet.shared_P, fleet.make_version()
    shop = Workshop(fleet.standings()[0].module, world.shadow, base_P=base_P, good_P=good_P, seed=seed)
    for kind in KINDS:
        yield offer(kind, shop=shop, devices=fleet.standings(), settings=LearningSettings(), seed=seed)


def offer_honest(scene_name: str, *, seed: int, cache: Path) -> Honest:
    """Let a fleet that nobody attacks learn in a scene, every device judging every version."""
    scene, strategy = scene_of(scene_name), GatedNested()
    owners = scene.owners(cache, seed=seed)
    shape = tuple(owners[0].train.x.shape[1:])
    cohort = Cohort(
        lambda: create_model(scene.model, num_classes=NUM_CLASSES, input_shape=shape, seed=seed),
        strategy=strategy,
        settings=scene.settings,
        owners=owners,
        seed=seed,
        weigh_by_samples=True,
        server_learning_rate=RootSection().server_learning_rate,
        server_momentum=RootSection().server_momentum,
        learned_scope=True,
    )
    for _ in range(NUM_VERSIONS):
        cohort.run_round(scored=False)
    reasons = Counter(report.refusal.value for report in strategy.reports if report.refusal is not None)
    return Honest(num_merges=len(strategy.reports), reasons=dict(reasons))


def run(seeds: Iterable[int], *, results: Results, cache: Path) -> None:
    """Run what is missing, cell by cell."""
    done = results.read()
    missing = [(seed, *cell) for seed in seeds for cell in CELLS if (seed, *cell) not in done]
    started, world, seed_of_world = time.monotonic(), None, None
    for number, (seed, attack, defence) in enumerate(missing, start=1):
        if world is None or seed != seed_of_world:
            world, seed_of_world = make_world(cache, seed=seed), seed
        cell = play(world, attack, defence, seed=seed)
        results.add(seed, attack, defence, cell)
        left_s = (time.monotonic() - started) / number * (len(missing) - number)
        say(f"{number}/{len(missing)} {row(seed, attack, defence, asdict(cell))} about {left_s / 60:.0f} min left")
    for seed in seeds:
        if all((seed, kind.name, POISON) in done for kind in KINDS):
            continue
        for offered in offer_poison(make_world(cache, seed=seed), seed=seed):
            results.add(seed, offered.kind, POISON, offered)
            say(poison_row(seed, asdict(offered)))
    for seed in seeds:
        for scene in (scene for scene in SCENES if (seed, HONEST, scene) not in done):
            honest = offer_honest(scene, seed=seed, cache=cache)
            results.add(seed, HONEST, scene, honest)
            say(honest_row(seed, scene, asdict(honest)))


def say(text: str) -> None:
    """Print to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def row(seed: int, attack: str, defence: str, cell: dict, *, unhurt: float | None = None) -> str:
    """Return a table row; points lost against `unhurt`."""
    found = ", ".join(map(str, cell["quarantined"])) or "-"
    lost = "" if unhurt is None else f"{unhurt - cell['mean']:+.1f}"
    return (
        f"| {seed} | {attack} | {defence} | {cell['mean']:.1f} | {cell['worst']:.1f} | {lost} "
        f"| {100 * cell['success']:.0f} % | {cell['refused']} | {cell['implausible']} | {found} | {cell['wrongly']} |"
    )


def poison_row(seed: int, seen: dict) -> str:
    """Return a table row of a poisoned version."""
    checks = ", ".join(f"{name} {num}" for name, num in sorted(seen["reasons"].items())) or "-"
    return (
        f"| {seed} | {seen['kind']} | {100 * seen['num_refused'] / seen['num_devices']:.0f} % | {checks} "
        f"| {seen['num_partly']} | {100 * seen['lost']:+.1f} | {100 * seen['worst_lost']:+.1f} "
        f"| {100 * seen['success']:.0f} % |"
    )


def honest_row(seed: int, scene: str, seen: dict) -> str:
    """Return a table row of honest versions."""
    doubted = sum(num for name, num in seen["reasons"].items() if Refusal(name).is_implausible)
    return f"| {seed} | {scene} | {seen['num_merges']} | {doubted} | {seen['reasons'].get('holdout', 0)} |"


def tables(results: Results, seeds: Iterable[int]) -> dict[str, dict[str, float]]:
    """Print the tables and return the mean points lost by defence and attack."""
    done = results.read()
    lost: dict[str, dict[str, list[float]]] = {}
    print("| seed | attack | defence | mean | worst owner | points lost | backdoor | refused", end=" ")
    print("| implausible | found at | wrongly |\n|" + "---|" * 11)
    for seed in seeds:
        for attack, defence in CELLS:
            cell, unhurt = done[seed, attack, defence], done[seed, "none", CONTROL]["mean"]
            lost.setdefault(defence, {}).setdefault(f"points_lost_{attack}", []).append(unhurt - cell["mean"])
            print(row(seed, attack, defence, cell, unhurt=unhurt))
    print("\n| seed | poisoned version | refused | by | taken in part | points lost | worst device | backdoor |")
    print("|" + "---|" * 8)
    for seed in seeds:
        print(*(poison_row(seed, done[seed, kind.name, POISON]) for kind in KINDS), sep="\n")
    print("\n| seed | scene | honest merges | doubted | refused by the holdout |\n|" + "---|" * 5)
    for seed in seeds:
        print(*(honest_row(seed, scene, done[seed, HONEST, scene]) for scene in SCENES), sep="\n")
    return {defence: {name: float(np.mean(v)) for name, v in mine.items()} for defence, mine in lost.items()}


def main(*arguments: object) -> None:
    """Run what is missing, print tables and one JSON line."""
    parser = argparse.ArgumentParser(prog="nox -s bench -- robust", description=__doc__)
    parser.add_argument("seeds", nargs="?", type=int, default=1, help="seeds 1, 2, ... (default: 1)")
    parser.add_argument("--out", type=Path, default=Path(".nfl/robust"), help="finished cells stand here")
    parser.add_argument("--cache", type=Path, default=Path(".nfl/data"), help="keeps the images")
    chosen = parser.parse_args([str(argument) for argument in arguments])
    torch.set_num_threads(1)
    seeds, results = range(1, chosen.seeds + 1), Results(chosen.out)
    run(seeds, results=results, cache=chosen.cache)
    figures = tables(results, seeds)
    finish("robust", ours=figures[OURS], against={CONTROL: figures[CONTROL]}, runs=chosen.seeds)
