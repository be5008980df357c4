"""Decide what a device does next: one pure state machine, events in, one action out.

The loop of a device is sense, learn, infer, send, fetch, merge, report. This module holds all of its decisions and none
of its work: no disk, no network, no clock, no randomness. `nfl_edge.runtime` performs the actions and feeds the events.

Rules kept here:

* One action is in flight at a time; inference goes on beside it.
* Nothing waits for the leaf: when it is away the device learns, infers and asks again later, each time a little later.
* A device contributes once a policy, and twice from one base only while that base is the newest content of its region.
* What was learned from a base is sent, if a policy wants it, before a newer version replaces that base.
* A version that fails its probation or its merge is quarantined and never taken again.
* A phase that left traces on the disk (activating, probation, confirming, falling back) is finished after a reboot;
  every other phase is dropped and decided anew. So a reboot at any moment has a defined answer.

    >>> first = step(AgentState(), Booted(now=0.0, active=None), AgentSettings())
    >>> first.action
    Wait(until=0.0)
    >>> step(first.state, Tick(now=0.0), AgentSettings()).action
    Greet()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from nfl_edge.errors import AgentInvariantError
from nfl_edge.words import (
    Action,
    Activate,
    Activated,
    Base,
    Booted,
    Confirm,
    Confirmed,
    Event,
    FallBack,
    Fault,
    FellBack,
    Fetch,
    Fetched,
    FetchFailed,
    Greet,
    Greeted,
    Learn,
    Learned,
    LinkFailed,
    Merge,
    Merged,
    MergeRefused,
    Policy,
    ProbationFailed,
    ProbationPassed,
    Probe,
    Report,
    Reported,
    Seal,
    Sealed,
    SealRefused,
    Send,
    SendRefused,
    Sent,
    Tick,
    Wait,
)

NUM_REMEMBERED = (
    64  # policies and quarantined versions kept; a policy lives seconds to hours, so older ones are long closed
)


class Phase(str, Enum):
    """What the device is doing. The last four survive a reboot, see the rules above."""

    BOOTING = "booting"
    RESTING = "resting"
    GREETING = "greeting"
    LEARNING = "learning"
    SEALING = "sealing"
    SENDING = "sending"
    FETCHING = "fetching"
    MERGING = "merging"
    REPORTING = "reporting"
    ACTIVATING = "activating"
    PROBATION = "probation"
    CONFIRMING = "confirming"
    FALLING_BACK = "falling-back"


DURABLE_PHASES = (Phase.ACTIVATING, Phase.PROBATION, Phase.CONFIRMING, Phase.FALLING_BACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Times and limits of the loop.

    Attributes:
        poll_s: Seconds between two greetings of a leaf that answers, > 0.
        relearn_s: Seconds after which the device learns again although neither base nor samples changed, > 0.
        report_s: Seconds between two reports when nothing worth telling happened, > 0.
        backoff_s: Wait after the first failure; doubles with each further one, > 0.
        backoff_max_s: Longest wait after failures, >= backoff_s.
    """

    poll_s: float = 0.4
    relearn_s: float = 120.0
    report_s: float = 5.0
    backoff_s: float = 0.2
    backoff_max_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """All that the machine knows. `durable()` is what a reboot keeps."""

    phase: Phase = Phase.BOOTING
    base: Base | None = None
    candidate: Base | None = None
    shadow: str = ""  # checkpoint that the candidate brings; empty: the present one goes on
    before: str = ""  # checkpoint to return to when the candidate fails
    failure: str = ""  # why the device falls back
    quarantine: bool = True  # whether falling back condemns the candidate
    quarantined_digests: tuple[str, ...] = ()
    quarantined_versions: tuple[int, ...] = ()
    contributed_policies: tuple[int, ...] = ()
    contributed_bases: tuple[str, ...] = ()
    sequence: int = 0
    # From here on: forgotten by a reboot.
    offer: Base | None = None
    policy: Policy | None = None
    num_pending: int = 0
    learned_from: str = ""
    learned_revision: str = ""
    learned_at: float = 0.0
    greet_at: float = 0.0
    work_at: float = 0.0
    fetch_at: float = 0.0
    report_at: float = 0.0
    failures: int = 0
    linked: bool = False

    def durable(self) -> AgentState:
        """Return the state without what a reboot forgets, in a phase that a reboot can begin from."""
        phase = self.phase if self.phase in DURABLE_PHASES else Phase.BOOTING
        kept = self.candidate if self.phase in DURABLE_PHASES else None
        return AgentState(
            phase=phase,
            base=self.base,
            candidate=kept,
            shadow=self.shadow if kept else "",
            before=self.before if kept else "",
            failure=self.failure if kept else "",
            quarantine=self.quarantine if kept else True,
            quarantined_digests=self.quarantined_digests,
            quarantined_versions=self.quarantined_versions,
            contributed_policies=self.contributed_policies,
            contributed_bases=self.contributed_bases,
            sequence=self.sequence,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Answer of the machine.

    Attributes:
        state: The next state.
        action: What to do; None: the event does not belong to this phase and the action in flight goes on.
    """

    state: AgentState
    action: Action | None


def step(state: AgentState, event: Event, settings: AgentSettings) -> Step:
    """Answer one event.

    Args:
        state: The present state.
        event: What happened.
        settings: Times and limits.

    Returns:
        The next state and the one action to perform. An event that does not belong to the phase changes nothing.
    """
    if isinstance(event, Booted):
        return _boot(state, event)
    if isinstance(event, Fault):
        return _fault(state, event, settings)
    handler = _TABLE.get((state.phase, type(event)))
    return Step(state=state, action=None) if handler is None else handler(state, event, settings)


def may_contribute(state: AgentState, *, now: float) -> bool:
    """Say whether the contribution rule lets the device seal now.

    Once a policy; only from a base that the policy names and that the device has learned from; and only if that base is
    the newest of the device's region in the policy or the device never contributed from it.
    """
    policy, base = state.policy, state.base
    if policy is None or base is None or now >= policy.expires_at:
        return False
    if policy.policy_id in state.contributed_policies or base.digest not in policy.bases:
        return False
    if state.learned_from != base.digest:
        return False
    # From the signed policy, not from the leaf: outside the first wave the leaf offers an older version still.
    return policy.bases[-1] == base.digest or base.digest not in state.contributed_bases


def may_take(state: AgentState) -> bool:
    """Say whether the offered version is one to fetch: newer than the running one and not quarantined."""
    offer = state.offer
    if offer is None or offer.digest in state.quarantined_digests or offer.version in state.quarantined_versions:
        return False
    return state.base is None or offer.version > state.base.version


def _boot(state: AgentState, event: Booted) -> Step:
    kept = replace(
        state.durable(), num_pending=event.num_pending, learned_from=event.learned_from, learned_at=event.now
    )
    candidate = kept.candidate
    if candidate is None:
        if kept.base is None or _same(event.active, kept.base):
            return _rest(kept, event.now)
        # The slots fell back by themselves (damaged content): follow them, and condemn nobody for a bad disk.
        gone = replace(kept, candidate=kept.base, failure="slot-damaged", quarantine=False)
        return _fall_back(gone)
    if kept.phase is Phase.FALLING_BACK:
        return _fall_back(kept)
    if kept.phase is Phase.ACTIVATING or kept.base is None:
        # The first version of a device runs its probation from the staged slot: there is nothing to fall back to yet.
        again = replace(kept, phase=Phase.ACTIVATING)
        return Step(state=again, action=Activate(candidate=candidate, shadow=kept.shadow))
    if not _same(event.active, candidate):
        return _fall_back(replace(kept, failure="boot-limit"))
    if kept.phase is Phase.CONFIRMING:
        return Step(state=kept, action=Confirm(candidate=candidate))
    return Step(state=kept, action=Probe(candidate=candidate))


def _candidate(state: AgentState) -> Base:
    if state.candidate is None:
        raise AgentInvariantError(f"there is no candidate while {state.phase.value}")
    return state.candidate


def _same(left: Base | None, right: Base) -> bool:
    return left is not None and (left.version, left.digest) == (right.version, right.digest)


def _fault(state: AgentState, event: Fault, settings: AgentSettings) -> Step:
    if state.phase in (Phase.ACTIVATING, Phase.PROBATION):
        return _fall_back(replace(state, failure=event.reason, quarantine=event.condemns))
    later = _later(state, event.now, event.jitter, settings)
    failed = replace(state, failures=state.failures + 1, work_at=later)
    if state.phase in (Phase.CONFIRMING, Phase.FALLING_BACK):
        return Step(state=failed, action=Wait(until=later))
    if state.phase is Phase.BOOTING:
        return Step(state=state, action=None)
    return _rest(replace(failed, candidate=None), event.now)


def _later(state: AgentState, now: float, jitter: float, settings: AgentSettings) -> float:
    wait: float = min(settings.backoff_max_s, settings.backoff_s * 2.0 ** min(state.failures, 16))
    return now + wait * (0.5 + 0.5 * jitter)


def _rest(state: AgentState, now: float) -> Step:
    return Step(state=replace(state, phase=Phase.RESTING), action=Wait(until=now))


def _fall_back(state: AgentState) -> Step:
    action = FallBack(
        candidate=_candidate(state), before=state.before, reason=state.failure, condemned=state.quarantine
    )
    return Step(state=replace(state, phase=Phase.FALLING_BACK), action=action)


def _decide(state: AgentState, event: Tick, settings: AgentSettings) -> Step:
    """Choose the next piece of work. Order: tell before asking; ask, send, contribute, take, learn, tell, wait."""
    now = event.now
    # News first: a leaf that offers the next version before it hears of a fallback would hold it against that version.
    if now >= max(state.greet_at, state.report_at):
        return _report(state)
    if now >= state.greet_at:
        return Step(state=replace(state, phase=Phase.GREETING), action=Greet())
    if now < state.work_at:
        return Step(state=state, action=Wait(until=min(state.greet_at, state.work_at)))
    if state.linked and state.num_pending:
        return Step(state=replace(state, phase=Phase.SENDING), action=Send())
    if state.policy is not None and may_contribute(state, now=now):
        return Step(state=replace(state, phase=Phase.SEALING), action=Seal(policy_id=state.policy.policy_id))
    if state.linked and now >= state.fetch_at and state.offer is not None and may_take(state):
        return Step(state=replace(state, phase=Phase.FETCHING, candidate=state.offer), action=Fetch(offer=state.offer))
    relearn_at = state.learned_at + settings.relearn_s
    stale = now >= relearn_at or state.learned_revision not in {"", event.revision}
    if state.base is not None and event.revision and (stale or state.learned_from != state.base.digest):
        return Step(state=replace(state, phase=Phase.LEARNING), action=Learn())
    if state.linked and now >= state.report_at:
        return _report(state)
    return Step(state=state, action=Wait(until=state.greet_at))


def _report(state: AgentState) -> Step:
    following = replace(state, phase=Phase.REPORTING, sequence=state.sequence + 1)
    return Step(state=following, action=Report(sequence=following.sequence))


def _greeted(state: AgentState, event: Greeted, settings: AgentSettings) -> Step:
    greet_at = event.now + max(settings.poll_s, event.retry_after_s)
    known = replace(state, offer=event.offer, policy=event.policy, greet_at=greet_at)
    return _rest(replace(known, linked=True, failures=0), event.now)


def _link_failed(state: AgentState, event: LinkFailed, settings: AgentSettings) -> Step:
    later = _later(state, event.now, event.jitter, settings)
    # A repeated report number is counted once by the leaf, so the next report simply takes the next number.
    away = replace(state, linked=False, failures=state.failures + 1, greet_at=later, candidate=None)
    return _rest(away, event.now)


def _learned(state: AgentState, event: Learned, _settings: AgentSettings) -> Step:
    digest = state.base.digest if state.base else ""
    done = replace(state, learned_from=digest, learned_revision=event.revision, learned_at=event.now)
    return _rest(replace(done, failures=0), event.now)


def _sealed(state: AgentState, event: Sealed, _settings: AgentSettings) -> Step:
    policies = _remember(state.contributed_policies, event.policy_id)
    bases = _remember(state.contributed_bases, str(event.base_digest))
    done = replace(state, contributed_policies=policies, contributed_bases=bases, num_pending=state.num_pending + 1)
    return _rest(done, event.now)


def _seal_refused(state: AgentState, event: SealRefused, _settings: AgentSettings) -> Step:
    return _rest(replace(state, contributed_policies=_remember(state.contributed_policies, event.policy_id)), event.now)


def _sent(state: AgentState, event: Event, _settings: AgentSettings) -> Step:
    return _rest(replace(state, num_pending=max(0, state.num_pending - 1)), event.now)


def _fetched(state: AgentState, event: Fetched, _settings: AgentSettings) -> Step:
    ready = replace(state, before=event.before, shadow="", failure="", quarantine=True)
    if event.before and state.base is not None and _candidate(state).digest == state.base.digest:
        # The content that runs already, under another number (a rolled-back fleet): nothing to merge, all to check.
        action: Action = Activate(candidate=_candidate(state), shadow="")
        return Step(state=replace(ready, phase=Phase.ACTIVATING), action=action)
    action = Merge(candidate=_candidate(state), first=not event.before)
    return Step(state=replace(ready, phase=Phase.MERGING), action=action)


def _fetch_failed(state: AgentState, event: FetchFailed, settings: AgentSettings) -> Step:
    later = _later(state, event.now, event.jitter, settings)
    return _rest(replace(state, candidate=None, failures=state.failures + 1, fetch_at=later), event.now)


def _merged(state: AgentState, event: Merged, _settings: AgentSettings) -> Step:
    action = Activate(candidate=_candidate(state), shadow=event.shadow)
    return Step(state=replace(state, phase=Phase.ACTIVATING, shadow=event.shadow), action=action)


def _merge_refused(state: AgentState, event: Event, _settings: AgentSettings) -> Step:
    return _rest(replace(_condemn(state), candidate=None, report_at=event.now), event.now)


def _activated(state: AgentState, _event: Event, _settings: AgentSettings) -> Step:
    return Step(state=replace(state, phase=Phase.PROBATION), action=Probe(candidate=_candidate(state)))


def _passed(state: AgentState, _event: Event, _settings: AgentSettings) -> Step:
    return Step(state=replace(state, phase=Phase.CONFIRMING), action=Confirm(candidate=_candidate(state)))


def _failed(state: AgentState, event: ProbationFailed, _settings: AgentSettings) -> Step:
    return _fall_back(replace(state, failure=event.reason))


def _confirmed(state: AgentState, event: Event, _settings: AgentSettings) -> Step:
    done = replace(state, base=_candidate(state), candidate=None, shadow="", before="", failures=0, report_at=event.now)
    return _rest(done, event.now)


def _fell_back(state: AgentState, event: FellBack, _settings: AgentSettings) -> Step:
    condemned = _condemn(state) if state.quarantine else state
    done = replace(condemned, base=event.active, candidate=None, shadow="", before="", failure="", quarantine=True)
    return _rest(replace(done, report_at=event.now), event.now)


def _condemn(state: AgentState) -> AgentState:
    candidate = _candidate(state)
    versions = _remember(state.quarantined_versions, candidate.version)
    if state.base is not None and candidate.digest == state.base.digest:
        # The tensors that run well here: what failed is the rest of that bundle, so only its number is condemned.
        return replace(state, quarantined_versions=versions)
    digests = _remember(state.quarantined_digests, str(candidate.digest))
    return replace(state, quarantined_versions=versions, quarantined_digests=digests)


def _reported(state: AgentState, event: Event, settings: AgentSettings) -> Step:
    return _rest(replace(state, report_at=event.now + settings.report_s), event.now)


def _retry(state: AgentState, event: Event, _settings: AgentSettings) -> Step:
    """Try again, after a wait, what must not be left half-done."""
    if event.now < state.work_at:
        return Step(state=state, action=Wait(until=state.work_at))
    return (
        Step(state=state, action=Confirm(candidate=_candidate(state)))
        if state.phase is Phase.CONFIRMING
        else _fall_back(state)
    )


_T = TypeVar("_T")


def _remember(known: tuple[_T, ...], new: _T) -> tuple[_T, ...]:
    kept: tuple[_T, ...] = tuple(one for one in known if one != new)
    return (*kept, new)[-NUM_REMEMBERED:]


_Handler = Callable[..., Step]  # each takes the event of its key; `step` looks up by exactly that type
_TABLE: dict[tuple[Phase, type[Event]], _Handler] = {
    (Phase.RESTING, Tick): _decide,
    (Phase.GREETING, Greeted): _greeted,
    (Phase.GREETING, LinkFailed): _link_failed,
    (Phase.LEARNING, Learned): _learned,
    (Phase.SEALING, Sealed): _sealed,
    (Phase.SEALING, SealRefused): _seal_refused,
    (Phase.SENDING, Sent): _sent,
    (Phase.SENDING, SendRefused): _sent,
    (Phase.SENDING, LinkFailed): _link_failed,
    (Phase.FETCHING, Fetched): _fetched,
    (Phase.FETCHING, FetchFailed): _fetch_failed,
    (Phase.FETCHING, LinkFailed): _link_failed,
    (Phase.MERGING, Merged): _merged,
    (Phase.MERGING, MergeRefused): _merge_refused,
    (Phase.ACTIVATING, Activated): _activated,
    (Phase.PROBATION, ProbationPassed): _passed,
    (Phase.PROBATION, ProbationFailed): _failed,
    (Phase.CONFIRMING, Confirmed): _confirmed,
    (Phase.CONFIRMING, Tick): _retry,
    (Phase.FALLING_BACK, FellBack): _fell_back,
    (Phase.FALLING_BACK, Tick): _retry,
    (Phase.REPORTING, Reported): _reported,
    (Phase.REPORTING, LinkFailed): _link_failed,
}
