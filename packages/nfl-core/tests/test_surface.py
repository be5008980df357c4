from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import nfl_core

SURFACES = {
    "nfl_core": [
        "cli",
        "codec",
        "config",
        "delta",
        "durable",
        "errors",
        "ids",
        "levels",
        "metrics",
        "schema",
        "tensors",
        "wire",
    ],
    "nfl_core.cli": ["app", "console"],
    "nfl_core.codec": ["entropy", "frame", "quantise"],
    "nfl_core.config": [
        "DEFAULT_LEVELS",
        "EdgeSection",
        "FleetConfig",
        "FleetSection",
        "GatesSection",
        "KeeperSection",
        "LeafSection",
        "LearningSection",
        "LoadedFleet",
        "ModelSection",
        "PrivacySection",
        "RolloutSection",
        "RootSection",
        "json_schema",
        "load_fleet",
        "load_fleet_with_origins",
        "write_fleet",
    ],
    "nfl_core.durable": [
        "LOCAL_DISK",
        "PRIVATE_MODE",
        "Disk",
        "DualRecord",
        "Journal",
        "LocalDisk",
        "make_folder",
        "read_file",
        "read_journal",
        "remove_file",
        "write_file",
    ],
    "nfl_core.wire": ["limits"],
}


@pytest.mark.parametrize(("package", "names"), SURFACES.items())
def test_public_surface_is_pinned(package: str, names: list[str]) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(names)
    for name in names:
        assert hasattr(module, name) or importlib.import_module(f"{package}.{name}")


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import sys, nfl_core; print([name for name in ('numpy', 'pydantic', 'torch', 'grpc') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_base_modules_load_without_torch() -> None:
    names = [f"nfl_core.{name}" for name in nfl_core.__all__] + [
        "nfl_core.durable.simulated",
        "nfl_core.cli.app",
        "nfl_core.wire.device_pb2_grpc",
    ]
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names!r}]; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"
