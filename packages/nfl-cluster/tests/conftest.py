from __future__ import annotations

import os
from pathlib import Path

import pytest

import nfl_secure  # noqa: F401  # first of all, so that grpc is held to TLS 1.3

from .world import World


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing takes most of the time of these tests; what it is good for is tested on a simulated disk."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "home")
