from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfl_core.codec import frame
from nfl_core.errors import (
    ConflictError,
    ContentError,
    DuplicateContributionError,
    FrameError,
    IdentityError,
    MalformedError,
    NflError,
    NotFoundError,
    PolicyError,
)
from nfl_core.ids import new_batch_id
from nfl_core.wire import device_pb2, sites_pb2
from nfl_secure.identity import Role
from nfl_secure.keystore import read_seal_key
from nfl_secure.policy import VerifiedPolicy
from nfl_secure.secagg import BatchBook, OpenedContribution, open_contribution, open_seed

from .fleet import BASE, LEAF, OTHER_BASE, Fleet


def opened(fleet: Fleet, name: str, policy: VerifiedPolicy, **seal: object) -> OpenedContribution:
    return open_contribution(
        fleet.seal(name, policy, **seal).frame, policy=policy, leaf=LEAF, ca_pem=fleet.ca_pem, at=fleet.clock()
    )


def put(fleet: Fleet, book: BatchBook, contribution: OpenedContribution, policy: VerifiedPolicy) -> str:
    batch_id = book.place(contribution, policy=policy)
    book.add(contribution, policy=policy, batch_id=batch_id, at=fleet.clock())
    return batch_id


def body_of(fleet: Fleet, body: bytes, **changes: object) -> bytes:
    message = device_pb2.Contribution.FromString(frame.decode(body, max_bytes=10**6)[1])
    for name, value in changes.items():
        setattr(message, name, value)
    return frame.encode(frame.FrameKind.CONTRIBUTION, message.SerializeToString())


def test_contributions_of_one_base_share_a_batch(fleet: Fleet) -> None:
    policy, book = fleet.open_policy(), BatchBook(LEAF)
    a, b = (put(fleet, book, opened(fleet, name, policy), policy) for name in "ab")
    other = put(fleet, book, opened(fleet, "c", policy, base=OTHER_BASE), policy)
    assert a == b != other
    assert book.sizes() == {a: 2, other: 1}


def test_a_batch_is_due_when_full_or_when_its_window_is_over_and_never_too_small(fleet: Fleet) -> None:
    policy, book = fleet.open_policy(), BatchBook(LEAF)  # n_min 3, batch_size 4, window 6 s
    for name in "ab":
        batch_id = put(fleet, book, opened(fleet, name, policy), policy)
    assert book.due(fleet.clock() + timedelta(hours=1)) == []
    with pytest.raises(ConflictError, match="expected at least 3"):
        book.close(batch_id)
    put(fleet, book, opened(fleet, "c", policy), policy)
    assert book.due(fleet.clock() + timedelta(seconds=5.9)) == []
    assert book.due(fleet.clock() + timedelta(seconds=6)) == [batch_id]
    put(fleet, book, opened(fleet, "d", policy), policy)
    assert book.due(fleet.clock()) == [batch_id]
    assert book.close(batch_id).num == 4
    with pytest.raises(NotFoundError):
        book.close(batch_id)


def test_a_full_batch_takes_nobody_and_the_next_opens(fleet: Fleet) -> None:
    policy, book = fleet.open_policy(batch_max=4), BatchBook(LEAF)
    first = [put(fleet, book, opened(fleet, name, policy), policy) for name in "abcd"]
    extra = opened(fleet, "e", policy)
    assert book.place(extra, policy=policy) not in first
    with pytest.raises(ConflictError, match="full"):
        book.add(extra, policy=policy, batch_id=first[0], at=fleet.clock())


def test_a_batch_that_can_never_close_lapses(fleet: Fleet) -> None:
    policy, book = fleet.open_policy(), BatchBook(LEAF)
    batch_id = put(fleet, book, opened(fleet, "a", policy), policy)
    assert book.lapsed(fleet.clock()) == []
    assert book.lapsed(fleet.clock() + timedelta(hours=1)) == [batch_id]
    book.drop(batch_id)
    assert book.sizes() == {}
    with pytest.raises(NotFoundError):
        book.drop(batch_id)


def test_replay_of_a_contribution_is_counted_once_even_after_its_batch_closed(fleet: Fleet) -> None:
    policy, book = fleet.open_policy(), BatchBook(LEAF)
    first = opened(fleet, "a", policy)
    batch_id = put(fleet, book, first, policy)
    for name in "bc":
        put(fleet, book, opened(fleet, name, policy), policy)
    with pytest.raises(DuplicateContributionError):
        book.add(first, policy=policy, batch_id=batch_id, at=fleet.clock())
    book.close(batch_id)
    with pytest.raises(DuplicateContributionError):
        book.place(first, policy=policy)
    book.forget(policy.policy_id)
    book.place(first, policy=policy)  # forgotten with its policy, which read_policy refuses by then


def test_a_device_gives_one_contribution_under_a_policy(fleet: Fleet) -> None:
    policy, book = fleet.open_policy(), BatchBook(LEAF)
    put(fleet, book, opened(fleet, "a", policy), policy)
    (fleet.home / "device-state/a/egress.0").unlink()
    with pytest.raises(ConflictError, match="once is all"):
        book.place(opened(fleet, "a", policy, base=OTHER_BASE), policy=policy)


def test_a_stolen_contribution_id_is_refused(fleet: Fleet) -> None:
    policy, book = fleet.open_policy(), BatchBook(LEAF)
    mine = opened(fleet, "a", policy)
    put(fleet, book, mine, policy)
    thief = replace(mine, statement=replace(mine.statement, device=fleet.spiffe(Role.DEVICE, "evil")))
    with pytest.raises(ConflictError, match="another device's"):
        book.place(thief, policy=policy)


def test_playing_the_log_back_gives_the_same_roster_and_sum(fleet: Fleet) -> None:
    policy, book = fleet.open_policy(), BatchBook(LEAF)
    log = []
    for name in "abc":
        contribution = opened(fleet, name, policy)
        batch_id = book.place(contribution, policy=policy)
        log.append((batch_id, contribution))
        book.add(contribution, policy=policy, batch_id=batch_id, at=fleet.clock())
    again = BatchBook(LEAF)
    for batch_id, contribution in log:
        again.add(contribution, policy=policy, batch_id=batch_id, at=fleet.clock())
    first, second = book.close(batch_id), again.close(batch_id)
    assert first.roster(fleet.leaf) == second.roster(fleet.leaf)
    assert first.batch_sum(fleet.leaf, region="north") == second.batch_sum(fleet.leaf, region="north")


def test_the_order_of_arrival_does_not_change_the_sum(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    contributions = [opened(fleet, name, policy) for name in "abcd"]
    sums = []
    for order in (contributions, contributions[::-1]):
        book, batch_id = BatchBook(LEAF), new_batch_id()
        for contribution in order:
            book.add(contribution, policy=policy, batch_id=batch_id, at=fleet.clock())
        sums.append(book.close(batch_id).sum_N)
    np.testing.assert_array_equal(*sums)


def test_seeds_are_fresh_and_have_all_their_bits(fleet: Fleet) -> None:
    """Regression against seeds made from text or folded to 32 bits: every bit is seen both ways."""
    key = read_seal_key(fleet.home / "keeper-keys/keeper.key")
    policy = fleet.open_policy()
    statements = [opened(fleet, f"d{number}", policy).statement for number in range(40)]
    seeds = [open_seed(statement.sealed_seed, key=key, context=statement.context) for statement in statements]
    bits = np.frombuffer(b"".join(seeds), np.uint8).reshape(40, 32)
    assert np.bitwise_or.reduce(bits).min() == 255
    assert np.bitwise_and.reduce(bits).max() == 0


def _open(fleet: Fleet, body: bytes, policy: VerifiedPolicy, **changes: object) -> OpenedContribution:
    arguments = {"policy": policy, "leaf": LEAF, "ca_pem": fleet.ca_pem, "at": fleet.clock(), **changes}
    return open_contribution(body, **arguments)


def test_tampered_masked_vector_is_refused_by_the_leaf(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    body = fleet.seal("a", policy).frame
    masked = bytearray(device_pb2.Contribution.FromString(body[32:]).masked)
    masked[0] ^= 1
    with pytest.raises(ContentError, match="not the ones it signed for"):
        _open(fleet, body_of(fleet, body, masked=bytes(masked)), policy)


def test_frames_cut_padded_or_forged_are_refused(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    body = fleet.seal("a", policy).frame
    forged_length = body[:8] + (2**40).to_bytes(8, "little") + body[16:]
    for bad in (
        b"",
        body[:-1],
        body + b"\0",
        forged_length,
        body[:40],
        frame.encode(frame.FrameKind.SITE_MESSAGE, b"x"),
    ):
        with pytest.raises(FrameError):
            _open(fleet, bad, policy)
    with pytest.raises(MalformedError):
        _open(fleet, frame.encode(frame.FrameKind.CONTRIBUTION, b"\xff\xff"), policy)


def test_a_body_that_does_not_keep_to_the_policy_is_refused(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    body = fleet.seal("a", policy).frame
    for changes in ({"num_values": 17}, {"modulus_bits": 5}, {"num_values": 2**31}):
        with pytest.raises(PolicyError, match="values"):
            _open(fleet, body_of(fleet, body, **changes), policy)
    with pytest.raises(PolicyError, match="for leaf"):
        _open(fleet, body, policy, leaf="leaf-2")
    with pytest.raises(PolicyError, match="under policy"):
        _open(fleet, body, fleet.open_policy(2))


def test_a_body_signed_by_another_device_than_its_sender_is_refused(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    body = fleet.seal("a", policy).frame
    _open(fleet, body, policy, peer=fleet.spiffe(Role.DEVICE, "a"))
    with pytest.raises(IdentityError, match="sent by"):
        _open(fleet, body, policy, peer=fleet.spiffe(Role.DEVICE, "b"))


def test_ids_in_a_statement_are_ids(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    body = fleet.seal("a", policy).frame
    signed = device_pb2.Contribution.FromString(body[32:]).statement
    message = device_pb2.ContributionStatement.FromString(sites_pb2.Signed.FromString(signed).payload)
    message.contribution_id = "../x"
    forged = fleet.device("a").sign("contribution", message.SerializeToString())
    with pytest.raises(IdentityError, match="contribution id"):
        _open(fleet, body_of(fleet, body, statement=forged), policy)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), reframe=st.booleans())
def test_any_changed_bit_is_refused_with_a_declared_error(fleet: Fleet, place: float, bit: int, reframe: bool) -> None:
    """Also when the frame's checksum is made right again, so that what is inside has to defend itself."""
    if 1 not in fleet.policies:
        fleet.policies[1] = fleet.open_policy()
    policy = fleet.policies[1]
    body = fleet.seal("a", policy).frame
    payload = bytearray(frame.decode(body, max_bytes=10**6)[1] if reframe else body)
    payload[int(place * len(payload))] ^= 1 << bit
    forged = frame.encode(frame.FrameKind.CONTRIBUTION, bytes(payload)) if reframe else bytes(payload)
    try:
        result = _open(fleet, forged, policy)
    except NflError:
        return
    # What protobuf does not look at may change; what was signed may not.
    assert result.statement.context == _open(fleet, body, policy).statement.context
    assert result.statement.context.base_digest == BASE
