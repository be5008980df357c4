"""Run one benchmark: `nox -s bench -- NAME [COUNT or options]`. Ours and the peer or the limit share one run."""

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "benchmarks"


def main(arguments: list[str]) -> None:
    """Load `benchmarks/NAME.py` and call its `main`; whole numbers come as such."""
    names = sorted(file.stem for file in FOLDER.glob("[!_]*.py"))
    if not arguments or arguments[0] not in names:
        raise SystemExit(f"usage: nox -s bench -- NAME [COUNT]\nbenchmarks: {', '.join(names)}")
    runpy.run_path(str(FOLDER / f"{arguments[0]}.py"))["main"](
        *(int(argument) if argument.isdigit() else argument for argument in arguments[1:])
    )


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    main(sys.argv[1:])
