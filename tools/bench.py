"""Run one benchmark: `nox -s bench -- NAME [COUNT]`. Each measures ours and the peer or the limit interleaved, in one run."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "benchmarks"


def main(arguments: list[str]) -> None:
    """Load `benchmarks/NAME.py` and call its `main(count)`."""
    names = sorted(file.stem for file in FOLDER.glob("[!_]*.py"))
    if not arguments or arguments[0] not in names:
        raise SystemExit(f"usage: nox -s bench -- NAME [COUNT]\nbenchmarks: {', '.join(names)}")
    spec = importlib.util.spec_from_file_location(arguments[0], FOLDER / f"{arguments[0]}.py")
    assert spec is not None and spec.loader is not None  # the name was found in the folder above
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*map(int, arguments[1:]))


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    main(sys.argv[1:])
