"""Write the durable part of the agent's state as JSON, and read it back strictly."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from nfl_core.errors import DurableError
from nfl_core.ids import Digest
from nfl_edge.agent import AgentState, Phase
from nfl_edge.words import Base


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    digest: str
    target: str

    def value(self) -> Base:
        return Base(version=self.version, digest=Digest(self.digest), target=self.target)


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: Phase
    base: _Base | None
    candidate: _Base | None
    shadow: str
    before: str
    failure: str
    quarantine: bool
    quarantined_digests: tuple[str, ...]
    quarantined_versions: tuple[int, ...]
    contributed_policies: tuple[int, ...]
    contributed_bases: tuple[str, ...]
    sequence: int


def encode_state(state: AgentState) -> bytes:
    """Return the durable part of a state as JSON."""
    fields = {name: getattr(state, name) for name in _State.model_fields if name not in {"base", "candidate"}}
    return _State(base=_document(state.base), candidate=_document(state.candidate), **fields).model_dump_json().encode()


def decode_state(payload: bytes | None) -> AgentState:
    """Read what `encode_state` wrote; None is a device that never ran. Raises DurableError."""
    if payload is None:
        return AgentState()
    try:
        document = _State.model_validate_json(payload)
    except ValidationError as error:
        raise DurableError(f"the agent's state cannot be read: {error.error_count()} fields are wrong") from error
    fields = {name: getattr(document, name) for name in _State.model_fields if name not in {"base", "candidate"}}
    base = document.base.value() if document.base else None
    candidate = document.candidate.value() if document.candidate else None
    return AgentState(base=base, candidate=candidate, **fields)


def _document(base: Base | None) -> _Base | None:
    return None if base is None else _Base(version=base.version, digest=base.digest, target=base.target)
