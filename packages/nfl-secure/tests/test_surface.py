from __future__ import annotations

import importlib
import pkgutil

import nfl_secure
from nfl_secure import identity, secagg


def test_public_modules_are_pinned() -> None:
    found = sorted(module.name for module in pkgutil.iter_modules(nfl_secure.__path__) if module.name != "keystore")
    assert nfl_secure.__all__ == found == sorted(found)


def test_public_names_of_folders_exist() -> None:
    for package in (identity, secagg):
        assert package.__all__ == sorted(package.__all__)
        assert all(hasattr(package, name) for name in package.__all__)


def test_every_module_imports_alone() -> None:
    for module in pkgutil.walk_packages(nfl_secure.__path__, "nfl_secure."):
        importlib.import_module(module.name)
