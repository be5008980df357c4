"""Keep sealed contributions until the leaf's receipt for them is verified.

A contribution is put here before it is sent for the first time, and leaves when a receipt proves that this device's
leaf has exactly these bytes. A kill in between only means that the same bytes are sent again; the leaf counts them
once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from nfl_core.durable import read_file, remove_file, write_file
from nfl_core.errors import DurableError
from nfl_core.ids import ContributionId, parse_contribution_id
from nfl_core.wire.limits import MAX_CONTRIBUTION_BYTES

_SUFFIX = ".frame"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contribution: its id and the whole body as it goes over the wire."""

    contribution_id: ContributionId
    body: bytes

    @property
    def sha256(self) -> str:
        """Digest of the body, as receipts name it."""
        return hashlib.sha256(self.body).hexdigest()


class Outbox:
    """Contributions on their way.

    Args:
        folder: Exists; one file a contribution.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __len__(self) -> int:
        return len(self._paths())

    def put(self, entry: Entry) -> None:
        """Keep a contribution; putting it twice is the same as once.

        Raises:
            DurableError: Another body stands under the same id, or it cannot be written.
        """
        if len(entry.body) > MAX_CONTRIBUTION_BYTES:
            raise DurableError(f"a contribution has {len(entry.body)} bytes, expected at most {MAX_CONTRIBUTION_BYTES}")
        path = self._path(entry.contribution_id)
        if path.exists():
            if read_file(path) != entry.body:
                raise DurableError(f"contribution {entry.contribution_id} is in the outbox with another body")
            return
        write_file(path, entry.body)

    def oldest(self) -> Entry | None:
        """Return the contribution that waits longest; None when there is none. Raises DurableError."""
        paths = self._paths()
        if not paths:
            return None
        return Entry(contribution_id=parse_contribution_id(paths[0].stem), body=read_file(paths[0]))

    def remove(self, contribution_id: ContributionId) -> None:
        """Let a contribution go, durably. Raises DurableError."""
        remove_file(self._path(contribution_id))

    def _path(self, contribution_id: ContributionId) -> Path:
        return self._folder / f"{contribution_id}{_SUFFIX}"

    def _paths(self) -> list[Path]:
        found = [path for path in self._folder.glob(f"*{_SUFFIX}") if not path.name.startswith(".")]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))
