"""Reading and writing the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, create_engine, event, inspect, select, update
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry
from typing_extensions import Self

from nfl_cluster.registry.tables import (
    SCHEMA_VERSION,
    Base,
    BatchTable,
    CandidateTable,
    GateTable,
    ReleaseTable,
    SchemaInfo,
    VersionTable,
)
from nfl_core.errors import DurableError, NotFoundError, StorageFullError
from nfl_ota import GateResult


class RegistryVersionError(DurableError):
    """The registry was written by a program with other tables."""

    code = "registry.schema-version"
    hint = "use the program version that wrote the registry, or migrate it with the upgrade notes of nfl-cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """A batch in the registry; see `BatchTable`."""

    batch_id: str
    policy_id: int
    leaf: str
    region: str
    base_version: int
    num_contributions: int
    weight: int
    status: str
    at: str
    why: str = ""
    candidate_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRow:
    """A candidate in the registry, with what the gates said."""

    candidate_id: str
    base_version: int
    status: str
    num_contributions: int
    at: str
    gates: tuple[GateResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """A version in the registry; `digests` and `accuracy` by region."""

    version: int
    base_version: int | None
    candidate_id: str | None
    restores: int | None
    override_reason: str | None
    status: str
    at: str
    digests: Mapping[str, str]
    targets: Mapping[str, str]
    accuracy: Mapping[str, float]


class Registry:
    """The registry of one fleet.

    Args:
        engine: Where it is. Tables are made when there are none.

    Raises:
        RegistryVersionError: The tables are of another form.
        DurableError: The database cannot be read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        try:
            self._check_schema()
        except DatabaseError as error:
            raise DurableError(f"the registry cannot be read: {error}") from error

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the registry in a file, made when it is missing. Raises like the class."""
        engine = create_engine(f"sqlite+pysqlite:///{path}")
        event.listen(engine, "connect", _make_durable)
        return cls(engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def put_batch(self, row: BatchRow) -> None:
        """Write a batch; writing it again replaces it. Raises StorageFullError or DurableError."""
        self._merge(
            BatchTable(
                batch_id=row.batch_id,
                policy_id=row.policy_id,
                leaf=row.leaf,
                region=row.region,
                base_version=row.base_version,
                num_contributions=row.num_contributions,
                weight=row.weight,
                status=row.status,
                why=row.why,
                candidate_id=row.candidate_id,
                at=row.at,
            )
        )

    def put_candidate(self, row: CandidateRow) -> None:
        """Write a candidate and its gates; writing it again replaces it. Raises StorageFullError or DurableError."""
        candidate = CandidateTable(
            candidate_id=row.candidate_id,
            base_version=row.base_version,
            status=row.status,
            num_contributions=row.num_contributions,
            at=row.at,
        )
        gates = [
            GateTable(
                candidate_id=row.candidate_id, name=gate.name, passed=gate.passed, value=gate.value, limit=gate.limit
            )
            for gate in row.gates
        ]
        self._merge(candidate, *gates)

    def put_version(self, row: VersionRow) -> None:
        """Write a version and its releases; writing it again replaces it. Raises StorageFullError or DurableError."""
        version = VersionTable(
            version=row.version,
            base_version=row.base_version,
            candidate_id=row.candidate_id,
            restores=row.restores,
            override_reason=row.override_reason,
            status=row.status,
            at=row.at,
        )
        releases = [
            ReleaseTable(
                version=row.version,
                region=region,
                digest=digest,
                target=row.targets[region],
                accuracy=row.accuracy.get(region),
            )
            for region, digest in row.digests.items()
        ]
        self._merge(version, *releases)

    def mark_rolled_back(self, version: int) -> None:
        """Note that a version was given up. Raises StorageFullError or DurableError."""
        try:
            with Session(self._engine) as session, session.begin():
                session.execute(
                    update(VersionTable).where(VersionTable.version == version).values(status="rolled-back")
                )
        except SQLAlchemyError as error:
            raise _own(error) from error

    def batch(self, batch_id: str) -> BatchRow:
        """Return a batch. Raises NotFoundError."""
        with Session(self._engine) as session:
            row = session.get(BatchTable, batch_id)
            if row is None:
                raise NotFoundError(f"no batch {batch_id} in the registry")
            return _batch_of(row)

    def batches(self) -> list[BatchRow]:
        """Return all batches, oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(BatchTable).order_by(BatchTable.at, BatchTable.batch_id))
            return [_batch_of(row) for row in rows]

    def candidate(self, candidate_id: str) -> CandidateRow:
        """Return a candidate with its gates. Raises NotFoundError."""
        found = [row for row in self.candidates() if row.candidate_id == candidate_id]
        if not found:
            raise NotFoundError(f"no candidate {candidate_id} in the registry")
        return found[0]

    def candidates(self) -> list[CandidateRow]:
        """Return all candidates with their gates, oldest first."""
        with Session(self._engine) as session:
            gates = session.scalars(select(GateTable).order_by(GateTable.name)).all()
            rows = session.scalars(select(CandidateTable).order_by(CandidateTable.at, CandidateTable.candidate_id))
            return [_candidate_of(row, gates) for row in rows]

    def versions(self) -> list[VersionRow]:
        """Return all versions with their releases, oldest first."""
        with Session(self._engine) as session:
            releases = session.scalars(select(ReleaseTable).order_by(ReleaseTable.region)).all()
            rows = session.scalars(select(VersionTable).order_by(VersionTable.version))
            return [_version_of(row, releases) for row in rows]

    def version(self, version: int) -> VersionRow:
        """Return a version. Raises NotFoundError."""
        found = [row for row in self.versions() if row.version == version]
        if not found:
            raise NotFoundError(f"no version {version} in the registry")
        return found[0]

    def lineage(self, version: int) -> list[VersionRow]:
        """Return a version and the versions it was made from, newest first. Raises NotFoundError."""
        line = [self.version(version)]
        while (older := line[-1].restores or line[-1].base_version) is not None:
            line.append(self.version(older))
        return line

    def _merge(self, *rows: Base) -> None:
        try:
            with Session(self._engine) as session, session.begin():
                for row in rows:
                    session.merge(row)
        except SQLAlchemyError as error:
            raise _own(error) from error

    def _check_schema(self) -> None:
        names = inspect(self._engine).get_table_names()
        if names and SchemaInfo.__tablename__ not in names:
            raise RegistryVersionError(f"the registry holds tables {names[:3]} and does not say which form they have")
        with Session(self._engine) as session, session.begin():
            if not names:
                Base.metadata.create_all(session.connection())
                session.add(SchemaInfo(id=1, version=SCHEMA_VERSION))
                return
            info = session.get(SchemaInfo, 1)
            found = info.version if info else None
            if found != SCHEMA_VERSION:
                raise RegistryVersionError(f"the registry has tables of form {found}, expected {SCHEMA_VERSION}")


def _make_durable(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _own(error: SQLAlchemyError) -> DurableError:
    kind = StorageFullError if "disk is full" in str(error) else DurableError
    return kind(f"the registry cannot be written: {error}")


def _batch_of(row: BatchTable) -> BatchRow:
    return BatchRow(
        batch_id=row.batch_id,
        policy_id=row.policy_id,
        leaf=row.leaf,
        region=row.region,
        base_version=row.base_version,
        num_contributions=row.num_contributions,
        weight=row.weight,
        status=row.status,
        at=row.at,
        why=row.why,
        candidate_id=row.candidate_id,
    )


def _candidate_of(row: CandidateTable, gates: Sequence[GateTable]) -> CandidateRow:
    mine = [gate for gate in gates if gate.candidate_id == row.candidate_id]
    return CandidateRow(
        candidate_id=row.candidate_id,
        base_version=row.base_version,
        status=row.status,
        num_contributions=row.num_contributions,
        at=row.at,
        gates=tuple(GateResult(name=g.name, passed=g.passed, value=g.value, limit=g.limit) for g in mine),
    )


def _version_of(row: VersionTable, releases: Sequence[ReleaseTable]) -> VersionRow:
    mine = [release for release in releases if release.version == row.version]
    return VersionRow(
        version=row.version,
        base_version=row.base_version,
        candidate_id=row.candidate_id,
        restores=row.restores,
        override_reason=row.override_reason,
        status=row.status,
        at=row.at,
        digests={release.region: release.digest for release in mine},
        targets={release.region: release.target for release in mine},
        accuracy={release.region: release.accuracy for release in mine if release.accuracy is not None},
    )
