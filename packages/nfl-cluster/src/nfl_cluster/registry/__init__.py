"""The registry: what became of every batch, candidate and version, and why, in one SQL database.

SQLite in the root's folder by default; any database that SQLAlchemy knows, by URL. The root's own state decides what
happens next; the registry is written beside it, by statements that may be repeated, so that people and tools can ask.
"""

from nfl_cluster.registry.store import (
    BatchRow,
    CandidateRow,
    Registry,
    RegistryVersionError,
    VersionRow,
)

__all__ = ["BatchRow", "CandidateRow", "Registry", "RegistryVersionError", "VersionRow"]
