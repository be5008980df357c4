"""The round policy: what the root asks devices for, and what a device, leaf or keeper must see in it before it obeys.

Everybody checks (`read_policy`): signed by a root of the own fleet; not expired; mode `sealed`; numbers in range; the
modulus holds the largest weighted batch, because a sum that wraps cannot be told from a right one; the keeper's key is
signed by a keeper of the fleet and still good. A device checks on top (`verify_policy`): its own schema, one scale a
shared tensor, and a smallest batch not below its own floor, which no policy can lower.

    >>> policy = verify_policy(hello.policy, ca_pem=principal.ca_pem, schema=schema, n_min_floor=4, at=now)
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from google.protobuf.message import DecodeError

from nfl_core.codec.quantise import MAX_MODULUS_BITS, modulus_bits
from nfl_core.errors import DeltaError, ExpiredError, MalformedError, PolicyError
from nfl_core.ids import Digest, PolicyId, RegionId, parse_digest, parse_policy_id, parse_region_id
from nfl_core.schema import TensorSchema
from nfl_core.wire import sites_pb2
from nfl_core.wire.limits import MAX_SIGNED_BYTES
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import Role, SpiffeId
from nfl_secure.messages import verify

MODE_SEALED = "sealed"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
KEEPER_KEY_BYTES = 32
MIN_BATCH = 2  # the sum of a batch of one is the contribution itself


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBase:
    """A version that a contribution may start from."""

    version: int
    region: RegionId
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPolicy:
    """A round policy that passed every check of `read_policy`.

    Attributes:
        policy_id: Grows from policy to policy.
        root: Who signed it.
        schema_fingerprint: Of the tensors it is about.
        bases: Versions that a contribution may start from.
        scales: One a shared tensor, in schema order, finite, > 0.
        bits: Of one quantised value.
        modulus_bits: Of one masked value.
        num_values: Shared values + 1; the last is the weight.
        n_min: Smallest batch that may be unmasked.
        batch_size: Contributions at which a leaf closes a batch.
        batch_max: Largest batch.
        max_weight: Largest weight of one contribution.
        window_s: Longest time a leaf keeps a batch open, seconds.
        expires_at: UTC.
        keeper: Who can open seeds.
        keeper_public: Its X25519 key, 32 bytes.
        signed: The policy as it came.
        sha256: Of `signed`.
    """

    policy_id: PolicyId
    root: SpiffeId
    schema_fingerprint: str
    bases: tuple[PolicyBase, ...]
    scales: tuple[float, ...]
    bits: int
    modulus_bits: int
    num_values: int
    n_min: int
    batch_size: int
    batch_max: int
    max_weight: int
    window_s: float
    expires_at: datetime
    keeper: SpiffeId
    keeper_public: bytes
    signed: bytes
    sha256: Digest

    def base(self, digest: str, *, region: str | None = None) -> PolicyBase:
        """Return the newest base of that content.

        Args:
            digest: Of the content. Regions share it where their tensors are equal, as in a first version, and versions
                share it after a rollback; so it alone does not name a base.
            region: Where it has to be; None: anywhere.

        Raises:
            PolicyError: The policy does not accept it.
        """
        found = [base for base in self.bases if base.digest == digest and region in (None, base.region)]
        if not found:
            where = "" if region is None else f" in region {region[:64]!r}"
            raise PolicyError(f"policy {self.policy_id} does not accept contributions from base {digest[:16]}{where}")
        return max(found, key=lambda base: base.version)

    def newest_base(self, region: str) -> PolicyBase | None:
        """Return the base of a region with the highest version, None when the policy has none there."""
        return max((base for base in self.bases if base.region == region), key=lambda base: base.version, default=None)

    def require_open(self, at: datetime) -> None:
        """Raise ExpiredError when the policy is over."""
        if at >= self.expires_at:
            raise ExpiredError(f"policy {self.policy_id} expired at {self.expires_at:{_TIME}}, now is {at:{_TIME}}")


def read_policy(signed: bytes, *, ca_pem: bytes, at: datetime) -> VerifiedPolicy:
    """Verify a policy as far as one can who has no model: leaf, keeper and root.

    Args:
        signed: Bytes of a `Signed` of kind `policy`, from anybody.
        ca_pem: The pinned CA.
        at: Now, aware.

    Raises:
        PolicyError: A number or name in it is not acceptable.
        ExpiredError: It, its keeper key or a certificate is over.
        SignatureError: A signature does not fit.
        IdentityError: It is not signed by a root of this fleet, or its key not by a keeper of this fleet.
        MalformedError: The bytes are no signed policy.
    """
    if len(signed) > MAX_SIGNED_BYTES:
        raise MalformedError(f"a signed policy has {len(signed)} bytes, expected at most {MAX_SIGNED_BYTES}")
    root, payload = verify(signed, kind="policy", ca_pem=ca_pem, role=Role.ROOT, at=at)
    try:
        message = sites_pb2.RoundPolicy.FromString(payload)
    except DecodeError as error:
        raise MalformedError(f"{len(payload)} signed bytes are not a round policy") from error
    if message.fleet != root.fleet:
        raise PolicyError(f"policy is for fleet {message.fleet!r}, expected {root.fleet}")
    if message.mode != MODE_SEALED:
        raise PolicyError(f"policy has mode {message.mode!r}, expected {MODE_SEALED!r}")
    _check_numbers(message)
    keeper, keeper_public = _check_keeper(message, ca_pem=ca_pem, at=at)
    policy = VerifiedPolicy(
        policy_id=parse_policy_id(message.policy_id),
        root=root,
        schema_fingerprint=parse_digest(message.schema_fingerprint),
        bases=tuple(
            PolicyBase(version=base.version, region=parse_region_id(base.region), digest=parse_digest(base.digest))
            for base in message.bases
        ),
        scales=tuple(message.scales),
        bits=message.bits,
        modulus_bits=message.modulus_bits,
        num_values=message.num_values,
        n_min=message.n_min,
        batch_size=message.batch_size,
        batch_max=message.batch_max,
        max_weight=message.max_weight,
        window_s=message.window_ms / 1000,
        expires_at=_utc(message.expires_at_unix),
        keeper=keeper,
        keeper_public=keeper_public,
        signed=signed,
        sha256=Digest(hashlib.sha256(signed).hexdigest()),
    )
    policy.require_open(at)
    return policy


def verify_policy(
    signed: bytes, *, ca_pem: bytes, schema: TensorSchema, n_min_floor: int, at: datetime
) -> VerifiedPolicy:
    """Verify a policy as a device does, before it seals anything under it.

    Args:
        signed: Bytes of a `Signed` of kind `policy`, from the leaf.
        ca_pem: The pinned CA.
        schema: Of the model on this device.
        n_min_floor: Smallest batch this device accepts, from its own settings.
        at: Now, aware.

    Raises:
        PolicyError: It is about another model, its batches are too small, or a number in it is not acceptable.
        ExpiredError: Like `read_policy`.
        SignatureError: Like `read_policy`.
        IdentityError: Like `read_policy`.
        MalformedError: Like `read_policy`.
    """
    policy = read_policy(signed, ca_pem=ca_pem, at=at)
    if policy.schema_fingerprint != schema.fingerprint:
        raise PolicyError(
            f"policy is about schema {policy.schema_fingerprint[:16]}, this device has {schema.fingerprint[:16]}"
        )
    if policy.num_values != schema.num_shared + 1 or len(policy.scales) != len(schema.shared):
        raise PolicyError(
            f"policy has {policy.num_values} values and {len(policy.scales)} scales, "
            f"expected {schema.num_shared + 1} and {len(schema.shared)} for this schema"
        )
    if policy.n_min < n_min_floor:
        raise PolicyError(f"policy allows batches of {policy.n_min}, this device asks for at least {n_min_floor}")
    return policy


def sign_policy(message: sites_pb2.RoundPolicy, *, principal: Principal, at: datetime) -> bytes:
    """Sign a policy, unless it is one that nobody would accept.

    Args:
        message: Complete.
        principal: A root.
        at: Now, aware.

    Returns:
        Bytes of a `Signed` of kind `policy`. Keep them: signing again later may give other bytes and another digest.

    Raises:
        PolicyError: Like `read_policy`; so do ExpiredError and IdentityError.
    """
    signed = principal.sign("policy", message.SerializeToString(deterministic=True))
    read_policy(signed, ca_pem=principal.ca_pem, at=at)
    return signed


def _check_numbers(message: sites_pb2.RoundPolicy) -> None:
    name = f"policy {message.policy_id}"
    if not MIN_BATCH <= message.n_min <= message.batch_size <= message.batch_max:
        raise PolicyError(
            f"{name} has n_min {message.n_min}, batch_size {message.batch_size}, batch_max {message.batch_max}, "
            f"expected {MIN_BATCH} <= n_min <= batch_size <= batch_max"
        )
    if message.max_weight < 1:
        raise PolicyError(f"{name} has max_weight {message.max_weight}, expected at least 1")
    try:
        needed = modulus_bits(message.bits, message.batch_max * message.max_weight)
    except DeltaError as error:
        raise PolicyError(f"{name} has no possible modulus: {error}") from error
    if not needed <= message.modulus_bits <= MAX_MODULUS_BITS:
        raise PolicyError(
            f"{name} has a modulus of {message.modulus_bits} bits, expected {needed} to {MAX_MODULUS_BITS} "
            f"for {message.bits} bits and a weighted batch of {message.batch_max * message.max_weight}"
        )
    with np.errstate(over="ignore"):
        are_usable = all(math.isfinite(scale) and 0 < np.float32(scale) < np.inf for scale in message.scales)
    if not message.scales or not are_usable:
        raise PolicyError(f"{name} has a scale that is not finite and positive, or none")
    if message.num_values < len(message.scales) + 1:
        raise PolicyError(
            f"{name} has {message.num_values} values, expected at least one a scale and one for the weight"
        )
    if not message.bases:
        raise PolicyError(f"{name} accepts no base version")


def _check_keeper(message: sites_pb2.RoundPolicy, *, ca_pem: bytes, at: datetime) -> tuple[SpiffeId, bytes]:
    keeper, payload = verify(message.keeper_key, kind="keeper-key", ca_pem=ca_pem, role=Role.KEEPER, at=at)
    if keeper.name != message.keeper_id:
        raise PolicyError(
            f"keeper key of policy {message.policy_id} is by {keeper.name}, expected {message.keeper_id!r}"
        )
    try:
        key = sites_pb2.KeeperKey.FromString(payload)
    except DecodeError as error:
        raise MalformedError("signed keeper key is malformed") from error
    if len(key.x25519_public) != KEEPER_KEY_BYTES:
        raise PolicyError(f"keeper key has {len(key.x25519_public)} bytes, expected {KEEPER_KEY_BYTES}")
    if at >= _utc(key.not_after_unix):
        raise ExpiredError(
            f"keeper key of policy {message.policy_id} expired at {_utc(key.not_after_unix):%Y-%m-%dT%H:%M:%SZ}"
        )
    return keeper, key.x25519_public


def _utc(unix: int) -> datetime:
    try:
        return datetime.fromtimestamp(unix, tz=timezone.utc)
    except (OverflowError, ValueError, OSError) as error:
        raise MalformedError(f"{unix} is not a time") from error
