"""The durable post office between a site's service and the courier that travels to other sites.

A site has one mailbox folder. Its service posts messages and reads what arrived; its courier (a FLARE job process)
carries outgoing messages to the peer's courier, which delivers them into the peer's mailbox. Rules:

- A message is one file, written durably before anybody acts on it.
- The sender's copy goes away only after the peer's courier said that its copy is safe (`acknowledge` after `deliver`).
- A message that was delivered once is never handed to the service again: its id stays among the seen ones.
- So any process may be killed at any moment: at least once on the wire, exactly once in effect.

A message's id also orders it: messages of one sender are read in the order in which they were posted.

    >>> box = Mailbox(Path("root/mailbox"))                                       # doctest: +SKIP
    >>> box.post(SiteId("leaf-1"), "policy", b"...")                              # doctest: +SKIP
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nfl_core.durable import make_folder, read_file, remove_file, write_file
from nfl_core.errors import MalformedError, NotFoundError
from nfl_core.ids import SiteId, parse_site_id

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # a whole bundle of a 10M-parameter model fits
MAX_SEEN = 20_000  # ids kept per sender; a peer never resends older ones, it removes what was acknowledged
_ID = re.compile(r"[0-9a-z-]{1,80}")
_KIND = re.compile(r"[a-z][a-z-]{0,31}")
_HEADER = struct.Struct("<4sI")
_MAGIC = b"NFLM"


class MailboxError(MalformedError):
    """A message or its id is not what a mailbox takes."""

    code = "mailbox.malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message.

    Attributes:
        message_id: Unique for its sender.
        peer: Where it goes to (outgoing) or comes from (incoming).
        kind: What it is, for instance "batch-sum".
        payload: Its bytes.
    """

    message_id: str
    peer: SiteId
    kind: str
    payload: bytes


class Mailbox:
    """One site's mailbox.

    Args:
        folder: Made when it is missing.
        clock_ns: Nanoseconds for the order of ids; wall clock by default.
    """

    def __init__(self, folder: Path, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._outbox, self._inbox, self._seen, self._dead = (
            folder / name for name in ("outbox", "inbox", "seen", "dead")
        )
        for place in (self._outbox, self._inbox, self._seen, self._dead):
            make_folder(place)
        self._clock_ns = clock_ns
        self._last_ns = 0
        self._peers: dict[str, SiteId] = {}  # where each waiting message goes to: its file's head is read once

    def post(self, to: SiteId, kind: str, payload: bytes, *, message_id: str | None = None) -> str:
        """Put a message into the outbox, durably.

        Args:
            to: The site that shall get it.
            kind: Lower-case words.
            payload: At most MAX_MESSAGE_BYTES.
            message_id: Give one that follows from the content to make a repeated post harmless; posting an id twice
                before it was acknowledged replaces nothing.

        Returns:
            The id.

        Raises:
            MailboxError: Kind, id or size is out of range.
            StorageFullError: The disk is full; nothing was posted.
        """
        name = self._next_id() if message_id is None else message_id
        path = self._outbox / f"{_checked(name, _ID, 'message id')}.msg"
        if not path.exists():
            write_file(
                path, _encode(Message(message_id=name, peer=to, kind=_checked(kind, _KIND, "kind"), payload=payload))
            )
        return name

    def outgoing(self) -> list[Message]:
        """Return the messages that wait for the courier, oldest first."""
        return [_decode(read_file(path)) for path in _files(self._outbox)]

    def waiting(self) -> dict[SiteId, list[str]]:
        """Return the ids of the messages that wait for the courier by destination, oldest first.

        A message is read when it is seen for the first time; an unreadable one is buried.
        """
        known, self._peers = self._peers, {}
        found: dict[SiteId, list[str]] = {}
        for path in _files(self._outbox):
            name = path.name.removesuffix(".msg")
            peer = known.get(name) or self._peer_of(name)
            if peer is not None:
                self._peers[name] = peer
                found.setdefault(peer, []).append(name)
        return found

    def message(self, message_id: str) -> Message:
        """Return one message that waits for the courier.

        Raises:
            NotFoundError: It does not wait any more.
        """
        return _decode(read_file(self._outbox / f"{_checked(message_id, _ID, 'message id')}.msg"))

    def num_outgoing(self) -> int:
        """Return how many messages wait for the courier."""
        return len(_files(self._outbox))

    def acknowledge(self, message_id: str) -> None:
        """Forget an outgoing message: the peer holds it safely."""
        remove_file(self._outbox / f"{_checked(message_id, _ID, 'message id')}.msg")

    def bury(self, message_id: str, *, why: str) -> None:
        """Set an outgoing message aside that can never be delivered, with the reason beside it."""
        path = self._outbox / f"{_checked(message_id, _ID, 'message id')}.msg"
        write_file(self._dead / path.name, read_file(path))
        write_file(self._dead / f"{message_id}.why", why.encode())
        remove_file(path)

    def deliver(self, message: Message) -> bool:
        """Put a message from a peer into the inbox; when this returns it is safe.

        Returns:
            False when it was delivered before.

        Raises:
            MailboxError: Kind, id or size is out of range.
            StorageFullError: The disk is full; nothing was delivered.
        """
        _checked(message.kind, _KIND, "kind")
        name = f"{parse_site_id(message.peer)}--{_checked(message.message_id, _ID, 'message id')}"
        if (self._seen / name).exists() or (self._inbox / f"{name}.msg").exists():
            return False
        write_file(self._inbox / f"{name}.msg", _encode(message))
        return True

    def incoming(self) -> list[Message]:
        """Return what arrived and is not done, oldest first for each sender."""
        messages = []
        for path in _files(self._inbox):
            # Two couriers may carry one message while a job is replaced: the later may write after it was done.
            if (self._seen / path.stem).exists():
                remove_file(path)
            else:
                messages.append(_decode(read_file(path)))
        return messages

    def done(self, message: Message) -> None:
        """Say that an incoming message has had its effect, durably; it is never handed out again."""
        name = f"{message.peer}--{message.message_id}"
        write_file(self._seen / name, b"")
        remove_file(self._inbox / f"{name}.msg")
        self._forget_oldest()

    def _peer_of(self, message_id: str) -> SiteId | None:
        try:
            return self.message(message_id).peer
        except NotFoundError:  # carried a moment ago
            return None
        except MailboxError as error:
            self.bury(message_id, why=str(error))
            return None

    def _next_id(self) -> str:
        self._last_ns = max(self._clock_ns(), self._last_ns + 1)
        return f"{self._last_ns:020d}"

    def _forget_oldest(self) -> None:
        seen = list(self._seen.iterdir())
        if len(seen) > 2 * MAX_SEEN:
            for path in sorted(seen, key=lambda path: path.stat().st_mtime_ns)[:MAX_SEEN]:
                remove_file(path)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".msg" and not path.name.startswith("."))


def _checked(text: str, pattern: re.Pattern[str], what: str) -> str:
    if not pattern.fullmatch(text):
        raise MailboxError(f"{what} is {text[:90]!r}, expected {pattern.pattern}")
    return text


def _encode(message: Message) -> bytes:
    if len(message.payload) > MAX_MESSAGE_BYTES:
        raise MailboxError(f"a message has {len(message.payload)} bytes, expected at most {MAX_MESSAGE_BYTES}")
    head = json.dumps({"id": message.message_id, "peer": message.peer, "kind": message.kind}).encode()
    return _HEADER.pack(_MAGIC, len(head)) + head + message.payload


def _decode(data: bytes) -> Message:
    try:
        magic, length = _HEADER.unpack_from(data)
        head = json.loads(data[_HEADER.size : _HEADER.size + length])
        if magic != _MAGIC:
            raise MailboxError(f"a message file starts with {magic!r}, expected {_MAGIC!r}")
        peer, kind, name = parse_site_id(head["peer"]), str(head["kind"]), str(head["id"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise MailboxError("a message file has no readable header") from error
    return Message(message_id=name, peer=peer, kind=kind, payload=data[_HEADER.size + length :])
