"""The couriers as components of one FLARE job: they send and take mail as FLARE's auxiliary messages.

Nothing that matters lives here. FLARE fails the whole job when one site's job process is killed; the job is then
submitted again (`nfl_cluster.flare.jobs`) and the couriers go on with what lies in the mailboxes.

A site takes mail only from the sites of the fleet and only under the name by which FLARE knows the sender. That name
is good for order, not for trust: whoever runs FLARE's server could forge it, so what matters is signed inside.
"""

# ruff: noqa: ARG002  FLARE calls these methods with arguments that a courier does not need
from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from nfl_cluster.flare.mail import Courier, Receipt
from nfl_cluster.flare.names import FLARE_PROJECT, MAILBOX_VARIABLE, SITE_VARIABLE, TOPIC
from nfl_cluster.mailbox import Mailbox, Message
from nfl_core.errors import ConfigError, ConflictError, NflError
from nfl_core.ids import SiteId, parse_site_id

_SERVER_TARGET = "server"  # FLARE's name for the job process of its server, whatever the site is called
_LOOK_S = 0.5


class MailRefusedError(ConflictError):
    """A batch of mail comes under another site's name."""

    code = "flare.mail-refused"


class Engine(Protocol):
    """What we use of FLARE's engine in a job process."""

    def new_context(self) -> FLContext:
        """Return a fresh context (a context manager)."""

    def register_aux_message_handler(self, topic: str, message_handle_func: object) -> None:
        """Listen."""

    def send_aux_request(
        self, targets: list[str], topic: str, request: Shareable, timeout: float, fl_ctx: FLContext, *, optional: bool
    ) -> dict[str, Shareable] | None:
        """Ask."""


class FlareLink:
    """The way to other sites: auxiliary messages between the job processes of one FLARE job.

    Args:
        engine: FLARE's.
        site: Where it starts.
        root: Name of the root site, which FLARE calls "server".
    """

    def __init__(self, engine: Engine, *, site: SiteId, root: SiteId) -> None:
        self._engine, self._site, self._root = engine, site, root

    def send(self, to: SiteId, batch: Sequence[Message], *, timeout_s: float) -> Receipt | None:
        """Send a batch; None when no good answer came in time."""
        request = Shareable()
        request["from"], request["to"] = str(self._site), str(to)
        request["mail"] = [{"id": one.message_id, "kind": one.kind, "payload": one.payload} for one in batch]
        target = _SERVER_TARGET if to == self._root else str(to)
        with self._engine.new_context() as context:
            replies = self._engine.send_aux_request([target], TOPIC, request, timeout_s, context, optional=True) or {}
        for reply in replies.values():
            if reply.get_return_code() == ReturnCode.OK:
                return Receipt(safe=frozenset(reply["safe"]), refused=dict(reply["refused"]))
        return None


class MailCarrier:
    """The part that controller and executor share: open the mailbox, listen, carry.

    Args:
        component: The FLARE component that it works for, for its log.
        sites: All client sites of the fleet.
        root: Name of the root site.
    """

    def __init__(self, component: FLComponent, *, sites: list[str], root: str) -> None:
        self._component = component
        self._root = parse_site_id(root)
        self._sites = frozenset([self._root, *(parse_site_id(site) for site in sites)])
        self._site = parse_site_id(_variable(SITE_VARIABLE))
        self._mailbox = Mailbox(Path(_variable(MAILBOX_VARIABLE)))
        self._courier: Courier | None = None

    def start(self, engine: Engine) -> threading.Thread:
        """Listen for mail and carry mail in a thread of its own, which is returned."""
        link = FlareLink(engine, site=self._site, root=self._root)
        self._courier = Courier(site=self._site, mailbox=self._mailbox, link=link, sites=self._sites)
        engine.register_aux_message_handler(TOPIC, self._on_mail)
        thread = threading.Thread(target=self._courier.run, name="courier", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Stop carrying."""
        if self._courier is not None:
            self._courier.stop()

    def _on_mail(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Take a batch, and turn our errors into FLARE's return codes: the sender keeps its mail."""
        try:
            receipt = self._take(request, fl_ctx)
        except (NflError, KeyError, TypeError, ValueError) as error:
            self._component.log_error(fl_ctx, f"mail not taken: {type(error).__name__}: {error}")
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        reply = make_reply(ReturnCode.OK)
        reply["safe"], reply["refused"] = sorted(receipt.safe), receipt.refused
        return reply

    def _take(self, request: Shareable, fl_ctx: FLContext) -> Receipt:
        sender, known_as = parse_site_id(request["from"]), fl_ctx.get_peer_context().get_identity_name()
        expected = FLARE_PROJECT if sender == self._root else str(sender)
        if sender not in self._sites or request["to"] != self._site or known_as != expected:
            raise MailRefusedError(f"mail from {sender!r} to {request['to']!r} comes from FLARE's site {known_as!r}")
        assert self._courier is not None  # the handler is registered after it was made
        return self._courier.take(
            [
                Message(message_id=str(one["id"]), peer=sender, kind=str(one["kind"]), payload=bytes(one["payload"]))
                for one in request["mail"]
            ]
        )


class RootCourier(Controller):
    """The courier at the root, as FLARE's controller: it lives as long as the job.

    Args:
        sites: All client sites of the fleet.
        root: Name of the root site.
    """

    def __init__(self, sites: list[str], root: str) -> None:
        super().__init__()
        self._carrier = MailCarrier(self, sites=sites, root=root)
        self._thread: threading.Thread | None = None

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Listen and carry."""
        self._thread = self._carrier.start(fl_ctx.get_engine())

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Wait for the end of the job."""
        assert self._thread is not None  # start_controller comes first
        while not abort_signal.triggered:
            self._thread.join(_LOOK_S)
            if not self._thread.is_alive():
                self.system_panic("the courier of the root has ended", fl_ctx)
                return

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Stop carrying."""
        self._carrier.stop()

    def process_result_of_unknown_task(self, *_: object) -> None:
        """Ignore results: this job hands out no tasks."""


class SiteCourier(Executor):
    """The courier at a leaf or the keeper, as FLARE's executor; the job's start event starts it.

    Args:
        sites: All client sites of the fleet.
        root: Name of the root site.
    """

    def __init__(self, sites: list[str], root: str) -> None:
        super().__init__()
        self._carrier = MailCarrier(self, sites=sites, root=root)
        self.register_event_handler(EventType.START_RUN, self._start)
        self.register_event_handler(EventType.END_RUN, self._end)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Refuse every task: this job hands out none."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _start(self, event: str, fl_ctx: FLContext) -> None:
        self._carrier.start(fl_ctx.get_engine())

    def _end(self, event: str, fl_ctx: FLContext) -> None:
        self._carrier.stop()


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigError(f"{name} is not set in the environment of FLARE", hint="start sites with `nfl cluster up`")
    return value
