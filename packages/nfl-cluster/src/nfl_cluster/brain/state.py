"""What the root remembers between two steps, as one durable record. Big arrays stand beside it in files."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from nfl_cluster.events import Figure
from nfl_cluster.rollout import DriverState
from nfl_ota import GateResult


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Buffered(_Part):
    """A batch that was uncovered and waits for its candidate."""

    batch_id: str
    policy_id: int
    leaf: str
    region: str
    base_version: int
    base_digest: str
    num: int
    weight: int
    at: str


class Candidate(_Part):
    """New levels; their tensors are in `candidates/<id>/<region>.safetensors`."""

    candidate_id: str
    base_version: int
    batches: tuple[str, ...]
    num_contributions: int
    at: str
    status: str = "judging"
    gates: tuple[GateResult, ...] = ()
    accuracy: dict[str, float] = Field(default_factory=dict)


class Plan(_Part):
    """A publication that was decided and is carried out until it is done.

    Attributes:
        version: Its number.
        created_at: ISO 8601; part of what is signed, so it must not change.
        candidate: Whose content it is; None: that of `source`.
        source: Version whose content it is, for overrides of the running version.
        restores: Version whose content comes back; None: new content.
        failed: Version that is given up with it.
        override: Why the gates were skipped.
        graph: Name of a stored graph that replaces the running one.
    """

    version: int
    created_at: str
    candidate: str | None = None
    source: int | None = None
    restores: int | None = None
    failed: int | None = None
    override: str | None = None
    graph: str | None = None


class Step(_Part):
    """A version on the path that the fleet came, rolled back ones left out."""

    version: int
    digests: dict[str, str]
    accuracy: dict[str, float] = Field(default_factory=dict)


class RootState(_Part):
    """All that the root remembers.

    Attributes:
        path: Versions from the first to the one that runs.
        buffer: Batches for the next candidate.
        finished: Batch id -> "used" or "dropped"; what arrives about them again changes nothing.
        norms: Norms of batch means seen lately, by scope.
        own_shares: How much of each regional level is the regions' own, by level, 0 to 1.
        scores: How odd the batches of the newest candidate are, by batch, in the order of `RoundScores`.
        scores_number: Grows with every round that was scored.
        candidate: Being judged, or the last one.
        plan: Being carried out.
        policy_id: Of the newest policy, 0: none.
        policy_at: When it was opened.
        wants_policy: Whether a new one is to be opened as soon as it may.
        keeper_key: Newest `Signed` of kind keeper-key, hex.
        rollout: Of the driver.
        rollout_number: Grows with every change that leaves must hear of.
        momentum: Candidate whose velocity is the newest; None: none.
        scales: Of the next policy, by version they were measured at.
        is_paused: Whether no candidates are made and no rounds opened.
        sent: What was posted: site -> kind -> number.
        event_number: Of the last event.
        events: Those of the last commit.
    """

    path: list[Step] = Field(default_factory=list)
    buffer: list[Buffered] = Field(default_factory=list)
    finished: dict[str, str] = Field(default_factory=dict)
    norms: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    own_shares: dict[str, float] = Field(default_factory=dict)
    scores: dict[str, tuple[float, float]] = Field(default_factory=dict)
    scores_number: int = 0
    candidate: Candidate | None = None
    plan: Plan | None = None
    policy_id: int = 0
    policy_at: str = ""
    wants_policy: bool = True
    keeper_key: str = ""
    rollout: DriverState = DriverState()
    rollout_number: int = 0
    momentum: str | None = None
    scales: dict[int, tuple[float, ...]] = Field(default_factory=dict)
    is_paused: bool = False
    sent: dict[str, dict[str, int]] = Field(default_factory=dict)
    event_number: int = 0
    events: list[dict[str, Figure]] = Field(default_factory=list)
