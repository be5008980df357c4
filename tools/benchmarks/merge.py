"""What merges cost their owners, beside taking every version whole: `nox -s bench -- merge [SEEDS]`."""

import statistics
from pathlib import Path

import torch
from _measure import finish

from nfl_sim.learning.merges import measure_merges
from nfl_sim.learning.run import measure

SCENES = ("dir-0.1", "dir-0.5", "dir-5")
CACHE = Path(".nfl/data")


def main(seeds: int = 1) -> None:
    """Measure so many seeds in every scene, print a table and one JSON line."""
    torch.set_num_threads(1)
    print("scene seed | merges, refused, mean share | shock p50 p90 | price p50 p90 max, over 2 | on test | accuracy")
    ours, whole = {}, {}
    for scene in SCENES:
        rows = []
        for seed in range(seeds):
            rows.append(row := measure_merges(scene, seed=seed, cache=CACHE))
            print(
                f"{scene} {seed} | {row.num} {row.num_refused} {row.mean_alpha:.2f} | {row.shock} | {row.price} "
                f"{row.num_over_2} | {row.test_price} | {row.weighted:.1f}",
                flush=True,
            )
        ours[f"{scene}_shock_median_points"] = statistics.fmean(row.shock[0] for row in rows)
        ours[f"{scene}_over_2_points"] = sum(row.num_over_2 for row in rows)
        ours[f"{scene}_accuracy_percent"] = statistics.fmean(row.weighted for row in rows)
        always = [measure(scene, "nested", seed=seed, cache=CACHE).curve[-1][2] for seed in range(seeds)]
        whole[f"{scene}_accuracy_percent"] = statistics.fmean(always)
    finish("merge", ours=ours, against={"always_whole": whole}, runs=seeds * len(SCENES))
