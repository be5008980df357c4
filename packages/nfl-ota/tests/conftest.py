from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def load(path: Path):
    """Import a file beside the tests: importlib mode keeps their folder off the path."""
    name = f"nfl_ota_tests_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def worlds():
    return load(Path(__file__).with_name("worlds.py"))


@pytest.fixture(scope="session")
def campaign():
    sys.path.insert(0, str(Path(__file__).parent / "campaigns"))
    try:
        return load(Path(__file__).parent / "campaigns" / "power_cut.py")
    finally:
        sys.path.pop(0)


@pytest.fixture
def world(worlds, tmp_path):
    return worlds.World(tmp_path)
