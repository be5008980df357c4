"""Import one package that was installed alone, and check that what must be absent is absent.

Usage: python tools/import_alone.py nfl-secure --no-torch
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys

OPTIONAL_ROOMS = ("nfl_core.learning",)  # need the extra nfl-core[torch]
WITH_TORCH = (
    "nfl_edge.remember",
    "nfl_edge.track",
    "nfl_edge.training",
    "nfl_cluster.distil",
    "nfl_cluster.teachers",
    "nfl_cluster.validate.shadow",
)


def main(distribution: str, expectation: str) -> None:
    """Import every module of `distribution` that its base install promises; fail on the first that does not."""
    package = importlib.import_module(distribution.replace("-", "_"))
    names = [
        module.name
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=_raise)
        if not module.name.startswith(OPTIONAL_ROOMS)
    ]
    torch_is_here = importlib.util.find_spec("torch") is not None
    if expectation == "--no-torch" and torch_is_here:
        raise SystemExit(f"{distribution}: its base install must not bring torch, but torch is installed")
    for name in names:
        if name.endswith("__main__") or (name in WITH_TORCH and not torch_is_here):
            continue
        importlib.import_module(name)
    torch = "present" if torch_is_here else "absent"
    print(f"{distribution} {importlib.metadata.version(distribution)}: {len(names)} modules import, torch {torch}")


def _raise(name: str) -> None:
    if not name.startswith(OPTIONAL_ROOMS):
        raise SystemExit(f"{name} does not import: {sys.exc_info()[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
