"""Talk to the leaf: one outgoing connection, mutual TLS 1.3, every call with a deadline.

A leaf that is away is normal. Every failure to reach it is an `UnreachableError` or another `TransportError`; the
agent's machine decides when to try again, and gRPC reconnects below by itself. What the leaf refuses comes back as the
error that it named.

The link also is the last place that all outgoing bytes pass: a tap can record them there, after serialisation and
before encryption, for whoever wants to prove what leaves the device and what does not.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol, TypeVar

# isort: off
import nfl_secure.tls  # before grpc: it holds grpcio to TLS 1.3
import grpc
import grpc.aio

# isort: on
from google.protobuf.message import Message

from nfl_core.durable import make_folder
from nfl_core.errors import ContentError, DurableError, TransportError, UnreachableError
from nfl_core.wire import device_pb2
from nfl_core.wire.limits import MAX_PART_BYTES
from nfl_edge.outbox import Entry
from nfl_secure.identity.keys import Principal
from nfl_secure.identity.spiffe import SpiffeId
from nfl_secure.rpc import error_of

CALL_S = 5.0  # Hello and Report: one round trip
STREAM_S = 60.0  # Contribute and Fetch of the largest allowed file at 1 MB/s
_SERVICE = "/nfl.device.v1.Device/"
_M = TypeVar("_M", bound=Message)
Tap = Callable[[str, bytes], None]


class Link(Protocol):
    """The leaf as the agent sees it."""

    async def hello(self, request: device_pb2.HelloRequest) -> device_pb2.HelloReply:
        """Say what runs here; learn what is wanted. Raises NflError."""

    async def contribute(self, entry: Entry) -> bytes:
        """Send one contribution and return the signed receipt, not yet verified. Raises NflError."""

    async def fetch(self, path: str, *, max_bytes: int) -> bytes:
        """Return a file of the leaf's bundle cache. Raises NflError."""

    async def report(self, request: device_pb2.ReportRequest) -> device_pb2.ReportReply:
        """Send counters. Raises NflError."""

    async def close(self) -> None:
        """Close the connection."""


class GrpcLink:
    """The device protocol over gRPC.

    Args:
        address: `host:port` of the leaf.
        principal: The device's keys and certificates.
        leaf: Whose certificate has to stand at that address; no other principal of the fleet may answer there.
        partial: Folder for the beginnings of downloads that were cut.
        tap: Called with method and serialised bytes of each outgoing message.
        call_s: Deadline of a short call, seconds.
        stream_s: Deadline of a transfer, seconds.
    """

    def __init__(
        self,
        address: str,
        *,
        principal: Principal,
        leaf: SpiffeId,
        partial: Path,
        tap: Tap | None = None,
        call_s: float = CALL_S,
        stream_s: float = STREAM_S,
    ) -> None:
        self._address = address
        self._partial = partial
        self._tap = tap
        self._call_s, self._stream_s = call_s, stream_s
        # A leaf that comes back is found within a second, not after gRPC's default back-off of up to two minutes.
        backoff = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))
        options = (*nfl_secure.tls.channel_options(leaf.server_name), *backoff)
        self._channel = grpc.aio.secure_channel(address, nfl_secure.tls.channel_credentials(principal), options=options)
        self._hello = self._channel.unary_unary(
            _SERVICE + "Hello",
            request_serializer=self._bytes_of("Hello"),
            response_deserializer=device_pb2.HelloReply.FromString,
        )
        self._contribute = self._channel.stream_unary(
            _SERVICE + "Contribute",
            request_serializer=self._bytes_of("Contribute"),
            response_deserializer=device_pb2.Receipt.FromString,
        )
        self._fetch = self._channel.unary_stream(
            _SERVICE + "Fetch",
            request_serializer=self._bytes_of("Fetch"),
            response_deserializer=device_pb2.FetchPart.FromString,
        )
        self._report = self._channel.unary_unary(
            _SERVICE + "Report",
            request_serializer=self._bytes_of("Report"),
            response_deserializer=device_pb2.ReportReply.FromString,
        )
        self.sent_bytes = 0
        self.received_bytes = 0

    async def hello(self, request: device_pb2.HelloRequest) -> device_pb2.HelloReply:
        """Say what runs here; learn what is wanted. Raises NflError."""
        try:
            reply: device_pb2.HelloReply = await self._hello(request, timeout=self._call_s)
        except grpc.RpcError as error:
            raise error_of(error, peer=self._address) from error
        return self._received(reply)

    async def report(self, request: device_pb2.ReportRequest) -> device_pb2.ReportReply:
        """Send counters. Raises NflError."""
        try:
            reply: device_pb2.ReportReply = await self._report(request, timeout=self._call_s)
        except grpc.RpcError as error:
            raise error_of(error, peer=self._address) from error
        return self._received(reply)

    async def contribute(self, entry: Entry) -> bytes:
        """Send one contribution and return the signed receipt, not yet verified. Raises NflError."""
        try:
            receipt: device_pb2.Receipt = await self._contribute(_parts(entry), timeout=self._stream_s)
        except grpc.RpcError as error:
            raise error_of(error, peer=self._address) from error
        return self._received(receipt).signed

    async def fetch(self, path: str, *, max_bytes: int) -> bytes:
        """Return a file of the leaf's bundle cache; a download that was cut goes on where it stopped.

        Args:
            path: Below the cache: `metadata/...`, `targets/...` or `chunks/...`.
            max_bytes: Longest file that is taken.

        Raises:
            ContentError: The file is longer, or its parts do not follow each other.
            NotFoundError: The leaf has no such file.
            UnreachableError: The leaf is away.
            TransportError: The call failed in another way.
        """
        # Metadata change under one name, so only what is named by its content may be continued.
        part = self._partial / path.replace("/", "_") if path.startswith("chunks/") else None
        received = bytearray(_begun(part, max_bytes))
        request = device_pb2.FetchRequest(path=path, offset=len(received))
        try:
            await self._collect(request, received, max_bytes)
        except grpc.RpcError as error:
            failure = error_of(error, peer=self._address)
            if part is not None and isinstance(failure, UnreachableError):
                _keep(part, received)
            elif part is not None:
                part.unlink(missing_ok=True)
            raise failure from error
        except ContentError:
            if part is not None:
                part.unlink(missing_ok=True)
            raise
        if part is not None:
            part.unlink(missing_ok=True)
        return bytes(received)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(grace=None)

    async def _collect(self, request: device_pb2.FetchRequest, received: bytearray, max_bytes: int) -> None:
        total: int | None = None
        async for part in self._fetch(request, timeout=self._stream_s):
            self._received(part)
            total = int(part.total)
            if total > max_bytes or part.offset != len(received) or len(received) + len(part.data) > total:
                raise ContentError(
                    f"part of {request.path!r} is {len(part.data)} bytes at {part.offset} of {total}, "
                    f"expected to follow {len(received)} and to end within {max_bytes}"
                )
            received += part.data
        if total is None or len(received) != total:
            raise ContentError(f"{request.path!r} ended after {len(received)} bytes, expected {total}")

    def _bytes_of(self, method: str) -> Callable[[Message], bytes]:
        def serialise(message: Message) -> bytes:
            data = message.SerializeToString()
            self.sent_bytes += len(data)
            if self._tap is not None:
                self._tap(method, data)
            return data

        return serialise

    def _received(self, message: _M) -> _M:
        self.received_bytes += message.ByteSize()
        return message


class LinkFetcher:
    """Lets the bundle client, which blocks in a thread, fetch through a link that lives in an event loop.

    Args:
        link: The link.
        loop: Its event loop.
    """

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._loop = loop
        self.num_bytes = 0

    def fetch(self, path: str, *, max_bytes: int) -> bytes:
        """Return a file of the leaf's bundle cache. Call it from another thread than the loop's. Raises NflError."""
        future = asyncio.run_coroutine_threadsafe(self._link.fetch(path, max_bytes=max_bytes), self._loop)
        try:
            data = future.result(timeout=2 * STREAM_S)
        except TimeoutError as error:
            future.cancel()
            raise TransportError(f"fetching {path!r} took longer than {2 * STREAM_S:.0f} s") from error
        self.num_bytes += len(data)
        return data


class FileTap:
    """Records every outgoing message in a file: length of the rest (4 bytes, big endian), method, NUL, message.

    Args:
        path: Appended to; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, method: str, data: bytes) -> None:
        """Record one message. Raises DurableError."""
        record = method.encode("ascii") + b"\0" + data
        try:
            with self._path.open("ab") as file:
                file.write(struct.pack(">I", len(record)) + record)
        except OSError as error:
            raise DurableError(f"cannot write the tap {self._path}: {error}") from error


def read_tap(path: Path) -> list[tuple[str, bytes]]:
    """Return (method, message) of everything a `FileTap` recorded, oldest first."""
    data, found, offset = path.read_bytes(), [], 0
    while offset + 4 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        method, _, message = data[offset + 4 : offset + 4 + length].partition(b"\0")
        found.append((method.decode("ascii"), message))
        offset += 4 + length
    return found


async def _parts(entry: Entry) -> AsyncIterator[device_pb2.ContributePart]:
    header = device_pb2.ContributionHeader(
        contribution_id=entry.contribution_id, num_bytes=len(entry.body), sha256=entry.sha256
    )
    yield device_pb2.ContributePart(header=header)
    for start in range(0, len(entry.body), MAX_PART_BYTES):
        yield device_pb2.ContributePart(data=entry.body[start : start + MAX_PART_BYTES])


def _begun(part: Path | None, max_bytes: int) -> bytes:
    if part is None or not part.is_file() or part.stat().st_size > max_bytes:
        return b""
    return part.read_bytes()


def _keep(part: Path, received: bytearray) -> None:
    """Keep the beginning of a download. It needs no care: the whole will be verified by its digest."""
    if not received:
        return
    make_folder(part.parent)
    try:
        part.write_bytes(received)
    except OSError:
        # A full disk must not hide that the leaf is away; the download then starts again from its first byte.
        part.unlink(missing_ok=True)
