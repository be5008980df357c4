"""Write docs/reference/cli.md from what `nfl --help` and its verbs say; with `--check` only compare.

Usage: python tools/cli_reference.py [--check]
"""

import os
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs/reference/cli.md"
VERBS: tuple[tuple[str, ...], ...] = (
    (),
    ("demo",),
    ("cluster",),
    ("cluster", "init"),
    ("cluster", "up"),
    ("cluster", "down"),
    ("cluster", "distil"),
    ("fleet",),
    ("fleet", "token"),
    ("fleet", "propose"),
    ("status",),
    ("device",),
    ("device", "enrol"),
    ("device", "run"),
    ("device", "status"),
    ("config",),
    ("model",),
    ("model", "check"),
    ("doctor",),
)


def help_of(verb: tuple[str, ...]) -> str:
    """Return what `nfl VERB --help` prints, 100 columns wide, without colours."""
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "NFL_HOME": ""}
    command = [sys.executable, "-m", "nfl_core.cli", *verb, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stdout
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def main() -> None:
    """Write or compare the page."""
    parts = ["# Command line\n\nWritten by `tools/cli_reference.py` from the verbs' own help.\n"]
    parts += [f"## `{' '.join(('nfl', *verb))}`\n\n```text\n{help_of(verb)}\n```\n" for verb in VERBS]
    page = "\n".join(parts)
    if "--check" not in sys.argv:
        TARGET.write_text(page)
    elif TARGET.read_text() != page:
        raise SystemExit(f"{TARGET.name} is out of date: run `python tools/cli_reference.py`")


if __name__ == "__main__":
    main()
