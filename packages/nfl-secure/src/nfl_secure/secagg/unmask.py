"""The root's half of sealed mode: a batch sum minus its mask sum, once both prove to be about the same roster.

Rules:
* signed by a leaf and by the policy's keeper; same batch, roster, number of contributions, values and modulus;
* the policy, its base and the base's region are the ones the root gave;
* every uncovered value is within what honest contributions of that weight can add up to. A device can put any residue
  in, and this is the one bound that a sum keeps.

Shape legend: P shared values, N = P + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from nfl_core.codec.quantise import qmax, unpack
from nfl_core.errors import MalformedError
from nfl_core.ids import BatchId, Digest, LeafId, parse_batch_id, parse_leaf_id
from nfl_core.wire import sites_pb2
from nfl_secure.errors import UnmaskRefusedError
from nfl_secure.identity.spiffe import Role
from nfl_secure.messages import verify
from nfl_secure.policy import PolicyBase, VerifiedPolicy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchTotal:
    """What a batch contributes.

    Attributes:
        batch_id: Its id.
        leaf: Who summed it.
        base: What its displacements start from.
        counts_P: Sum of weight * steps, int64 [P], centred at 0.
        weight: Sum of the weights, num to num * max_weight.
        num: Number of contributions.
    """

    batch_id: BatchId
    leaf: LeafId
    base: PolicyBase
    counts_P: NDArray[np.int64]
    weight: int
    num: int


def unmask(batch_sum: bytes, mask_sum: bytes, *, policy: VerifiedPolicy, ca_pem: bytes, at: datetime) -> BatchTotal:
    """Return the total of a batch.

    Args:
        batch_sum: Bytes of a `Signed` of kind `batch-sum`.
        mask_sum: Bytes of a `Signed` of kind `mask-sum`.
        policy: The policy of the batch. It may be over by now; its contributions were made in time.
        ca_pem: The pinned CA.
        at: Now, aware.

    Raises:
        UnmaskRefusedError: A rule of this module is broken.
        PolicyError: The policy does not accept that base in that region.
        SignatureError: A signature does not fit.
        IdentityError: A signer is not of this fleet or of another role.
        ExpiredError: A signer's certificate is over.
        MalformedError: A part is malformed.
    """
    leaf, batch_payload = verify(batch_sum, kind="batch-sum", ca_pem=ca_pem, role=Role.LEAF, at=at)
    keeper, mask_payload = verify(mask_sum, kind="mask-sum", ca_pem=ca_pem, role=Role.KEEPER, at=at)
    try:
        batch, masks = sites_pb2.BatchSum.FromString(batch_payload), sites_pb2.MaskSum.FromString(mask_payload)
    except DecodeError as error:
        raise MalformedError("signed bytes are no batch sum or no mask sum") from error
    if keeper != policy.keeper:
        raise UnmaskRefusedError(f"mask sum of batch {masks.batch_id} is by {keeper}, expected {policy.keeper}")
    if batch.leaf != leaf.name:
        raise UnmaskRefusedError(f"batch sum is for leaf {batch.leaf[:64]!r} and signed by {leaf}")
    base = _check_match(batch, masks, policy)
    counts_P, weight = _uncover(batch, masks, policy)
    return BatchTotal(
        batch_id=parse_batch_id(batch.batch_id),
        leaf=parse_leaf_id(batch.leaf),
        base=base,
        counts_P=counts_P,
        weight=weight,
        num=batch.num,
    )


def batch_of(batch_sum: bytes, *, ca_pem: bytes, at: datetime) -> tuple[BatchId, int, Digest]:
    """Return batch id, policy id and base digest of a batch sum, to find what belongs to it. Raises like `unmask`."""
    _, payload = verify(batch_sum, kind="batch-sum", ca_pem=ca_pem, role=Role.LEAF, at=at)
    try:
        batch = sites_pb2.BatchSum.FromString(payload)
    except DecodeError as error:
        raise MalformedError("signed bytes are no batch sum") from error
    return parse_batch_id(batch.batch_id), batch.policy_id, Digest(batch.base_digest)


def _check_match(batch: sites_pb2.BatchSum, masks: sites_pb2.MaskSum, policy: VerifiedPolicy) -> PolicyBase:
    what = ("batch_id", "roster_sha256", "num", "modulus_bits", "num_values")
    for name in what:
        mine, theirs = getattr(batch, name), getattr(masks, name)
        if mine != theirs:
            raise UnmaskRefusedError(f"batch sum and mask sum differ in {name}: {mine} and {theirs}")
    if batch.policy_id != policy.policy_id:
        raise UnmaskRefusedError(
            f"batch {batch.batch_id} is under policy {batch.policy_id}, expected {policy.policy_id}"
        )
    if (batch.modulus_bits, batch.num_values) != (policy.modulus_bits, policy.num_values):
        raise UnmaskRefusedError(
            f"batch {batch.batch_id} has {batch.num_values} values of {batch.modulus_bits} bits, not the policy's"
        )
    if not policy.n_min <= batch.num <= policy.batch_max:
        raise UnmaskRefusedError(
            f"batch {batch.batch_id} has {batch.num} contributions, expected {policy.n_min} to {policy.batch_max}"
        )
    return policy.base(batch.base_digest, region=batch.region)


def _uncover(
    batch: sites_pb2.BatchSum, masks: sites_pb2.MaskSum, policy: VerifiedPolicy
) -> tuple[NDArray[np.int64], int]:
    k, num_values = policy.modulus_bits, policy.num_values
    masked_N = unpack(batch.sum, k, num_values).astype(np.int64)
    residues_N = (masked_N - unpack(masks.sum, k, num_values)) % (1 << k)
    weight = int(residues_N[-1])
    heaviest = batch.num * policy.max_weight
    if not batch.num <= weight <= heaviest:
        raise UnmaskRefusedError(f"batch {batch.batch_id} has weight {weight}, expected {batch.num} to {heaviest}")
    counts_P = residues_N[:-1]
    counts_P[counts_P >= 1 << (k - 1)] -= 1 << k
    bound = qmax(policy.bits) * weight
    num_beyond = int(np.count_nonzero(np.abs(counts_P) > bound))
    if num_beyond:
        raise UnmaskRefusedError(
            f"batch {batch.batch_id} has {num_beyond} values beyond +-{bound}, more than weight {weight} allows"
        )
    return counts_P, weight
