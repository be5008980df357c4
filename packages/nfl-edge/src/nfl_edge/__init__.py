"""The device of a federated nested learning fleet.

`AgentRuntime` runs one device, `Host` several in one process; `nfl device run` is built on them. What a device decides
is in `nfl_edge.agent`, pure. Importing this package never imports torch: learning happens in `nfl_edge.trainer`, a
process of its own. Names are loaded when they are used, so that `nfl --help` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import nfl_secure as _nfl_secure  # noqa: F401 - before grpc: it holds grpcio to TLS 1.3

if TYPE_CHECKING:
    from nfl_edge.agent import AgentSettings, AgentState
    from nfl_edge.folder import DeviceFolder
    from nfl_edge.host import Host, Wiring
    from nfl_edge.learn import Learner, TrainerProcess
    from nfl_edge.link import FileTap, GrpcLink, Link, read_tap
    from nfl_edge.runtime import AgentRuntime, World
    from nfl_edge.safety import Guard, Inference
    from nfl_edge.sense import FileSource, SampleSource
    from nfl_edge.settings import DeviceSettings, FleetSettings, read_settings, write_settings
    from nfl_edge.telemetry import read_events

__all__ = [
    "AgentRuntime",
    "AgentSettings",
    "AgentState",
    "DeviceFolder",
    "DeviceSettings",
    "FileSource",
    "FileTap",
    "FleetSettings",
    "GrpcLink",
    "Guard",
    "Host",
    "Inference",
    "Learner",
    "Link",
    "SampleSource",
    "TrainerProcess",
    "Wiring",
    "World",
    "read_events",
    "read_settings",
    "read_tap",
    "write_settings",
]

_ROOMS = {
    "agent": ("AgentSettings", "AgentState"),
    "folder": ("DeviceFolder",),
    "host": ("Host", "Wiring"),
    "learn": ("Learner", "TrainerProcess"),
    "link": ("FileTap", "GrpcLink", "Link", "read_tap"),
    "runtime": ("AgentRuntime", "World"),
    "safety": ("Guard", "Inference"),
    "sense": ("FileSource", "SampleSource"),
    "settings": ("DeviceSettings", "FleetSettings", "read_settings", "write_settings"),
    "telemetry": ("read_events",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
