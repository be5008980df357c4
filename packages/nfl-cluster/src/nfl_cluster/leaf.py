"""The leaf's service: the gateway for devices, the batch log, the bundle cache, and the mail to root and keeper.

Everything that matters is durable in the leaf's folder, so it may be killed at any moment; when root, keeper or courier
are away it goes on serving devices from its cache, and its mail waits.

    python -m nfl_cluster.leaf --home .nfl --site leaf-1
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError

# isort: off
import nfl_cluster.service  # noqa: F401 - first: it quietens grpc
import nfl_secure.tls  # noqa: F401 - before grpc: it holds grpcio to TLS 1.3

# isort: on
from nfl_cluster.aggregate.batches import BatchLog, Dropped, batch_messages
from nfl_cluster.aggregate.suspicion import RoundScores, Suspicion
from nfl_cluster.attendance import Attendance
from nfl_cluster.events import EventJournal
from nfl_cluster.gateway import Gateway, serve_devices
from nfl_cluster.mailbox import Mailbox, Message
from nfl_cluster.service import SiteFolder, run_service, say_ready, stop_on_signals, tick_until, utc_now
from nfl_core.config import FleetConfig, load_fleet
from nfl_core.durable import DualRecord
from nfl_core.errors import MalformedError, NflError, StorageFullError
from nfl_core.ids import RegionId, SiteId, parse_batch_id, parse_leaf_id
from nfl_core.wire import sites_pb2
from nfl_ota import BundleManifest, Mirror
from nfl_secure.identity import Principal, Role
from nfl_secure.messages import verify

COUNTERS_EVERY_S = 2.0  # counters change all the time; the fleet's picture of them need not
TIMESTAMP = "metadata/timestamp.json"
BEFORE_ROOT = "0"  # sorts before every message of the root
_M = TypeVar("_M", sites_pb2.RolloutState, sites_pb2.RosterRefused, sites_pb2.RepositoryFiles)
_LOG = logging.getLogger(__name__)


class Leaf:
    """One leaf without its port: mail in, mail out, batches closed in time.

    Args:
        config: Of the fleet.
        site: Which leaf.
        folder: Its files.
        clock: Now, aware.
        monotonic: Seconds, never set back.

    Raises:
        ConfigError: The fleet has no such leaf.
        NotFoundError: The leaf has no keys.
        DurableError: Its state cannot be read.
        MalformedError: The one manifest in its cache is none.
    """

    def __init__(
        self,
        config: FleetConfig,
        site: str,
        folder: SiteFolder,
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        section = config.leaf(site)
        self.region = RegionId(section.region)
        self.principal = Principal.open(folder.keys)
        self._root, self._keeper = SiteId(config.root.site), SiteId(config.keeper.site)
        self._clock, self._monotonic = clock, monotonic
        self.mailbox = Mailbox(folder.mailbox)
        self.cache = Mirror(folder.cache)
        self.log = BatchLog(folder.state, principal=self.principal, region=self.region, clock=clock)
        self.attendance = Attendance(folder.state / "devices", leaf=parse_leaf_id(site), region=self.region)
        self._marker = DualRecord(folder.state / "repository-marker")
        self._suspicion = Suspicion(folder.state / "suspicion")
        self._events = EventJournal(folder.state / "events.jsonl", clock)
        self._counters_at = 0.0
        manifests = folder.cache / "targets" / "bundles" / self.region
        self.gateway = Gateway(log=self.log, attendance=self.attendance, cache=self.cache, manifests=manifests)
        self._offer_first_version(manifests)

    def _offer_first_version(self, manifests: Path) -> None:
        """Offer what the cache was made with until the root is heard of: a new leaf serves before any courier runs."""
        found = sorted(manifests.glob("*.json")) if manifests.is_dir() else []
        if self.attendance.rollout_version or len(found) != 1:
            return
        manifest = BundleManifest.from_bytes(found[0].read_bytes())
        first = sites_pb2.RolloutState(
            version=manifest.version,
            region=self.region,
            bundle_target=manifest.target_path,
            digest=manifest.content_digest,
            wave_fraction=1.0,
        )
        self.attendance.follow(first, message_id=BEFORE_ROOT)

    def tick(self) -> None:
        """Do what is due: read mail, close batches, post what is new.

        Raises:
            StorageFullError: The disk is full; the next tick goes on where this one stopped.
            DurableError: State cannot be written.
        """
        for message in self.mailbox.incoming():
            self._take(message)
            self.mailbox.done(message)
        for dropped in self.log.close_due():
            self._tell(dropped)
        for closed in self.log.unsent():
            for kind, message_id, payload in batch_messages(closed, principal=self.principal, region=self.region):
                to = self._keeper if kind == "roster" else self._root
                self.mailbox.post(to, kind, payload, message_id=message_id)
            self.log.mark_sent(closed.batch_id)
            self._events.write("batch-closed", batch=closed.batch_id, num=closed.num, policy=closed.policy.policy_id)
        self._post_health()

    def _post_health(self) -> None:
        now = self._monotonic()
        with_counters = now >= self._counters_at
        if with_counters:
            self._counters_at = now + COUNTERS_EVERY_S
        news = self.attendance.news(with_counters=with_counters)
        if news is not None:
            message_id, counts = news
            self.mailbox.post(self._root, "health", counts.SerializeToString(deterministic=True), message_id=message_id)
        self.attendance.flush()

    def _take(self, message: Message) -> None:
        """Apply one message. What is wrong with it is journaled; it must not stop a leaf that devices need."""
        try:
            self._apply(message)
        except StorageFullError:
            raise
        except NflError as error:
            _LOG.warning(
                "mail %s from %s is not usable: %s [%s]", message.kind, message.peer, error.message, error.code
            )
            self._events.write(
                "mail-refused", kind=message.kind, sender=message.peer, code=error.code, why=error.message[:300]
            )

    def _apply(self, message: Message) -> None:
        match (message.kind, message.peer):
            case ("policy", self._root):
                policy = self.log.learn_policy(message.payload)
                self._events.write("policy-learned", policy=policy.policy_id)
            case ("repository", self._root):
                self._keep_files(message)
            case ("rollout", self._root):
                rollout = _parse(sites_pb2.RolloutState, message.payload)
                if self.attendance.follow(rollout, message_id=message.message_id):
                    self._events.write(
                        "rollout", version=int(rollout.version), fraction=rollout.wave_fraction, halted=rollout.halted
                    )
            case ("batch-scores", self._root):
                self._hear(RoundScores.decode(message.payload))
            case ("roster-refused", self._keeper):
                ca_pem = self.principal.ca_pem
                _, payload = verify(
                    message.payload, kind="roster-refused", ca_pem=ca_pem, role=Role.KEEPER, at=self._clock()
                )
                refusal = _parse(sites_pb2.RosterRefused, payload)
                why = f"the keeper refused it: {refusal.reason} [{refusal.code}]"
                self._tell(self.log.refused(parse_batch_id(refusal.batch_id), why=why))
            case _:
                raise MalformedError(
                    f"{message.peer} sends a message of kind {message.kind!r} that a leaf does not take"
                )

    def _hear(self, scores: RoundScores) -> None:
        members: dict[str, list[str]] = {}
        for accepted in self.log.accepted():
            members.setdefault(accepted.batch_id, []).append(accepted.device)
        for change in self._suspicion.hear(scores, members=members):
            if change.deviations is None:
                self._events.write("quarantine-over", device=change.device)
            else:
                self._events.write("quarantine-advised", device=change.device, deviations=change.deviations)

    def _keep_files(self, message: Message) -> None:
        """Put files into the cache; the timestamp of an older publication never replaces that of a newer one."""
        files = _parse(sites_pb2.RepositoryFiles, message.payload).files
        newest = self._marker.load() or b""
        for file in files:
            if file.path == TIMESTAMP and message.message_id.encode() <= newest:
                continue
            self.cache.write(file.path, file.data)
        if message.message_id.encode() > newest:
            self._marker.store(message.message_id.encode())

    def _tell(self, dropped: Dropped) -> None:
        _LOG.warning("batch %s of %d contributions is dropped: %s", dropped.batch_id, dropped.num, dropped.why)
        self._events.write("batch-dropped", batch=dropped.batch_id, num=dropped.num, why=dropped.why)


def _parse(kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedError(f"a message is no {kind.__name__}") from error


async def serve(home: Path, site: str) -> None:
    """Run a leaf until a signal. Raises like `Leaf` and `serve_devices`."""
    stop = stop_on_signals()
    config = load_fleet(home / "fleet.toml")
    section = config.leaf(site)
    leaf = Leaf(config, site, SiteFolder.of_leaf(home, site))
    server, port = await serve_devices(leaf.gateway, principal=leaf.principal, host=section.host, port=section.port)

    async def tick() -> None:
        leaf.tick()

    say_ready("leaf", site=site, host=section.host, port=port)
    try:
        await tick_until(stop, tick)
    finally:
        await server.stop(1.0)


def main(argv: list[str] | None = None) -> int:
    """Run the leaf service named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m nfl_cluster.leaf", description="serve the devices of one leaf")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--site", required=True)
    arguments = parser.parse_args(argv)
    return run_service(f"leaf {arguments.site}", lambda: serve(arguments.home, arguments.site))


if __name__ == "__main__":
    sys.exit(main())
