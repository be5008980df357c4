"""One contribution: made by the egress gate of a device, opened by its leaf, which sees masked values only.

Shape legend: P shared values, N = P + 1 values with the weight as the last.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from nfl_core.codec import frame
from nfl_core.codec.quantise import pack, unpack
from nfl_core.errors import ContentError, FrameError, IdentityError, MalformedError, PolicyError
from nfl_core.ids import ContributionId, Digest, LeafId, parse_contribution_id, parse_digest, parse_leaf_id
from nfl_core.wire import device_pb2
from nfl_core.wire.limits import MAX_CONTRIBUTION_BYTES
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import Role, SpiffeId
from nfl_secure.messages import verify
from nfl_secure.policy import VerifiedPolicy
from nfl_secure.secagg.prg import SEED_BYTES, mask_values
from nfl_secure.secagg.seal import SEALED_BYTES, SealContext, seal_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a device signed about its contribution, verified.

    Attributes:
        device: Who signed.
        context: What the sealed seed is bound to.
        sealed_seed: 80 bytes for the keeper.
        signed: The statement as it came.
    """

    device: SpiffeId
    context: SealContext
    sealed_seed: bytes
    signed: bytes

    @property
    def contribution_id(self) -> ContributionId:
        """The contribution it is about."""
        return ContributionId(self.context.contribution_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedContribution:
    """A contribution that a leaf has verified.

    Attributes:
        statement: Who, for what.
        masked_N: uint32 [N], each in [0, 2**k).
    """

    statement: Statement
    masked_N: NDArray[np.uint32]


def make_contribution(
    counts_N: NDArray[np.int64], *, policy: VerifiedPolicy, principal: Principal, base: Digest, leaf: LeafId
) -> tuple[ContributionId, bytes]:
    """Mask, seal, sign and frame. Only the egress gate calls this.

    Args:
        counts_N: Weighted steps and the weight, int64 [N].
        policy: Verified.
        principal: The device.
        base: What the displacement starts from.
        leaf: Whom it is for.

    Returns:
        Id and body of the contribution. The seed of the mask is forgotten when this returns.

    Raises:
        PolicyError: The keeper's key is not usable.
    """
    modulus = np.int64(1) << np.int64(policy.modulus_bits)
    seed = secrets.token_bytes(SEED_BYTES)
    mask_N = mask_values(seed, counts_N.size, policy.modulus_bits)
    masked_N = ((counts_N + mask_N) % modulus).astype(np.uint32)  # numpy's % of a negative number is non-negative
    masked = pack(masked_N, policy.modulus_bits)
    context = SealContext(
        policy_sha256=policy.sha256,
        device=str(principal.spiffe),
        contribution_id=principal.contribution_id(policy_id=policy.policy_id, base=base),
        leaf=leaf,
        base_digest=base,
        sha256_masked=hashlib.sha256(masked).hexdigest(),
    )
    statement = device_pb2.ContributionStatement(
        contribution_id=context.contribution_id,
        policy_id=policy.policy_id,
        policy_sha256=context.policy_sha256,
        base_digest=context.base_digest,
        leaf=context.leaf,
        sha256_masked=context.sha256_masked,
        sealed_seed=seal_seed(seed, keeper_public=policy.keeper_public, context=context),
    )
    message = device_pb2.Contribution(
        statement=principal.sign("contribution", statement.SerializeToString(deterministic=True)),
        masked=masked,
        num_values=counts_N.size,
        modulus_bits=policy.modulus_bits,
    )
    body = frame.encode(frame.FrameKind.CONTRIBUTION, message.SerializeToString(deterministic=True))
    return ContributionId(context.contribution_id), body


def read_statement(signed: bytes, *, policy: VerifiedPolicy, ca_pem: bytes, at: datetime) -> Statement:
    """Verify a device's statement against the policy it names.

    Args:
        signed: Bytes of a `Signed` of kind `contribution`, from anybody.
        policy: The only policy it may be under.
        ca_pem: The pinned CA.
        at: Now, aware.

    Raises:
        IdentityError: Not signed by a device of this fleet, or an id in it is malformed.
        ExpiredError: The device's certificate is over.
        SignatureError: The signature does not fit.
        PolicyError: It is under another policy or from a base that the policy does not accept.
        MalformedError: The bytes are no statement.
    """
    device, payload = verify(signed, kind="contribution", ca_pem=ca_pem, role=Role.DEVICE, at=at)
    try:
        message = device_pb2.ContributionStatement.FromString(payload)
    except DecodeError as error:
        raise MalformedError("signed bytes are not a statement about a contribution") from error
    if message.policy_id != policy.policy_id or message.policy_sha256 != policy.sha256:
        said = f"{message.policy_id} of digest {message.policy_sha256[:16]}"
        raise PolicyError(
            f"contribution of {device} is under policy {said}, expected {policy.policy_id} of {policy.sha256[:16]}"
        )
    policy.base(message.base_digest)
    if len(message.sealed_seed) != SEALED_BYTES:
        raise MalformedError(f"sealed seed of {device} has {len(message.sealed_seed)} bytes, expected {SEALED_BYTES}")
    context = SealContext(
        policy_sha256=message.policy_sha256,
        device=str(device),
        contribution_id=parse_contribution_id(message.contribution_id),
        leaf=parse_leaf_id(message.leaf),
        base_digest=message.base_digest,
        sha256_masked=parse_digest(message.sha256_masked),
    )
    return Statement(device=device, context=context, sealed_seed=message.sealed_seed, signed=signed)


def open_contribution(
    body: bytes, *, policy: VerifiedPolicy, leaf: LeafId, ca_pem: bytes, at: datetime, peer: SpiffeId | None = None
) -> OpenedContribution:
    """Verify a body as its leaf does.

    Args:
        body: One frame, from anybody.
        policy: The open policy.
        leaf: This leaf.
        ca_pem: The pinned CA.
        at: Now, aware.
        peer: Who sent it, from the TLS certificate; None when a leaf reads its own log again.

    Raises:
        FrameError: The frame is cut, padded, forged or changed, or its values are.
        ContentError: The masked values are not the ones the device signed for.
        PolicyError: Wrong policy, base, leaf or number of values.
        IdentityError: Not signed by a device of this fleet, or by another one than `peer`.
        ExpiredError: The device's certificate is over.
        SignatureError: The signature does not fit.
        MalformedError: A part is malformed.
    """
    kind, payload = frame.decode(body, max_bytes=MAX_CONTRIBUTION_BYTES)
    if kind is not frame.FrameKind.CONTRIBUTION:
        raise FrameError(f"frame is of kind {kind.name}, expected CONTRIBUTION")
    try:
        message = device_pb2.Contribution.FromString(payload)
    except DecodeError as error:
        raise MalformedError("a frame holds no contribution") from error
    if (message.num_values, message.modulus_bits) != (policy.num_values, policy.modulus_bits):
        raise PolicyError(
            f"contribution has {message.num_values} values of {message.modulus_bits} bits, "
            f"expected {policy.num_values} of {policy.modulus_bits}"
        )
    statement = read_statement(message.statement, policy=policy, ca_pem=ca_pem, at=at)
    if peer is not None and statement.device != peer:
        raise IdentityError(f"contribution is signed by {statement.device} and sent by {peer}")
    if statement.context.leaf != leaf:
        raise PolicyError(
            f"contribution of {statement.device} is for leaf {statement.context.leaf[:64]!r}, expected {leaf}"
        )
    if hashlib.sha256(message.masked).hexdigest() != statement.context.sha256_masked:
        raise ContentError(f"masked values of {statement.device} are not the ones it signed for")
    masked_N = unpack(message.masked, policy.modulus_bits, policy.num_values)
    return OpenedContribution(statement=statement, masked_N=masked_N)
