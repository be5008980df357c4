"""The page `report.html`: one file, no scripts, no network, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nfl_sim.demo.charts import Mark, Series, bars, line_chart, timeline
from nfl_sim.demo.report import Report

ROWS = ("published", "refused", "rollout", "faults")
STYLE = """
:root{--bg:#fbfcfd;--ink:#17212b;--soft:#5b6b7a;--line:#dfe5ea;--card:#fff;--nested:#1a7f5a;--local:#b7791f;--shared:#2b6cb0;--bad:#c53030;--kill:#805ad5}
@media(prefers-color-scheme:dark){:root{--bg:#12181e;--ink:#eaf0f5;--soft:#9fb0c0;--line:#2b3742;--card:#1a222a;--nested:#4fd1a1;--local:#ecc36b;--shared:#7fb8f0;--bad:#fc8181;--kill:#b794f4}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:860px;margin:0 auto;padding:32px 20px 64px}h1{font-size:1.7rem;margin:0 0 4px}h2{font-size:1.1rem;margin:0 0 12px}
p{margin:0 0 12px;color:var(--soft)}section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px;margin-top:20px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:12px;margin-top:20px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}.tile b{display:block;font-size:1.5rem}.tile span{color:var(--soft);font-size:.85rem}
svg{width:100%;height:auto;display:block;font:12px system-ui,sans-serif}.grid{stroke:var(--line)}.axis{fill:var(--soft)}
.line{fill:none;stroke-width:2.5}.dashed{stroke-dasharray:5 4;stroke-width:1.8}.small{font-size:11px}
.c-nested{stroke:var(--nested);color:var(--nested)}.c-local{stroke:var(--local);color:var(--local)}.c-shared{stroke:var(--shared);color:var(--shared)}
.c-bad{stroke:var(--bad);color:var(--bad)}.c-kill{stroke:var(--kill);color:var(--kill)}
.fill,.dot{stroke:none;fill:currentColor}table{border-collapse:collapse;width:100%}td,th{padding:6px 10px 6px 0;border-bottom:1px solid var(--line);text-align:left}
td.num,th.num{text-align:right;font-variant-numeric:tabular-nums}
"""


def render(report: Report) -> str:
    """Return the whole page."""
    learners = report.accuracy
    saved = (
        report.bytes_fp32 / report.bytes_up_per_device_per_version if report.bytes_up_per_device_per_version else 0.0
    )
    tiles = (
        (f"{100 * learners.nested.mean:.1f} %", "accuracy of the mean device, nested"),
        (f"{report.versions.published}", "versions published through gates and waves"),
        (f"{report.versions.refused} / {report.versions.rolled_back}", "candidates refused / versions rolled back"),
        (f"{saved:.1f} x", "fewer bytes up than fp32, everything counted"),
    )
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>NFL demo: {report.devices} devices</title><style>{STYLE}</style></head><body><main>",
            "<h1>A fleet that learns, and keeps its secrets</h1>",
            f"<p>{report.devices} devices, {escape(report.data)}, {report.seconds:.0f} seconds on one machine, peak memory {report.peak_rss_mb / 1000:.2f} GB, seed {report.seed}.</p>",
            '<div class="tiles">'
            + "".join(f'<div class="tile"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in tiles)
            + "</div>",
            _card(
                "Accuracy on each owner's own test images",
                "After each micro-update of everybody. Solid: the mean device. Dashed: the worst one. Final figures: last three rounds.",
                _accuracy(report),
            ),
            _card(
                "What happened to versions",
                "Gates refuse, waves widen, devices fall back by themselves, the root rolls back; a killed leaf comes back.",
                _moments(report),
            ),
            _card(
                "Bytes up, a device and version",
                "Sealed: masked, signed, with headers, reports and polls.",
                _bytes(report),
            ),
            _card("Figures", "", _figures(report)),
            _card(
                "Shown beyond doubt",
                "A double of keeper and leaf together opened what neither can open alone; then everything sent was searched.",
                _proof(report),
            ),
            "</main></body></html>",
        )
    )


def _card(title: str, text: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{f'<p>{escape(text)}</p>' if text else ''}{body}</section>"


def _accuracy(report: Report) -> str:
    def lines(name: str, css: str, values: Sequence[Sequence[float]]) -> list[Series]:
        numbers = [round_.number for round_ in report.rounds]
        mean = [(number, 100 * sum(row) / len(row)) for number, row in zip(numbers, values, strict=True) if row]
        worst = [(number, 100 * min(row)) for number, row in zip(numbers, values, strict=True) if row]
        return [
            Series(label=name, css=css, points=mean),
            Series(label=f"{name}, worst", css=css, points=worst, dashed=True),
        ]

    series = [
        *lines("nested", "c-nested", [round_.nested for round_ in report.rounds]),
        *lines("local", "c-local", [round_.local for round_ in report.rounds]),
        *lines("shared", "c-shared", [round_.shared for round_ in report.rounds]),
    ]
    return line_chart(
        series, x_label="micro-updates a device", y_label="accuracy, %", title="Accuracy over micro-updates"
    )


def _moments(report: Report) -> str:
    marks = [
        Mark(at_s=moment.at_s, label=moment.label, css=moment.css, row=moment.row, until_s=moment.until_s)
        for moment in report.moments
    ]
    return timeline(marks, end_s=report.seconds, rows=ROWS, title="Versions over time")


def _bytes(report: Report) -> str:
    rows = [
        ("shared levels as fp32", report.bytes_fp32 / 1000, "c-shared"),
        ("nested, all that a device sends", report.bytes_up_per_device_per_version / 1000, "c-nested"),
        ("of which the sealed contribution", report.bytes_contribution / 1000, "c-nested"),
    ]
    return bars(rows, unit="kB", title="Bytes up")


def _figures(report: Report) -> str:
    learners = (
        ("nested", report.accuracy.nested),
        ("local only", report.accuracy.local),
        ("shared only", report.accuracy.shared),
    )
    rows = "".join(
        f'<tr><td>{name}</td><td class="num">{100 * learner.mean:.1f} %</td><td class="num">{100 * learner.worst:.1f} %</td></tr>'
        for name, learner in learners
    )
    return f'<table><tr><th>learner</th><th class="num">mean device</th><th class="num">worst device</th></tr>{rows}</table>'


def _proof(report: Report) -> str:
    proof = report.proof
    rows = (
        ("batches whose integer sum is exactly what the devices put in", f"{proof.batches_exact} of {proof.batches}"),
        ("contributions in them", f"{proof.contributions}"),
        (
            "receipts without a batch that counted or was dropped by name",
            f"{proof.receipts_unaccounted} of {proof.receipts}",
        ),
        ("messages and bytes searched", f"{proof.sent_messages:,} and {proof.sent_bytes:,}"),
        ("private values and pixel rows searched for", f"{proof.private_values:,} and {proof.pixel_rows:,}"),
        ("found (and found in the control with a planted leak)", f"{proof.found} ({proof.control_found})"),
    )
    return (
        "<table>"
        + "".join(f'<tr><td>{escape(name)}</td><td class="num">{value}</td></tr>' for name, value in rows)
        + "</table>"
    )
