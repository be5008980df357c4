"""Attacks on the keeper: everybody who wants an answer that uncovers a single contribution."""

from __future__ import annotations

import itertools
import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfl_core.durable import Journal
from nfl_core.durable.simulated import PowerCutError, SimulatedDisk
from nfl_core.errors import DurableError, IdentityError, PolicyError, StorageFullError
from nfl_core.ids import new_batch_id
from nfl_core.wire import device_pb2, sites_pb2
from nfl_secure.errors import RosterRefusedError
from nfl_secure.identity import Role
from nfl_secure.messages import verify
from nfl_secure.secagg import BatchBook, ClosedBatch, Keeper

from .fleet import BASE, LEAF, OTHER_BASE, Fleet


def refused(fleet: Fleet, roster: bytes, reason: str, *, keeper: Keeper | None = None) -> RosterRefusedError:
    with pytest.raises(RosterRefusedError) as caught:
        (keeper or fleet.keeper).answer(roster)
    assert caught.value.reason == reason, caught.value
    return caught.value


def restated(fleet: Fleet, name: str, statement: bytes, **changes: object) -> bytes:
    """Return a statement, changed and signed anew by its own device: what an evil device would send."""
    message = device_pb2.ContributionStatement.FromString(sites_pb2.Signed.FromString(statement).payload)
    for field, value in changes.items():
        setattr(message, field, value)
    return fleet.device(name).sign("contribution", message.SerializeToString())


@pytest.fixture
def closed(fleet: Fleet) -> ClosedBatch:
    return fleet.closed_batch(fleet.open_policy(), "a", "b", "c", "d")


def test_the_same_roster_again_gets_the_same_bytes_also_after_a_restart(fleet: Fleet, closed: ClosedBatch) -> None:
    roster = closed.roster(fleet.leaf)
    answer = fleet.keeper.answer(roster)
    assert fleet.keeper.answer(roster) == answer
    assert fleet.open_keeper().answer(roster) == answer


def test_double_ask_another_roster_under_an_answered_batch_is_refused_also_after_a_restart(
    fleet: Fleet, closed: ClosedBatch
) -> None:
    fleet.keeper.answer(closed.roster(fleet.leaf))
    without_d = fleet.roster_of(closed, *closed.statements[:3])
    refused(fleet, without_d, "second-answer")
    refused(fleet, without_d, "second-answer", keeper=fleet.open_keeper())


def test_differencing_every_overlapping_roster_is_refused(fleet: Fleet, closed: ClosedBatch) -> None:
    """The sum with D minus the sum without D is D: no two answered rosters may share a contribution."""
    fleet.keeper.answer(closed.roster(fleet.leaf))
    for size in (3, 4):
        for subset in itertools.combinations(closed.statements, size):
            refused(fleet, fleet.roster_of(closed, *subset, batch_id=new_batch_id()), "overlap")
    fresh = fleet.closed_batch(fleet.open_policy(2), "e", "f", "g")
    for keeper in (fleet.keeper, fleet.open_keeper()):
        mixed = replace(fresh, statements=(*fresh.statements, closed.statements[0]), policy=closed.policy)
        with pytest.raises(RosterRefusedError):
            keeper.answer(mixed.roster(fleet.leaf))


def test_differencing_the_smaller_roster_first_is_refused_as_well(fleet: Fleet, closed: ClosedBatch) -> None:
    fleet.keeper.answer(fleet.roster_of(closed, *closed.statements[:3]))
    refused(fleet, closed.roster(fleet.leaf), "second-answer")
    refused(fleet, fleet.roster_of(closed, batch_id=new_batch_id()), "overlap")


def test_a_device_that_contributes_twice_under_a_policy_is_refused(fleet: Fleet) -> None:
    """Two contributions of one device in two batches, from two bases: evil device, or a stolen contribution key."""
    policy = fleet.open_policy()
    first = fleet.closed_batch(policy, "a", "b", "c")
    fleet.keeper.answer(first.roster(fleet.leaf))
    (fleet.home / "device-state/a/egress.0").unlink()  # the device forgets that it contributed
    second = fleet.seal("a", policy, base=OTHER_BASE)
    others = [fleet.seal(name, policy, base=OTHER_BASE) for name in ("e", "f")]
    statements = [device_pb2.Contribution.FromString(sealed.frame[32:]).statement for sealed in (second, *others)]
    roster = replace(first, batch_id=new_batch_id(), base_digest=OTHER_BASE, statements=tuple(statements))
    refused(fleet, roster.roster(fleet.leaf), "overlap")


def test_small_batch_is_refused(fleet: Fleet, closed: ClosedBatch) -> None:
    for size in (0, 1, 2):
        refused(fleet, fleet.roster_of(replace(closed, statements=closed.statements[:size])), "small-batch")


def test_the_keepers_own_floor_stands_above_the_policys(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet", keeper_n_min=5)
    closed = fleet.closed_batch(fleet.open_policy(), "a", "b", "c", "d")
    assert "expected at least 5" in str(refused(fleet, closed.roster(fleet.leaf), "small-batch"))
    with pytest.raises(PolicyError, match="n_min"):
        Keeper(fleet.keeper_principal, keys=tmp_path / "k", state=tmp_path / "s", n_min=1)


def test_padding_a_small_batch_with_the_same_contribution_is_refused(fleet: Fleet, closed: ClosedBatch) -> None:
    a, b = closed.statements[:2]
    refused(fleet, fleet.roster_of(closed, a, b, a), "duplicate")
    again = restated(fleet, "a", a, contribution_id="f" * 32)
    refused(fleet, fleet.roster_of(closed, a, b, again), "duplicate")


def test_large_batch_is_refused(fleet: Fleet) -> None:
    """More contributions than the modulus has room for would wrap."""
    policy = fleet.open_policy(batch_max=4)
    bigger = fleet.closed_batch(policy, "a", "b", "c", "d")
    extra = fleet.closed_batch(policy, "e", "f", "g")
    refused(fleet, fleet.roster_of(bigger, *bigger.statements, *extra.statements), "large-batch")


def test_roster_of_another_fleet_is_refused(fleet: Fleet, closed: ClosedBatch, tmp_path: Path) -> None:
    for name in ("other", "home"):
        stranger = Fleet(tmp_path / name, name=name)
        refused(fleet, fleet.roster_of(closed, signer=stranger.leaf), "identity.invalid")
        foreign = stranger.closed_batch(stranger.open_policy(), "x", "y", "z")
        refused(fleet, fleet.roster_of(closed, *closed.statements[:3], foreign.statements[0]), "identity.invalid")


def test_roster_signed_by_somebody_else_is_refused(fleet: Fleet, closed: ClosedBatch) -> None:
    for signer in (fleet.root, fleet.keeper_principal, fleet.device("a")):
        refused(fleet, fleet.roster_of(closed, signer=signer), "identity.invalid")
    refused(fleet, fleet.roster_of(closed, signer=fleet.service(Role.LEAF, "leaf-2")), "identity")


def test_a_leaf_that_steals_contributions_of_another_leaf_is_refused(fleet: Fleet, closed: ClosedBatch) -> None:
    thief = fleet.service(Role.LEAF, "leaf-2")
    refused(fleet, replace(closed, leaf="leaf-2").roster(thief), "mixed")


def test_roster_of_mixed_bases_is_refused(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    closed = fleet.closed_batch(policy, "a", "b", "c")
    other = restated(fleet, "d", closed.statements[0], base_digest=OTHER_BASE, contribution_id="d" * 32)
    refused(fleet, fleet.roster_of(closed, *closed.statements, other), "mixed")


def test_forged_signature_in_a_roster_is_refused(fleet: Fleet, closed: ClosedBatch) -> None:
    message = sites_pb2.Signed.FromString(closed.statements[0])
    message.signature = message.signature[:-1] + bytes([message.signature[-1] ^ 1])
    refused(fleet, fleet.roster_of(closed, message.SerializeToString(), *closed.statements[1:]), "signature.invalid")


def test_key_substitution_a_device_cannot_speak_for_another(fleet: Fleet, closed: ClosedBatch) -> None:
    """An evil device signs with its own key under another one's certificate."""
    forged = sites_pb2.Signed.FromString(restated(fleet, "evil", closed.statements[0]))
    forged.certificate = fleet.device("a").sign_certificate
    refused(fleet, fleet.roster_of(closed, forged.SerializeToString(), *closed.statements[1:]), "signature.invalid")


def test_replay_of_a_sealed_seed_under_another_name_is_refused(fleet: Fleet, closed: ClosedBatch) -> None:
    """A colluding device puts a victim's sealed seed into its own statement, to get the mask summed again."""
    for stolen in (
        restated(fleet, "evil", closed.statements[0]),
        restated(fleet, "evil", closed.statements[0], contribution_id="e" * 32),
    ):
        refused(fleet, fleet.roster_of(closed, *closed.statements[1:], stolen, batch_id=new_batch_id()), "seed")
    fleet.keeper.answer(closed.roster(fleet.leaf))  # the victim is not harmed by the attempt


@pytest.mark.parametrize("field", ["sha256_masked", "contribution_id"])
def test_tampered_masked_vector_does_not_open_the_seed(fleet: Fleet, closed: ClosedBatch, field: str) -> None:
    """The seed is bound to the masked values: another vector under the same seed gets no mask."""
    value = "9" * (64 if field == "sha256_masked" else 32)
    changed = restated(fleet, "a", closed.statements[0], **{field: value})
    refused(fleet, fleet.roster_of(closed, changed, *closed.statements[1:]), "seed")


def test_tampered_sealed_seed_is_refused(fleet: Fleet, closed: ClosedBatch) -> None:
    message = device_pb2.ContributionStatement.FromString(sites_pb2.Signed.FromString(closed.statements[0]).payload)
    seed = bytearray(message.sealed_seed)
    seed[-1] ^= 1
    changed = restated(fleet, "a", closed.statements[0], sealed_seed=bytes(seed))
    refused(fleet, fleet.roster_of(closed, changed, *closed.statements[1:]), "seed")
    cut = restated(fleet, "a", closed.statements[0], sealed_seed=bytes(seed[:-1]))
    refused(fleet, fleet.roster_of(closed, cut, *closed.statements[1:]), "data.malformed")


def test_policy_of_another_fleet_is_not_learned(fleet: Fleet, tmp_path: Path) -> None:
    stranger = Fleet(tmp_path / "stranger")
    with pytest.raises(IdentityError):
        fleet.keeper.learn_policy(stranger.signed_policy())


def test_unknown_policy_is_refused(fleet: Fleet) -> None:
    policy = fleet.verify(fleet.signed_policy(9))
    closed = fleet.closed_batch(policy, "a", "b", "c")
    refused(fleet, closed.roster(fleet.leaf), "unknown-policy")


def test_expired_policy_gets_no_answer(fleet: Fleet, closed: ClosedBatch) -> None:
    fleet.clock.advance(hours=1)
    refused(fleet, closed.roster(fleet.leaf), "verification.expired")


def test_expired_device_certificate_gets_no_answer(fleet: Fleet) -> None:
    far = int((fleet.clock() + timedelta(hours=40)).timestamp())
    closed = fleet.closed_batch(fleet.open_policy(expires_at_unix=far), "a", "b", "c")
    fleet.clock.advance(hours=25)
    refused(fleet, closed.roster(fleet.leaf), "verification.expired")


def test_equivocating_root_a_second_text_of_a_policy_is_not_learned(fleet: Fleet, closed: ClosedBatch) -> None:
    fleet.keeper.learn_policy(closed.policy.signed)  # hearing it again is fine
    lowered = fleet.signed_policy(1, n_min=2)
    with pytest.raises(PolicyError, match="two texts"):
        fleet.keeper.learn_policy(lowered)
    with pytest.raises(PolicyError, match="two texts"):
        fleet.open_keeper().learn_policy(lowered)


def test_contributions_under_a_second_text_of_a_policy_get_no_answer(fleet: Fleet) -> None:
    fleet.open_policy(1)
    other_text = fleet.verify(fleet.signed_policy(1, window_ms=1))
    closed = fleet.closed_batch(other_text, "a", "b", "c")
    refused(fleet, closed.roster(fleet.leaf), "policy.violated")


def test_a_policy_for_another_keeper_is_not_learned(fleet: Fleet, tmp_path: Path) -> None:
    fleet.service(Role.KEEPER, "keeper-2")
    other = Keeper(
        fleet.service(Role.KEEPER, "keeper-2"), keys=tmp_path / "k", state=tmp_path / "s", n_min=2, clock=fleet.clock
    )
    signed = fleet.signed_policy(keeper_id="keeper-2", keeper_key=other.key_statement())
    with pytest.raises(PolicyError, match="another keeper"):
        fleet.keeper.learn_policy(signed)
    assert other.learn_policy(signed).keeper.name == "keeper-2"


def test_only_a_keeper_keeps(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="no keeper"):
        Keeper(fleet.leaf, keys=tmp_path / "k", state=tmp_path / "s", n_min=2)


@pytest.mark.parametrize("payload", [b"", b"\xff\xff", b"\x0a\x03abc"])
def test_junk_for_a_roster_is_refused(fleet: Fleet, payload: bytes) -> None:
    with pytest.raises(RosterRefusedError):
        fleet.keeper.answer(payload)
    with pytest.raises(RosterRefusedError):
        fleet.keeper.answer(fleet.leaf.sign("roster", payload))


def test_batch_ids_are_no_paths(fleet: Fleet, closed: ClosedBatch) -> None:
    refused(fleet, fleet.roster_of(closed, batch_id="../../../keeper-keys/keeper.key"), "identity.invalid")


def test_a_refusal_leaves_no_trace_and_the_right_roster_is_answered(fleet: Fleet, closed: ClosedBatch) -> None:
    refused(fleet, fleet.roster_of(closed, *closed.statements[:2]), "small-batch")
    error = refused(fleet, fleet.roster_of(closed, closed.statements[0], *closed.statements[:2]), "duplicate")
    spiffe, payload = verify(
        fleet.keeper.refusal(error), kind="roster-refused", ca_pem=fleet.ca_pem, role=Role.KEEPER, at=fleet.clock()
    )
    message = sites_pb2.RosterRefused.FromString(payload)
    assert (spiffe.name, message.batch_id, message.code) == (
        "keeper",
        closed.batch_id,
        "secagg.roster-refused.duplicate",
    )
    fleet.keeper.answer(closed.roster(fleet.leaf))


def test_the_mask_sum_says_nothing_about_one_contribution(fleet: Fleet, closed: ClosedBatch) -> None:
    """What leaf and root see together is the total: no masked vector minus the mask sum is what a device put in."""
    answer = fleet.keeper.answer(closed.roster(fleet.leaf))
    total = fleet.unmask(closed.batch_sum(fleet.leaf, region="north"), answer, closed.policy)
    for contribution_id in closed.contribution_ids:
        assert not np.array_equal(total.counts_P, fleet.witness.seen[contribution_id][0])


def test_a_damaged_journal_is_refused_not_forgotten(fleet: Fleet, closed: ClosedBatch) -> None:
    fleet.keeper.answer(closed.roster(fleet.leaf))
    Journal(fleet.home / "keeper-state/answered.journal").append(b'{"batch_id": 1}')
    with pytest.raises(DurableError):
        fleet.open_keeper()


def _keeper_on(fleet: Fleet, disk: SimulatedDisk) -> Keeper:
    return Keeper(
        fleet.keeper_principal,
        keys=fleet.home / "keeper-keys",
        state=fleet.home / "keeper-sim",
        n_min=2,
        clock=fleet.clock,
        disk=disk,
    )


def test_double_ask_around_a_power_cut_at_every_operation(fleet: Fleet) -> None:
    """An evil leaf cuts the keeper's power and asks with another roster: never two answers that overlap."""
    policy = fleet.open_policy()
    closed = fleet.closed_batch(policy, "a", "b", "c", "d")
    whole, part = closed.roster(fleet.leaf), fleet.roster_of(closed, *closed.statements[:3])
    rng = random.Random(11)
    start = SimulatedDisk()
    _keeper_on(fleet, start).learn_policy(policy.signed)
    start = start.after_power_cut(rng)
    probe = start.after_power_cut(rng)
    answer = _keeper_on(fleet, probe).answer(whole)
    assert probe.num_operations > 5
    for power_lasts in range(probe.num_operations + 1):
        for _ in range(4):
            disk = start.after_power_cut(rng)
            disk.power_lasts = power_lasts
            given: bytes | None = None
            with suppress(PowerCutError):
                given = _keeper_on(fleet, disk).answer(whole)
            after = disk.after_power_cut(rng)
            keeper = _keeper_on(fleet, after)
            try:
                keeper.answer(part)
                assert given is None, "two overlapping rosters were answered"
                refused(fleet, whole, "second-answer", keeper=keeper)
            except RosterRefusedError:
                assert keeper.answer(whole) == answer


def test_a_full_disk_gives_no_answer(fleet: Fleet) -> None:
    import errno

    policy = fleet.open_policy()
    closed = fleet.closed_batch(policy, "a", "b", "c")

    class Filling(SimulatedDisk):
        is_full = False

        def append(self, path: Path, data: bytes) -> None:
            if self.is_full:
                raise OSError(errno.ENOSPC, "no space left")
            super().append(path, data)

    disk = Filling()
    keeper = _keeper_on(fleet, disk)
    keeper.learn_policy(policy.signed)
    disk.is_full = True
    with pytest.raises(StorageFullError):
        keeper.answer(closed.roster(fleet.leaf))
    disk.is_full = False
    keeper.answer(closed.roster(fleet.leaf))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_asked_in_whatever_order_answers_never_overlap(fleet: Fleet, data: st.DataObject) -> None:
    """The invariant behind all attacks above, on random rosters with restarts in between."""
    policy_id = 100 + len(fleet.policies)
    policy = fleet.policies[policy_id] = fleet.open_policy(policy_id)
    closed = fleet.closed_batch(policy, *"abcdefgh", book=BatchBook(LEAF))
    batch_ids = [new_batch_id() for _ in range(3)]
    answered: list[frozenset[bytes]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        chosen = data.draw(st.lists(st.sampled_from(closed.statements), min_size=1, max_size=6))
        roster = fleet.roster_of(closed, *chosen, batch_id=data.draw(st.sampled_from(batch_ids)))
        keeper = fleet.open_keeper() if data.draw(st.booleans()) else fleet.keeper
        fleet.keeper = keeper
        try:
            keeper.answer(roster)
        except RosterRefusedError:
            continue
        members = frozenset(chosen)
        assert len(members) == len(chosen) >= 3
        assert all(members == before or not members & before for before in answered)
        answered.append(members)
    assert closed.base_digest == BASE
