"""Small SVG pictures as text: lines over versions, marks over time, bars. No scripts, no fonts, no network.

Colours are CSS classes (`c-nested`, `c-local`, ...), so the page decides how they look in the light and in the dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 134, 28, 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        label: Stands at its end.
        css: Class of its colour.
        points: (x, y), rising x.
        dashed: For the worst device.
    """

    label: str
    css: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One moment on a time line.

    Attributes:
        at_s: Seconds since the start.
        label: What happened.
        css: Class of its colour.
        row: 0 is the top row.
        until_s: End of a span; None: a moment.
    """

    at_s: float
    label: str
    css: str
    row: int = 0
    until_s: float | None = None


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, title: str) -> str:
    """Return a chart of lines; y is a percentage from the lowest point to 100."""
    points = [point for line in series for point in line.points]
    if not points:
        return f"<p>{escape(title)}: nothing was measured.</p>"
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = 10 * int(min(y for _, y in points) // 10), 100.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), _TOP + (y_high - y) / (y_high - y_low) * (
            HEIGHT - _TOP - _BOTTOM
        )

    parts = [_grid(place, x_low=x_low, x_high=x_high, y_low=y_low)]
    label_ys: list[float] = []
    for line in sorted(series, key=lambda line: -line.points[-1][1] if line.points else 0):
        if not line.points:
            continue
        path = " ".join(
            f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(place(*p) for p in line.points)
        )
        parts.append(f'<path class="line {line.css}{" dashed" if line.dashed else ""}" d="{path}"/>')
        x_end, y_end = place(*line.points[-1])
        y_text = max([y_end + 4, *(y + 14 for y in label_ys)]) if label_ys else y_end + 4
        label_ys.append(y_text)
        parts.append(f'<circle class="dot {line.css}" cx="{x_end:.1f}" cy="{y_end:.1f}" r="3"/>')
        parts.append(
            f'<text class="fill {line.css}" x="{x_end + 8:.1f}" y="{y_text:.1f}">{escape(line.label)} {line.points[-1][1]:.1f}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(WIDTH - _RIGHT + _LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text class="axis" x="4" y="10">{escape(y_label)}</text>')
    return _svg(parts, height=HEIGHT, title=title)


def timeline(marks: Sequence[Mark], *, end_s: float, rows: Sequence[str], title: str) -> str:
    """Return marks and spans over seconds, one row a kind."""
    row_height, top = 46, 10
    height = top + row_height * len(rows) + 34

    def across(at_s: float) -> float:
        return 92 + at_s / (end_s or 1) * (WIDTH - 92 - 16)

    parts = []
    for row, name in enumerate(rows):
        y = top + row * row_height + row_height / 2
        parts.append(
            f'<line class="grid" x1="92" y1="{y}" x2="{WIDTH - 16}" y2="{y}"/><text class="axis" x="4" y="{y + 4}">{escape(name)}</text>'
        )
    last_x = [-1e9] * len(rows)
    flip = [False] * len(rows)
    for mark in sorted(marks, key=lambda mark: mark.at_s):
        x, y = across(mark.at_s), top + mark.row * row_height + row_height / 2
        flip[mark.row] = not flip[mark.row] if x - last_x[mark.row] < 8 * len(mark.label) + 10 else False
        last_x[mark.row] = x
        if mark.until_s is not None:
            parts.append(
                f'<rect class="fill {mark.css}" opacity=".35" x="{x:.1f}" y="{y - 7}" width="{max(3.0, across(mark.until_s) - x):.1f}" height="14" rx="3"/>'
            )
        parts.append(
            f'<circle class="dot {mark.css}" cx="{x:.1f}" cy="{y}" r="5"><title>{escape(mark.label)} at {mark.at_s:.1f} s</title></circle>'
        )
        anchor = "end" if x > WIDTH - 60 else "middle"
        parts.append(
            f'<text class="fill small {mark.css}" x="{x:.1f}" y="{y + (20 if flip[mark.row] else -10)}" text-anchor="{anchor}">{escape(mark.label)}</text>'
        )
    parts += [
        f'<text class="axis" x="{across(second):.1f}" y="{height - 8}" text-anchor="middle">{second} s</text>'
        for second in range(0, int(end_s) + 1, 10)
    ]
    return _svg(parts, height=height, title=title)


def bars(rows: Sequence[tuple[str, float, str]], *, unit: str, title: str) -> str:
    """Return horizontal bars of (label, value, css)."""
    top, step = 8, 34
    largest = max((value for _, value, _ in rows), default=1.0) or 1.0
    parts = []
    for i, (label, value, css) in enumerate(rows):
        y, width = top + i * step, value / largest * (WIDTH - 420)
        parts.append(f'<text class="axis" x="4" y="{y + 16}">{escape(label)}</text>')
        parts.append(f'<rect class="fill {css}" x="270" y="{y}" width="{max(width, 2):.1f}" height="22" rx="3"/>')
        parts.append(f'<text class="axis" x="{278 + width:.1f}" y="{y + 16}">{value:,.1f} {escape(unit)}</text>')
    return _svg(parts, height=top + step * len(rows), title=title)


def _grid(place: object, *, x_low: float, x_high: float, y_low: int) -> str:
    assert callable(place)  # the chart's own mapping
    lines = []
    for y in range(y_low, 101, 10):
        (left, at), (right, _) = place(x_low, y), place(x_high, y)
        lines.append(
            f'<line class="grid" x1="{left:.1f}" y1="{at:.1f}" x2="{right:.1f}" y2="{at:.1f}"/><text class="axis" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y}</text>'
        )
    for x in range(int(x_low), int(x_high) + 1):
        at, bottom = place(x, y_low)
        lines.append(f'<text class="axis" x="{at:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{x}</text>')
    return "".join(lines)


def _svg(parts: Sequence[str], *, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
