"""The egress gate: the one function through which model data leave a device.

allow-list -> finite and of the right shape -> clip to scale -> quantise with error feedback -> mask -> pack -> seal ->
sign.

Rules:
* private and unknown tensors are refused, never dropped in silence;
* one contribution a policy: asked again, the gate gives the stored one, byte for byte, whatever it is asked with. Two
  contributions under one policy, or one seed over two vectors, would show their difference;
* contribution and new residual are committed together before anything is returned, so that a power cut neither sends
  twice nor counts an update twice;
* a policy older than the last one that was sealed under is refused.

    >>> gate = EgressGate(schema, principal=principal, policy=policy, state=folder / "egress")
    >>> sealed = gate.seal(displacement, base=digest, weight=1, leaf=leaf)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nfl_core.codec.quantise import expand_scales, quantise
from nfl_core.delta import flatten_displacement
from nfl_core.durable import LOCAL_DISK, Disk, DualRecord, make_folder
from nfl_core.errors import DurableError, EgressError, PolicyError
from nfl_core.ids import ContributionId, Digest, PolicyId, parse_leaf_id
from nfl_core.schema import TensorSchema
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import Role
from nfl_secure.keystore import utc_now
from nfl_secure.policy import VerifiedPolicy
from nfl_secure.secagg.contribution import make_contribution


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedContribution:
    """What may leave the device.

    Attributes:
        frame: The body of `Contribute`.
        contribution_id: Its id.
        policy_id: The policy it was sealed under.
    """

    frame: bytes
    contribution_id: ContributionId
    policy_id: PolicyId

    @property
    def num_bytes(self) -> int:
        """Length of the body."""
        return len(self.frame)


class Tap(Protocol):
    """A witness of what goes into the mask. The product has none; a simulation proves with it that sums are exact."""

    def __call__(self, contribution_id: ContributionId, *, counts_P: NDArray[np.int64], weight: int) -> None:
        """Take note of weighted steps, int64 [P], before they are masked.

        Called before the contribution is stored. After a crash in between it is called again for the same id, and the
        last call counts.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """The durable state: last contribution and what it could not carry."""

    policy_id: int
    policy_sha256: str
    contribution_id: str
    schema_fingerprint: str
    frame: bytes
    residual_P: NDArray[np.float32]

    _HEADER = struct.Struct("<4sQ64s32s64sQ")
    _MAGIC = b"NFG1"

    def encode(self) -> bytes:
        head = self._HEADER.pack(
            self._MAGIC,
            self.policy_id,
            self.policy_sha256.encode(),
            self.contribution_id.encode(),
            self.schema_fingerprint.encode(),
            len(self.frame),
        )
        return head + self.frame + self.residual_P.astype("<f4").tobytes()

    @classmethod
    def decode(cls, data: bytes) -> _Stored:
        """Return the state. Raises DurableError when `data` is none."""
        if len(data) < cls._HEADER.size or not data.startswith(cls._MAGIC):
            raise DurableError("state of the egress gate is not readable")
        _, policy_id, policy_sha256, contribution_id, fingerprint, length = cls._HEADER.unpack_from(data)
        rest = data[cls._HEADER.size :]
        if length > len(rest) or (len(rest) - length) % 4:
            raise DurableError("state of the egress gate has a wrong length")
        return cls(
            policy_id=policy_id,
            policy_sha256=policy_sha256.decode(),
            contribution_id=contribution_id.decode(),
            schema_fingerprint=fingerprint.decode(),
            frame=rest[:length],
            residual_P=np.frombuffer(rest[length:], "<f4").astype(np.float32),
        )


class EgressGate:
    """Seals at most one contribution under one policy.

    Args:
        schema: The allow-list.
        principal: The device.
        policy: From `nfl_secure.policy.verify_policy`.
        state: Name of the dual record, in a folder that belongs to this device; the folder is made. The same for every
            policy: the residual goes from one to the next.
        clock: Now, aware.
        tap: Witness for a simulation.
        disk: Where the state is.

    Raises:
        EgressError: The principal is no device, or the policy is about another schema.
        DurableError: The state cannot be read.
    """

    def __init__(
        self,
        schema: TensorSchema,
        *,
        principal: Principal,
        policy: VerifiedPolicy,
        state: Path,
        clock: Callable[[], datetime] = utc_now,
        tap: Tap | None = None,
        disk: Disk = LOCAL_DISK,
    ) -> None:
        if principal.spiffe.role is not Role.DEVICE:
            raise EgressError(f"{principal.spiffe} is no device; only devices contribute")
        if policy.schema_fingerprint != schema.fingerprint or policy.num_values != schema.num_shared + 1:
            raise EgressError(f"policy {policy.policy_id} is about another schema than this gate's")
        make_folder(state.parent)
        self._schema = schema
        self._principal = principal
        self._policy = policy
        self._record = DualRecord(state, disk=disk)
        self._clock = clock
        self._tap = tap
        stored = self._record.load()
        self._stored = None if stored is None else _Stored.decode(stored)

    @property
    def stored(self) -> SealedContribution | None:
        """What was sealed under this policy before, if anything.

        Raises:
            PolicyError: The policy is older than the last one, or its text differs from the one that was sealed under.
        """
        last = self._stored
        if last is None or last.policy_id < self._policy.policy_id:
            return None
        if last.policy_id > self._policy.policy_id:
            raise PolicyError(
                f"policy {self._policy.policy_id} is older than {last.policy_id}, under which this device contributed"
            )
        if last.policy_sha256 != self._policy.sha256:
            raise PolicyError(
                f"policy {self._policy.policy_id} has two texts; this device contributed under the other one"
            )
        return SealedContribution(
            frame=last.frame, contribution_id=ContributionId(last.contribution_id), policy_id=PolicyId(last.policy_id)
        )

    def seal(
        self, displacement: Mapping[str, NDArray[np.float32]], *, base: Digest, weight: int, leaf: str
    ) -> SealedContribution:
        """Return the contribution of this device under this policy.

        Args:
            displacement: Every shared tensor by name, float32 of the schema's shape, finite; nothing else.
            base: Content digest of the version it starts from.
            weight: 1 to the policy's `max_weight`.
            leaf: The leaf it is for.

        Returns:
            The contribution, stored. A second call gives the first one's bytes and looks at no argument.

        Raises:
            DeltaError: A tensor is private, unknown, missing, misshaped or not finite.
            EgressError: The weight is out of range.
            PolicyError: The base is not accepted, or the policy is a replay (see `stored`).
            ExpiredError: The policy is over.
            IdentityError: `leaf` is no name.
            StorageFullError: It cannot be stored: nothing has left and the residual is as before.
            DurableError: Like StorageFullError.
        """
        already = self.stored
        if already is not None:
            return already
        policy = self._policy
        policy.require_open(self._clock())
        policy.base(base)
        if not 1 <= weight <= policy.max_weight:
            raise EgressError(f"weight of a contribution is {weight}, expected 1 to {policy.max_weight}")
        counts_P, residual_P = self._quantise(displacement, weight=weight)
        contribution_id, body = make_contribution(
            np.append(counts_P, np.int64(weight)),
            policy=policy,
            principal=self._principal,
            base=base,
            leaf=parse_leaf_id(leaf),
        )
        stored = _Stored(
            policy_id=policy.policy_id,
            policy_sha256=policy.sha256,
            contribution_id=contribution_id,
            schema_fingerprint=self._schema.fingerprint,
            frame=body,
            residual_P=residual_P,
        )
        # The witness first: what was stored may leave after any crash, so it must have been witnessed by then.
        if self._tap is not None:
            self._tap(contribution_id, counts_P=counts_P, weight=weight)
        self._record.store(stored.encode())
        self._stored = stored
        return SealedContribution(frame=body, contribution_id=contribution_id, policy_id=policy.policy_id)

    def _quantise(
        self, displacement: Mapping[str, NDArray[np.float32]], *, weight: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        x_P = flatten_displacement(self._schema, displacement)
        scales_P = expand_scales(self._policy.scales, self._schema.sizes)
        # Clipped before the residual is added: one wild update must not echo through error feedback for many rounds.
        clipped_P = np.clip(x_P, -scales_P, scales_P)
        q_P, residual_P = quantise(clipped_P, scales_P, self._policy.bits, residual_P=self._residual())
        return q_P.astype(np.int64) * weight, residual_P

    def _residual(self) -> NDArray[np.float32] | None:
        last = self._stored
        if last is None or last.schema_fingerprint != self._schema.fingerprint:
            return None
        return last.residual_P
