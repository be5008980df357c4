"""Pictures of the learning benchmark as one page: no scripts, no network; charts and style are the demo report's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from nfl_sim.demo.charts import Series, line_chart
from nfl_sim.demo.page import STYLE
from nfl_sim.learning.methods import METHODS
from nfl_sim.learning.plan import Section
from nfl_sim.learning.scenes import SCENES
from nfl_sim.learning.table import Rows, of

_COLOURS = ("c-nested", "c-local", "c-shared", "c-kill", "c-bad")
_MAX_LINES = 5


def render(sections: Sequence[Section], rows: Rows) -> str:
    """Return the page: for each section the methods over its scenes, then accuracy against bytes."""
    cards = [f"<section><h2>{escape(section.title)}</h2>{_scenes(section, rows)}</section>" for section in sections]
    scenes = dict.fromkeys(scene for section in sections for scene in section.scenes)
    cards += [
        f"<section><h2>Accuracy against bytes up: {escape(SCENES[scene].title)}</h2>{_bytes(scene, rows)}</section>"
        for scene in scenes
        if of(rows, scene, "fedavg")
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>NFL: what the methods are worth</title>'
        f"<style>{STYLE}</style></head><body><main><h1>What the methods are worth</h1>"
        "<p>Accuracy of the personal models after a merge, mean over seeds, all test samples.</p>"
        f"{''.join(cards)}</main></body></html>\n"
    )


def _scenes(section: Section, rows: Rows) -> str:
    lines = [
        Series(
            label=METHODS[method].title,
            css=_COLOURS[place % len(_COLOURS)],
            points=[
                (column, statistics.fmean(row.weighted for row in found))
                for column, scene in enumerate(section.scenes, start=1)
                if (found := of(rows, scene, method))
            ],
        )
        for place, method in enumerate(section.methods[:_MAX_LINES])
    ]
    named = ", ".join(f"{column}: {SCENES[scene].title}" for column, scene in enumerate(section.scenes, start=1))
    return line_chart(lines, x_label=named, y_label="accuracy, %", title=section.title)


def _bytes(scene: str, rows: Rows) -> str:
    names = dict.fromkeys(
        method for found, method, _ in rows if found == scene and method.startswith(("fedavg", "bits"))
    )
    lines = []
    for place, method in enumerate(name for name in names if name != "fedavg-ft"):
        curve = of(rows, scene, method)[0].curve
        points = [(sent / 1e6, accuracy) for _, sent, accuracy in curve if sent]
        lines.append(Series(label=METHODS[method].title, css=_COLOURS[place % len(_COLOURS)], points=points))
    return line_chart(lines[:_MAX_LINES], x_label="MB up, all owners, first seed", y_label="accuracy, %", title=scene)
