from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfl_cluster.flare import mail
from nfl_cluster.flare.mail import Courier, Receipt
from nfl_cluster.mailbox import Mailbox, Message
from nfl_core.errors import StorageFullError
from nfl_core.ids import SiteId

ROOT, LEAF, KEEPER = SiteId("root"), SiteId("leaf-1"), SiteId("keeper")
SITES = frozenset([ROOT, LEAF, KEEPER])


class Network:
    """Couriers of several sites in one process, with a wire that can be cut, lose answers and refuse."""

    def __init__(self, folder: Path) -> None:
        self.boxes = {site: Mailbox(folder / site) for site in SITES}
        self.couriers = {
            site: Courier(site=site, mailbox=box, link=_Wire(self, site), sites=SITES)
            for site, box in self.boxes.items()
        }
        self.away: set[SiteId] = set()
        self.num_lost_answers = 0
        self.sent: list[tuple[SiteId, SiteId, int]] = []
        self.full: set[SiteId] = set()


class _Wire:
    def __init__(self, network: Network, site: SiteId) -> None:
        self._network, self._site = network, site

    def send(self, to: SiteId, batch: Sequence[Message], *, timeout_s: float) -> Receipt | None:
        assert timeout_s > 0
        network = self._network
        network.sent.append((self._site, to, len(batch)))
        if to in network.away:
            return None
        as_seen = [
            Message(message_id=one.message_id, peer=self._site, kind=one.kind, payload=one.payload) for one in batch
        ]
        receipt = network.couriers[to].take(as_seen)
        if batch and network.num_lost_answers:
            network.num_lost_answers -= 1
            return None
        return receipt


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    for name, value in (("POLL_S", 0.005), ("MIN_BACKOFF_S", 0.005), ("MAX_BACKOFF_S", 0.02)):
        monkeypatch.setattr(mail, name, value)
    return Network(tmp_path)


@contextmanager
def carrying(network: Network, *sites: SiteId) -> Iterator[None]:
    threads = [threading.Thread(target=network.couriers[site].run) for site in sites or SITES]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for site in SITES:
            network.couriers[site].stop()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()


def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_mail_arrives_and_leaves_the_outbox(network: Network) -> None:
    network.boxes[ROOT].post(LEAF, "policy", b"one")
    network.boxes[LEAF].post(KEEPER, "roster", b"two")
    with carrying(network):
        until(lambda: network.boxes[LEAF].incoming() and network.boxes[KEEPER].incoming())
        until(lambda: not network.boxes[ROOT].num_outgoing() and not network.boxes[LEAF].num_outgoing())
    (got,) = network.boxes[KEEPER].incoming()
    assert (got.peer, got.kind, got.payload) == (LEAF, "roster", b"two")


def test_mail_of_one_sender_stays_in_order_and_travels_in_batches(network: Network) -> None:
    for number in range(200):
        network.boxes[ROOT].post(LEAF, "policy", bytes([number]))
    with carrying(network):
        until(lambda: not network.boxes[ROOT].num_outgoing())
    assert [one.payload[0] for one in network.boxes[LEAF].incoming()] == list(range(200))
    assert max(size for _, _, size in network.sent) == mail.MAX_BATCH_MESSAGES


def test_large_messages_travel_alone(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "MAX_BATCH_BYTES", 1000)
    for _ in range(3):
        network.boxes[ROOT].post(LEAF, "repository", bytes(2000))
    with carrying(network):
        until(lambda: not network.boxes[ROOT].num_outgoing())
    assert [size for _, _, size in network.sent if size] == [1, 1, 1]


def test_a_lost_answer_delivers_nothing_twice(network: Network) -> None:
    network.num_lost_answers = 3
    network.boxes[ROOT].post(LEAF, "policy", b"once")
    with carrying(network):
        until(lambda: not network.boxes[ROOT].num_outgoing())
        (got,) = network.boxes[LEAF].incoming()
        network.boxes[LEAF].done(got)
    assert sum(1 for _, to, size in network.sent if to == LEAF and size) == 4
    assert network.boxes[LEAF].incoming() == []


def test_a_site_that_is_away_delays_nobody_else_and_gets_its_mail_later(network: Network) -> None:
    network.away.add(LEAF)
    network.boxes[ROOT].post(LEAF, "policy", b"later")
    network.boxes[ROOT].post(KEEPER, "policy", b"now")
    with carrying(network):
        until(network.boxes[KEEPER].incoming)
        assert network.boxes[LEAF].incoming() == []
        until(lambda: sum(1 for _, to, _ in network.sent if to == LEAF) > 3)
        assert all(size == 0 for _, to, size in network.sent if to == LEAF)  # it is asked, not sent to
        network.away.clear()
        until(network.boxes[LEAF].incoming)


def test_mail_for_an_unknown_site_is_buried_with_the_reason(network: Network, tmp_path: Path) -> None:
    message_id = network.boxes[ROOT].post(SiteId("leaf-9"), "policy", b"x")
    own_id = network.boxes[ROOT].post(ROOT, "policy", b"x")
    with carrying(network, ROOT):
        until(lambda: not network.boxes[ROOT].num_outgoing())
    why = (tmp_path / f"root/dead/{message_id}.why").read_text()
    assert "leaf-9" in why
    assert "keeper, leaf-1, root" in why
    assert "this very site" in (tmp_path / f"root/dead/{own_id}.why").read_text()


def test_an_unreadable_message_is_buried_and_holds_up_nothing(network: Network, tmp_path: Path) -> None:
    (tmp_path / "root/outbox/0-broken.msg").write_bytes(b"rubbish")
    network.boxes[ROOT].post(LEAF, "policy", b"good")
    with carrying(network):
        until(network.boxes[LEAF].incoming)
    assert (tmp_path / "root/dead/0-broken.msg").exists()


def test_a_refused_message_is_buried_by_its_sender(network: Network, tmp_path: Path) -> None:
    refusing = Receipt(refused={"bad": "mailbox.malformed: too large"})
    network.couriers[LEAF].take = lambda batch: refusing if batch else Receipt()  # type: ignore[method-assign]
    network.boxes[ROOT].post(LEAF, "policy", b"x", message_id="bad")
    with carrying(network, ROOT):
        until(lambda: not network.boxes[ROOT].num_outgoing())
    assert "too large" in (tmp_path / "root/dead/bad.why").read_text()


def test_a_full_disk_at_the_receiver_keeps_the_mail_at_the_sender(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = network.boxes[LEAF]
    deliver, full = box.deliver, threading.Event()
    full.set()

    def deliver_or_not(message: Message) -> bool:
        if full.is_set():
            raise StorageFullError("no space")
        return deliver(message)

    monkeypatch.setattr(box, "deliver", deliver_or_not)
    network.boxes[ROOT].post(LEAF, "policy", b"x")
    with carrying(network, ROOT):
        until(lambda: sum(1 for _, _, size in network.sent if size) > 2)
        assert network.boxes[ROOT].num_outgoing() == 1
        full.clear()
        until(lambda: not network.boxes[ROOT].num_outgoing())
    assert [one.payload for one in box.incoming()] == [b"x"]


def test_the_next_courier_goes_on_where_the_last_one_was_killed(tmp_path: Path, network: Network) -> None:
    network.away.add(LEAF)
    network.boxes[ROOT].post(LEAF, "policy", b"x")
    with carrying(network, ROOT):
        until(lambda: network.sent)
    second = Network(tmp_path)
    with carrying(second):
        until(second.boxes[LEAF].incoming)
