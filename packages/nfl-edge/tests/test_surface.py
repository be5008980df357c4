from __future__ import annotations

import subprocess
import sys

import pytest

import nfl_edge
from nfl_core.errors import NflError
from nfl_edge import errors

SURFACE = [
    "AgentRuntime", "AgentSettings", "AgentState", "DeviceFolder", "DeviceSettings", "FileSource", "FileTap",
    "FleetSettings", "GrpcLink", "Guard", "Host", "Inference", "Learner", "Link", "SampleSource", "TrainerProcess",
    "Wiring", "World", "read_events", "read_settings", "read_tap", "write_settings",
]  # fmt: skip


def test_public_surface_is_pinned() -> None:
    assert nfl_edge.__all__ == SURFACE == sorted(SURFACE)
    assert all(getattr(nfl_edge, name) is not None for name in SURFACE)
    with pytest.raises(AttributeError):
        _ = nfl_edge.nothing_of_this_name


def test_codes_of_errors_are_pinned() -> None:
    own = [one for one in vars(errors).values() if isinstance(one, type) and one.__module__ == errors.__name__]
    assert sorted(one.code for one in own) == [
        "agent.invariant", "device.busy", "device.folder", "inference.engine", "inference.unsafe",
        "receipt.forged", "samples.invalid", "trainer.failed",
    ]  # fmt: skip
    assert all(issubclass(one, NflError) and one.hint != NflError.hint for one in own)


def test_the_host_process_never_imports_torch() -> None:
    code = (
        "import sys, nfl_edge\n"
        "for name in nfl_edge.__all__: getattr(nfl_edge, name)\n"
        "import nfl_edge.serve, nfl_edge.enrol, nfl_edge.status, nfl_edge.cli\n"
        "bad = [name for name in sys.modules if name.split('.')[0] in ('torch', 'onnx', 'nvflare')]\n"
        "assert not bad, bad\n"
        "assert 'onnxruntime' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, nfl_edge.cli\n"
        "bad = [name for name in ('torch', 'onnxruntime', 'numpy', 'grpc', 'nvflare') if name in sys.modules]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
