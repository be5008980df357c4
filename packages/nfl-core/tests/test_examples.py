"""The examples in the docstrings and in the README are true."""

from __future__ import annotations

import doctest
import importlib
import random
import re
from pathlib import Path

import numpy as np
import pytest

from nfl_core.durable import make_folder, write_file
from nfl_core.ids import digest_of
from nfl_core.levels import NestedSpec
from nfl_core.schema import TensorSchema

MODULES = [
    "nfl_core.codec.entropy",
    "nfl_core.codec.frame",
    "nfl_core.codec.quantise",
    "nfl_core.config",
    "nfl_core.delta",
    "nfl_core.durable",
    "nfl_core.durable.simulated",
    "nfl_core.errors",
    "nfl_core.ids",
    "nfl_core.levels",
    "nfl_core.schema",
    "nfl_core.tensors",
]
README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_example_of_the_module_is_true(
    name: str, spec: NestedSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(Path("state"))
    Path("fleet.toml").write_text("[fleet]\nname = 'home'\n[[leaves]]\nsite = 'leaf-1'\nregion = 'north'\n")
    schema = TensorSchema.of({"body.w": (2, 3), "head.w": (1,), "middle.w": (1,), "private.w": (4,)}, spec)
    moved = schema.unflatten(np.full(schema.num_shared, 0.08, np.float32))
    known = {
        "np": np,
        "Path": Path,
        "random": random,
        "spec": spec,
        "schema": schema,
        "moved": moved,
        "digest": digest_of(b"1"),
    }
    known["write_file"] = write_file
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs=known, optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0
    assert results.failed == 0


def test_example_of_the_readme_runs() -> None:
    blocks = re.findall(r"^```python run\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {"__name__": "readme"})  # the README is ours
