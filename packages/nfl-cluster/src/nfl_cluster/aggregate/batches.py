"""The leaf's log of batches: what was accepted is on disk before anybody hears of it, and leaves exactly once.

Rules:

* a contribution is in the journal before its receipt exists; the same body again gets the same receipt;
* a batch that closes is journaled, then posted under ids that follow from its own, then journaled as sent: a crash
  between the steps posts it again, and the receivers drop what they have seen;
* a batch that cannot be used (refused by the keeper, or too small when its policy ended) is dropped by name.

Shape legend: none; values stay packed and masked here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from google.protobuf.message import DecodeError

from nfl_core.codec import frame
from nfl_core.durable import LOCAL_DISK, Disk, Journal, make_folder, read_file, write_file
from nfl_core.errors import ConflictError, DurableError, ExpiredError, MalformedError, PolicyError
from nfl_core.ids import BatchId, ContributionId, DeviceId, LeafId, RegionId, digest_of, parse_batch_id
from nfl_core.wire import device_pb2, sites_pb2
from nfl_core.wire.limits import MAX_CONTRIBUTION_BYTES
from nfl_secure.identity import Principal, SpiffeId
from nfl_secure.policy import VerifiedPolicy, read_policy
from nfl_secure.secagg import BatchBook, ClosedBatch, OpenedContribution, open_contribution

_HEAD = struct.Struct("<I")
COMPACT_AFTER = 64  # sent batches; each leaves some 30 kB a contribution behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A contribution that has a receipt.

    Attributes:
        contribution_id: Its id.
        device: Whose it is.
        policy_id: Its policy.
        sha256: Of the body.
        at: When it arrived.
        batch_id: Where it was counted.
    """

    contribution_id: ContributionId
    device: DeviceId
    policy_id: int
    sha256: str
    at: datetime
    batch_id: BatchId


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A batch that will never be part of a version.

    Attributes:
        batch_id: Its name.
        why: The reason.
        num: Contributions in it, 0 when they are not known any more.
    """

    batch_id: BatchId
    why: str
    num: int


class BatchLog:
    """All batches of one leaf, durable.

    Args:
        folder: Gets `batches.journal` and `policies/`.
        principal: The leaf.
        region: Its region.
        clock: Now, aware.
        disk: Where the journal is.

    Raises:
        DurableError: The state cannot be read back.
    """

    def __init__(
        self,
        folder: Path,
        *,
        principal: Principal,
        region: RegionId,
        clock: Callable[[], datetime],
        disk: Disk = LOCAL_DISK,
    ) -> None:
        self._folder, self._principal, self._region, self._clock, self._disk = folder, principal, region, clock, disk
        self._leaf = LeafId(principal.spiffe.name)
        make_folder(folder / "policies")
        self._book = BatchBook(self._leaf)
        self._policies: dict[int, VerifiedPolicy] = {}
        self._accepted: dict[ContributionId, Accepted] = {}
        self._by_device: dict[tuple[int, DeviceId], ContributionId] = {}
        self._unsent: dict[BatchId, ClosedBatch] = {}
        self._num_sent = 0
        self._journal = Journal(folder / "batches.journal", disk=disk)
        for head, body in map(_decode, self._journal):
            self._replay(head, body)
        self._read_policies()
        if self._num_sent:
            self._compact()

    def accepted(self) -> list[Accepted]:
        """Return the contributions whose receipts can still be asked for, oldest first."""
        return list(self._accepted.values())

    def sizes(self) -> dict[BatchId, int]:
        """Return the number of contributions of every open batch."""
        return self._book.sizes()

    def learn_policy(self, signed: bytes) -> VerifiedPolicy:
        """Remember a policy, durably. Hearing it again changes nothing.

        Raises:
            PolicyError: Another policy has this id, or `read_policy` refuses it; it raises the rest too.
            StorageFullError: It cannot be stored.
        """
        policy = read_policy(signed, ca_pem=self._principal.ca_pem, at=self._clock())
        known = self._policies.get(policy.policy_id)
        if known is not None and known.sha256 != policy.sha256:
            raise PolicyError(f"policy {policy.policy_id} has two texts; the first one counts")
        if known is None:
            write_file(self._policy_path(policy.policy_id), signed, disk=self._disk)
            self._policies[policy.policy_id] = policy
        return policy

    def newest_policy(self, *, up_to: int | None = None) -> VerifiedPolicy | None:
        """Return the open policy with the highest id, None when none is open.

        Args:
            up_to: Newest version that devices here are offered: a round about a newer one waits. None: any.
        """
        now = self._clock()
        usable = [
            policy
            for policy in self._policies.values()
            if now < policy.expires_at and (up_to is None or all(base.version <= up_to for base in policy.bases))
        ]
        return max(usable, key=lambda policy: policy.policy_id, default=None)

    def receipt(self, contribution_id: str, *, device: DeviceId, sha256: str) -> bytes | None:
        """Return the receipt of a contribution that was accepted before, None when it was not.

        Raises:
            ConflictError: The id was used by another device or for another body.
        """
        known = self._accepted.get(ContributionId(contribution_id))
        if known is None:
            return None
        if (known.device, known.sha256) != (device, sha256):
            raise ConflictError(f"contribution id {contribution_id} was used for another contribution")
        return self._sign_receipt(known)

    def accept(self, body: bytes, *, peer: SpiffeId) -> bytes:
        """Verify a contribution, count it into a batch, and return its receipt.

        Args:
            body: As it came.
            peer: Who sent it, from the TLS certificate.

        Returns:
            Bytes of a `Signed` of kind `receipt`; what it confirms is durable.

        Raises:
            PolicyError: Its policy is not known here, or it does not keep to it.
            ExpiredError: Its policy or a certificate is over.
            ConflictError: The device contributed something else under this policy.
            MalformedError: The bytes are no contribution; so do the other errors of `open_contribution`.
            StorageFullError: The disk is full: nothing was accepted.
        """
        policy_id, sha256, now = _policy_id_of(body), digest_of(body), self._clock()
        policy = self._policies.get(policy_id)
        if policy is None:
            raise PolicyError(f"policy {policy_id} is not known to leaf {self._leaf}")
        opened = open_contribution(
            body, policy=policy, leaf=self._leaf, ca_pem=self._principal.ca_pem, at=now, peer=peer
        )
        contribution_id, device = opened.statement.contribution_id, DeviceId(opened.statement.device.name)
        stored = self.receipt(contribution_id, device=device, sha256=sha256)
        if stored is not None:
            return stored
        policy.require_open(now)
        earlier = self._by_device.get((policy_id, device))
        if earlier is not None:
            raise ConflictError(f"{device} contributed {earlier} under policy {policy_id}, once is all")
        batch_id = self._book.place(opened, policy=policy)
        accepted = Accepted(
            contribution_id=contribution_id,
            device=device,
            policy_id=policy_id,
            sha256=sha256,
            at=now,
            batch_id=batch_id,
        )
        self._journal.append(_encode({"kind": "contribution", **_head_of(accepted)}, body))
        self._count(accepted, opened, policy)
        return self._sign_receipt(accepted)

    def close_due(self) -> list[Dropped]:
        """Close every batch whose time has come; drop and return those that can never be closed.

        Raises:
            StorageFullError: The disk is full; the batches that could not be noted stay open.
        """
        now = self._clock()
        for batch_id in self._book.due(now):
            self._journal.append(_encode({"kind": "closed", "batch": batch_id}))
            self._unsent[batch_id] = self._book.close(batch_id)
        return [
            self._drop(batch_id, "its policy ended before it had n_min contributions")
            for batch_id in self._book.lapsed(now)
        ]

    def unsent(self) -> list[ClosedBatch]:
        """Return the closed batches whose sums were not posted yet."""
        return list(self._unsent.values())

    def mark_sent(self, batch_id: BatchId) -> None:
        """Note that roster and sum of a batch lie in the outbox. Raises StorageFullError."""
        self._journal.append(_encode({"kind": "sent", "batch": batch_id}))
        del self._unsent[batch_id]
        self._num_sent += 1
        if self._num_sent >= COMPACT_AFTER:
            self._compact()

    def refused(self, batch_id: BatchId, *, why: str) -> Dropped:
        """Take note that the keeper refused a batch: it is dropped, by name. Raises StorageFullError."""
        num = sum(1 for accepted in self._accepted.values() if accepted.batch_id == batch_id)
        self._unsent.pop(batch_id, None)
        return Dropped(batch_id=batch_id, why=why, num=num)

    def _drop(self, batch_id: BatchId, why: str) -> Dropped:
        num = self._book.sizes()[batch_id]
        self._journal.append(_encode({"kind": "dropped", "batch": batch_id}))
        self._book.drop(batch_id)
        return Dropped(batch_id=batch_id, why=why, num=num)

    def _count(self, accepted: Accepted, opened: OpenedContribution, policy: VerifiedPolicy) -> None:
        self._book.add(opened, policy=policy, batch_id=accepted.batch_id, at=accepted.at)
        self._note(accepted)

    def _note(self, accepted: Accepted) -> None:
        self._accepted[accepted.contribution_id] = accepted
        self._by_device[accepted.policy_id, accepted.device] = accepted.contribution_id

    def _sign_receipt(self, accepted: Accepted) -> bytes:
        statement = device_pb2.ReceiptStatement(
            contribution_id=accepted.contribution_id,
            sha256=accepted.sha256,
            leaf=self._leaf,
            policy_id=accepted.policy_id,
            received_at_unix=int(accepted.at.timestamp()),
        )
        return self._principal.sign("receipt", statement.SerializeToString(deterministic=True))

    def _replay(self, head: dict[str, str], body: bytes) -> None:
        match head["kind"]:
            case "contribution":
                accepted = _accepted_of(head)
                policy = self._policy_at(accepted)
                opened = open_contribution(
                    body, policy=policy, leaf=self._leaf, ca_pem=self._principal.ca_pem, at=accepted.at
                )
                self._count(accepted, opened, policy)
            case "receipt":
                self._note(_accepted_of(head))
            case "closed":
                batch_id = parse_batch_id(head["batch"])
                self._unsent[batch_id] = self._book.close(batch_id)
            case "sent":
                del self._unsent[parse_batch_id(head["batch"])]
                self._num_sent += 1
            case "dropped":
                self._book.drop(parse_batch_id(head["batch"]))
            case kind:
                raise DurableError(f"the leaf's journal holds a record of kind {kind!r}")

    def _policy_at(self, accepted: Accepted) -> VerifiedPolicy:
        """Return a policy as it was when a contribution was accepted under it; by now it may be over."""
        if accepted.policy_id not in self._policies:
            signed = read_file(self._policy_path(accepted.policy_id), disk=self._disk)
            self._policies[accepted.policy_id] = read_policy(signed, ca_pem=self._principal.ca_pem, at=accepted.at)
        return self._policies[accepted.policy_id]

    def _read_policies(self) -> None:
        for path in sorted((self._folder / "policies").glob("*.signed")):
            if int(path.stem) in self._policies:
                continue
            try:
                self._policies[int(path.stem)] = read_policy(
                    read_file(path, disk=self._disk), ca_pem=self._principal.ca_pem, at=self._clock()
                )
            except ExpiredError:
                continue  # nobody may contribute under it any more, and nobody did

    def _compact(self) -> None:
        """Forget bodies whose sums are on their way, and receipts under policies that are over."""
        now = self._clock()
        kept = {*self._book.sizes(), *self._unsent}
        records: list[bytes] = []
        for record in self._journal:
            head, _ = _decode(record)
            if head["kind"] in {"contribution", "receipt"}:
                accepted = _accepted_of(head)
                policy = self._policies.get(accepted.policy_id)
                if accepted.batch_id in kept and head["kind"] == "contribution":
                    records.append(record)
                elif policy is not None and now < policy.expires_at:
                    records.append(_encode({"kind": "receipt", **_head_of(accepted)}))
            elif head["kind"] == "closed" and head["batch"] in kept:
                records.append(record)
        self._journal.replace(records)
        self._num_sent = 0

    def _policy_path(self, policy_id: int) -> Path:
        return self._folder / "policies" / f"{policy_id}.signed"


def batch_messages(closed: ClosedBatch, *, principal: Principal, region: RegionId) -> Iterator[tuple[str, str, bytes]]:
    """Yield (kind, message id, payload) of the two messages that carry a batch on its way.

    The ids follow from the batch, so posting them again is harmless.
    """
    yield "roster", f"roster-{closed.batch_id}", closed.roster(principal)
    yield "batch-sum", f"batch-sum-{closed.batch_id}", closed.batch_sum(principal, region=region)


def _policy_id_of(body: bytes) -> int:
    """Return the policy that a body says it is under. Nothing is verified yet."""
    _, payload = frame.decode(body, max_bytes=MAX_CONTRIBUTION_BYTES)
    try:
        contribution = device_pb2.Contribution.FromString(payload)
        signed = sites_pb2.Signed.FromString(contribution.statement)
        return int(device_pb2.ContributionStatement.FromString(signed.payload).policy_id)
    except DecodeError as error:
        raise MalformedError("a frame holds no contribution") from error


def _head_of(accepted: Accepted) -> dict[str, str]:
    return {
        "id": accepted.contribution_id,
        "device": accepted.device,
        "policy": str(accepted.policy_id),
        "sha256": accepted.sha256,
        "at": accepted.at.isoformat(),
        "batch": accepted.batch_id,
    }


def _accepted_of(head: dict[str, str]) -> Accepted:
    return Accepted(
        contribution_id=ContributionId(head["id"]),
        device=DeviceId(head["device"]),
        policy_id=int(head["policy"]),
        sha256=head["sha256"],
        at=datetime.fromisoformat(head["at"]),
        batch_id=BatchId(head["batch"]),
    )


def _encode(head: dict[str, str], body: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    return _HEAD.pack(len(text)) + text + body


def _decode(record: bytes) -> tuple[dict[str, str], bytes]:
    try:
        (length,) = _HEAD.unpack_from(record)
        head = json.loads(record[_HEAD.size : _HEAD.size + length])
    except (struct.error, ValueError) as error:
        raise DurableError("the leaf's journal holds a record that cannot be read") from error
    return head, record[_HEAD.size + length :]
