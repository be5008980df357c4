from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfl_core.ids import Digest
from nfl_edge import words
from nfl_edge.agent import (
    DURABLE_PHASES,
    AgentSettings,
    AgentState,
    Phase,
    may_contribute,
    may_take,
    step,
)
from nfl_edge.memory import decode_state, encode_state
from nfl_edge.words import EVENTS, Base, Policy

SETTINGS = AgentSettings()
ONE = Base(version=1, digest=Digest("1" * 64), target="bundles/north/1.json")
TWO = Base(version=2, digest=Digest("2" * 64), target="bundles/north/2.json")
BEHIND = Policy(policy_id=7, bases=(ONE.digest, TWO.digest), expires_at=100.0)
POLICY = Policy(policy_id=7, bases=(ONE.digest,), expires_at=100.0)
RESTING = AgentState(phase=Phase.RESTING, base=ONE, learned_from=ONE.digest, linked=True, greet_at=9.0, report_at=9.0)

# One of each event, such as the runtime sends them.
SAMPLES: tuple[words.Event, ...] = (
    words.Booted(now=1.0, active=ONE),
    words.Tick(now=1.0, revision="r"),
    words.Greeted(now=1.0, offer=TWO, policy=POLICY),
    words.LinkFailed(now=1.0),
    words.Learned(now=1.0, revision="r"),
    words.Sealed(now=1.0, policy_id=7, base_digest=ONE.digest),
    words.SealRefused(now=1.0, policy_id=7),
    words.Sent(now=1.0),
    words.SendRefused(now=1.0),
    words.Fetched(now=1.0, before="old"),
    words.FetchFailed(now=1.0),
    words.Merged(now=1.0, shadow="new"),
    words.MergeRefused(now=1.0),
    words.Activated(now=1.0),
    words.ProbationPassed(now=1.0),
    words.ProbationFailed(now=1.0, reason="not-finite"),
    words.Confirmed(now=1.0),
    words.FellBack(now=1.0, active=ONE),
    words.Reported(now=1.0),
    words.Fault(now=1.0, reason="trainer.failed"),
)

# What each action is answered with; every pair leads on to another action.
ANSWERS: dict[Phase, tuple[type[words.Event], ...]] = {
    Phase.BOOTING: (),
    Phase.RESTING: (words.Tick,),
    Phase.GREETING: (words.Greeted, words.LinkFailed),
    Phase.LEARNING: (words.Learned,),
    Phase.SEALING: (words.Sealed, words.SealRefused),
    Phase.SENDING: (words.Sent, words.SendRefused, words.LinkFailed),
    Phase.FETCHING: (words.Fetched, words.FetchFailed, words.LinkFailed),
    Phase.MERGING: (words.Merged, words.MergeRefused),
    Phase.REPORTING: (words.Reported, words.LinkFailed),
    Phase.ACTIVATING: (words.Activated,),
    Phase.PROBATION: (words.ProbationPassed, words.ProbationFailed),
    Phase.CONFIRMING: (words.Confirmed, words.Tick),
    Phase.FALLING_BACK: (words.FellBack, words.Tick),
}
NEEDS_CANDIDATE = {Phase.FETCHING, Phase.MERGING, *DURABLE_PHASES}


def in_phase(phase: Phase) -> AgentState:
    candidate = TWO if phase in NEEDS_CANDIDATE else None
    return replace(RESTING, phase=phase, candidate=candidate, shadow="new", before="old")


def test_samples_are_one_of_each_event() -> None:
    assert tuple(type(event) for event in SAMPLES) == EVENTS


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_every_event_in_every_phase_has_a_defined_answer(phase: Phase, event: words.Event) -> None:
    state = in_phase(phase)
    answer = step(state, event, SETTINGS)
    expected = (
        type(event) in ANSWERS[phase]
        or isinstance(event, words.Booted)
        or (isinstance(event, words.Fault) and phase is not Phase.BOOTING)
    )
    if expected:
        assert answer.action is not None
        assert answer.state.phase is not Phase.BOOTING
    else:
        assert answer == type(answer)(state=state, action=None)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("active", [None, ONE, TWO], ids=["none", "old", "new"])
def test_a_reboot_anywhere_has_a_defined_answer(phase: Phase, active: Base | None) -> None:
    remembered = decode_state(encode_state(in_phase(phase).durable()))
    assert remembered == in_phase(phase).durable()
    answer = step(remembered, words.Booted(now=5.0, active=active), SETTINGS)
    expected: type[words.Action]
    if phase not in DURABLE_PHASES:
        expected = words.Wait if active == ONE else words.FallBack
    elif phase is Phase.ACTIVATING:
        expected = words.Activate
    elif phase is Phase.FALLING_BACK or active != TWO:
        expected = words.FallBack
    else:
        expected = words.Probe if phase is Phase.PROBATION else words.Confirm
    assert type(answer.action) is expected


def test_a_reboot_in_the_first_probation_starts_it_again_and_condemns_nobody() -> None:
    first = replace(in_phase(Phase.PROBATION), base=None, before="")
    answer = step(first.durable(), words.Booted(now=5.0, active=None), SETTINGS)
    assert answer.action == words.Activate(candidate=TWO, shadow="new")
    assert answer.state.quarantined_digests == ()


def test_slots_that_fell_back_at_boot_condemn_the_candidate() -> None:
    answer = step(in_phase(Phase.PROBATION).durable(), words.Booted(now=5.0, active=ONE), SETTINGS)
    assert answer.action == words.FallBack(candidate=TWO, before="old", reason="boot-limit", condemned=True)
    done = step(answer.state, words.FellBack(now=6.0, active=ONE), SETTINGS).state
    assert TWO.digest in done.quarantined_digests
    assert done.base == ONE


def test_a_damaged_slot_condemns_nobody() -> None:
    answer = step(RESTING.durable(), words.Booted(now=5.0, active=None), SETTINGS)
    assert answer.action == words.FallBack(candidate=ONE, before="", reason="slot-damaged", condemned=False)
    done = step(answer.state, words.FellBack(now=6.0, active=None), SETTINGS).state
    assert (done.base, done.quarantined_digests, done.quarantined_versions) == (None, (), ())


def test_a_failed_version_is_not_taken_again() -> None:
    failed = step(in_phase(Phase.PROBATION), words.ProbationFailed(now=1.0, reason="not-finite"), SETTINGS)
    assert isinstance(failed.action, words.FallBack)
    back = step(failed.state, words.FellBack(now=2.0, active=ONE), SETTINGS).state
    offered = replace(back, offer=TWO)
    assert not may_take(offered)
    assert not may_take(replace(offered, offer=replace(TWO, version=3)))  # same content under a new number
    assert may_take(replace(offered, offer=Base(version=3, digest=Digest("3" * 64))))


def test_a_refused_merge_is_quarantined_and_the_base_stays() -> None:
    done = step(in_phase(Phase.MERGING), words.MergeRefused(now=1.0), SETTINGS).state
    assert (done.base, done.candidate, done.phase) == (ONE, None, Phase.RESTING)
    assert not may_take(replace(done, offer=TWO))


def test_a_broken_graph_around_the_running_content_condemns_the_number_alone() -> None:
    bad = Base(version=2, digest=ONE.digest)
    state = replace(in_phase(Phase.PROBATION), candidate=bad, shadow="")
    failed = step(state, words.ProbationFailed(now=1.0, reason="not-finite"), SETTINGS)
    back = step(failed.state, words.FellBack(now=2.0, active=ONE), SETTINGS).state
    assert (back.quarantined_versions, back.quarantined_digests) == ((2,), ())
    assert may_take(replace(back, offer=Base(version=3, digest=ONE.digest)))  # the fleet's rollback


def test_a_fallback_is_told_before_the_device_asks_again() -> None:
    """Or the leaf would offer the next version first, and hold the fallback against that one."""
    back = step(in_phase(Phase.FALLING_BACK), words.FellBack(now=20.0, active=ONE), SETTINGS)
    told = step(back.state, words.Tick(now=20.0, revision="r"), SETTINGS)
    assert isinstance(told.action, words.Report)
    asked = step(
        step(told.state, words.Reported(now=20.1), SETTINGS).state, words.Tick(now=20.1, revision="r"), SETTINGS
    )
    assert isinstance(asked.action, words.Greet)
    away = step(told.state, words.LinkFailed(now=20.1), SETTINGS).state
    again = step(away, words.Tick(now=30.0, revision="r"), SETTINGS)
    assert isinstance(again.action, words.Report)


def test_restored_content_is_installed_without_a_merge_but_on_probation() -> None:
    state = replace(in_phase(Phase.FETCHING), candidate=Base(version=3, digest=ONE.digest))
    fetched = step(state, words.Fetched(now=1.0, before="old"), SETTINGS)
    assert fetched.action == words.Activate(candidate=state.candidate, shadow="")
    assert isinstance(step(fetched.state, words.Activated(now=1.0), SETTINGS).action, words.Probe)


def test_an_older_version_is_never_taken() -> None:
    assert not may_take(replace(RESTING, base=TWO, offer=ONE))
    assert not may_take(replace(RESTING, base=ONE, offer=ONE))
    assert may_take(replace(RESTING, base=None, offer=ONE))


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"contributed_bases": (ONE.digest,)}, True),  # the same base again, under another policy, while it is newest
        ({"policy": BEHIND}, True),  # behind, but never contributed from this base
        ({"policy": BEHIND, "contributed_bases": (ONE.digest,)}, False),
        ({"contributed_policies": (7,)}, False),
        ({"policy": replace(POLICY, bases=(TWO.digest,))}, False),
        ({"policy": replace(POLICY, expires_at=0.5)}, False),
        ({"learned_from": ""}, False),
        ({"base": None}, False),
        ({"policy": None}, False),
    ],
)
def test_contribution_rule(changes: dict[str, object], allowed: bool) -> None:
    state = replace(RESTING, policy=POLICY)
    assert may_contribute(replace(state, **changes), now=1.0) is allowed  # type: ignore[arg-type]


def test_what_was_learned_is_sent_before_a_newer_version_replaces_its_base() -> None:
    state = replace(RESTING, offer=TWO, policy=POLICY)
    sealing = step(state, words.Tick(now=1.0, revision="r"), SETTINGS)
    assert sealing.action == words.Seal(policy_id=7)
    sealed = step(sealing.state, words.Sealed(now=1.0, policy_id=7, base_digest=ONE.digest), SETTINGS)
    sending = step(sealed.state, words.Tick(now=1.0, revision="r"), SETTINGS)
    assert sending.action == words.Send()
    sent = step(sending.state, words.Sent(now=1.0), SETTINGS)
    assert step(sent.state, words.Tick(now=1.0, revision="r"), SETTINGS).action == words.Fetch(offer=TWO)


def test_a_leaf_that_is_away_stops_neither_learning_nor_sealing() -> None:
    away = replace(RESTING, linked=False, learned_from="", policy=POLICY, num_pending=1)
    learning = step(away, words.Tick(now=1.0, revision="r"), SETTINGS)
    assert learning.action == words.Learn()
    learned = step(learning.state, words.Learned(now=2.0, revision="r"), SETTINGS)
    sealing = step(learned.state, words.Tick(now=2.0, revision="r"), SETTINGS)
    assert sealing.action == words.Seal(policy_id=7)
    sealed = step(sealing.state, words.Sealed(now=2.0, policy_id=7, base_digest=ONE.digest), SETTINGS)
    assert isinstance(step(sealed.state, words.Tick(now=2.0, revision="r"), SETTINGS).action, words.Wait)


def test_new_samples_and_time_make_the_device_learn_again() -> None:
    state = replace(RESTING, learned_revision="a", learned_at=1.0)
    assert isinstance(step(state, words.Tick(now=2.0, revision="a"), SETTINGS).action, words.Wait)
    assert step(state, words.Tick(now=2.0, revision="b"), SETTINGS).action == words.Learn()
    late = replace(state, greet_at=1e6, report_at=1e6)
    assert step(late, words.Tick(now=1.0 + SETTINGS.relearn_s, revision="a"), SETTINGS).action == words.Learn()
    assert isinstance(step(late, words.Tick(now=1e5, revision=""), SETTINGS).action, words.Wait)


def test_waits_grow_with_failures_and_have_a_bound() -> None:
    state, waits = replace(RESTING, phase=Phase.GREETING), []
    for _ in range(12):
        state = replace(step(state, words.LinkFailed(now=0.0, jitter=0.999), SETTINGS).state, phase=Phase.GREETING)
        waits.append(state.greet_at)
    assert waits == sorted(waits)
    assert waits[0] <= SETTINGS.backoff_s
    assert SETTINGS.backoff_max_s * 0.99 < waits[-1] <= SETTINGS.backoff_max_s
    greeted = step(state, words.Greeted(now=0.0, offer=None, policy=None, retry_after_s=3.0), SETTINGS).state
    assert (greeted.failures, greeted.greet_at) == (0, 3.0)


@pytest.mark.parametrize("phase", [Phase.CONFIRMING, Phase.FALLING_BACK])
def test_what_must_not_be_left_half_done_is_tried_again(phase: Phase) -> None:
    waiting = step(in_phase(phase), words.Fault(now=1.0, reason="durable.disk-full"), SETTINGS)
    assert isinstance(waiting.action, words.Wait)
    assert isinstance(step(waiting.state, words.Tick(now=1.0), SETTINGS).action, words.Wait)
    again = step(waiting.state, words.Tick(now=99.0), SETTINGS)
    assert type(again.action) is (words.Confirm if phase is Phase.CONFIRMING else words.FallBack)


@pytest.mark.parametrize("condemns", [True, False])
def test_a_fault_while_activating_falls_back(condemns: bool) -> None:
    failed = step(in_phase(Phase.ACTIVATING), words.Fault(now=1.0, reason="x", condemns=condemns), SETTINGS)
    assert failed.action == words.FallBack(candidate=TWO, before="old", reason="x", condemned=condemns)
    done = step(failed.state, words.FellBack(now=1.0, active=ONE), SETTINGS).state
    assert (TWO.digest in done.quarantined_digests) is condemns
    assert done.quarantine


def test_durable_part_survives_encoding_and_volatile_part_does_not() -> None:
    state = replace(in_phase(Phase.PROBATION), sequence=9, offer=TWO, policy=POLICY, failures=3, num_pending=2)
    back = decode_state(encode_state(state.durable()))
    assert back == state.durable()
    assert (back.offer, back.policy, back.failures, back.num_pending, back.linked) == (None, None, 0, 0, False)


class _Device:
    """A perfect runtime around the machine: what an action does, in a dictionary instead of on a disk."""

    def __init__(self) -> None:
        self.state, self.active, self.before = AgentState(), None, ""
        self.sealed: list[int] = []
        self.outbox = 0
        self.newest, self.policy = ONE, 1
        self.now = 0.0
        self.event: words.Event = words.Booted(now=0.0, active=None)
        self.learned_from = ""

    def turn(self, fails: bool) -> None:
        answer = step(self.state, self.event, SETTINGS)
        assert answer.action is not None, (self.state.phase, self.event)
        self.state = answer.state
        self.event = self.perform(answer.action, fails)

    def reboot(self) -> None:
        self.state = decode_state(encode_state(self.state.durable()))
        self.event = words.Booted(
            now=self.now, active=self.active, num_pending=self.outbox, learned_from=self.learned_from
        )

    def perform(self, action: words.Action, fails: bool) -> words.Event:  # noqa: C901 - one case an action
        now = self.now
        match action:
            case words.Wait(until=until):
                self.now = max(now, until)
                return words.Tick(now=self.now, revision="r")
            case words.Greet() | words.Send() | words.Report() | words.Fetch() if fails:
                return words.LinkFailed(now=now)
            case words.Greet():
                bases = (ONE.digest, TWO.digest) if self.newest == TWO else (ONE.digest,)
                policy = Policy(policy_id=self.policy, bases=bases, expires_at=1e9)
                return words.Greeted(now=now, offer=self.newest, policy=policy)
            case words.Learn():
                self.learned_from = self.state.base.digest if self.state.base else ""
                return words.Learned(now=now, revision="r")
            case words.Seal(policy_id=policy_id):
                assert policy_id not in self.state.contributed_policies
                if policy_id not in self.sealed:  # the gate gives the stored one when a reboot made us ask again
                    self.sealed.append(policy_id)
                    self.outbox += 1
                assert self.state.base is not None
                return words.Sealed(now=now, policy_id=policy_id, base_digest=self.state.base.digest)
            case words.Send():
                if not self.outbox:  # sealed, rebooted, sealed again: counted twice, there once
                    return words.SendRefused(now=now)
                self.outbox -= 1
                return words.Sent(now=now)
            case words.Fetch():
                return words.Fetched(now=now, before="old" if self.active else "")
            case words.Merge():
                return words.MergeRefused(now=now) if fails else words.Merged(now=now, shadow="new")
            case words.Activate(candidate=candidate):
                if self.active != candidate:
                    self.before = self.active
                self.active, self.learned_from = candidate, ""
                return words.Activated(now=now)
            case words.Probe():
                return words.ProbationFailed(now=now, reason="bad") if fails else words.ProbationPassed(now=now)
            case words.Confirm():
                return words.Confirmed(now=now)
            case words.FallBack():
                if self.active == action.candidate:
                    self.active = self.before
                return words.FellBack(now=now, active=self.active)
            case words.Report():
                return words.Reported(now=now)
        raise AssertionError(action)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["go", "go", "go", "go", "go", "fail", "reboot", "publish", "policy"]), min_size=20, max_size=90
    )
)
def test_any_order_of_failures_and_reboots_keeps_the_promises(script: list[str]) -> None:
    device = _Device()
    for what in script:
        if what == "reboot":
            device.reboot()
        elif what == "publish":
            device.newest = TWO
        elif what == "policy":
            device.policy += 1
        else:
            device.turn(what == "fail")
        assert len(device.sealed) == len(set(device.sealed))  # once a policy
        for digest in device.state.quarantined_digests:
            assert device.state.base is None or device.state.base.digest != digest
    for _ in range(60):  # left alone, every history ends with the newest version running, or condemned
        device.turn(False)
    base = device.state.base
    assert (base == device.newest) or not may_take(replace(device.state, offer=device.newest))
    assert device.outbox == 0


def test_state_is_covered_by_its_document() -> None:
    durable = replace(in_phase(Phase.PROBATION), quarantined_versions=(1,), contributed_policies=(2,), sequence=3)
    names = {field.name for field in fields(AgentState)}
    assert {"base", "candidate", "phase", "sequence", "before", "shadow"} <= names
    assert decode_state(encode_state(durable)).sequence == 3
