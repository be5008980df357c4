"""The law of sealed mode: what is unmasked is exactly the sum of what was put in."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfl_core.codec.quantise import modulus_bits, pack, qmax
from nfl_core.errors import ExpiredError, IdentityError, MalformedError, NflError, PolicyError
from nfl_core.wire import sites_pb2
from nfl_secure.errors import UnmaskRefusedError
from nfl_secure.policy import sign_policy
from nfl_secure.secagg import BatchTotal, add_masked, batch_of, mask_values

from .fleet import BASE, OTHER_BASE, Fleet


@settings(max_examples=150, deadline=None)
@given(
    bits=st.integers(2, 16),
    num_devices=st.integers(1, 24),
    max_weight=st.integers(1, 9),
    num_values=st.integers(1, 40),
    drop=st.sets(st.integers(0, 23)),
    seed=st.integers(0, 2**32 - 1),
)
def test_masked_sum_minus_mask_sum_is_the_sum_of_inputs(
    bits: int, num_devices: int, max_weight: int, num_values: int, drop: set[int], seed: int
) -> None:
    """For any width, number of devices, weights and drop-outs: whoever is in neither sum does not matter."""
    rng = np.random.default_rng(seed)
    k = modulus_bits(bits, num_devices * max_weight)
    masked_N, masks_N, expected_P, weight = (
        np.zeros(num_values + 1, np.uint32),
        np.zeros(num_values + 1, np.uint32),
        0,
        0,
    )
    for device in range(num_devices):
        w = int(rng.integers(1, max_weight + 1))
        q_P = (
            rng.choice([-qmax(bits), 0, qmax(bits)], num_values)
            if device % 2
            else rng.integers(-qmax(bits), qmax(bits) + 1, num_values)
        )
        mask_seed = rng.bytes(32)
        y_N = ((np.append(q_P * w, w) + mask_values(mask_seed, num_values + 1, k)) % (1 << k)).astype(np.uint32)
        if device in drop:
            continue  # vanished: in neither sum
        add_masked(masked_N, y_N, modulus_bits=k)
        add_masked(masks_N, mask_values(mask_seed, num_values + 1, k), modulus_bits=k)
        expected_P, weight = expected_P + q_P * w, weight + w
    residues_N = (masked_N.astype(np.int64) - masks_N) % (1 << k)
    assert residues_N[-1] == weight
    centred_P = np.where(residues_N[:-1] >= 1 << (k - 1), residues_N[:-1] - (1 << k), residues_N[:-1])
    np.testing.assert_array_equal(centred_P, expected_P)


def test_a_contribution_in_one_sum_alone_gives_garbage_not_a_leak(fleet: Fleet) -> None:
    """Why rosters have to agree: one mask too few leaves uniform noise, which the range check finds."""
    policy = fleet.open_policy()
    closed = fleet.closed_batch(policy, "a", "b", "c", "d")
    answer = fleet.keeper.answer(fleet.roster_of(closed, *closed.statements[:3]))
    with pytest.raises(UnmaskRefusedError, match="differ in"):
        fleet.unmask(closed.batch_sum(fleet.leaf, region="north"), answer, policy)


def test_unmasked_total_is_the_exact_sum_of_what_devices_put_in(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    closed = fleet.closed_batch(policy, "a", "b", "c", "d", weights={"b": 2})
    total = fleet.unmask(
        closed.batch_sum(fleet.leaf, region="north"), fleet.keeper.answer(closed.roster(fleet.leaf)), policy
    )
    inputs = [fleet.witness.seen[i] for i in closed.contribution_ids]
    np.testing.assert_array_equal(total.counts_P, sum(counts for counts, _ in inputs))
    assert (total.weight, total.num, total.base.region, total.leaf) == (5, 4, "north", "leaf-1")
    assert np.count_nonzero(total.counts_P) > 0


def test_regions_with_equal_content_are_unmasked_each_for_itself(fleet: Fleet) -> None:
    message = fleet.policy_message()
    message.bases[1].digest = BASE
    signed = sign_policy(message, principal=fleet.root, at=fleet.clock())
    policy = fleet.keeper.learn_policy(signed)
    closed = fleet.closed_batch(policy, "a", "b", "c")
    answer = fleet.keeper.answer(closed.roster(fleet.leaf))
    for region in ("north", "south"):
        assert fleet.unmask(closed.batch_sum(fleet.leaf, region=region), answer, policy).base.region == region


def _batch(fleet: Fleet, **changes: object) -> tuple[bytes, bytes]:
    """Return batch sum and mask sum of a good batch, the first changed and signed anew by its leaf."""
    policy = fleet.open_policy()
    closed = fleet.closed_batch(policy, "a", "b", "c")
    batch_sum, mask_sum = closed.batch_sum(fleet.leaf, region="north"), fleet.keeper.answer(closed.roster(fleet.leaf))
    message = sites_pb2.BatchSum.FromString(sites_pb2.Signed.FromString(batch_sum).payload)
    for name, value in changes.items():
        setattr(message, name, value)
    fleet.policy = policy
    return fleet.leaf.sign("batch-sum", message.SerializeToString()), mask_sum


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"batch_id": "0" * 32}, UnmaskRefusedError, "differ in batch_id"),
        ({"roster_sha256": "0" * 64}, UnmaskRefusedError, "differ in roster_sha256"),
        ({"num": 4}, UnmaskRefusedError, "differ in num"),
        ({"modulus_bits": 7}, UnmaskRefusedError, "differ in modulus_bits"),
        ({"num_values": 17}, UnmaskRefusedError, "differ in num_values"),
        ({"policy_id": 2}, UnmaskRefusedError, "under policy 2"),
        ({"leaf": "leaf-2"}, UnmaskRefusedError, "for leaf 'leaf-2'"),
        ({"region": "south"}, PolicyError, "in region 'south'"),
        ({"base_digest": OTHER_BASE}, PolicyError, "in region 'north'"),
        ({"base_digest": "0" * 64}, PolicyError, "does not accept"),
        ({"sum": b""}, MalformedError, "values"),
        ({"sum": bytes(100)}, MalformedError, "values"),
    ],
)
def test_sums_that_do_not_belong_together_are_not_unmasked(
    fleet: Fleet, changes: dict[str, object], error: type[NflError], match: str
) -> None:
    batch_sum, mask_sum = _batch(fleet, **changes)
    with pytest.raises(error, match=match):
        fleet.unmask(batch_sum, mask_sum, fleet.policy)


def _shifted(fleet: Fleet, mask_sum: bytes, *, place: int, by: int) -> tuple[bytes, bytes]:
    """Return sums whose difference is 0 everywhere but at one place."""
    masks = sites_pb2.MaskSum.FromString(sites_pb2.Signed.FromString(mask_sum).payload)
    k, num = masks.modulus_bits, masks.num_values
    values_N = np.zeros(num, np.int64)
    values_N[-1] = masks.num
    values_N[place] = by
    mask_N = mask_values(secrets.token_bytes(32), num, k)
    masks.sum = pack(mask_N, k)
    return pack(((values_N + mask_N) % (1 << k)).astype(np.uint32), k), fleet.keeper_principal.sign(
        "mask-sum", masks.SerializeToString()
    )


@pytest.mark.parametrize(("by", "fine"), [(3, True), (-3, True), (4, False), (-4, False), (31, False), (-32, False)])
def test_range_check_a_poisoned_batch_is_dropped(fleet: Fleet, by: int, fine: bool) -> None:
    _, mask_sum = _batch(fleet)
    packed, mask_sum = _shifted(fleet, mask_sum, place=3, by=by)
    batch = sites_pb2.BatchSum.FromString(sites_pb2.Signed.FromString(_batch_again(fleet)).payload)
    batch.sum = packed
    signed = fleet.leaf.sign("batch-sum", batch.SerializeToString())
    if fine:
        assert fleet.unmask(signed, mask_sum, fleet.policy).counts_P[3] == by
    else:
        with pytest.raises(UnmaskRefusedError, match="1 values beyond"):
            fleet.unmask(signed, mask_sum, fleet.policy)


def _batch_again(fleet: Fleet) -> bytes:
    return fleet.last_batch.batch_sum(fleet.leaf, region="north")


@pytest.mark.parametrize("weight", [0, 2, 7, 63])
def test_a_total_weight_that_devices_cannot_have_is_refused(fleet: Fleet, weight: int) -> None:
    _, mask_sum = _batch(fleet)
    packed, mask_sum = _shifted(fleet, mask_sum, place=-1, by=weight)
    batch = sites_pb2.BatchSum.FromString(sites_pb2.Signed.FromString(_batch_again(fleet)).payload)
    batch.sum = packed
    with pytest.raises(UnmaskRefusedError, match=f"weight {weight}, expected 3 to 6"):
        fleet.unmask(fleet.leaf.sign("batch-sum", batch.SerializeToString()), mask_sum, fleet.policy)


def test_sums_by_the_wrong_party_are_refused(fleet: Fleet) -> None:
    batch_sum, mask_sum = _batch(fleet)
    batch, masks = (sites_pb2.Signed.FromString(signed).payload for signed in (batch_sum, mask_sum))
    with pytest.raises(IdentityError):
        fleet.unmask(fleet.keeper_principal.sign("batch-sum", batch), mask_sum, fleet.policy)
    with pytest.raises(IdentityError):
        fleet.unmask(batch_sum, fleet.leaf.sign("mask-sum", masks), fleet.policy)
    from nfl_secure.identity import Role

    second_keeper = fleet.service(Role.KEEPER, "keeper-2")
    with pytest.raises(UnmaskRefusedError, match="keeper-2"):
        fleet.unmask(batch_sum, second_keeper.sign("mask-sum", masks), fleet.policy)
    second_leaf = fleet.service(Role.LEAF, "leaf-2")
    with pytest.raises(UnmaskRefusedError, match="signed by"):
        fleet.unmask(second_leaf.sign("batch-sum", batch), mask_sum, fleet.policy)


def test_the_roots_own_policy_counts_not_the_leafs(fleet: Fleet) -> None:
    batch_sum, mask_sum = _batch(fleet)
    with pytest.raises(UnmaskRefusedError, match="expected 4 to 8"):
        fleet.unmask(batch_sum, mask_sum, replace(fleet.policy, n_min=4))
    with pytest.raises(UnmaskRefusedError, match="not the policy's"):
        fleet.unmask(batch_sum, mask_sum, replace(fleet.policy, modulus_bits=8))


def test_batch_of_names_what_belongs_to_a_sum(fleet: Fleet) -> None:
    batch_sum, _ = _batch(fleet)
    batch_id, policy_id, base = batch_of(batch_sum, ca_pem=fleet.ca_pem, at=fleet.clock())
    assert (batch_id, policy_id, base) == (fleet.last_batch.batch_id, 1, BASE)
    with pytest.raises(ExpiredError):
        batch_of(batch_sum, ca_pem=fleet.ca_pem, at=fleet.clock() + timedelta(hours=73))
    with pytest.raises(MalformedError):
        batch_of(fleet.leaf.sign("batch-sum", b"\xff"), ca_pem=fleet.ca_pem, at=fleet.clock())


def test_a_total_is_a_value(fleet: Fleet) -> None:
    batch_sum, mask_sum = _batch(fleet)
    total = fleet.unmask(batch_sum, mask_sum, fleet.policy)
    assert isinstance(total, BatchTotal)
    assert total.counts_P.dtype == np.int64
