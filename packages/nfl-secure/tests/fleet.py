"""A whole small fleet in one folder: CA, root, keeper, leaf, devices, a policy. Everything is the real thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_core.codec.quantise import modulus_bits
from nfl_core.ids import Digest, LeafId, RegionId, digest_of
from nfl_core.levels import Scope
from nfl_core.schema import TensorSchema, TensorSpec
from nfl_core.wire import sites_pb2
from nfl_secure.egress import EgressGate, SealedContribution
from nfl_secure.identity import FleetCA, Principal, Role, SpiffeId
from nfl_secure.policy import VerifiedPolicy, read_policy, sign_policy, verify_policy
from nfl_secure.secagg import BatchBook, ClosedBatch, Keeper, open_contribution

BASE = digest_of(b"version 1, region north")
OTHER_BASE = digest_of(b"version 1, region south")
LEAF = LeafId("leaf-1")
NORTH = RegionId("north")

SCHEMA = TensorSchema(
    (
        TensorSpec(name="body.w", shape=(4, 3), dtype="float32", level="body", scope=Scope.GLOBAL),
        TensorSpec(name="middle.w", shape=(5,), dtype="float32", level="middle", scope=Scope.REGION),
        TensorSpec(name="private.w", shape=(2, 2), dtype="float32", level="private", scope=Scope.PRIVATE),
    )
)


class Clock:
    """Time that a test moves. It starts now, because TLS looks at the real clock."""

    def __init__(self) -> None:
        self.now = datetime.now(timezone.utc).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **span: float) -> None:
        self.now += timedelta(**span)


@dataclass
class Witness:
    """What devices put in, by contribution."""

    seen: dict[str, tuple[NDArray[np.int64], int]] = field(default_factory=dict)

    def __call__(self, contribution_id: str, *, counts_P: NDArray[np.int64], weight: int) -> None:
        self.seen[contribution_id] = (counts_P.copy(), weight)


class Fleet:
    """All principals of a fleet; devices are made when they are asked for."""

    def __init__(self, home: Path, *, name: str = "home", keeper_n_min: int = 2, schema: TensorSchema = SCHEMA) -> None:
        self.home, self.clock, self.schema = home, Clock(), schema
        self.ca = FleetCA.create(home / "ca", name, clock=self.clock)
        self.ca_pem = self.ca.ca_pem
        self.root = self.service(Role.ROOT, "root")
        self.leaf = self.service(Role.LEAF, LEAF)
        self.keeper_principal = self.service(Role.KEEPER, "keeper")
        self.keeper_n_min = keeper_n_min
        self.keeper = self.open_keeper()
        self.devices: dict[str, Principal] = {}
        self.witness = Witness()
        self.rng = np.random.default_rng(7)

    def spiffe(self, role: Role, name: str) -> SpiffeId:
        return SpiffeId(fleet=self.ca.fleet, role=role, name=name)

    def service(self, role: Role, name: str) -> Principal:
        return self.ca.admit(
            self.home / role.value / name, self.spiffe(role, name), server_names=["127.0.0.1", "localhost"]
        )

    def open_keeper(self) -> Keeper:
        """Open the keeper, anew after the first time: a restart."""
        return Keeper(
            self.keeper_principal,
            keys=self.home / "keeper-keys",
            state=self.home / "keeper-state",
            n_min=self.keeper_n_min,
            clock=self.clock,
        )

    def device(self, name: str) -> Principal:
        if name not in self.devices:
            self.devices[name] = self.ca.admit(self.home / "device" / name, self.spiffe(Role.DEVICE, name))
        return self.devices[name]

    def policy_message(self, policy_id: int = 1, **changes: object) -> sites_pb2.RoundPolicy:
        """Return a good policy, with some fields changed."""
        message = sites_pb2.RoundPolicy(
            policy_id=policy_id,
            fleet=self.ca.fleet,
            schema_fingerprint=self.schema.fingerprint,
            scales=[0.1] * len(self.schema.shared),
            bits=2,
            modulus_bits=modulus_bits(2, 8 * 2),
            n_min=3,
            batch_size=4,
            batch_max=8,
            max_weight=2,
            mode="sealed",
            window_ms=6000,
            expires_at_unix=int((self.clock() + timedelta(hours=1)).timestamp()),
            keeper_id="keeper",
            keeper_key=self.keeper.key_statement(),
            num_values=self.schema.num_shared + 1,
        )
        message.bases.add(version=1, region=NORTH, digest=BASE)
        message.bases.add(version=1, region="south", digest=OTHER_BASE)
        for name, value in changes.items():
            if isinstance(value, list):
                del getattr(message, name)[:]
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        return message

    def signed_policy(self, policy_id: int = 1, **changes: object) -> bytes:
        """Return a signed policy, good or not: signed without the checks of `sign_policy`."""
        return self.root.sign("policy", self.policy_message(policy_id, **changes).SerializeToString(deterministic=True))

    def open_policy(self, policy_id: int = 1, **changes: object) -> VerifiedPolicy:
        """Open a round: sign a policy and tell the keeper."""
        signed = sign_policy(self.policy_message(policy_id, **changes), principal=self.root, at=self.clock())
        self.keeper.learn_policy(signed)
        return read_policy(signed, ca_pem=self.ca_pem, at=self.clock())

    def verify(self, signed: bytes, *, n_min_floor: int = 2) -> VerifiedPolicy:
        return verify_policy(signed, ca_pem=self.ca_pem, schema=self.schema, n_min_floor=n_min_floor, at=self.clock())

    def gate(self, name: str, policy: VerifiedPolicy) -> EgressGate:
        return EgressGate(
            self.schema,
            principal=self.device(name),
            policy=policy,
            state=self.home / "device-state" / name / "egress",
            clock=self.clock,
            tap=self.witness,
        )

    def displacement(self) -> Mapping[str, NDArray[np.float32]]:
        return {t.name: (self.rng.standard_normal(t.shape) * 0.1).astype(np.float32) for t in self.schema.shared}

    def seal(
        self, name: str, policy: VerifiedPolicy, *, weight: int = 1, base: Digest = BASE, leaf: str = LEAF
    ) -> SealedContribution:
        return self.gate(name, policy).seal(self.displacement(), base=base, weight=weight, leaf=leaf)

    def closed_batch(
        self,
        policy: VerifiedPolicy,
        *names: str,
        book: BatchBook | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> ClosedBatch:
        """Let devices contribute to one batch and close it."""
        book = book or BatchBook(LEAF)
        batch_id = None
        for name in names:
            sealed = self.seal(name, policy, weight=(weights or {}).get(name, 1))
            opened = open_contribution(sealed.frame, policy=policy, leaf=LEAF, ca_pem=self.ca_pem, at=self.clock())
            batch_id = book.place(opened, policy=policy)
            book.add(opened, policy=policy, batch_id=batch_id, at=self.clock())
        assert batch_id is not None
        return book.close(batch_id)

    def roster_of(
        self, closed: ClosedBatch, *statements: bytes, batch_id: str | None = None, signer: Principal | None = None
    ) -> bytes:
        """Return a signed roster with other statements or under another batch id, as a lying leaf would make it."""
        changed = replace(closed, statements=statements or closed.statements, batch_id=batch_id or closed.batch_id)
        return changed.roster(signer or self.leaf)
