"""Over-the-air updates: signed bundles, verified download, slots, probation and rollout waves."""

from nfl_ota.archive import ChunkStore
from nfl_ota.bundle import (
    Bundle,
    BundleManifest,
    ChunkRef,
    GateResult,
    MergeSettings,
    ProbationLimits,
    build_bundle,
    open_bundle,
    target_path,
)
from nfl_ota.client import BundleClient
from nfl_ota.errors import (
    GateError,
    ManifestError,
    MetadataError,
    NoBootableSlotError,
    PublishError,
    QuarantinedError,
    RolloutError,
    SlotBusyError,
)
from nfl_ota.floor import Floor, FloorState, Mark
from nfl_ota.health import Observation, Outcome, Probation, ProbationSettings, Verdict
from nfl_ota.image import pack_image, unpack_image
from nfl_ota.mirror import Mirror, max_bytes_of
from nfl_ota.publish import Expiries, Repository
from nfl_ota.rollout import (
    Complete,
    Halt,
    HealthTotals,
    OpenWave,
    Phase,
    RollBack,
    RolloutMachine,
    RolloutSettings,
    RolloutState,
    wave_members,
    wave_size,
)
from nfl_ota.slots import Boot, Slot, SlotMachine, SlotRecord, Slots, SlotState
from nfl_ota.tuf_adapter import Fetcher

__all__ = [
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
