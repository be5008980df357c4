"""A double of keeper and leaf together, for proofs alone: open every contribution, and add up what was in it.

Neither of the two can do this alone, and nothing in the product does it. With both folders at hand it shows that

* what each device put into its mask, by its own record, is what its contribution holds;
* the sum of a batch is, integer for integer, the sum that the root worked with;
* every contribution that has a receipt stands in exactly one batch: one that the root counted, one that was dropped by
  name, or one that still waits on a disk.

Shape legend: P shared values, N = P + 1 with the weight as the last.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from typing_extensions import Self

from nfl_cluster.events import read_events
from nfl_cluster.registry import BatchRow, Registry
from nfl_cluster.service import SiteFolder, utc_now
from nfl_core.codec import frame
from nfl_core.codec.quantise import unpack
from nfl_core.config import FleetConfig
from nfl_core.durable import read_file, read_journal
from nfl_core.tensors import read_tensors
from nfl_core.wire import device_pb2
from nfl_core.wire.limits import MAX_CONTRIBUTION_BYTES
from nfl_edge.link import read_tap
from nfl_secure.identity import Principal
from nfl_secure.keystore import read_seal_key
from nfl_secure.policy import VerifiedPolicy, read_policy
from nfl_secure.secagg import mask_values, open_seed, read_statement

MAX_WITNESS_BYTES = 256 * 1024 * 1024
_HEAD = struct.Struct("<I")  # of a record in a leaf's journal: length of its JSON head
COUNTED = ("buffered", "used")


class _Answered(BaseModel):
    """A line of the keeper's journal; the fields that are needed here."""

    batch_id: str
    policy_id: int
    contributions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What the double found.

    Attributes:
        batches: Batches whose sum the root opened.
        batches_exact: Those whose sum is exactly what the devices put in.
        contributions: Contributions in them.
        contributions_twice: Contributions that stand in more than one of them; must be none.
        receipts: Receipts that devices hold.
        receipts_counted: Of contributions in a batch that the root opened.
        receipts_dropped: Of contributions in a batch that was dropped, by name.
        receipts_waiting: Of contributions that wait on a disk for the next version.
        receipts_lost: All others; must be none.
    """

    batches: int
    batches_exact: int
    contributions: int
    contributions_twice: int
    receipts: int
    receipts_counted: int
    receipts_dropped: int
    receipts_waiting: int

    @property
    def receipts_lost(self) -> int:
        """Receipts whose contribution is nowhere."""
        return self.receipts - self.receipts_counted - self.receipts_dropped - self.receipts_waiting


def check_sums(home: Path, config: FleetConfig, *, taps: Path, put_in: Path, receipts: Collection[str]) -> Sums:
    """Open everything and compare. The fleet may be running: what moves on meanwhile is met further down the road.

    Args:
        home: Folder of the fleet.
        config: Of the fleet.
        taps: Folder of what the devices sent, one `.tap` a device.
        put_in: Folder of the devices' own records of what they put in, one file a contribution.
        receipts: Contributions whose receipts devices hold.

    Raises:
        NflError: A file cannot be read, or a contribution does not open at all.
    """
    leaves = [_LeafView.read(home, leaf.site) for leaf in config.leaves]
    waiting = set().union(*(leaf.waiting for leaf in leaves), _in_the_mail(home, config))
    rows = _batches(home)
    answered = {entry.batch_id: entry for entry in _answered(home)}
    bodies = {name: body for path in sorted(taps.glob("*.tap")) for name, body in bodies_of(read_tap(path))}
    double = _Double(home, bodies=bodies, put_in=put_in)
    opened = [row for row in rows.values() if row.num_contributions]
    exact = [row for row in opened if row.batch_id in answered and double.is_exact(row, answered[row.batch_id])]
    members = Counter(one for row in opened if row.batch_id in answered for one in answered[row.batch_id].contributions)
    counted = {name for name, row in rows.items() if row.status in COUNTED}
    dropped = {name for name, row in rows.items() if row.status == "dropped"}.union(*(leaf.dropped for leaf in leaves))
    places = {name: batch for leaf in leaves for name, batch in leaf.places.items()}
    fates = Counter(_fate(places.get(name), counted=counted, dropped=dropped, waiting=waiting) for name in receipts)
    return Sums(
        batches=len(opened),
        batches_exact=len(exact),
        contributions=len(members),
        contributions_twice=sum(1 for times in members.values() if times > 1),
        receipts=len(receipts),
        receipts_counted=fates["counted"],
        receipts_dropped=fates["dropped"],
        receipts_waiting=fates["waiting"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LeafView:
    """What a leaf has on its disk: contribution -> batch, and what became of batches as far as it knows."""

    places: Mapping[str, str]
    waiting: set[str]
    dropped: set[str]

    @classmethod
    def read(cls, home: Path, leaf: str) -> Self:
        state = SiteFolder.of_leaf(home, leaf).state
        path = state / "batches.journal"
        heads = [_head(record) for record in read_journal(path)] if path.exists() else []
        bodies = {head["batch"] for head in heads if head["kind"] == "contribution"}
        return cls(
            places={head["id"]: head["batch"] for head in heads if head["kind"] in {"contribution", "receipt"}},
            waiting=bodies - {head["batch"] for head in heads if head["kind"] in {"sent", "dropped"}},
            dropped={
                str(event["batch"])
                for event in read_events(state / "events.jsonl")
                if event["event"] == "batch-dropped"
            },
        )


class _Double:
    """Keeper and leaf in one."""

    def __init__(self, home: Path, *, bodies: Mapping[str, bytes], put_in: Path) -> None:
        folder = SiteFolder.of_keeper(home)
        self._home, self._bodies, self._put_in, self._now = home, bodies, put_in, utc_now()
        self._key = read_seal_key(folder.keys / "keeper.key")
        self._ca_pem = Principal.open(folder.keys).ca_pem
        self._policies: dict[int, VerifiedPolicy] = {}

    def is_exact(self, row: BatchRow, entry: _Answered) -> bool:
        """Say whether the root's sum of a batch is what the devices put in, and what the contributions hold."""
        policy = self._policy(entry.policy_id)
        total_N = np.zeros(policy.num_values, np.int64)
        if not self._bodies.keys() >= set(entry.contributions):
            return False  # something was counted that no device sent
        for name in entry.contributions:
            put_in_N = self._witnessed(name)
            if not np.array_equal(self._uncover(self._bodies[name], policy), put_in_N):
                return False
            total_N += put_in_N
        path = SiteFolder.of_root(self._home).state / "batches" / f"{row.batch_id}.safetensors"
        counts_P = read_tensors(read_file(path), None, max_bytes=MAX_WITNESS_BYTES)["counts"]
        is_whole = row.num_contributions == len(entry.contributions) and row.weight == int(total_N[-1])
        return is_whole and np.array_equal(counts_P, total_N[:-1])

    def _uncover(self, body: bytes, policy: VerifiedPolicy) -> NDArray[np.int64]:
        """Return what a contribution holds, int64 [N]: the leaf's part and the keeper's part together."""
        _, payload = frame.decode(body, max_bytes=MAX_CONTRIBUTION_BYTES)
        message = device_pb2.Contribution.FromString(payload)
        statement = read_statement(message.statement, policy=policy, ca_pem=self._ca_pem, at=self._now)
        seed = open_seed(statement.sealed_seed, key=self._key, context=statement.context)
        k, num = policy.modulus_bits, policy.num_values
        values_N = (unpack(message.masked, k, num).astype(np.int64) - mask_values(seed, num, k)) % (1 << k)
        values_N[values_N >= 1 << (k - 1)] -= 1 << k
        return values_N

    def _witnessed(self, name: str) -> NDArray[np.int64]:
        data = read_file(self._put_in / f"{name}.safetensors")
        return read_tensors(data, None, max_bytes=MAX_WITNESS_BYTES)["values"].astype(np.int64)

    def _policy(self, policy_id: int) -> VerifiedPolicy:
        if policy_id not in self._policies:
            signed = read_file(SiteFolder.of_keeper(self._home).state / "policies" / f"{policy_id}.signed")
            self._policies[policy_id] = read_policy(signed, ca_pem=self._ca_pem, at=self._now)
        return self._policies[policy_id]


def bodies_of(messages: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield (contribution, body) of the streams that a device sent to their end; a cut one is sent again later."""
    header, body = device_pb2.ContributionHeader(), bytearray()
    for method, data in messages:
        if not method.endswith("Contribute"):
            continue
        part = device_pb2.ContributePart.FromString(data)
        if part.WhichOneof("part") == "header":
            header, body = part.header, bytearray()
        else:
            body += part.data
        if header.num_bytes and len(body) == header.num_bytes:
            yield header.contribution_id, bytes(body)


def _answered(home: Path) -> list[_Answered]:
    path = SiteFolder.of_keeper(home).state / "answered.journal"
    return [_Answered.model_validate_json(line) for line in read_journal(path)] if path.exists() else []


def _batches(home: Path) -> dict[str, BatchRow]:
    registry = Registry.open(SiteFolder.of_root(home).path / "registry.sqlite")
    try:
        return {row.batch_id: row for row in registry.batches()}
    finally:
        registry.close()


def _in_the_mail(home: Path, config: FleetConfig) -> set[str]:
    """Return the batches whose sum is on its way to the root, or waits there for its other half."""
    root = SiteFolder.of_root(home)
    places = [SiteFolder.of_leaf(home, leaf.site).mailbox / "outbox" for leaf in config.leaves] + [
        root.mailbox / "inbox"
    ]
    names = [path.stem for place in places if place.is_dir() for path in place.glob("*batch-sum-*.msg")]
    halves = root.state / "halves"
    return {name.rpartition("-")[2] for name in names} | {path.stem for path in halves.glob("*.sum")}


def _head(record: bytes) -> dict[str, str]:
    (length,) = _HEAD.unpack_from(record)
    head: dict[str, str] = json.loads(record[_HEAD.size : _HEAD.size + length])
    return head


def _fate(batch_id: str | None, *, counted: set[str], dropped: set[str], waiting: set[str]) -> str:
    if batch_id is None:
        return "lost"
    groups = (("counted", counted), ("dropped", dropped), ("waiting", waiting))
    return next((fate for fate, group in groups if batch_id in group), "lost")
