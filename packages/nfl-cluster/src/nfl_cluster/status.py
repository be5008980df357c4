"""What a fleet's home says: processes, mail, versions, last events. Reads only, so it works beside a running fleet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nfl_cluster.events import read_events
from nfl_cluster.processes import recorded
from nfl_cluster.registry import Registry
from nfl_cluster.service import SiteFolder
from nfl_core.config import FleetConfig, load_fleet

_NUM_DETAILS = 120  # characters of an event's figures in text


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """One process of the fleet that runs on this machine."""

    name: str
    pid: int
    rss_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStatus:
    """One version in the registry; `accuracy` by region, 0 to 1."""

    version: int
    status: str
    restores: int | None
    override_reason: str | None
    accuracy: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStatus:
    """One event of the root's journal."""

    at: str
    event: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MailStatus:
    """One site's mailbox: what waits, and what could not be delivered."""

    site: str
    num_outgoing: int
    num_dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """Everything `nfl status` says."""

    fleet: str
    home: str
    running: bool
    processes: tuple[ProcessStatus, ...]
    mail: tuple[MailStatus, ...]
    versions: tuple[VersionStatus, ...]
    events: tuple[EventStatus, ...]


def read_status(home: Path, *, num_events: int) -> FleetStatus:
    """Read a fleet's status.

    Raises:
        ConfigError: There is no fleet in this home.
        DurableError: The registry cannot be read.
    """
    config = load_fleet(home / "fleet.toml")
    root = SiteFolder.of_root(home)
    found = recorded(home / "run")
    processes = tuple(
        ProcessStatus(name=name, pid=process.pid, rss_mb=round(process.memory_info().rss / 1e6))
        for name, process in sorted(found.items())
    )
    events = read_events(root.path / "state/events.jsonl")
    return FleetStatus(
        fleet=config.fleet.name,
        home=str(home),
        running="supervisor" in found,
        processes=processes,
        mail=_mail(config, home),
        versions=_versions(root.path / "registry.sqlite"),
        events=tuple(_event(dict(event)) for event in (events[-num_events:] if num_events else [])),
    )


def render(status: FleetStatus) -> RenderableType:
    """Return a status as a person reads it."""
    state = "runs" if status.running else "does not run here"
    head = Text(f"fleet {status.fleet} in {status.home} {state}")
    processes = _table("process", "pid", "RSS MB")
    for process in status.processes:
        processes.add_row(process.name, str(process.pid), str(process.rss_mb))
    mail = _table("mailbox", "waiting", "undeliverable")
    for box in status.mail:
        mail.add_row(box.site, str(box.num_outgoing), str(box.num_dead))
    versions = _table("version", "status", "accuracy", "remark")
    for one in status.versions:
        accuracy = ", ".join(f"{region} {value:.1%}" for region, value in sorted(one.accuracy.items()))
        remark = f"content of version {one.restores}" if one.restores is not None else one.override_reason or ""
        versions.add_row(str(one.version), one.status, accuracy, remark)
    events = _table("at", "event", "details")
    for event in status.events:
        events.add_row(event.at, event.event, event.details)
    return Group(head, *(table for table in (processes, mail, versions, events) if table.row_count))


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 3, 0, 0), title_justify="left")


def _event(event: dict[str, object]) -> EventStatus:
    details = {key: value for key, value in event.items() if key not in {"at", "event", "seq"}}
    return EventStatus(at=str(event["at"]), event=str(event["event"]), details=json.dumps(details)[:_NUM_DETAILS])


def _versions(path: Path) -> tuple[VersionStatus, ...]:
    if not path.exists():
        return ()
    registry = Registry.open(path)
    try:
        return tuple(
            VersionStatus(
                version=row.version,
                status=row.status,
                restores=row.restores,
                override_reason=row.override_reason,
                accuracy=dict(row.accuracy),
            )
            for row in registry.versions()
        )
    finally:
        registry.close()


def _mail(config: FleetConfig, home: Path) -> tuple[MailStatus, ...]:
    folders = {config.root.site: SiteFolder.of_root(home), config.keeper.site: SiteFolder.of_keeper(home)}
    folders.update({leaf.site: SiteFolder.of_leaf(home, leaf.site) for leaf in config.leaves})
    return tuple(
        MailStatus(
            site=site,
            num_outgoing=len(list((folder.mailbox / "outbox").glob("*.msg"))),
            num_dead=len(list((folder.mailbox / "dead").glob("*.msg"))),
        )
        for site, folder in folders.items()
    )
