"""The device of a federated nested learning fleet.

`AgentRuntime` runs one device, `Host` several in one process; `nfl device run` is built on them. What a device decides is
in `nfl_edge.agent`, pure. Importing this package never imports torch: learning happens in `python -m nfl_edge.trainer`.
"""

import nfl_secure as _nfl_secure  # noqa: F401 - before grpc: it holds grpcio to TLS 1.3
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
