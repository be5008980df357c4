"""Measure methods in scenes, one run a time, resumable: what is done stands in `results.json` and is not run again.

A run's name is scene, method and seed. Its row keeps a digest of what the scene meant, so that rows of an older meaning
are refused instead of mixed in.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ContentError
from nfl_core.ids import digest_of
from nfl_core.learning import Cohort, Owner, RoundReport, create_model
from nfl_sim.data.fashion import load_images
from nfl_sim.learning.long import vary
from nfl_sim.learning.methods import Method, method_of
from nfl_sim.learning.scenes import NUM_CLASSES, Scene, scene_of

_LOG = logging.getLogger(__name__)
NUM_LAST = 3  # a figure is the mean over the last rounds: single rounds swing by a point
RESULTS = "results.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one run gave; accuracies of the personal models after a merge, percent, mean of the last rounds.

    Attributes:
        scene: Name of the scene.
        method: Name of the method.
        seed: Seed of data, weights and order.
        weighted: Accuracy over all test samples of all owners.
        mean: Of the mean owner.
        worst: Of the worst owner.
        best: `weighted` in the best of the scored rounds, as published tables give it.
        before_merge: `weighted` right after local training.
        bytes_up: Of all owners, all rounds.
        steps: Batches learned from, all owners, all rounds; what a method tunes before it answers is not in it.
        cpu_s: CPU seconds of training and merging.
        wall_s: Seconds of the run.
        curve: (round, bytes up so far, `weighted`) of each scored round.
        meaning: Digest of the scene.
    """

    scene: str
    method: str
    seed: int
    weighted: float
    mean: float
    worst: float
    best: float
    before_merge: float
    bytes_up: int
    steps: int
    cpu_s: float
    wall_s: float
    curve: tuple[tuple[int, int, float], ...]
    meaning: str

    @property
    def key(self) -> tuple[str, str, int]:
        """Scene, method and seed."""
        return self.scene, self.method, self.seed


def meaning_of(scene: Scene) -> str:
    """Return a digest of everything a scene says."""
    return digest_of(repr(scene).encode())[:16]


def measure(scene_name: str, method_name: str, *, seed: int, cache: Path) -> Row:
    """Run one method in one scene. Raises NotFoundError, ConfigError."""
    scene, method = scene_of(scene_name), method_of(method_name)
    owners = scene.owners(cache, seed=seed)
    started = time.monotonic()
    cohort = _cohort(scene, method, owners, seed)
    sizes = np.array([len(owner.test.y) for owner in owners], np.float64)
    reports: list[tuple[int, int, RoundReport]] = []
    bytes_up, steps, cpu_s = 0, 0, 0.0
    for number in range(1, scene.rounds + 1):
        if scene.long:
            vary(cohort, owners, progress=(number - 1) / scene.rounds, seed=seed * scene.rounds + number)
        scored = not method.tunes or number > scene.rounds - NUM_LAST
        report = cohort.run_round(scored=scored)
        bytes_up, steps, cpu_s = bytes_up + report.bytes_up, steps + report.num_steps, cpu_s + report.cpu_s
        if scored:
            reports.append((number, bytes_up, report))

    def weighted(accuracies: Sequence[float]) -> float:
        return round(100 * float(np.average(accuracies, weights=sizes)), 3)

    curve = tuple((number, sent, weighted(report.after_merge)) for number, sent, report in reports)
    last = [report for _, _, report in reports[-NUM_LAST:]]
    after = np.mean([report.after_merge for report in last], axis=0)
    return Row(
        scene=scene_name,
        method=method_name,
        seed=seed,
        weighted=weighted(after),
        mean=round(100 * float(after.mean()), 3),
        worst=round(100 * float(after.min()), 3),
        best=max(value for _, _, value in curve),
        before_merge=weighted(np.mean([report.after_local for report in last], axis=0)),
        bytes_up=bytes_up,
        steps=steps,
        cpu_s=round(cpu_s, 2),
        wall_s=round(time.monotonic() - started, 2),
        curve=curve,
        meaning=meaning_of(scene),
    )


def _cohort(scene: Scene, method: Method, owners: Sequence[Owner], seed: int) -> Cohort:
    shape = tuple(owners[0].train.x.shape[1:])
    return Cohort(
        lambda: create_model(scene.model, num_classes=NUM_CLASSES, input_shape=shape, seed=seed),
        strategy=method.strategy(),
        settings=scene.settings,
        owners=owners,
        seed=seed,
        weigh_by_samples=True,
        server_learning_rate=scene.server_learning_rate,
        server_momentum=method.server_momentum,
        transport=method.transport(),
        participation=method.participation,
        learned_scope=method.learned_scope,
    )


def run_all(
    wanted: Iterable[tuple[str, str, int]],
    *,
    out: Path,
    cache: Path,
    say: Callable[[str], None] = _LOG.info,
) -> Mapping[tuple[str, str, int], Row]:
    """Measure what is not in `out` yet, saving after each run; return all that was wanted.

    Raises:
        ContentError: `out` holds results that cannot be read, or of scenes that meant something else.
    """
    torch.set_num_threads(1)
    make_folder(out)
    rows = read_rows(out)
    missing = [key for key in dict.fromkeys(wanted) if key not in rows]
    load_images(cache, say=say)
    started = time.monotonic()
    for done, (scene, method, seed) in enumerate(missing, start=1):
        row = measure(scene, method, seed=seed, cache=cache)
        rows[row.key] = row
        write_file(out / RESULTS, json.dumps([asdict(kept) for kept in rows.values()], indent=0).encode())
        left_s = (time.monotonic() - started) / done * (len(missing) - done)
        say(
            f"{done}/{len(missing)} {scene} {method} seed {seed}: {row.weighted:.1f} %, worst {row.worst:.1f} % "
            f"({row.wall_s:.0f} s; about {left_s / 60:.0f} min left)"
        )
    return {key: rows[key] for key in dict.fromkeys(wanted)}


def read_rows(out: Path) -> dict[tuple[str, str, int], Row]:
    """Return the rows of a folder by scene, method and seed; none when there is no file. Raises ContentError."""
    path = out / RESULTS
    if not path.exists():
        return {}
    try:
        raw = json.loads(path.read_text())
        rows = [_row(item) for item in raw]
    except (ValueError, TypeError, KeyError) as error:
        raise ContentError(f"{path} cannot be read: {error}; move it away to measure anew") from error
    stale = sorted({row.scene for row in rows if row.meaning != meaning_of(scene_of(row.scene))})
    if stale:
        raise ContentError(f"{path} holds runs of scenes that meant something else: {', '.join(stale)}; move it away")
    return {row.key: row for row in rows}


def _row(item: Mapping[str, object]) -> Row:
    if set(item) != {field.name for field in fields(Row)}:
        raise KeyError(f"a row has {sorted(item)}")
    values: dict[str, object] = {**item, "curve": tuple(tuple(point) for point in item["curve"])}  # type: ignore[attr-defined]  # JSON
    return Row(**values)  # type: ignore[arg-type]  # JSON
