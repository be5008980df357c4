from __future__ import annotations

import subprocess
import sys

import nfl_core.learning


def test_the_public_surface_is_what_the_package_lists() -> None:
    public = [
        name
        for name, value in vars(nfl_core.learning).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("nfl_core.learning.")
    ]
    assert sorted(public) == nfl_core.learning.__all__


def test_the_rest_of_the_core_needs_no_torch() -> None:
    modules = [
        "levels",
        "schema",
        "delta",
        "tensors",
        "durable",
        "config",
        "metrics",
        "ids",
        "errors",
        "codec.quantise",
    ]
    code = ";".join(f"import nfl_core.{name}" for name in modules) + ";import sys;sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
