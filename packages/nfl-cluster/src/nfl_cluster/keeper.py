"""The keeper's service: `nfl_secure.secagg.Keeper` between two ends of a mailbox.

It never meets a masked value. A roster under a policy that has not arrived yet waits for it: mail of two senders may
come in any order.

    python -m nfl_cluster.keeper --home .nfl
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from nfl_cluster.events import EventJournal
from nfl_cluster.mailbox import Mailbox, Message
from nfl_cluster.service import SiteFolder, run_service, say_ready, stop_on_signals, tick_until, utc_now
from nfl_core.config import FleetConfig, load_fleet
from nfl_core.errors import MalformedError, NflError, StorageFullError
from nfl_core.ids import SiteId
from nfl_secure.errors import RosterRefusedError
from nfl_secure.identity import Principal
from nfl_secure.secagg import Keeper

KEY_EVERY = timedelta(days=1)  # a key statement is good for 30 days
PATIENCE = timedelta(seconds=60)  # how long a roster waits for its policy
_LOG = logging.getLogger(__name__)


class KeeperService:
    """The keeper of a fleet with its mail.

    Args:
        config: Of the fleet.
        folder: Its files.
        clock: Now, aware.

    Raises:
        NotFoundError: The keeper has no keys.
        DurableError: Its state cannot be read.
    """

    def __init__(self, config: FleetConfig, folder: SiteFolder, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._root = SiteId(config.root.site)
        self._leaves = frozenset(SiteId(leaf.site) for leaf in config.leaves)
        self._clock = clock
        self.mailbox = Mailbox(folder.mailbox)
        self.keeper = Keeper(
            Principal.open(folder.keys), keys=folder.keys, state=folder.state, n_min=config.keeper.n_min, clock=clock
        )
        self._events = EventJournal(folder.state / "events.jsonl", clock)
        self._key_at: datetime | None = None
        self._waiting_since: dict[str, datetime] = {}

    def tick(self) -> None:
        """Do what is due: publish the key, read mail, answer.

        Raises:
            StorageFullError: The disk is full; nothing was answered, the next tick tries again.
            DurableError: State cannot be written.
        """
        now = self._clock()
        if self._key_at is None or now >= self._key_at + KEY_EVERY:
            self.mailbox.post(self._root, "keeper-key", self.keeper.key_statement())
            self._key_at = now
        # Policies first: a roster that came before its policy need not wait a round.
        for message in sorted(self.mailbox.incoming(), key=lambda message: message.kind != "policy"):
            if self._take(message):
                self.mailbox.done(message)

    def _take(self, message: Message) -> bool:
        """Handle one message; False when it has to wait."""
        try:
            match message.kind:
                case "policy" if message.peer == self._root:
                    policy = self.keeper.learn_policy(message.payload)
                    self._events.write("policy-learned", policy=policy.policy_id)
                case "roster" if message.peer in self._leaves:
                    return self._answer(message)
                case kind:
                    raise MalformedError(f"{message.peer} sends a message of kind {kind!r} that a keeper does not take")
        except StorageFullError:
            raise
        except NflError as error:
            _LOG.warning(
                "mail %s from %s is not usable: %s [%s]", message.kind, message.peer, error.message, error.code
            )
            self._events.write(
                "mail-refused", kind=message.kind, sender=message.peer, code=error.code, why=error.message[:300]
            )
        return True

    def _answer(self, message: Message) -> bool:
        try:
            answer = self.keeper.answer(message.payload)
        except RosterRefusedError as error:
            if error.reason == "unknown-policy" and self._may_wait(message):
                return False
            self._refuse(message, error)
        else:
            batch_id = message.message_id.removeprefix("roster-")
            self.mailbox.post(self._root, "mask-sum", answer, message_id=f"mask-sum-{batch_id}"[:80])
            self._events.write("roster-answered", message=message.message_id, leaf=message.peer)
        self._waiting_since.pop(message.message_id, None)
        return True

    def _may_wait(self, message: Message) -> bool:
        since = self._waiting_since.setdefault(message.message_id, self._clock())
        return self._clock() < since + PATIENCE

    def _refuse(self, message: Message, error: RosterRefusedError) -> None:
        _LOG.warning("roster of batch %s refused: %s [%s]", error.batch_id, error.message, error.reason)
        self._events.write(
            "roster-refused", batch=error.batch_id, leaf=message.peer, reason=error.reason, why=error.message[:300]
        )
        refusal = self.keeper.refusal(error)
        for site in (self._root, message.peer):
            self.mailbox.post(site, "roster-refused", refusal, message_id=f"refused-{message.message_id}-{site}"[:80])


async def serve(home: Path) -> None:
    """Run the keeper until a signal. Raises like `KeeperService`."""
    stop = stop_on_signals()
    config = load_fleet(home / "fleet.toml")
    service = KeeperService(config, SiteFolder.of_keeper(home))

    async def tick() -> None:
        service.tick()

    say_ready("keeper", site=config.keeper.site)
    await tick_until(stop, tick)


def main(argv: list[str] | None = None) -> int:
    """Run the keeper service named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m nfl_cluster.keeper", description="keep the seeds of masks")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--site", help="ignored; a fleet has one keeper")
    arguments = parser.parse_args(argv)
    return run_service("keeper", lambda: serve(arguments.home))


if __name__ == "__main__":
    sys.exit(main())
