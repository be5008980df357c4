"""Tables of the learning benchmark: mean and deviation over seeds, one row a method, one column a scene."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from nfl_sim.learning.methods import METHODS
from nfl_sim.learning.plan import Section
from nfl_sim.learning.run import Row
from nfl_sim.learning.scenes import SCENES

Rows = Mapping[tuple[str, str, int], Row]
FIGURES: Mapping[str, Callable[[Row], float]] = {
    "all test samples": lambda row: row.weighted,
    "mean owner": lambda row: row.mean,
    "worst owner": lambda row: row.worst,
}


def of(rows: Rows, scene: str, method: str) -> list[Row]:
    """Return the rows of one scene and method, by seed."""
    return [rows[key] for key in sorted(rows) if key[:2] == (scene, method)]


def spread(values: Sequence[float]) -> str:
    """Return mean +- deviation of the sample, `-` without values; one value has no deviation."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} +- {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def section_table(section: Section, rows: Rows) -> str:
    """Return one section as Markdown: accuracies in percent, then bytes and CPU seconds of the whole run."""
    lines = [f"### {section.title}", ""]
    for name, figure in FIGURES.items():
        lines += [f"Personal accuracy, {name}, %", "", *_grid(section, rows, figure), ""]
    lines += ["Bytes up of all owners, MB", "", *_grid(section, rows, lambda row: row.bytes_up / 1e6), ""]
    lines += ["CPU seconds", "", *_grid(section, rows, lambda row: row.cpu_s), ""]
    return "\n".join(lines)


def _grid(section: Section, rows: Rows, figure: Callable[[Row], float]) -> list[str]:
    lines = ["| method | " + " | ".join(SCENES[scene].title for scene in section.scenes) + " | mean |"]
    lines.append("|---" * (len(section.scenes) + 2) + "|")
    for method in section.methods:
        per_scene = [[figure(row) for row in of(rows, scene, method)] for scene in section.scenes]
        means = [statistics.fmean(values) for values in per_scene if values]
        overall = f"{statistics.fmean(means):.1f}" if len(means) == len(section.scenes) else "-"
        lines.append(f"| {METHODS[method].title} | {' | '.join(map(spread, per_scene))} | {overall} |")
    return lines


def bytes_to_reach(curve: Sequence[tuple[int, int, float]], accuracy: float) -> int | None:
    """Return the bytes of all owners when `accuracy` (percent) was first reached; None: it never was."""
    return next((sent for _, sent, reached in curve if reached >= accuracy and sent), None)


def savings(rows: Rows, scene: str, methods: Sequence[str]) -> str:
    """Return a Markdown table: bytes until FedAvg's final accuracy, against FedAvg's own float32 bytes."""
    lines = [
        f"Bytes to FedAvg's final accuracy, {SCENES[scene].title}",
        "",
        "| method | MB | times fewer |",
        "|---|---|---|",
    ]
    base = of(rows, scene, "fedavg")
    for method in methods:
        sent = [
            bytes_to_reach(row.curve, target.weighted)
            for row, target in zip(of(rows, scene, method), base, strict=False)
        ]
        reached = [value for value in sent if value is not None]
        own = [bytes_to_reach(row.curve, row.weighted) or row.bytes_up for row in base]
        if not sent or len(reached) < len(sent):
            lines.append(f"| {METHODS[method].title} | {'never reached' if sent else '-'} | - |")
            continue
        ratios = [mine / value for mine, value in zip(own, reached, strict=False)]
        lines.append(f"| {METHODS[method].title} | {spread([v / 1e6 for v in reached])} | {spread(ratios)} |")
    return "\n".join([*lines, ""])
