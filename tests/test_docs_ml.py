"""Every block of docs/ml runs: Python in one process a page, `nfl` commands for real, warnings are errors.

A block whose first line is a comment with a file's name is that file; commands and Python find it.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

REPO = Path(__file__).resolve().parent.parent
PAGES = sorted((REPO / "docs/ml").glob("*.md"))
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|toml))\n")
LANGUAGES = {"python", "console", "toml", "text"}  # text is output and never run
NOX = "python3 noxfile.py -s "
COMMAND_S = 300  # the slowest command takes some 10 s of CPU; the rest is for a busy machine


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


def files_of(page: Path) -> dict[str, str]:
    found = [(FILE.match(body), body) for _, body in BLOCK.findall(page.read_text())]
    return {match.group(1): body for match, body in found if match}


def write_files(page: Path, folder: Path) -> None:
    """Write the page's files; what would stand in this repository's `sim` is found by every process of the page."""
    for name, body in files_of(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body)
    added = folder / "sim/src/nfl_sim/tasks"
    if added.is_dir():
        (folder / "sitecustomize.py").write_text(
            f"import nfl_sim.tasks\n\nnfl_sim.tasks.__path__.append({str(added)!r})\n"
        )
        project = tomlkit.parse((folder / "sim/pyproject.toml").read_text()).unwrap()["project"]
        info = folder / "page-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: page\nVersion: 0\n")
        points = "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in named.items())
            for group, named in project["entry-points"].items()
        )
        (info / "entry_points.txt").write_text(points)


def python_of(page: Path) -> str:
    """Return the page with everything but Python blanked out, so that a traceback names the page's own line."""
    text = page.read_text()
    runs = [m for m in BLOCK.finditer(text) if m.group(1) == "python" and not FILE.match(m.group(2))]
    kept = {line for match in runs for line in lines_of(text, match)}
    return "\n".join(line if number in kept else "" for number, line in enumerate(text.splitlines())) + "\n"


def lines_of(text: str, match: re.Match[str]) -> Iterator[int]:
    first = text.count("\n", 0, match.start(2))
    return iter(range(first, first + match.group(2).count("\n")))


def run(command: list[str], folder: Path) -> str:
    environment = {
        **os.environ, "NFL_HOME": str(folder), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1", "COLUMNS": "100", "PYTHONPATH": str(folder),
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_nox(command: str) -> None:
    """Sessions take minutes: here it is only checked that the session, and what it is told to run, exist."""
    session, _, arguments = command.removeprefix(NOX).partition(" -- ")
    made = {
        node.name for node in ast.parse((REPO / "noxfile.py").read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert session in made, command
    if session == "bench":
        assert (REPO / f"tools/benchmarks/{arguments.split()[0]}.py").is_file(), command


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem == "adding-a-task" else []) for p in PAGES],
)
@pytest.mark.timeout(4 * COMMAND_S)
def test_blocks_of_the_page_run(page: Path, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    script = tmp_path / page.with_suffix(".py").name
    script.write_text(python_of(page))
    run([sys.executable, script.name], tmp_path)
    for block in blocks(page, "toml"):
        tomlkit.parse(block)
    for command in re.findall(r"^\$ (.*)$", "\n".join(blocks(page, "console")), re.MULTILINE):
        if command.startswith(NOX):
            check_nox(command)
        else:
            assert command.startswith("nfl "), f"{page.name}: nobody checks {command!r}"
            run([sys.executable, "-m", "nfl_core.cli", *shlex.split(command)[1:]], tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is_and_some_run(page: Path) -> None:
    kinds = [kind for kind, _ in BLOCK.findall(page.read_text())]
    assert set(kinds) <= LANGUAGES
    assert page.read_text().count("\n```") == 2 * len(kinds)
    assert "python" in kinds or "console" in kinds


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "wrong.md"
    page.write_text("# Wrong\n\n```python\nimport warnings\n\nwarnings.warn('old', stacklevel=1)\n```\n")
    with pytest.raises(AssertionError, match=r'wrong.py", line 6'):
        test_blocks_of_the_page_run(page, tmp_path)


def test_all_pages_stand_in_the_navigation() -> None:
    navigation = (REPO / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if f"ml/{page.name}" not in navigation] == []
