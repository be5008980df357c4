"""Takes batch sums and mask sums in, whichever comes first, and uncovers a batch when both halves are there.

Rules:

* a half is on disk before its mail is done; a batch is in the buffer once, or dropped by name, and stays that way
  whatever arrives about it again;
* a batch that cannot be uncovered, or that its keeper refused, is dropped with the reason.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
from google.protobuf.message import DecodeError

from nfl_cluster.brain.state import Buffered
from nfl_cluster.brain.store import RootStore
from nfl_cluster.registry import BatchRow, Registry
from nfl_core.codec.quantise import dequantise_mean, expand_scales
from nfl_core.errors import MalformedError, NflError, PolicyError
from nfl_core.ids import parse_batch_id
from nfl_core.schema import TensorSchema
from nfl_core.wire import sites_pb2
from nfl_secure.identity import Principal, Role
from nfl_secure.messages import verify
from nfl_secure.policy import VerifiedPolicy, read_policy
from nfl_secure.secagg import BatchTotal, batch_of, unmask

_AT = struct.Struct("<q")


class Intake:
    """The root's desk for batches.

    Args:
        store: The root's state.
        registry: Where batches are recorded.
        principal: The root.
        regions: Leaf -> its region.
        clock: Now, aware.
    """

    def __init__(
        self,
        store: RootStore,
        registry: Registry,
        *,
        principal: Principal,
        regions: Mapping[str, str],
        clock: Callable[[], datetime],
    ) -> None:
        self._regions = regions
        self._store, self._registry, self._principal, self._clock = store, registry, principal, clock
        self._policies: dict[int, VerifiedPolicy] = {}

    def keep_policy(self, policy_id: int, signed: bytes) -> None:
        """Store a policy of the root's own. Raises StorageFullError."""
        self._store.put(_AT.pack(int(self._clock().timestamp())) + signed, "policies", str(policy_id))

    def policy(self, policy_id: int) -> VerifiedPolicy:
        """Return a policy as it was when it was opened. Raises PolicyError for one that the root never opened."""
        if policy_id not in self._policies:
            stored = self._store.get("policies", str(policy_id))
            if stored is None:
                raise PolicyError(f"policy {policy_id} was never opened by this root")
            (opened_at,) = _AT.unpack_from(stored)
            self._policies[policy_id] = read_policy(
                stored[_AT.size :], ca_pem=self._principal.ca_pem, at=datetime.fromtimestamp(opened_at, timezone.utc)
            )
        return self._policies[policy_id]

    def take_batch_sum(self, signed: bytes, schema: TensorSchema) -> None:
        """Take a leaf's half. Raises NflError when it is not one."""
        batch_id, _, _ = batch_of(signed, ca_pem=self._principal.ca_pem, at=self._clock())
        if not self._is_known(batch_id):
            self._store.put(signed, "halves", f"{batch_id}.sum")
            self._pair(batch_id, schema)

    def take_mask_sum(self, signed: bytes, schema: TensorSchema) -> None:
        """Take the keeper's half. Raises NflError when it is not one."""
        _, payload = verify(signed, kind="mask-sum", ca_pem=self._principal.ca_pem, role=Role.KEEPER, at=self._clock())
        batch_id = _batch_id(sites_pb2.MaskSum, payload)
        if not self._is_known(batch_id):
            self._store.put(signed, "halves", f"{batch_id}.mask")
            self._pair(batch_id, schema)

    def take_refusal(self, signed: bytes) -> None:
        """Take the keeper's refusal of a roster. Raises NflError when it is none."""
        _, payload = verify(
            signed, kind="roster-refused", ca_pem=self._principal.ca_pem, role=Role.KEEPER, at=self._clock()
        )
        batch_id = _batch_id(sites_pb2.RosterRefused, payload)
        refusal = sites_pb2.RosterRefused.FromString(payload)
        # An answer that is here is about the one roster that counts; the refused one was another, under the same name.
        if not self._is_known(batch_id) and self._store.get("halves", f"{batch_id}.mask") is None:
            self.drop(batch_id, f"the keeper refused it: {refusal.reason} [{refusal.code}]")

    def drop(self, batch_id: str, why: str, *, batch: Buffered | None = None) -> None:
        """Give a batch up, by name."""
        self._store.state.finished[batch_id] = "dropped"
        self._store.tell("batch-dropped", batch=batch_id, why=why)
        self.record(batch_id, batch, status="dropped", why=why)

    def record(
        self, batch_id: str, batch: Buffered | None, *, status: str, why: str = "", candidate: str | None = None
    ) -> None:
        """Write a batch into the registry. Raises StorageFullError or DurableError."""
        self._registry.put_batch(
            BatchRow(
                batch_id=batch_id,
                policy_id=batch.policy_id if batch else 0,
                leaf=batch.leaf if batch else "",
                region=batch.region if batch else "",
                base_version=batch.base_version if batch else 0,
                num_contributions=batch.num if batch else 0,
                weight=batch.weight if batch else 0,
                status=status,
                why=why,
                candidate_id=candidate,
                at=batch.at if batch else self._clock().isoformat(),
            )
        )

    def forget_halves(self) -> None:
        """Remove halves whose batch is decided; a crash may have left them."""
        for path in sorted(self._store.path("halves").iterdir()):
            if self._is_known(path.stem):
                self._store.remove("halves", path.name)

    def _is_known(self, batch_id: str) -> bool:
        state = self._store.state
        return batch_id in state.finished or any(batch.batch_id == batch_id for batch in state.buffer)

    def _pair(self, batch_id: str, schema: TensorSchema) -> None:
        halves = [self._store.get("halves", f"{batch_id}.{half}") for half in ("sum", "mask")]
        if halves[0] is None or halves[1] is None:
            return
        try:
            _, policy_id, _ = batch_of(halves[0], ca_pem=self._principal.ca_pem, at=self._clock())
            policy = self._policy_for(halves[0], policy_id)
            total = unmask(halves[0], halves[1], policy=policy, ca_pem=self._principal.ca_pem, at=self._clock())
        except (PolicyError, MalformedError) as error:
            self.drop(batch_id, f"it cannot be uncovered: {error.message} [{error.code}]")
            return
        self._buffer(total, policy, schema)

    def _policy_for(self, batch_sum: bytes, policy_id: int) -> VerifiedPolicy:
        """Return a policy with the bases of the region that the batch's leaf serves.

        Two regions may have the same content, as in the first version, so a digest alone does not say which is meant;
        and a leaf speaks for its own region alone.
        """
        leaf, _ = verify(batch_sum, kind="batch-sum", ca_pem=self._principal.ca_pem, role=Role.LEAF, at=self._clock())
        region = self._regions.get(leaf.name)
        policy = self.policy(policy_id)
        return replace(policy, bases=tuple(base for base in policy.bases if base.region == region))

    def _buffer(self, total: BatchTotal, policy: VerifiedPolicy, schema: TensorSchema) -> None:
        scales_P = expand_scales(policy.scales, schema.sizes)
        mean_P = dequantise_mean(total.counts_P, total.weight, scales_P=scales_P, bits=policy.bits)
        counts = np.asarray(total.counts_P, dtype=np.int64)
        self._store.put_arrays({"mean": mean_P, "counts": counts}, "batches", f"{total.batch_id}.safetensors")
        batch = Buffered(
            batch_id=total.batch_id,
            policy_id=policy.policy_id,
            leaf=total.leaf,
            region=total.base.region,
            base_version=total.base.version,
            base_digest=total.base.digest,
            num=total.num,
            weight=total.weight,
            at=self._clock().isoformat(),
        )
        self._store.state.buffer.append(batch)
        self._store.tell(
            "batch-received",
            batch=batch.batch_id,
            leaf=batch.leaf,
            region=batch.region,
            num=batch.num,
            weight=batch.weight,
            base=batch.base_version,
            policy=batch.policy_id,
        )
        self.record(batch.batch_id, batch, status="buffered")


def _batch_id(kind: type[sites_pb2.MaskSum | sites_pb2.RosterRefused], payload: bytes) -> str:
    try:
        return parse_batch_id(kind.FromString(payload).batch_id)
    except DecodeError as error:
        raise MalformedError(f"signed bytes are no {kind.__name__}") from error
    except NflError as error:
        raise MalformedError(error.message) from error
