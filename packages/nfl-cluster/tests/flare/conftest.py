"""A fleet with free ports in a folder whose name holds a space."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfl_core.config import FleetConfig


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def config() -> FleetConfig:
    enrol, flare, admin, first, second = free_ports(5)
    return FleetConfig.model_validate(
        {
            "fleet": {"name": "home"},
            "root": {"enrol_port": enrol, "flare_port": flare, "admin_port": admin},
            "leaves": [
                {"site": "leaf-1", "region": "kitchen", "port": first},
                {"site": "leaf-2", "region": "garden", "port": second},
            ],
        }
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "a home with spaces"
    folder.mkdir()
    return folder
