"""The registry keeps what it is told, and says when its tables are of another form."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfl_cluster.registry import BatchRow, CandidateRow, Registry, RegistryVersionError, VersionRow
from nfl_core.errors import DurableError, NotFoundError
from nfl_ota import GateResult

AT = "2026-01-01T00:00:00+00:00"
GATE = GateResult(name="latency", passed=True, value=3.0, limit=30.0)
CANDIDATE = CandidateRow(
    candidate_id="c" * 32, base_version=1, status="published", num_contributions=9, at=AT, gates=(GATE,)
)
BATCH = BatchRow(
    batch_id="b" * 32,
    policy_id=4,
    leaf="leaf-1",
    region="north",
    base_version=1,
    num_contributions=5,
    weight=5,
    status="used",
    at=AT,
    candidate_id="c" * 32,
)


def _version(number: int, *, base: int | None, restores: int | None = None) -> VersionRow:
    return VersionRow(
        version=number,
        base_version=base,
        candidate_id=None,
        restores=restores,
        override_reason=None,
        status="published",
        at=AT,
        digests={"north": "d" * 64},
        targets={"north": f"bundles/north/{number}.json"},
        accuracy={"north": 0.5},
    )


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry.open(tmp_path / "registry.sqlite")
    yield registry
    registry.close()


def test_round_trip_and_again(registry: Registry, tmp_path: Path) -> None:
    for _ in range(2):  # a repeated step writes the same rows
        registry.put_candidate(CANDIDATE)
        registry.put_batch(BATCH)
        for row in (_version(1, base=None), _version(2, base=1), _version(3, base=2, restores=1)):
            registry.put_version(row)
    registry.mark_rolled_back(2)
    other = Registry.open(tmp_path / "registry.sqlite")
    assert other.batches() == [BATCH]
    assert other.batch(BATCH.batch_id) == BATCH
    assert other.candidates() == [CANDIDATE]
    assert [row.status for row in other.versions()] == ["published", "rolled-back", "published"]
    assert [row.version for row in other.lineage(3)] == [3, 1]
    assert other.version(1) == _version(1, base=None)
    other.close()


def test_what_is_not_there_is_not_found(registry: Registry) -> None:
    for ask in (lambda: registry.batch("x"), lambda: registry.candidate("x"), lambda: registry.version(9)):
        with pytest.raises(NotFoundError):
            ask()


def test_tables_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    Registry.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE schema_info SET version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(RegistryVersionError, match="form 99"):
        Registry.open(path)


def test_a_damaged_registry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    path.write_bytes(b"this is no database at all, but it is long enough to be read as one" * 50)
    with pytest.raises(DurableError):
        Registry.open(path)
