"""Interleaved timing of several things in one process, and the one JSON line that ends a benchmark."""

import json
import statistics
import time
from collections.abc import Callable


def interleaved(things: dict[str, Callable[[], object]], *, runs: int) -> dict[str, float]:
    """Run all things in turn, `runs` times after one warm-up, and return each one's median CPU milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for run in range(runs + 1):
        for name, thing in things.items():
            started = time.process_time()
            thing()
            if run:
                seconds[name].append(time.process_time() - started)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def finish(bench: str, *, ours: dict[str, float], against: dict[str, dict[str, float]], runs: int) -> None:
    """Print the result line: figures carry their unit in the name, ratios are ours over the peer's."""
    ratios = {
        f"{figure}/{peer}": ours[figure] / value
        for peer, figures in against.items()
        for figure, value in figures.items()
        if figure in ours and value
    }
    print(json.dumps({"bench": bench, "ours": ours, "against": against, "ratios": ratios, "runs": runs}))
