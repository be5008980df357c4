"""The leaf's book of batches: which contributions are summed together. Pure: no clock, no disk.

Rules:
* a contribution counts once, and a device contributes once under a policy;
* a batch has one policy and one base; all its contributions are for this leaf;
* it closes when it has the policy's `batch_size`, or when its window is over and it has `n_min`; never beyond
  `batch_max`;
* sums are made modulo 2**k with numpy; a leaf has no seed, so a sum tells it nothing.

The caller makes contributions durable (batch id, time, body) before it gives a receipt, and after a restart plays them
back in order with `add`.

    >>> opened = open_contribution(body, policy=policy, leaf=leaf, ca_pem=ca_pem, at=now, peer=peer)
    >>> batch_id = book.place(opened, policy=policy)      # raises DuplicateContributionError when it was counted
    >>> journal.append(...)
    >>> book.add(opened, policy=policy, batch_id=batch_id, at=now)
    >>> for batch_id in book.due(now):
    ...     closed = book.close(batch_id)
    ...     post(closed.roster(principal)), post(closed.batch_sum(principal, region=region))

Shape legend: N masked values.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from nfl_core.codec.quantise import pack
from nfl_core.errors import ConflictError, DuplicateContributionError, NotFoundError
from nfl_core.ids import BatchId, ContributionId, Digest, LeafId, RegionId, new_batch_id
from nfl_core.wire import sites_pb2
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import SpiffeId
from nfl_secure.policy import VerifiedPolicy
from nfl_secure.secagg.contribution import OpenedContribution


def add_masked(total_N: NDArray[np.uint32], masked_N: NDArray[np.uint32], *, modulus_bits: int) -> None:
    """Add masked values into a total, modulo 2**k: uint32 wraps by itself, the low k bits are the residue."""
    np.add(total_N, masked_N, out=total_N)
    total_N &= np.uint32(2**modulus_bits - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedBatch:
    """A batch that takes no more contributions.

    Attributes:
        batch_id: Its id.
        policy: Its policy.
        base_digest: Its base.
        leaf: Whose it is.
        statements: Signed statements in the order of arrival.
        contribution_ids: Of the same contributions.
        sum_N: Sum of the masked values modulo 2**k, uint32 [N].
    """

    batch_id: BatchId
    policy: VerifiedPolicy
    base_digest: Digest
    leaf: LeafId
    statements: tuple[bytes, ...]
    contribution_ids: tuple[ContributionId, ...]
    sum_N: NDArray[np.uint32]

    @property
    def num(self) -> int:
        """Number of contributions."""
        return len(self.statements)

    def roster_payload(self) -> bytes:
        """Return the roster, the same bytes every time."""
        message = sites_pb2.Roster(
            batch_id=self.batch_id,
            policy_id=self.policy.policy_id,
            base_digest=self.base_digest,
            leaf=self.leaf,
            statements=self.statements,
        )
        return message.SerializeToString(deterministic=True)

    def roster(self, principal: Principal) -> bytes:
        """Return a `Signed` of kind `roster`, for the keeper."""
        return principal.sign("roster", self.roster_payload())

    def batch_sum(self, principal: Principal, *, region: RegionId) -> bytes:
        """Return a `Signed` of kind `batch-sum`, for the root."""
        message = sites_pb2.BatchSum(
            batch_id=self.batch_id,
            policy_id=self.policy.policy_id,
            base_digest=self.base_digest,
            leaf=self.leaf,
            region=region,
            roster_sha256=hashlib.sha256(self.roster_payload()).hexdigest(),
            num=self.num,
            sum=pack(self.sum_N, self.policy.modulus_bits),
            modulus_bits=self.policy.modulus_bits,
            num_values=self.policy.num_values,
        )
        return principal.sign("batch-sum", message.SerializeToString(deterministic=True))


@dataclass(slots=True, kw_only=True)
class _Open:
    policy: VerifiedPolicy
    base_digest: Digest
    opened_at: datetime
    sum_N: NDArray[np.uint32]
    statements: list[bytes] = field(default_factory=list)
    contribution_ids: list[ContributionId] = field(default_factory=list)


class BatchBook:
    """All open batches of one leaf.

    Args:
        leaf: This leaf.
    """

    def __init__(self, leaf: LeafId) -> None:
        self._leaf = leaf
        self._open: dict[BatchId, _Open] = {}
        self._by_device: dict[int, dict[SpiffeId, ContributionId]] = {}  # policy id -> who contributed what

    def place(self, opened: OpenedContribution, *, policy: VerifiedPolicy) -> BatchId:
        """Return the batch a contribution belongs into; a new id when none is open for its policy and base.

        Raises:
            DuplicateContributionError: It was counted before: the stored receipt is the answer.
            ConflictError: The device has given another contribution under this policy.
        """
        self._check_new(opened, policy)
        for batch_id, batch in self._open.items():
            same = batch.policy.sha256 == policy.sha256 and batch.base_digest == opened.statement.context.base_digest
            if same and len(batch.statements) < policy.batch_max:
                return batch_id
        return new_batch_id()

    def add(self, opened: OpenedContribution, *, policy: VerifiedPolicy, batch_id: BatchId, at: datetime) -> int:
        """Count a contribution into a batch.

        Args:
            opened: Verified by `open_contribution` against the same policy.
            policy: Its policy.
            batch_id: From `place`, or from the leaf's log.
            at: When it arrived.

        Returns:
            Number of contributions in the batch now.

        Raises:
            DuplicateContributionError: Like `place`.
            ConflictError: Like `place`, or the batch is of another policy or base, or full.
        """
        self._check_new(opened, policy)
        context = opened.statement.context
        batch = self._open.get(batch_id)
        if batch is None:
            batch = _Open(
                policy=policy,
                base_digest=Digest(context.base_digest),
                opened_at=at,
                sum_N=np.zeros(policy.num_values, np.uint32),
            )
        if (
            batch.policy.sha256 != policy.sha256
            or batch.base_digest != context.base_digest
            or len(batch.statements) >= policy.batch_max
        ):
            raise ConflictError(
                f"batch {batch_id} does not take contribution {context.contribution_id}: other policy or base, or full"
            )
        self._open[batch_id] = batch
        add_masked(batch.sum_N, opened.masked_N, modulus_bits=policy.modulus_bits)
        batch.statements.append(opened.statement.signed)
        batch.contribution_ids.append(opened.statement.contribution_id)
        self._by_device.setdefault(policy.policy_id, {})[opened.statement.device] = opened.statement.contribution_id
        return len(batch.statements)

    def sizes(self) -> dict[BatchId, int]:
        """Return the number of contributions of every open batch."""
        return {batch_id: len(batch.statements) for batch_id, batch in self._open.items()}

    def due(self, at: datetime) -> list[BatchId]:
        """Return the batches that are to be closed now."""
        return [batch_id for batch_id, batch in self._open.items() if _is_due(batch, at)]

    def lapsed(self, at: datetime) -> list[BatchId]:
        """Return the batches that can never be closed: their policy is over and they are too small."""
        return [
            batch_id
            for batch_id, batch in self._open.items()
            if at >= batch.policy.expires_at and len(batch.statements) < batch.policy.n_min
        ]

    def close(self, batch_id: BatchId) -> ClosedBatch:
        """Close a batch.

        Raises:
            NotFoundError: There is no open batch of that id.
            ConflictError: It is smaller than the policy's `n_min`; it stays open.
        """
        batch = self._find(batch_id)
        if len(batch.statements) < batch.policy.n_min:
            raise ConflictError(
                f"batch {batch_id} has {len(batch.statements)} contributions, expected at least {batch.policy.n_min}"
            )
        del self._open[batch_id]
        return ClosedBatch(
            batch_id=batch_id,
            policy=batch.policy,
            base_digest=batch.base_digest,
            leaf=self._leaf,
            statements=tuple(batch.statements),
            contribution_ids=tuple(batch.contribution_ids),
            sum_N=batch.sum_N,
        )

    def drop(self, batch_id: BatchId) -> None:
        """Give up an open batch. Its contributions stay counted as used. Raises NotFoundError."""
        self._find(batch_id)
        del self._open[batch_id]

    def forget(self, policy_id: int) -> None:
        """Forget who contributed under a policy that is over: `read_policy` refuses it from now on."""
        self._by_device.pop(policy_id, None)

    def _find(self, batch_id: BatchId) -> _Open:
        if batch_id not in self._open:
            raise NotFoundError(f"no open batch {batch_id}")
        return self._open[batch_id]

    def _check_new(self, opened: OpenedContribution, policy: VerifiedPolicy) -> None:
        given = self._by_device.get(policy.policy_id, {})
        mine = given.get(opened.statement.device)
        if mine == opened.statement.contribution_id:
            raise DuplicateContributionError(f"contribution {mine} was counted already")
        if mine is not None:
            raise ConflictError(
                f"{opened.statement.device} contributed {mine} under policy {policy.policy_id}, once is all"
            )
        if opened.statement.contribution_id in given.values():
            raise ConflictError(f"contribution id {opened.statement.contribution_id} is another device's")


def _is_due(batch: _Open, at: datetime) -> bool:
    num, policy = len(batch.statements), batch.policy
    is_over = at >= batch.opened_at + timedelta(seconds=policy.window_s)
    return num >= policy.batch_size or (is_over and num >= policy.n_min)
