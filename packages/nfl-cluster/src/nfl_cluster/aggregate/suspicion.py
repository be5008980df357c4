"""A leaf's suspicion: the root says how odd batches were, the leaf knows who was in them. Neither tells the other more.

Nobody is locked out by it: devices that honestly see a rare world look odd too. What comes out is advice to the
operator, as an event of the leaf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nfl_cluster.aggregate.reputation import Change, Observation, ReputationState, Settings, observe
from nfl_core.durable import DualRecord
from nfl_core.errors import DurableError, MalformedError


class RoundScores(BaseModel):
    """What the root says to all leaves about the batches of one candidate.

    Attributes:
        number: Grows by one a candidate that was scored.
        scores: Batch id -> `against` and `energy` of its `BatchScore`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    scores: dict[str, tuple[float, float]]

    def encode(self) -> bytes:
        """Return the payload of a message."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, payload: bytes) -> RoundScores:
        """Return what `encode` was called on. Raises MalformedError."""
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            raise MalformedError(f"a message holds no batch scores: {error.error_count()} faults") from error


class _Memory(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = 0
    state: ReputationState = ReputationState()


class Suspicion:
    """Durable reputation of one leaf's devices.

    Args:
        record: Name of its dual record.
        settings: When to speak.

    Raises:
        DurableError: The record cannot be read.
    """

    def __init__(self, record: Path, *, settings: Settings | None = None) -> None:
        self._record, self._settings = DualRecord(record), settings or Settings()
        payload = self._record.load()
        try:
            self._memory = _Memory() if payload is None else _Memory.model_validate_json(payload)
        except ValidationError as error:
            raise DurableError(f"suspicion of a leaf cannot be read: {error.error_count()} faults") from error

    def quarantined(self) -> frozenset[str]:
        """Return the devices that the operator was advised to keep out, and still is."""
        return self._memory.state.quarantined()

    def hear(self, scores: RoundScores, *, members: Mapping[str, Sequence[str]]) -> tuple[Change, ...]:
        """Take a round into account, once.

        Args:
            scores: From the root; a round that was heard before changes nothing.
            members: Batch id -> devices, of this leaf's own batches.

        Returns:
            Who came under suspicion and for whom it ended.

        Raises:
            StorageFullError: It cannot be stored, and was not heard.
        """
        if scores.number <= self._memory.number:
            return ()
        observations = [
            Observation(members=tuple(members[batch]), figures=figures)
            for batch, figures in sorted(scores.scores.items())
            if batch in members
        ]
        state, changes = observe(self._memory.state, observations, settings=self._settings)
        memory = _Memory(number=scores.number, state=state)
        self._record.store(memory.model_dump_json().encode())
        self._memory = memory
        return changes
