"""Two couriers that carry one message at once, while a courier job is replaced."""

from __future__ import annotations

from pathlib import Path

from nfl_cluster.mailbox import Mailbox, Message
from nfl_core.ids import SiteId


def test_a_message_written_again_after_it_was_done_is_not_handed_out_twice(tmp_path: Path) -> None:
    box = Mailbox(tmp_path)
    assert box.deliver(Message(message_id="1", peer=SiteId("root"), kind="policy", payload=b"x"))
    (waiting,) = (tmp_path / "inbox").glob("*.msg")
    late = waiting.read_bytes()
    box.done(box.incoming()[0])
    waiting.write_bytes(late)  # what the slower courier does: it looked before the message was done
    assert box.incoming() == []
    assert not waiting.exists()
