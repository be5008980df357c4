from __future__ import annotations

from pathlib import Path

import pytest

import nfl_secure  # noqa: F401  # first of all, so that grpc is held to TLS 1.3

from .fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "fleet")
