"""The couriers: components of one FLARE job that carry mail between the sites' mailboxes.

Rules:

- A message leaves the outbox only after the peer's courier said that it is safe in the peer's inbox.
- Mail between two clients goes through the root's courier, which says "safe" only after the last peer said so; it keeps nothing.
- Nothing that matters lives here. FLARE fails the whole job when one site's job process is killed; the job is then
  submitted again (`nfl_cluster.flare.jobs`) and the couriers go on with what lies in the mailboxes.

Each destination has its own thread, so a site that is away delays nobody else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from nfl_cluster.flare.names import MAILBOX_VARIABLE, TOPIC
from nfl_cluster.mailbox import Mailbox, Message
from nfl_core.errors import ConfigError, NflError
from nfl_core.ids import SiteId, parse_site_id

POLL_S = 0.05
REQUEST_TIMEOUT_S = 10.0
MAX_BACKOFF_S = 2.0
_SERVER_TARGET = "server"  # FLARE's name for the job process of its server, whatever the site is called


class Courier:
    """Carry what lies in one site's outbox; deliver what comes for it.

    Args:
        site: Where this courier works.
        mailbox: The site's mailbox.
        send: Sends one request to a FLARE target and says whether it is safe there.
        target_of: FLARE's target for a destination; None when there is no such site.
    """

    def __init__(
        self, *, site: SiteId, mailbox: Mailbox,
        send: Callable[[str, Shareable], bool], target_of: Callable[[SiteId], str | None],
    ) -> None:
        self._site, self._mailbox, self._send, self._target_of = site, mailbox, send, target_of
        self._stop = threading.Event()
        self._waiting: dict[SiteId, threading.Thread] = {}

    def run(self) -> None:
        """Carry mail until `stop`; one thread a destination carries that destination's mail in order."""
        while not self._stop.is_set():
            for peer in {message.peer for message in self._mailbox.outgoing()}:
                thread = self._waiting.get(peer)
                if thread is None or not thread.is_alive():
                    self._waiting[peer] = threading.Thread(target=self._carry, args=(peer,), name=f"mail-{peer}", daemon=True)
                    self._waiting[peer].start()
            self._stop.wait(POLL_S)

    def stop(self) -> None:
        """Stop carrying; what is on the way is carried again by the next courier."""
        self._stop.set()

    def deliver(self, request: Shareable) -> bool:
        """Take a request from another courier; True when its message is safe."""
        message = Message(
            message_id=str(request["id"]), peer=parse_site_id(str(request["from"])), kind=str(request["kind"]), payload=bytes(request["payload"])
        )
        if request["to"] == self._site:
            self._mailbox.deliver(message)
            return True
        target = self._target_of(parse_site_id(str(request["to"])))
        return target is not None and self._send(target, request)

    def _carry(self, peer: SiteId) -> None:
        backoff_s = POLL_S
        while not self._stop.is_set():
            messages = [message for message in self._mailbox.outgoing() if message.peer == peer]
            if not messages:
                return
            target = self._target_of(peer)
            if target is None:
                for message in messages:
                    self._mailbox.bury(message.message_id, why=f"no site {peer!r} in this fleet")
                return
            if self._send(target, _request(self._site, messages[0])):
                self._mailbox.acknowledge(messages[0].message_id)
                backoff_s = POLL_S
            else:
                self._stop.wait(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


def _request(site: SiteId, message: Message) -> Shareable:
    request = Shareable()
    for key, value in (("id", message.message_id), ("from", site), ("to", message.peer), ("kind", message.kind), ("payload", message.payload)):
        request[key] = value
    return request


def _own_mailbox() -> Mailbox:
    folder = os.environ.get(MAILBOX_VARIABLE)
    if not folder:
        raise ConfigError(f"{MAILBOX_VARIABLE} is not set, expected the folder of this site's mailbox", hint="start sites with `nfl cluster up`")
    return Mailbox(Path(folder))


class RootCourier(Controller):
    """The courier at the root, as FLARE's controller: it lives as long as the job.

    Args:
        sites: Names of all client sites of the fleet.
    """

    def __init__(self, sites: list[str]) -> None:
        super().__init__()
        self._sites = frozenset(sites)
        self._courier: Courier | None = None

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Open the mailbox and listen for mail."""
        engine = fl_ctx.get_engine()

        def send(target: str, request: Shareable) -> bool:
            with engine.new_context() as context:
                replies = engine.send_aux_request([target], TOPIC, request, REQUEST_TIMEOUT_S, context) or {}
            return target in replies and replies[target].get_return_code() == ReturnCode.OK

        self._courier = Courier(
            site=parse_site_id(fl_ctx.get_identity_name()), mailbox=_own_mailbox(), send=send,
            target_of=lambda site: site if site in self._sites else None,
        )
        engine.register_aux_message_handler(TOPIC, self._on_mail)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Carry mail until the job is aborted."""
        assert self._courier is not None  # start_controller comes first
        thread = threading.Thread(target=self._courier.run, name="courier", daemon=True)
        thread.start()
        while not abort_signal.triggered:
            thread.join(0.5)
            if not thread.is_alive():
                self.system_panic("the courier of the root has ended", fl_ctx)
                return

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Stop carrying."""
        if self._courier is not None:
            self._courier.stop()

    def process_result_of_unknown_task(self, *_: object) -> None:
        """Ignore results: this job hands out no tasks."""

    def _on_mail(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        return _answer(self, self._courier, request)


class SiteCourier(Executor):
    """The courier at a leaf or the keeper, as FLARE's executor: it is started by the job's start event."""

    def __init__(self) -> None:
        super().__init__()
        self._courier: Courier | None = None
        self.register_event_handler(EventType.START_RUN, self._start)
        self.register_event_handler(EventType.END_RUN, self._end)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Refuse every task: this job hands out none."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _start(self, event: str, fl_ctx: FLContext) -> None:
        engine = fl_ctx.get_engine()

        def send(target: str, request: Shareable) -> bool:
            with engine.new_context() as context:
                replies = engine.send_aux_request([target], TOPIC, request, REQUEST_TIMEOUT_S, context) or {}
            return any(reply.get_return_code() == ReturnCode.OK for reply in replies.values())

        # All mail of a client goes to the root's courier, which passes it on.
        self._courier = Courier(
            site=parse_site_id(fl_ctx.get_identity_name()), mailbox=_own_mailbox(), send=send, target_of=lambda _: _SERVER_TARGET
        )
        engine.register_aux_message_handler(TOPIC, self._on_mail)
        threading.Thread(target=self._courier.run, name="courier", daemon=True).start()

    def _end(self, event: str, fl_ctx: FLContext) -> None:
        if self._courier is not None:
            self._courier.stop()

    def _on_mail(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        return _answer(self, self._courier, request)


def _answer(component: Controller | Executor, courier: Courier | None, request: Shareable) -> Shareable:
    """Deliver, and turn our errors into FLARE's return codes: the sender keeps its message and tries again."""
    try:
        safe = courier is not None and courier.deliver(request)
    except NflError as error:
        component.logger.error("mail not taken: %s: %s", error.code, error)
        return make_reply(ReturnCode.HANDLER_EXCEPTION)
    return make_reply(ReturnCode.OK if safe else ReturnCode.COMMUNICATION_ERROR)
