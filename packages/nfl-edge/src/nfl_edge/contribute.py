"""Make contributions and check receipts: everything about the way up that needs keys.

Model data leave through `nfl_secure.egress` alone; this module only hands it the displacement and keeps what it
returns.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from google.protobuf.message import DecodeError

from nfl_core.errors import ConflictError, NflError, PolicyError
from nfl_core.ids import LeafId, parse_leaf_id
from nfl_core.schema import TensorSchema
from nfl_core.wire import device_pb2
from nfl_edge.errors import ReceiptError
from nfl_edge.folder import DeviceFolder
from nfl_edge.outbox import Entry, Outbox
from nfl_edge.settings import DeviceSettings
from nfl_edge.store import Checkpoint, displacement
from nfl_edge.words import Base, Policy
from nfl_secure.egress import EgressGate, SealedContribution
from nfl_secure.egress import Tap as EgressTap
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import Role, SpiffeId
from nfl_secure.messages import verify
from nfl_secure.policy import VerifiedPolicy, verify_policy

__all__ = ["Contributor", "EgressTap"]
WEIGHT = 1  # every device counts the same; a weight by number of samples would tell how many there are


class Contributor:
    """Seals for one device.

    Args:
        folder: The device's folder.
        settings: Who it is, who its leaf is, how small a batch it accepts.
        principal: Its keys.
        outbox: Where sealed contributions go.
        clock: Present time, UTC.
        tap: Sees integers before they are masked; None in the product.
    """

    def __init__(
        self,
        folder: DeviceFolder,
        *,
        settings: DeviceSettings,
        principal: Principal,
        outbox: Outbox,
        clock: Callable[[], datetime],
        tap: EgressTap | None = None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._principal = principal
        self._outbox = outbox
        self._clock = clock
        self._tap = tap
        self._leaf = SpiffeId(fleet=principal.spiffe.fleet, role=Role.LEAF, name=parse_leaf_id(settings.leaf_id))
        self._policy: VerifiedPolicy | None = None
        self._read = b""

    def read_policy(self, signed: bytes, *, schema: TensorSchema | None, monotonic: float) -> Policy | None:
        """Verify the policy that a leaf handed on; None when there is none, or no model to obey it with.

        Args:
            signed: As it came.
            schema: Of the model that runs here.
            monotonic: Now on the loop's clock; the policy's end is given on the same one.

        Raises:
            VerificationError: The policy is not one to obey; told once, afterwards the same bytes are None.
            MalformedError: It is no policy at all; told once as well.
        """
        if not signed or schema is None:
            return None
        if signed != self._read:
            self._policy, self._read = None, signed
            self._policy = verify_policy(
                signed,
                ca_pem=self._principal.ca_pem,
                schema=schema,
                n_min_floor=self._settings.settings.privacy.n_min,
                at=self._clock(),
            )
        policy = self._policy
        if policy is None:
            return None
        left_s = (policy.expires_at - self._clock()).total_seconds()
        mine = sorted((base for base in policy.bases if base.region == self._settings.region), key=lambda b: b.version)
        bases = tuple(base.digest for base in mine)
        return Policy(policy_id=policy.policy_id, bases=bases, expires_at=monotonic + left_s)

    def seal(self, checkpoint: Checkpoint, *, schema: TensorSchema, base: Base) -> SealedContribution:
        """Seal what was learned since the accepted base, and put it into the outbox. Safe to repeat.

        Raises:
            EgressError: The gate refuses.
            PolicyError: There is no policy, or it does not accept this base.
            ConflictError: The checkpoint does not belong to the base.
            ExpiredError: The policy is over.
            DurableError: It cannot be stored.
        """
        if self._policy is None:
            raise PolicyError("there is no policy to contribute under")
        if checkpoint.meta.base_digest != base.digest:
            raise ConflictError(
                f"checkpoint started from {checkpoint.meta.base_digest[:12]}, running version is {base.digest[:12]}"
            )
        gate = EgressGate(
            schema,
            principal=self._principal,
            policy=self._policy,
            state=self._folder.state / "egress",
            clock=self._clock,
            tap=self._tap,
        )
        sealed = gate.seal(
            displacement(checkpoint), base=base.digest, weight=WEIGHT, leaf=LeafId(self._settings.leaf_id)
        )
        self._outbox.put(Entry(contribution_id=sealed.contribution_id, body=sealed.frame))
        return sealed

    def check_receipt(self, signed: bytes, entry: Entry) -> None:
        """Take a receipt only if this device's leaf signed it for exactly these bytes.

        Raises:
            ReceiptError: It did not.
        """
        try:
            signer, payload = verify(
                signed, kind="receipt", ca_pem=self._principal.ca_pem, role=Role.LEAF, at=self._clock()
            )
            statement = device_pb2.ReceiptStatement.FromString(payload)
        except (NflError, DecodeError) as error:
            raise ReceiptError(f"the receipt for {entry.contribution_id} cannot be trusted: {error}") from error
        if signer != self._leaf:
            raise ReceiptError(f"the receipt for {entry.contribution_id} is signed by {signer}, expected {self._leaf}")
        got = (statement.contribution_id, statement.sha256, statement.leaf)
        if got != (entry.contribution_id, entry.sha256, self._settings.leaf_id):
            raise ReceiptError(
                f"the receipt is for {got}, expected {(entry.contribution_id, entry.sha256, self._settings.leaf_id)}"
            )
