"""The judge of the kill campaign: what counts as an end, and what does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nfl_sim.campaigns import kill
from nfl_sim.campaigns.kill import RIGHT, STOPPED, VIOLATION, Case, judge, kind_of, play, table
from nfl_sim.demo.report import Accuracies, Accuracy, Proof, Report, Versions

NAMED = "error[process.died]: leaf-1-service died 9 times\nwhy: it cannot be brought back\ntry: read its log\n"


def report(*, lost: int = 0) -> Report:
    accuracy = Accuracy(mean=0.9, worst=0.8)
    proof = Proof(
        batches=3,
        batches_exact=3,
        contributions=15,
        contributions_twice=0,
        sent_messages=10,
        sent_bytes=1000,
        private_values=100,
        pixel_rows=100,
        found=0,
        control_found=12,
        control_planted=12,
        receipts=15,
        receipts_counted=15 - lost,
        receipts_dropped=0,
        receipts_waiting=0,
        receipts_unaccounted=lost,
    )
    values: dict[str, object] = {
        "seconds": 90.0,
        "peak_rss_mb": 3000.0,
        "accuracy": Accuracies(nested=accuracy, local=accuracy, shared=accuracy),
        "bytes_up_per_device_per_version": 1.0,
        "bytes_contribution": 1.0,
        "bytes_fp32": 4,
        "versions": Versions(published=5, refused=1, rolled_back=1),
        "devices": 20,
        "data": "made up",
        "seed": 0,
        "rounds": [],
        "moments": [],
        "restarts": [],
        "batches_bounded": 0,
        "proof": proof,
    }
    return Report.model_validate({name: value for name, value in values.items() if name in Report.model_fields})


def ended(home: Path, *, err: str = "", written: Report | str | None = None) -> Path:
    (home / "demo").mkdir(parents=True)
    (home / "demo.err").write_text(err)
    if written is not None:
        text = written if isinstance(written, str) else written.model_dump_json()
        (home / "demo/report.json").write_text(text)
    return home


def test_a_run_with_a_report_that_holds_ended_right(tmp_path: Path) -> None:
    assert judge(0, ended(tmp_path, written=report())) == (RIGHT, "5 versions")


def test_a_named_error_that_says_how_to_go_on_is_an_end(tmp_path: Path) -> None:
    outcome, detail = judge(1, ended(tmp_path, err=f"  12.0 s  leaf-1 died\n{NAMED}"))
    assert outcome == STOPPED
    assert detail.startswith("process.died: leaf-1-service died 9 times")


@pytest.mark.parametrize(
    ("code", "err", "written"),
    [
        (0, "", None),
        (0, "", "{}"),
        (1, "", None),
        (1, "something went wrong\n", None),
        (1, "error[process.died]: leaf-1\n", None),
        (1, f"Traceback (most recent call last):\n{NAMED}", None),
        (1, "error[demo.unproven]: the proof does not hold\nwhy: x\ntry: keep the folder\n", None),
        (-9, "", None),
    ],
)
def test_everything_else_is_a_violation(tmp_path: Path, code: int, err: str, written: str | None) -> None:
    assert judge(code, ended(tmp_path, err=err, written=written))[0] == VIOLATION


def test_a_lost_receipt_is_a_violation_whatever_the_exit_code_says(tmp_path: Path) -> None:
    assert judge(0, ended(tmp_path, written=report(lost=1))) == (VIOLATION, "proof fails")


def test_a_run_that_hangs_is_ended_and_is_a_violation(tmp_path: Path) -> None:
    struck: list[int] = []
    outcome, detail, seconds = play(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        tmp_path,
        strike=lambda pid: bool(struck.append(pid)) or True,
        at_s=0.0,
        limit_s=1.0,
    )
    assert (outcome, "still running" in detail, seconds < 20) == (VIOLATION, True, True)
    assert len(struck) == 1, "it strikes once"


def test_the_controls_are_caught(tmp_path: Path) -> None:
    for name, text in kill._controls().items():
        assert kill._is_caught(tmp_path / "control", name, text), name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("root-service", "root"),
        ("keeper-service", "keeper"),
        ("leaf-2-service", "leaf"),
        ("leaf-2-flare", "FLARE"),
        ("flare-jobs", "FLARE"),
        ("root-flare/job", "FLARE"),
        ("device-host-1", "agent host"),
        ("device-host-1/trainer", "trainer"),
    ],
)
def test_names_tell_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_campaign_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[int] = []

    def run_case(folder: Path, number: int) -> Case:
        ran.append(number)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return Case(number=number, victim="root-service", kind="root", at_s=1.0, outcome=RIGHT, detail="", seconds=1.0)

    monkeypatch.setenv("NFL_HOME", str(tmp_path))
    monkeypatch.setattr(kill, "run_case", run_case)
    monkeypatch.setattr(kill, "_controls", dict)
    with pytest.raises(KeyboardInterrupt):
        kill.main(["4"])
    assert kill.main(["4"]) == 0
    assert ran == [1, 2, 3, 3, 4]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["campaign"], result["cases"], result["violations"]) == ("kill", 4, 0)


def test_the_table_counts_each_kind() -> None:
    case = Case(number=1, victim="root-service", kind="root", at_s=1.0, outcome=STOPPED, detail="x", seconds=1.0)
    assert table([case, case]).splitlines()[1].split() == ["root", "0", "2", "0"]
