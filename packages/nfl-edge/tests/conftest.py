from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

import nfl_secure  # noqa: F401 - first of all, so that grpc is held to TLS 1.3

from .world import Fleet


@pytest_asyncio.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path / "fleet")
    await made.leaf.start()
    yield made
    await made.leaf.stop()
