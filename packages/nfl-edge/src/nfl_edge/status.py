"""Read what a device runs and has learned, from its files alone."""

from __future__ import annotations

from pathlib import Path

from nfl_core.durable import DualRecord
from nfl_edge.folder import DeviceFolder
from nfl_edge.memory import decode_state
from nfl_edge.outbox import Outbox
from nfl_edge.settings import read_settings
from nfl_edge.store import Store
from nfl_edge.telemetry import Counters, read_events


def read_status(path: Path, *, num_events: int = 5) -> dict[str, object]:
    """Return what there is to show about the device in the folder `path`.

    Raises:
        DeviceFolderError: There is no enrolled device.
        DurableError: Its state cannot be read.
    """
    folder = DeviceFolder(path)
    settings = read_settings(folder)
    state = decode_state(DualRecord(folder.state / "agent").load()) if folder.state.is_dir() else decode_state(None)
    checkpoint = (
        Store(folder.checkpoints, folder.state / "checkpoint").current() if folder.checkpoints.is_dir() else None
    )
    events = read_events(folder.events)
    accuracies = [
        event["accuracy"]
        for event in events
        if isinstance(event.get("accuracy"), float) and event["event"] != "probation-passed"
    ]
    return {
        "device": settings.device_id,
        "fleet": settings.fleet,
        "region": settings.region,
        "leaf": settings.leaf_id,
        "phase": state.phase.value if state.candidate else "running",
        "version": state.base.version if state.base else None,
        "digest": state.base.digest if state.base else None,
        "quarantined_versions": list(state.quarantined_versions),
        "micro_updates": checkpoint.meta.num_updates if checkpoint else 0,
        "accuracy": accuracies[-1] if accuracies else None,
        "outbox": len(Outbox(folder.outbox)),
        "counters": Counters(folder.state / "counters").snapshot() if folder.state.is_dir() else {},
        "events": [dict(event) for event in events[-num_events:]] if num_events else [],
    }
