"""The report's contract, the table and the page."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import pytest
from pydantic import ValidationError
from rich.console import Console

from nfl_sim.demo.charts import Mark, Series, bars, line_chart, timeline
from nfl_sim.demo.page import render
from nfl_sim.demo.report import Accuracies, Accuracy, Moment, Proof, Report, Round, Versions, settled, table_of

PROOF = Proof(
    batches=3, batches_exact=3, contributions=15, contributions_twice=0, sent_messages=40, sent_bytes=700_000,
    private_values=650, pixel_rows=8000, found=0, control_found=4, control_planted=4, receipts=15, receipts_counted=15,
    receipts_dropped=0, receipts_waiting=0, receipts_unaccounted=0,
)  # fmt: skip


def make_report(**changes: object) -> Report:
    rounds = [Round(number=n, nested=[0.8, 0.9], local=[0.7, 0.8], shared=[0.6, 0.7]) for n in (1, 2)]
    fields: dict[str, object] = {
        "seconds": 83.2,
        "peak_rss_mb": 3600.0,
        "accuracy": Accuracies(
            nested=Accuracy.of([0.8, 0.9]), local=Accuracy.of([0.7, 0.8]), shared=Accuracy.of([0.6, 0.7])
        ),
        "bytes_up_per_device_per_version": 37_000.0,
        "bytes_contribution": 31_000.0,
        "bytes_fp32": 192_000,
        "versions": Versions(published=6, refused=1, rolled_back=1),
        "devices": 20,
        "data": "real <fashion>",
        "seed": 0,
        "rounds": rounds,
        "moments": [Moment(at_s=3.0, row=0, css="c-nested", label="v2 & <b>", until_s=5.0)],
        "restarts": [],
        "batches_bounded": 1,
        "proof": PROOF,
    }
    return Report.model_validate({**fields, **changes})


def test_the_contract_keys_stand_where_they_were_promised() -> None:
    document = json.loads(make_report().model_dump_json())
    assert document["accuracy"]["nested"] == {"mean": pytest.approx(0.85), "worst": 0.8}
    assert set(document["accuracy"]) == {"nested", "local", "shared"}
    assert set(document["versions"]) == {"published", "refused", "rolled_back"}
    for key in ("seconds", "peak_rss_mb", "bytes_up_per_device_per_version", "bytes_fp32"):
        assert isinstance(document[key], (int, float)), key


def test_a_final_accuracy_is_each_devices_mean_over_the_last_three_rounds() -> None:
    final = settled([[0.0, 0.0], [0.9, 0.6], [0.6, 0.9], [0.9, 0.9]])
    assert (final.mean, final.worst) == (pytest.approx(0.8), pytest.approx(0.8))
    assert settled([[0.5, 0.7]]).worst == 0.5


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="speed"):
        make_report(speed=1)


@pytest.mark.parametrize(
    "flaw",
    [
        {"batches_exact": 2},
        {"batches": 0, "batches_exact": 0},
        {"found": 1},
        {"control_found": 3},
        {"control_planted": 0, "control_found": 0},
        {"receipts_unaccounted": 1},
        {"contributions_twice": 1},
    ],
)
def test_a_flawed_proof_does_not_hold(flaw: dict[str, int]) -> None:
    assert PROOF.holds
    assert not PROOF.model_copy(update=flaw).holds


def test_the_table_names_what_a_reader_looks_for() -> None:
    out = io.StringIO()
    Console(file=out, width=110).print(table_of(make_report()))
    text = out.getvalue()
    for part in (
        "nested",
        "local only",
        "shared only",
        "85.0 %",
        "80.0 %",
        "6 published",
        "1 refused",
        "1 rolled back",
    ):
        assert part in text


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_needs_no_network_and_no_scripts() -> None:
    page = render(make_report())
    tags = _Tags()
    tags.feed(page)
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "img", "iframe", "object"}
    assert not re.findall(r"https?://(?!www\.w3\.org)", page)
    assert not [name for _, attrs in tags.seen for name in attrs if name in {"src", "href", "onload"}]
    assert sum(tag == "svg" for tag, _ in tags.seen) == 3
    assert "prefers-color-scheme:dark" in page


def test_the_page_escapes_what_it_is_given() -> None:
    page = render(make_report())
    assert "real &lt;fashion&gt;" in page
    assert "v2 &amp; &lt;b&gt;" in page
    assert "<fashion>" not in page


def test_a_line_ends_with_its_value_at_its_height() -> None:
    svg = line_chart(
        [Series(label="a", css="c", points=[(1, 50), (2, 100)]), Series(label="b", css="c", points=[(1, 50), (2, 50)])],
        x_label="x",
        y_label="y",
        title="t",
    )
    (a_y, b_y) = (float(y) for y in re.findall(r'<circle class="dot c" cx="[\d.]+" cy="([\d.]+)"', svg))
    assert a_y < b_y  # 100 % is above 50 %
    assert "a 100.0" in svg


def test_a_chart_of_nothing_says_so() -> None:
    assert "nothing was measured" in line_chart([], x_label="x", y_label="y", title="t")


def test_marks_stand_in_the_order_of_time() -> None:
    marks = [Mark(at_s=50, label="late", css="c"), Mark(at_s=10, label="early", css="c", until_s=20)]
    svg = timeline(marks, end_s=60, rows=["one"], title="t")
    xs = [float(x) for x in re.findall(r'<circle class="dot c" cx="([\d.]+)"', svg)]
    assert xs == sorted(xs)
    assert len(xs) == 2
    assert svg.count("<rect") == 1


def test_the_longest_bar_is_the_largest_value() -> None:
    svg = bars([("a", 10, "c"), ("b", 40, "c")], unit="kB", title="t")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="22"', svg)]
    assert widths[1] == pytest.approx(4 * widths[0])
