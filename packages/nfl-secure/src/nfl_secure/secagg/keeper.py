"""The keeper: opens seeds and answers a roster with the sum of its masks, once, or not at all.

The keeper never sees a masked value. What it must prevent is that its answers, combined by somebody who has the masked
values, uncover a single contribution. Rules for an answer:

* the roster is signed by the leaf it names, a leaf of this fleet;
* its policy is one this keeper knows, not expired, sealed to this keeper's key;
* every statement is signed by a device of this fleet with a valid certificate, names this policy, base and leaf;
  devices and contribution ids are distinct;
* every seed opens for exactly the contribution it is said to belong to;
* size at least the larger of the policy's and the keeper's own `n_min`, at most `batch_max`;
* no contribution was answered before in any batch, and no device twice under one policy;
* a batch is answered once. The same roster again gets the same stored bytes; another one under its id is refused.

The answer and the fact that it was given are durable before it is returned. Refusals leave no trace, so a leaf that
sent a faulty roster may send a right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.asymmetric import x25519
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nfl_core.codec.quantise import pack
from nfl_core.durable import LOCAL_DISK, Disk, Journal, read_file, write_file
from nfl_core.errors import DurableError, IdentityError, NflError, PolicyError
from nfl_core.ids import parse_batch_id
from nfl_core.wire import sites_pb2
from nfl_secure.errors import RosterRefusedError
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import Role
from nfl_secure.keystore import make_private_folder, private_pem, read_seal_key, utc_now, write_secret
from nfl_secure.messages import verify
from nfl_secure.policy import MIN_BATCH, VerifiedPolicy, read_policy
from nfl_secure.secagg.batch import add_masked
from nfl_secure.secagg.contribution import Statement, read_statement
from nfl_secure.secagg.prg import mask_values
from nfl_secure.secagg.seal import open_seed

KEY_LIFETIME = timedelta(days=30)


class LedgerEntry(BaseModel):
    """One answered batch, as the journal keeps it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_id: str
    policy_id: int
    roster_sha256: str
    contributions: tuple[str, ...]
    devices: tuple[str, ...]


class KeeperLedger:
    """What was answered before, and whether a roster may be answered now. Pure: the journal is the caller's."""

    def __init__(self) -> None:
        self._rosters: dict[str, str] = {}
        self._contributions: set[str] = set()
        self._devices: set[tuple[int, str]] = set()

    def note(self, entry: LedgerEntry) -> None:
        """Take an answered batch into account."""
        self._rosters[entry.batch_id] = entry.roster_sha256
        self._contributions.update(entry.contributions)
        self._devices.update((entry.policy_id, device) for device in entry.devices)

    def is_answered(self, batch_id: str, *, roster_sha256: str) -> bool:
        """Return whether exactly this roster was answered before.

        Raises:
            RosterRefusedError: Another roster was answered under the id of this batch.
        """
        known = self._rosters.get(batch_id)
        if known is not None and known != roster_sha256:
            _refuse(batch_id, "second-answer", f"batch {batch_id} was answered for another roster")
        return known is not None

    def require_unused(self, entry: LedgerEntry) -> None:
        """Raise RosterRefusedError when a contribution or device was in an answered batch, or stands here twice."""
        repeated = len(set(entry.contributions)) < len(entry.contributions)
        if repeated or len(set(entry.devices)) < len(entry.devices):
            _refuse(entry.batch_id, "duplicate", "a device or contribution stands in the roster twice")
        used = self._contributions.intersection(entry.contributions)
        if used:
            _refuse(
                entry.batch_id, "overlap", f"{len(used)} contributions, such as {min(used)}, were in an answered batch"
            )
        again = [device for device in entry.devices if (entry.policy_id, device) in self._devices]
        if again:
            _refuse(
                entry.batch_id, "overlap", f"{again[0]} was in an answered batch under policy {entry.policy_id} before"
            )


class Keeper:
    """The keeper of a fleet, with its key and its durable memory.

    Args:
        principal: Of role keeper.
        keys: Folder of `keeper.key`, the X25519 key that seeds are sealed to; made when it is missing.
        state: Folder of journal, answers and policies; made when it is missing. Losing it makes every earlier batch
            answerable again: then make a new key as well.
        n_min: Smallest batch this keeper ever answers, whatever a policy says, >= 2.
        clock: Now, aware.
        disk: Where the state is.

    Raises:
        IdentityError: The principal is no keeper, or the key file is not one.
        PolicyError: `n_min` is below 2.
        DurableError: The state cannot be read.
    """

    def __init__(
        self,
        principal: Principal,
        *,
        keys: Path,
        state: Path,
        n_min: int,
        clock: Callable[[], datetime] = utc_now,
        disk: Disk = LOCAL_DISK,
    ) -> None:
        if principal.spiffe.role is not Role.KEEPER:
            raise IdentityError(f"{principal.spiffe} is no keeper")
        if n_min < MIN_BATCH:
            raise PolicyError(f"the keeper's n_min is {n_min}, expected at least {MIN_BATCH}")
        self._principal, self._n_min, self._clock, self._disk = principal, n_min, clock, disk
        self._answers, self._policies = state / "answers", state / "policies"
        for folder in (keys, state, self._answers, self._policies):
            make_private_folder(folder)
        self._key = _open_key(keys / "keeper.key")
        self._journal = Journal(state / "answered.journal", disk=disk)
        self._ledger = KeeperLedger()
        for line in self._journal:
            self._ledger.note(_entry_of(line))

    def key_statement(self) -> bytes:
        """Return a `Signed` of kind `keeper-key`: the key that a policy names, good for 30 days from now."""
        not_after = int((self._clock() + KEY_LIFETIME).timestamp())
        message = sites_pb2.KeeperKey(x25519_public=self._key.public_key().public_bytes_raw(), not_after_unix=not_after)
        return self._principal.sign("keeper-key", message.SerializeToString(deterministic=True))

    def learn_policy(self, signed: bytes) -> VerifiedPolicy:
        """Remember a policy, durably. Hearing it again changes nothing.

        Raises:
            PolicyError: Another policy has this id, it is sealed to another key, or its numbers are not acceptable.
            ExpiredError: Like `read_policy`; so do SignatureError, IdentityError and MalformedError.
            DurableError: It cannot be stored.
        """
        policy = read_policy(signed, ca_pem=self._principal.ca_pem, at=self._clock())
        if policy.keeper != self._principal.spiffe or policy.keeper_public != self._key.public_key().public_bytes_raw():
            raise PolicyError(
                f"policy {policy.policy_id} is sealed to another keeper or another key of {policy.keeper}"
            )
        known = self._disk.read(self._policy_path(policy.policy_id))
        if known is not None and known != signed:
            raise PolicyError(f"policy {policy.policy_id} has two texts; the first one counts")
        if known is None:
            write_file(self._policy_path(policy.policy_id), signed, disk=self._disk)
        return policy

    def answer(self, signed_roster: bytes) -> bytes:
        """Return the sum of the masks of a roster.

        Args:
            signed_roster: Bytes of a `Signed` of kind `roster`, from anybody.

        Returns:
            Bytes of a `Signed` of kind `mask-sum`, durable. The same roster gives the same bytes, also after a restart.

        Raises:
            RosterRefusedError: A rule of this module is broken; `reason` says which. Nothing is remembered.
            DurableError: The answer cannot be stored, so it is not given.
        """
        roster, roster_sha256 = self._read_roster(signed_roster)
        if self._ledger.is_answered(roster.batch_id, roster_sha256=roster_sha256):
            return read_file(self._answers / roster.batch_id, disk=self._disk)
        policy, statements = self._check(roster)
        entry = LedgerEntry(
            batch_id=roster.batch_id,
            policy_id=roster.policy_id,
            roster_sha256=roster_sha256,
            contributions=tuple(statement.contribution_id for statement in statements),
            devices=tuple(str(statement.device) for statement in statements),
        )
        self._ledger.require_unused(entry)
        message = sites_pb2.MaskSum(
            batch_id=roster.batch_id,
            roster_sha256=roster_sha256,
            num=len(statements),
            sum=pack(self._sum_masks(roster.batch_id, policy, statements), policy.modulus_bits),
            modulus_bits=policy.modulus_bits,
            num_values=policy.num_values,
        )
        answer = self._principal.sign("mask-sum", message.SerializeToString(deterministic=True))
        # The answer first, then the line that makes it given: after a power cut between the two nothing has been given.
        write_file(self._answers / roster.batch_id, answer, disk=self._disk)
        self._journal.append(entry.model_dump_json().encode())
        self._ledger.note(entry)
        return answer

    def refusal(self, error: RosterRefusedError) -> bytes:
        """Return a `Signed` of kind `roster-refused`, for leaf and root."""
        message = sites_pb2.RosterRefused(
            batch_id=error.batch_id, reason=error.message, code=f"{error.code}.{error.reason}"
        )
        return self._principal.sign("roster-refused", message.SerializeToString(deterministic=True))

    def _read_roster(self, signed: bytes) -> tuple[sites_pb2.Roster, str]:
        batch_id = ""
        try:
            leaf, payload = verify(
                signed, kind="roster", ca_pem=self._principal.ca_pem, role=Role.LEAF, at=self._clock()
            )
            roster = sites_pb2.Roster.FromString(payload)
            batch_id = parse_batch_id(roster.batch_id)
        except DecodeError as error:
            raise RosterRefusedError("signed bytes are no roster", batch_id=batch_id, reason="malformed") from error
        except NflError as error:
            raise RosterRefusedError(error.message, batch_id=batch_id, reason=error.code) from error
        if roster.leaf != leaf.name:
            _refuse(batch_id, "identity", f"roster is for leaf {roster.leaf[:64]!r} and signed by {leaf}")
        return roster, hashlib.sha256(payload).hexdigest()

    def _check(self, roster: sites_pb2.Roster) -> tuple[VerifiedPolicy, list[Statement]]:
        known = self._disk.read(self._policy_path(roster.policy_id))
        if known is None:
            _refuse(roster.batch_id, "unknown-policy", f"policy {roster.policy_id} is not known to this keeper")
        ca_pem, now = self._principal.ca_pem, self._clock()
        num = len(roster.statements)
        try:
            policy = read_policy(known, ca_pem=ca_pem, at=now)
            smallest = max(policy.n_min, self._n_min)
            if num < smallest:
                _refuse(roster.batch_id, "small-batch", f"roster has {num} contributions, expected at least {smallest}")
            if num > policy.batch_max:
                _refuse(
                    roster.batch_id,
                    "large-batch",
                    f"roster has {num} contributions, expected at most {policy.batch_max}",
                )
            statements = [read_statement(signed, policy=policy, ca_pem=ca_pem, at=now) for signed in roster.statements]
        except RosterRefusedError:
            raise
        except NflError as error:
            raise RosterRefusedError(error.message, batch_id=roster.batch_id, reason=error.code) from error
        for statement in statements:
            if (statement.context.leaf, statement.context.base_digest) != (roster.leaf, roster.base_digest):
                _refuse(
                    roster.batch_id,
                    "mixed",
                    f"contribution of {statement.device} is for another leaf or base than the roster",
                )
        return policy, statements

    def _sum_masks(self, batch_id: str, policy: VerifiedPolicy, statements: list[Statement]) -> NDArray[np.uint32]:
        try:  # all seeds first: a roster with one bad seed costs no masks
            seeds = [
                open_seed(statement.sealed_seed, key=self._key, context=statement.context) for statement in statements
            ]
        except NflError as error:
            raise RosterRefusedError(error.message, batch_id=batch_id, reason="seed") from error
        if len(set(seeds)) < len(seeds):
            _refuse(batch_id, "seed", "two contributions have the same seed")
        total_N = np.zeros(policy.num_values, np.uint32)
        for seed in seeds:
            add_masked(
                total_N, mask_values(seed, policy.num_values, policy.modulus_bits), modulus_bits=policy.modulus_bits
            )
        return total_N

    def _policy_path(self, policy_id: int) -> Path:
        return self._policies / f"{policy_id}.signed"


def _refuse(batch_id: str, reason: str, message: str) -> NoReturn:
    raise RosterRefusedError(message, batch_id=batch_id, reason=reason)


def _open_key(path: Path) -> x25519.X25519PrivateKey:
    if not path.exists():
        write_secret(path, private_pem(x25519.X25519PrivateKey.generate()))
    return read_seal_key(path)


def _entry_of(line: bytes) -> LedgerEntry:
    try:
        return LedgerEntry.model_validate_json(line)
    except ValidationError as error:
        raise DurableError("the keeper's journal holds a line that is no answered batch") from error
