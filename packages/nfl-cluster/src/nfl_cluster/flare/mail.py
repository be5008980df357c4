"""Carry mail from one outbox: lanes, batches, receipts, backoff. No nvflare here, so a test needs none.

Rules:

- A message leaves the outbox only after the peer said that it is safe in the peer's inbox.
- Each destination has its own lane, so a site that is away delays nobody else.
- Before the first batch, and after every failure, a lane asks the peer with an empty batch: cheap to lose.
- What can never be delivered (no such site, refused by the peer) is buried with the reason; everything else is tried
  again for ever, with a pause that doubles up to `MAX_BACKOFF_S`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nfl_cluster.mailbox import Mailbox, MailboxError, Message
from nfl_core.errors import NflError, NotFoundError, StorageFullError
from nfl_core.ids import SiteId

POLL_S = 0.05
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
ASK_TIMEOUT_S = 1.5
SEND_TIMEOUT_S = 10.0
SLOW_LINK_BYTES_PER_S = 250_000  # a batch gets this much more time; 2 Mbit/s
_LOG = logging.getLogger(__name__)
MAX_BATCH_MESSAGES = 64
MAX_BATCH_BYTES = 4 * 1024 * 1024  # one larger message travels alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a peer said about a batch.

    Attributes:
        safe: Ids that lie in its inbox.
        refused: Ids that it will never take, and why.
    """

    safe: frozenset[str] = frozenset()
    refused: dict[str, str] = field(default_factory=dict)


class Link(Protocol):
    """The way to other sites."""

    def send(self, to: SiteId, batch: Sequence[Message], *, timeout_s: float) -> Receipt | None:
        """Send a batch, maybe empty; None when no answer came in time."""


class Courier:
    """Carry what lies in one site's outbox.

    Args:
        site: Where this courier works.
        mailbox: The site's mailbox.
        link: The way to the others.
        sites: All sites of the fleet; mail for any other is buried.
    """

    def __init__(self, *, site: SiteId, mailbox: Mailbox, link: Link, sites: frozenset[SiteId]) -> None:
        self._site, self._mailbox, self._link, self._sites = site, mailbox, link, sites
        self._stop = threading.Event()
        self._lanes: dict[SiteId, _Lane] = {}

    def run(self) -> None:
        """Carry mail until `stop`."""
        while not self._stop.is_set():
            try:
                self._look()
                self._stop.wait(POLL_S)
            except StorageFullError as error:
                _LOG.error("%s: %s; mail waits until there is room", error.code, error)
                self._stop.wait(MAX_BACKOFF_S)

    def stop(self) -> None:
        """Stop carrying; what is on the way is carried again by the next courier."""
        self._stop.set()
        for lane in self._lanes.values():
            lane.wake([])

    def take(self, batch: Sequence[Message]) -> Receipt:
        """Put what a peer sent into the inbox.

        A full disk ends the batch: what is not in the receipt is sent again.
        """
        safe: set[str] = set()
        refused: dict[str, str] = {}
        for message in batch:
            try:
                self._mailbox.deliver(message)
                safe.add(message.message_id)
            except MailboxError as error:
                refused[message.message_id] = f"{error.code}: {error}"
            except NflError:
                break
        return Receipt(safe=frozenset(safe), refused=refused)

    def _look(self) -> None:
        for peer, ids in self._mailbox.waiting().items():
            if peer == self._site or peer not in self._sites:
                for message_id in ids:
                    self._mailbox.bury(message_id, why=self._why_not(peer))
            else:
                self._lane(peer).wake(ids)

    def _why_not(self, peer: SiteId) -> str:
        if peer == self._site:
            return f"{peer!r} is this very site"
        return f"no site {peer!r} in this fleet, it has {', '.join(sorted(self._sites))}"

    def _lane(self, peer: SiteId) -> _Lane:
        if peer not in self._lanes:
            self._lanes[peer] = lane = _Lane(peer=peer, mailbox=self._mailbox, link=self._link, stop=self._stop)
            threading.Thread(target=lane.run, name=f"mail-{peer}", daemon=True).start()
        return self._lanes[peer]


class _Lane:
    """Carry the mail for one destination, in order."""

    def __init__(self, *, peer: SiteId, mailbox: Mailbox, link: Link, stop: threading.Event) -> None:
        self._peer, self._mailbox, self._link, self._stop = peer, mailbox, link, stop
        self._ids: list[str] = []
        self._busy = False
        self._changed = threading.Condition()

    def wake(self, ids: list[str]) -> None:
        """Say what waits now; a lane that is on its way looks when it is back."""
        with self._changed:
            self._ids = [] if self._busy else ids
            self._changed.notify()

    def run(self) -> None:
        """Carry until the courier stops."""
        backoff_s, is_there = MIN_BACKOFF_S, False
        while not self._stop.is_set():
            with self._changed:
                self._busy = False
                self._changed.wait_for(lambda: self._ids or self._stop.is_set())
                ids, self._ids, self._busy = self._ids, [], True
            if self._stop.is_set():
                return
            is_there = self._tried(ids, is_there=is_there)
            if is_there:
                backoff_s = MIN_BACKOFF_S
            else:
                self._stop.wait(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _tried(self, ids: list[str], *, is_there: bool) -> bool:
        try:
            if not is_there and self._link.send(self._peer, (), timeout_s=ASK_TIMEOUT_S) is None:
                return False
            return self._carry(ids)
        except StorageFullError as error:
            _LOG.error("%s: %s; mail for %s waits until there is room", error.code, error, self._peer)
            return False

    def _carry(self, ids: list[str]) -> bool:
        """Send one batch after the other; False when the peer did not take all of one."""
        left = list(ids)
        while left and not self._stop.is_set():
            batch, num_gone = self._batch(left)
            left = left[len(batch) + num_gone :]
            if not batch:
                continue
            num_bytes = sum(len(message.payload) for message in batch)
            receipt = self._link.send(self._peer, batch, timeout_s=SEND_TIMEOUT_S + num_bytes / SLOW_LINK_BYTES_PER_S)
            if receipt is None:
                return False
            for message in batch:
                if message.message_id in receipt.safe:
                    self._mailbox.acknowledge(message.message_id)
                elif message.message_id in receipt.refused:
                    self._mailbox.bury(message.message_id, why=receipt.refused[message.message_id])
            if not all(
                message.message_id in receipt.safe or message.message_id in receipt.refused for message in batch
            ):
                return False
        return True

    def _batch(self, ids: list[str]) -> tuple[list[Message], int]:
        """Return the messages of the next batch and how many of `ids` have gone (an older courier carried them)."""
        batch: list[Message] = []
        num_bytes = num_gone = 0
        for message_id in ids:
            try:
                message = self._mailbox.message(message_id)
            except NotFoundError:
                num_gone += 1
                continue
            num_bytes += len(message.payload)
            if batch and num_bytes > MAX_BATCH_BYTES:
                break
            batch.append(message)
            if len(batch) == MAX_BATCH_MESSAGES:
                break
        return batch, num_gone
