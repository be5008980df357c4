"""What can happen to a device's loop (events) and what it can be told to do (actions): the words of `nfl_edge.agent`.

`now` is seconds on a monotonic clock. Each action is answered by exactly one event.
"""

from __future__ import annotations

from dataclasses import dataclass

from nfl_core.ids import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A published version: its number, its target path in the repository and the digest of its shared tensors."""

    version: int
    digest: Digest
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The part of a verified round policy that the loop needs.

    Attributes:
        policy_id: Its number.
        bases: Contents of this device's region that a contribution may start from, the newest version's last.
        expires_at: On the clock of the events' `now`.
    """

    policy_id: int
    bases: tuple[Digest, ...]
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened at `now`."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted(Event):
    """The process started.

    Attributes:
        active: What the slot holds that runs, None when no slot holds a valid bundle.
        num_pending: Contributions in the outbox.
        learned_from: Digest of the base that the checkpoint has learned from since its merge; empty: not yet.
    """

    active: Base | None
    num_pending: int = 0
    learned_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Time passed. `revision` names the present set of samples; empty: there is none to learn from."""

    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeted(Event):
    """The leaf answered. `offer` is what it assigns to this device, whose wave may not have come yet."""

    offer: Base | None
    policy: Policy | None
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFailed(Event):
    """The leaf did not answer in time. `jitter` is in [0, 1)."""

    jitter: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned(Event):
    """A micro-update is committed."""

    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed(Event):
    """A contribution stands in the outbox. It counts as made: the gate will never seal another under its policy."""

    policy_id: int
    base_digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SealRefused(Event):
    """The egress gate refused; this policy is not tried again."""

    policy_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent(Event):
    """A valid receipt came for the oldest contribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRefused(Event):
    """The leaf will never take the oldest contribution; it was dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched(Event):
    """The offered bundle is verified and stands in the other slot. `before`: the present checkpoint or empty."""

    before: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed(Event):
    """The bundle could not be verified or stored. The old slot runs on; it is tried again later."""

    jitter: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(Event):
    """The merge is worth taking; `shadow` is the checkpoint that it made."""

    shadow: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRefused(Event):
    """The candidate would make the personal model worse on the holdout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activated(Event):
    """Slot, checkpoint and engine are the candidate's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbationPassed(Event):
    """The candidate ran well on real inferences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbationFailed(Event):
    """The candidate ran badly."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed(Event):
    """The slot is confirmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack(Event):
    """Slot, checkpoint and engine are again those from before. `active` is what runs now."""

    active: Base | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported(Event):
    """The leaf took the counters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Event):
    """The action in flight failed in another way.

    `reason` says how, `jitter` is in [0, 1); `condemns` is false when the fault is of the device (its disk is full) and
    not of what it was doing.
    """

    reason: str
    jitter: float = 0.0
    condemns: bool = True


EVENTS: tuple[type[Event], ...] = (
    Booted, Tick, Greeted, LinkFailed, Learned, Sealed, SealRefused, Sent, SendRefused, Fetched, FetchFailed, Merged,
    MergeRefused, Activated, ProbationPassed, ProbationFailed, Confirmed, FellBack, Reported, Fault,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Action:
    """What the runtime does next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait(Action):
    """Nothing to do before `until`; answer with Tick then, or earlier when samples change."""

    until: float


@dataclass(frozen=True, slots=True)
class Greet(Action):
    """Say hello to the leaf."""


@dataclass(frozen=True, slots=True)
class Learn(Action):
    """Run one micro-update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal(Action):
    """Seal the displacement since the accepted base, and put it into the outbox."""

    policy_id: int


@dataclass(frozen=True, slots=True)
class Send(Action):
    """Send the oldest contribution of the outbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch(Action):
    """Download, verify and stage the offered bundle."""

    offer: Base


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge(Action):
    """Make the shadow checkpoint: the first one when `first`, else by merging into the present one."""

    candidate: Base
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate(Action):
    """Make candidate slot and shadow checkpoint the running ones. Safe to repeat."""

    candidate: Base
    shadow: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(Action):
    """Run the probation on real inferences."""

    candidate: Base


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm(Action):
    """Confirm the slot. Safe to repeat."""

    candidate: Base


@dataclass(frozen=True, slots=True, kw_only=True)
class FallBack(Action):
    """Return to the slot and the checkpoint from before, without a network. Safe to repeat."""

    candidate: Base
    before: str
    reason: str
    condemned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Action):
    """Send the counters."""

    sequence: int
