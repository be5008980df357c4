from __future__ import annotations

import subprocess
import sys

import nfl_ota


def test_the_surface_is_what_is_listed():
    assert nfl_ota.__all__ == sorted(nfl_ota.__all__)
    assert nfl_ota.__all__ == [
        "Boot",
        "Bundle",
        "BundleClient",
        "BundleManifest",
        "ChunkRef",
        "ChunkStore",
        "Complete",
        "Expiries",
        "Fetcher",
        "Floor",
        "FloorState",
        "GateError",
        "GateResult",
        "Halt",
        "HealthTotals",
        "ManifestError",
        "Mark",
        "MergeSettings",
        "MetadataError",
        "Mirror",
        "NoBootableSlotError",
        "Observation",
        "OpenWave",
        "Outcome",
        "Phase",
        "Probation",
        "ProbationLimits",
        "ProbationSettings",
        "PublishError",
        "QuarantinedError",
        "Repository",
        "RollBack",
        "RolloutError",
        "RolloutMachine",
        "RolloutSettings",
        "RolloutState",
        "Slot",
        "SlotBusyError",
        "SlotMachine",
        "SlotRecord",
        "SlotState",
        "Slots",
        "Verdict",
        "build_bundle",
        "max_bytes_of",
        "open_bundle",
        "pack_image",
        "target_path",
        "unpack_image",
        "wave_members",
        "wave_size",
    ]
    assert all(hasattr(nfl_ota, name) for name in nfl_ota.__all__)


def test_importing_loads_neither_torch_nor_the_network():
    code = "import sys, nfl_ota; sys.exit(bool({'torch', 'nvflare', 'grpc', 'requests'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
