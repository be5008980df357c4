"""The README shows what the commands really print: compared by shape, numbers left out."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from nfl_sim.demo.report import Accuracies, Accuracy, Proof, Report, Round, Versions, table_of

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text()


def block_of(command: str) -> list[str]:
    """Return the lines that the README shows below a command."""
    found = re.search(rf"```console\n\$ {re.escape(command)}\n(.*?)```", README, re.DOTALL)
    assert found, f"the README shows no output of {command}"
    return found.group(1).rstrip().splitlines()


def shape(line: str) -> str:
    """Return a line without its numbers, its frame and the width of its columns."""
    cells = [cell.strip() for cell in re.split(r"[│┃]", line)] if re.search(r"[│┃]", line) else [line.strip()]
    return "|".join(re.sub(r"\d[\d.,]*", "#", cell) for cell in cells)


def printed_table() -> list[str]:
    accuracy = Accuracy(mean=0.85, worst=0.7)
    proof = Proof(
        batches=3, batches_exact=3, contributions=15, contributions_twice=0, sent_messages=40, sent_bytes=1,
        private_values=1, pixel_rows=1, found=0, control_found=1, control_planted=1, receipts=1, receipts_counted=1,
        receipts_dropped=0, receipts_waiting=0, receipts_unaccounted=0,
    )  # fmt: skip
    report = Report(
        seconds=83.0, peak_rss_mb=3600.0, accuracy=Accuracies(nested=accuracy, local=accuracy, shared=accuracy),
        bytes_up_per_device_per_version=37_000, bytes_contribution=31_000, bytes_fp32=192_000,
        versions=Versions(published=6, refused=1, rolled_back=1), devices=20, data="real fashion-mnist", seed=0,
        rounds=[Round(number=1, nested=[1], local=[1], shared=[1])], moments=[], restarts=[], batches_bounded=1,
        proof=proof,
    )  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=100).print(table_of(report))
    return [line for line in out.getvalue().splitlines() if "│" in line or "┃" in line]


def test_the_table_in_the_readme_is_the_table_of_the_demo() -> None:
    shown = [shape(line) for line in block_of("python3 noxfile.py -s demo") if "│" in line or "┃" in line]
    assert shown == [shape(line) for line in printed_table()]


def test_the_readme_tells_the_demo_as_it_happens() -> None:
    lines = [shape(line) for line in block_of("python3 noxfile.py -s demo") if re.match(r" +\d", line)]
    for told in ("# s  making the fleet", "# s  v# published, signed", "# s  v# is on all devices"):
        assert told in lines
    assert any("refused by gate" in line for line in lines)
    assert any("falls back by itself" in line for line in lines)
    assert any("killed with SIGKILL" in line for line in lines)


def test_the_readme_ends_the_tests_with_what_pytest_says() -> None:
    last = block_of("python3 noxfile.py -s tests")[-2:]
    assert re.fullmatch(r"=+ \d+ passed.* in [\d.]+s.* =+", last[0]), last
    assert re.match(r"nox > Session tests was successful", last[1]), last


def test_the_first_screen_is_a_sentence_a_picture_two_commands_and_three_doors() -> None:
    assert len(README.split("![", 1)[0].strip().splitlines()) == 3  # title, blank, one sentence
    assert (REPO / re.search(r"!\[[^\]]*\]\(([^)]+)\)", README).group(1)).is_file()  # type: ignore[union-attr]  # else it fails
    assert README.count("```console") == 2
    assert [
        door for door in ("I train models", "I run the cluster", "I own robots") if f"**{door}.**" not in README
    ] == []


def test_torch_stands_first_in_the_constraints() -> None:
    pins = [line for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line]
    assert pins[0] == "torch==2.13.0"
    assert not [pin for pin in pins if pin.startswith("torchvision")]
