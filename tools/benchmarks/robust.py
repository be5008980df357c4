"""What attackers cost the honest owners of a sealed fleet, by attack and defence: `nox -s bench -- robust [SEEDS]`.

20 owners of Fashion-MNIST (8,000 images, Dirichlet 0.5), 4 of them attack, 10 versions of the default settings.
Each cell is a whole fleet that learns for 10 versions: half a minute of one processor. The plain mean is the positive
control: where it is not hurt, an attack is none. Then kinds of poisoned versions are offered to every device's merge.

Written to stderr as it goes: one line a cell. On stdout: the tables, and as last line one JSON object.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _measure import finish

from nfl_cluster.aggregate.reputation import Settings
from nfl_core.learning import LearningSettings
from nfl_sim.attacks.attack import ATTACKS
from nfl_sim.attacks.fleet import Fleet, FleetSettings, VersionReport
from nfl_sim.attacks.versions import KINDS, Workshop, offer
from nfl_sim.attacks.world import World, make_world

NUM_VERSIONS = 10
CACHE = Path(__file__).resolve().parents[2] / ".nfl/data"
DEFENCES = {
    "mean": FleetSettings(rule="mean", with_gate=False),
    "mean, merge gate": FleetSettings(rule="mean"),
    "mean, no quantiser": FleetSettings(rule="mean", bits=None, with_gate=False),
    "norm-bound": FleetSettings(rule="norm-bound", with_gate=False),
    "geometric-median, batches of 2": FleetSettings(rule="geometric-median", batch_size=2, with_gate=False),
    "dnc, batches of 2": FleetSettings(rule="dnc", batch_size=2, with_gate=False, reputation=Settings()),
    "dnc, batches of 2, merge gate": FleetSettings(rule="dnc", batch_size=2, reputation=Settings()),
    "shadow-trust": FleetSettings(rule="shadow-trust", with_gate=False, reputation=Settings()),
}
CONTROL, OURS = "mean", "dnc, batches of 2"
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
    *(("none", defence) for defence in (CONTROL, OURS, "shadow-trust")),
    *((attack, defence) for attack in STRONG for defence in (CONTROL, OURS)),
    *((attack, OURS) for attack in MILD),
    *(("ipm-optimal", defence) for defence in DEFENCES if defence not in {CONTROL, OURS}),
    ("alie-optimal", "shadow-trust"),
    ("alie-optimal", "dnc, batches of 2, merge gate"),
    ("scaled-backdoor", "dnc, batches of 2, merge gate"),
    ("scaled-backdoor", "shadow-trust"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One fleet after its last version; accuracies are of the last three versions' mean, in points."""

    mean: float
    worst: float
    success: float
    refused: int
    quarantined: tuple[int, ...]
    wrongly: int


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
        quarantined=tuple(sorted(version for device, version in since.items() if device < num_attackers)),
        wrongly=sum(device >= num_attackers for device in since),
    )


def offer_poison(world: World, *, seed: int, num_versions: int = 5) -> list[str]:
    """Let an honest fleet learn, then offer it poisoned versions; return table rows."""
    settings = FleetSettings(rule="mean", num_attackers=0)
    fleet = Fleet(world.owners, shadow=world.shadow, settings=settings, attack=ATTACKS["none"], seed=seed)
    for _ in range(num_versions):
        fleet.run_version()
    base_P, good_P = fleet.shared_P, fleet.make_version()
    shop = Workshop(fleet.models()[0][0], world.shadow, base_P=base_P, good_P=good_P, seed=seed)
    rows = []
    for kind in KINDS:
        seen = offer(kind, shop=shop, devices=fleet.models(), settings=LearningSettings(), seed=seed)
        rows.append(
            f"| {seed} | {seen.kind} | {100 * seen.num_refused / seen.num_devices:.0f} % | {seen.num_partly} "
            f"| {100 * seen.lost:+.1f} | {100 * seen.worst_lost:+.1f} | {100 * seen.success:.0f} % |"
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def line(seed: int, attack: str, defence: str, cell: Cell, lost: float | None) -> str:
    """Return a table row."""
    found = ", ".join(map(str, cell.quarantined)) or "-"
    loss = "" if lost is None else f"{lost:+.1f}"
    return (
        f"| {seed} | {attack} | {defence} | {cell.mean:.1f} | {cell.worst:.1f} | {loss} | {100 * cell.success:.0f} % "
        f"| {cell.refused} | {found} | {cell.wrongly} |"
    )


def main(seeds: int = 1) -> None:
    """Run all cells for `seeds` seeds, and print tables and one JSON line."""
    torch.set_num_threads(1)
    rows, poison = [], []
    lost: dict[tuple[str, str], list[float]] = {}
    for seed in range(1, seeds + 1):
        world, unhurt = make_world(CACHE, seed=seed), 0.0
        for attack, defence in CELLS:
            cell = play(world, attack, defence, seed=seed)
            unhurt = cell.mean if (attack, defence) == ("none", CONTROL) else unhurt
            lost.setdefault((attack, defence), []).append(unhurt - cell.mean)
            rows.append(line(seed, attack, defence, cell, unhurt - cell.mean))
            print(rows[-1], file=sys.stderr, flush=True)
        poison += offer_poison(world, seed=seed)
    print("| seed | attack | defence | mean | worst owner | points lost | backdoor | refused | found at | wrongly |")
    print("|---|---|---|---|---|---|---|---|---|---|", *rows, sep="\n")
    print("\n| seed | poisoned version | refused | taken in part | points lost | worst device | backdoor |")
    print("|---|---|---|---|---|---|---|", *poison, sep="\n")
    figures = {
        defence: {
            f"points_lost_{attack}": float(np.mean(values))
            for (attack, mine), values in lost.items()
            if mine == defence
        }
        for defence in (OURS, CONTROL)
    }
    finish("robust", ours=figures[OURS], against={CONTROL: figures[CONTROL]}, runs=seeds)
