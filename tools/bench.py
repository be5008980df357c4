"""Run one benchmark: `nox -s bench -- NAME [COUNT]`. Ours and the peer or the limit are measured in turn in one run."""

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "benchmarks"


def main(arguments: list[str]) -> None:
    """Load `benchmarks/NAME.py` and call its `main(count)`."""
    names = sorted(file.stem for file in FOLDER.glob("[!_]*.py"))
    if not arguments or arguments[0] not in names:
        raise SystemExit(f"usage: nox -s bench -- NAME [COUNT]\nbenchmarks: {', '.join(names)}")
    runpy.run_path(str(FOLDER / f"{arguments[0]}.py"))["main"](*map(int, arguments[1:]))


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    main(sys.argv[1:])
