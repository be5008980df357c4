"""Run the verbs of `nfl device` without the `nfl` script: `python -m nfl_edge run DIR`."""

from __future__ import annotations

from nfl_edge.cli import app

if __name__ == "__main__":
    app()
