from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from nfl_core.errors import ExpiredError, IdentityError, MalformedError, NflError, PolicyError, SignatureError
from nfl_core.wire import sites_pb2
from nfl_secure.policy import read_policy, sign_policy

from .fleet import BASE, OTHER_BASE, Fleet


def test_a_good_policy_is_read_as_it_was_meant(fleet: Fleet) -> None:
    signed = sign_policy(fleet.policy_message(7), principal=fleet.root, at=fleet.clock())
    policy = fleet.verify(signed)
    assert (policy.policy_id, policy.bits, policy.modulus_bits, policy.window_s) == (7, 2, 6, 6.0)
    assert policy.base(BASE).region == "north"
    assert policy.base(OTHER_BASE).version == 1
    assert policy.scales == (0.1, 0.1)
    assert str(policy.keeper) == "spiffe://home/keeper/keeper"
    assert policy.signed == signed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modulus_bits": 5}, "modulus of 5 bits, expected 6"),
        ({"modulus_bits": 33}, "modulus of 33 bits"),
        ({"batch_max": 9}, "expected 7"),
        ({"max_weight": 3}, "expected 7"),
        ({"max_weight": 0}, "max_weight 0"),
        ({"max_weight": 2**31, "modulus_bits": 32}, "no possible modulus"),
        ({"bits": 1}, "no possible modulus"),
        ({"bits": 17, "modulus_bits": 32}, "no possible modulus"),
        ({"n_min": 1}, "n_min 1"),
        ({"n_min": 0}, "n_min 0"),
        ({"n_min": 5}, "n_min 5"),
        ({"batch_size": 9}, "batch_size 9"),
        ({"scales": [0.1, float("nan")]}, "scale"),
        ({"scales": [0.1, float("inf")]}, "scale"),
        ({"scales": [0.1, 0.0]}, "scale"),
        ({"scales": [0.1, -0.1]}, "scale"),
        ({"scales": [0.1, 1e-60]}, "scale"),
        ({"scales": [0.1, 1e60]}, "scale"),
        ({"scales": []}, "scale"),
        ({"mode": ""}, "mode"),
        ({"mode": "trusted-leaf"}, "mode"),
        ({"fleet": "other"}, "for fleet 'other'"),
        ({"keeper_id": "another"}, "keeper"),
        ({"num_values": 2}, "2 values"),
    ],
)
def test_a_policy_that_cannot_hold_is_refused_by_reader_and_signer(
    fleet: Fleet, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        read_policy(fleet.signed_policy(**changes), ca_pem=fleet.ca_pem, at=fleet.clock())
    with pytest.raises(PolicyError, match=message):
        sign_policy(fleet.policy_message(**changes), principal=fleet.root, at=fleet.clock())


def test_wrong_modulus_is_an_error_exactly_below_what_the_batch_needs(fleet: Fleet) -> None:
    fleet.verify(fleet.signed_policy(modulus_bits=6))
    fleet.verify(fleet.signed_policy(modulus_bits=32))
    with pytest.raises(PolicyError, match="modulus"):
        fleet.verify(fleet.signed_policy(modulus_bits=5))


def test_a_policy_without_a_base_is_refused(fleet: Fleet) -> None:
    message = fleet.policy_message()
    del message.bases[:]
    with pytest.raises(PolicyError, match="no base"):
        sign_policy(message, principal=fleet.root, at=fleet.clock())
    with pytest.raises(PolicyError, match="does not accept"):
        fleet.verify(fleet.signed_policy()).base("0" * 64)


def test_a_base_is_content_in_a_region_and_the_newest_of_equal_ones(fleet: Fleet) -> None:
    """A first version is equal in all regions; a rollback brings old content back under a new number."""
    message = fleet.policy_message()
    message.bases.add(version=4, region="south", digest=BASE)
    message.bases.add(version=2, region="south", digest=BASE)
    policy = fleet.verify(sign_policy(message, principal=fleet.root, at=fleet.clock()))
    assert (policy.base(BASE, region="north").version, policy.base(BASE, region="south").version) == (1, 4)
    newest = policy.newest_base("south")
    assert newest is not None
    assert (newest.version, policy.newest_base("east")) == (4, None)
    with pytest.raises(PolicyError, match="in region 'north'"):
        policy.base(OTHER_BASE, region="north")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_fingerprint": "0" * 64}, "schema"),
        ({"num_values": 17}, "17 values"),
        ({"num_values": 19}, "19 values"),
        ({"scales": [0.1]}, "1 scales"),
        ({"scales": [0.1] * 3}, "3 scales"),
    ],
)
def test_a_device_refuses_a_policy_for_another_model(fleet: Fleet, changes: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        fleet.verify(fleet.signed_policy(**changes))


def test_small_cohort_attack_a_policy_cannot_lower_the_devices_own_floor(fleet: Fleet) -> None:
    fleet.verify(fleet.signed_policy(), n_min_floor=3)
    with pytest.raises(PolicyError, match="batches of 3, this device asks for at least 4"):
        fleet.verify(fleet.signed_policy(), n_min_floor=4)


def test_policy_of_another_fleet_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    for name in ("other", "home"):
        stranger = Fleet(tmp_path / name, name=name)
        with pytest.raises(IdentityError):
            fleet.verify(stranger.signed_policy(fleet="home"))


def test_policy_by_leaf_or_keeper_is_refused(fleet: Fleet) -> None:
    payload = fleet.policy_message().SerializeToString()
    for signer in (fleet.leaf, fleet.keeper_principal, fleet.device("a")):
        with pytest.raises(IdentityError, match="role root"):
            fleet.verify(signer.sign("policy", payload))


def test_expired_policy_is_refused(fleet: Fleet) -> None:
    signed = fleet.signed_policy()
    fleet.clock.now += timedelta(hours=1)
    with pytest.raises(ExpiredError, match="policy 1 expired"):
        fleet.verify(signed)


def test_expired_keeper_key_is_refused(fleet: Fleet) -> None:
    far = int((fleet.clock() + timedelta(days=60)).timestamp())
    message = fleet.policy_message(expires_at_unix=far)
    fleet.clock.now += timedelta(days=30)
    root, keeper = fleet.root, fleet.keeper_principal
    fleet.root = fleet.ca.admit(fleet.home / "root/root", root.spiffe)  # fresh certificates, the old keeper key
    fresh = fleet.ca.admit(fleet.home / "keeper/keeper", keeper.spiffe)
    statement = sites_pb2.Signed.FromString(message.keeper_key)
    message.keeper_key = fresh.sign("keeper-key", statement.payload)
    with pytest.raises(ExpiredError, match="keeper key"):
        fleet.verify(fleet.root.sign("policy", message.SerializeToString()))


def test_key_substitution_seeds_for_a_key_no_keeper_signed(fleet: Fleet) -> None:
    """A root or leaf that would like to open seeds itself puts its own key into the policy."""
    own = sites_pb2.KeeperKey(x25519_public=b"\1" * 32, not_after_unix=2**40).SerializeToString()
    for signer in (fleet.root, fleet.leaf, fleet.device("a")):
        with pytest.raises(IdentityError, match="role keeper"):
            fleet.verify(fleet.signed_policy(keeper_key=signer.sign("keeper-key", own)))
    real = sites_pb2.Signed.FromString(fleet.keeper.key_statement())
    real.payload = own
    with pytest.raises(SignatureError):
        fleet.verify(fleet.signed_policy(keeper_key=real.SerializeToString()))
    short = sites_pb2.KeeperKey(x25519_public=b"\1" * 31, not_after_unix=2**33).SerializeToString()
    with pytest.raises(PolicyError, match="31 bytes"):
        fleet.verify(fleet.signed_policy(keeper_key=fleet.keeper_principal.sign("keeper-key", short)))


@pytest.mark.parametrize("unix", [2**62, -(2**62), 0])
def test_impossible_times_are_refused(fleet: Fleet, unix: int) -> None:
    with pytest.raises((MalformedError, ExpiredError)):
        fleet.verify(fleet.signed_policy(expires_at_unix=unix))


@pytest.mark.parametrize("junk", [b"", b"\xff", b"a" * 2_000_000])
def test_junk_is_no_policy(fleet: Fleet, junk: bytes) -> None:
    with pytest.raises(NflError):
        fleet.verify(junk)
    with pytest.raises(NflError):
        fleet.verify(fleet.root.sign("policy", junk[:100]))
