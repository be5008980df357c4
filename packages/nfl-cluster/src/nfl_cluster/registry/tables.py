"""The tables of the registry. Times are UTC, ISO 8601."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1


class Base(DeclarativeBase):
    """Parent of the tables."""


class SchemaInfo(Base):
    """One row: which form the tables have."""

    __tablename__ = "schema_info"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]


class BatchTable(Base):
    """A batch that reached the root."""

    __tablename__ = "batches"
    batch_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    policy_id: Mapped[int]
    leaf: Mapped[str]
    region: Mapped[str]
    base_version: Mapped[int]
    num_contributions: Mapped[int]
    weight: Mapped[int]
    status: Mapped[str]  # waiting, buffered, used, dropped
    why: Mapped[str] = mapped_column(default="")
    candidate_id: Mapped[str | None] = mapped_column(ForeignKey("candidates.candidate_id"), default=None)
    at: Mapped[str]


class CandidateTable(Base):
    """New levels that were judged."""

    __tablename__ = "candidates"
    candidate_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    base_version: Mapped[int]
    status: Mapped[str]  # judging, refused, published
    num_contributions: Mapped[int]
    at: Mapped[str]


class GateTable(Base):
    """What one gate said about a candidate."""

    __tablename__ = "gates"
    candidate_id: Mapped[str] = mapped_column(ForeignKey("candidates.candidate_id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    passed: Mapped[bool]
    value: Mapped[float]
    limit: Mapped[float]


class VersionTable(Base):
    """A published version: its lineage."""

    __tablename__ = "versions"
    version: Mapped[int] = mapped_column(primary_key=True)
    base_version: Mapped[int | None]
    candidate_id: Mapped[str | None] = mapped_column(ForeignKey("candidates.candidate_id"))
    restores: Mapped[int | None]
    override_reason: Mapped[str | None]
    status: Mapped[str]  # published, rolled-back
    at: Mapped[str]


class ReleaseTable(Base):
    """A version in a region: what its devices get."""

    __tablename__ = "releases"
    version: Mapped[int] = mapped_column(ForeignKey("versions.version"), primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    target: Mapped[str]
    accuracy: Mapped[float | None]
