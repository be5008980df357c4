from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from nfl_cluster.flare.courier import FlareLink, MailCarrier
from nfl_cluster.flare.names import MAILBOX_VARIABLE, SITE_VARIABLE, TOPIC
from nfl_cluster.mailbox import Mailbox, Message
from nfl_core.errors import ConfigError
from nfl_core.ids import SiteId


class Engine:
    """FLARE's engine in a job process, as far as a courier uses it."""

    def __init__(self, reply: Shareable | None = None) -> None:
        self.reply = reply
        self.asked: list[tuple[list[str], Shareable]] = []
        self.handler: Callable[..., Shareable] | None = None

    @contextmanager
    def new_context(self) -> Iterator[FLContext]:
        yield FLContext()

    def register_aux_message_handler(self, topic: str, message_handle_func: Callable[..., Shareable]) -> None:
        assert topic == TOPIC
        self.handler = message_handle_func

    def send_aux_request(
        self, targets: list[str], topic: str, request: Shareable, timeout: float, fl_ctx: FLContext, *, optional: bool
    ) -> dict[str, Shareable]:
        self.asked.append((targets, request))
        return {} if self.reply is None else {targets[0]: self.reply}


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Engine, Mailbox]]:
    """The courier at the keeper."""
    monkeypatch.setenv(SITE_VARIABLE, "keeper")
    monkeypatch.setenv(MAILBOX_VARIABLE, str(tmp_path / "mailbox"))
    engine = Engine()
    carrier = MailCarrier(FLComponent(), sites=["keeper", "leaf-1", "leaf-2"], root="root")
    carrier.start(engine)  # type: ignore[arg-type]
    yield engine, Mailbox(tmp_path / "mailbox")
    carrier.stop()


def mail(*, sender: str = "leaf-1", to: str = "keeper", **changes: object) -> Shareable:
    request = Shareable()
    request["from"], request["to"] = sender, to
    request["mail"] = [{"id": "roster-1", "kind": "roster", "payload": b"x"}]
    request.update(changes)
    return request


def take(engine: Engine, request: Shareable, *, known_as: str) -> Shareable:
    peer, context = FLContext(), FLContext()
    peer.set_prop("__identity_name__", known_as, private=False, sticky=False)
    context.set_peer_context(peer)
    assert engine.handler is not None
    return engine.handler(topic=TOPIC, request=request, fl_ctx=context)


@pytest.mark.parametrize(("sender", "known_as"), [("leaf-1", "leaf-1"), ("root", "nfl")])
def test_mail_of_the_fleets_sites_is_taken(keeper: tuple[Engine, Mailbox], sender: str, known_as: str) -> None:
    engine, box = keeper
    reply = take(engine, mail(sender=sender), known_as=known_as)
    assert reply.get_return_code() == ReturnCode.OK
    assert (reply["safe"], reply["refused"]) == (["roster-1"], {})
    assert [one.peer for one in box.incoming()] == [sender]


@pytest.mark.parametrize(
    ("request_", "known_as"),
    [
        (mail(sender="root"), "leaf-1"),  # a leaf plays the root
        (mail(sender="leaf-2"), "leaf-1"),  # a leaf plays another leaf
        (mail(sender="nfl"), "nfl"),  # FLARE's own name of the server is no site
        (mail(sender="stranger"), "stranger"),
        (mail(to="leaf-1"), "leaf-1"),  # for somebody else
        (mail(sender="../../etc"), "../../etc"),
        (mail(mail="rubbish"), "leaf-1"),
        (mail(mail=[{"id": "x"}]), "leaf-1"),
        (Shareable(), "leaf-1"),
    ],
)
def test_mail_under_a_false_name_or_out_of_shape_is_refused(
    keeper: tuple[Engine, Mailbox], request_: Shareable, known_as: str
) -> None:
    engine, box = keeper
    assert take(engine, request_, known_as=known_as).get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert box.incoming() == []


def test_a_message_id_that_leaves_the_inbox_is_refused_alone(keeper: tuple[Engine, Mailbox], tmp_path: Path) -> None:
    engine, box = keeper
    good = {"id": "good", "kind": "roster", "payload": b"x"}
    request = mail(mail=[{"id": "../../evil", "kind": "roster", "payload": b"x"}, good])
    reply = take(engine, request, known_as="leaf-1")
    assert reply["safe"] == ["good"]
    assert list(reply["refused"]) == ["../../evil"]
    assert [one.message_id for one in box.incoming()] == ["good"]
    assert not [*tmp_path.rglob("*evil*"), *tmp_path.parent.glob("*evil*")]


def test_the_root_is_called_server_and_clients_by_their_names() -> None:
    reply = make_reply(ReturnCode.OK)
    reply["safe"], reply["refused"] = ["a"], {}
    engine = Engine(reply)
    link = FlareLink(engine, site=SiteId("leaf-1"), root=SiteId("root"))  # type: ignore[arg-type]
    message = Message(message_id="a", peer=SiteId("root"), kind="batch-sum", payload=b"x")
    receipt = link.send(SiteId("root"), [message], timeout_s=1.0)
    assert receipt is not None
    assert receipt.safe == {"a"}
    link.send(SiteId("keeper"), [], timeout_s=1.0)
    assert [targets for targets, _ in engine.asked] == [["server"], ["keeper"]]


@pytest.mark.parametrize(
    "reply", [None, make_reply(ReturnCode.COMMUNICATION_ERROR), make_reply(ReturnCode.TOPIC_UNKNOWN)]
)
def test_no_good_answer_means_not_delivered(reply: Shareable | None) -> None:
    link = FlareLink(Engine(reply), site=SiteId("leaf-1"), root=SiteId("root"))  # type: ignore[arg-type]
    assert link.send(SiteId("root"), [], timeout_s=1.0) is None


@pytest.mark.parametrize("name", [SITE_VARIABLE, MAILBOX_VARIABLE])
def test_a_courier_without_its_environment_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SITE_VARIABLE, "keeper")
    monkeypatch.setenv(MAILBOX_VARIABLE, str(tmp_path))
    monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=name):
        MailCarrier(FLComponent(), sites=["keeper"], root="root")
