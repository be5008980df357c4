"""The leaf's service for devices: gRPC, TLS 1.3, mutual; who calls is what the client certificate says.

Rules:

* every call passes the table of `nfl_secure.authz` before a handler sees a byte of it;
* nothing is read beyond what was announced, and nothing may announce more than `nfl_core.wire.limits` allows;
* a receipt exists only for a contribution that is on disk; asked again, the leaf gives the same receipt;
* files are served from the leaf's own cache by the few forms of path that a repository has, from any offset;
* when many devices are attached, replies say how long to wait, so that a leaf is never asked more than it can answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

# isort: off
import nfl_secure.tls as nfl_tls  # before grpc: it holds grpcio to TLS 1.3
import grpc.aio

# isort: on
from google.protobuf.message import Message

from nfl_cluster.aggregate.batches import BatchLog
from nfl_cluster.attendance import Attendance
from nfl_core.errors import FrameError, IdentityError, MalformedError, NflError
from nfl_core.ids import DeviceId, parse_contribution_id, parse_device_id
from nfl_core.wire import device_pb2, device_pb2_grpc
from nfl_core.wire.limits import MAX_CONTRIBUTION_BYTES, MAX_PART_BYTES
from nfl_ota import Mirror, max_bytes_of
from nfl_secure import rpc
from nfl_secure.authz import AuthorisationInterceptor
from nfl_secure.identity import Principal, SpiffeId

MAX_CALLS_PER_S = 200  # of one leaf; a hello costs well below 1 ms of one core, contributions some 5 ms
Context: TypeAlias = "grpc.aio.ServicerContext[Message, Message]"
_LOG = logging.getLogger(__name__)


class Gateway(device_pb2_grpc.DeviceServicer):
    """Answers devices. All state is in the parts it is given; they live in the same event loop.

    Args:
        log: The batches.
        attendance: The devices.
        cache: Files of the repository.
        manifests: Folder of the cache where the manifests of this leaf's region are.
    """

    def __init__(self, *, log: BatchLog, attendance: Attendance, cache: Mirror, manifests: Path) -> None:
        self._log, self._attendance, self._cache, self._manifests = log, attendance, cache, manifests
        self._served: set[int] = set()

    async def Hello(  # noqa: N802 - named by the protocol
        self, request: device_pb2.HelloRequest, context: Context
    ) -> device_pb2.HelloReply:
        """Say what the device should run and under which policy it may contribute."""
        try:
            device = _device(context)
            policy = self._log.newest_policy(up_to=self._attendance.rollout_version)
            offer = self._attendance.hello(device, request, is_served=self.is_served())
        except NflError as error:
            await rpc.abort(context, error)
        return device_pb2.HelloReply(
            policy=policy.signed if policy else b"",
            newest_version=offer.version,
            bundle_target=offer.target,
            newest_digest=offer.digest,
            retry_after_ms=self._retry_after_ms(),
        )

    async def Contribute(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[device_pb2.ContributePart], context: Context
    ) -> device_pb2.Receipt:
        """Take one contribution and return its receipt."""
        try:
            return device_pb2.Receipt(signed=await self._contribute(request_iterator, _peer(context)))
        except NflError as error:
            _LOG.warning("contribution of %s refused: %s [%s]", _name(context), error.message, error.code)
            await rpc.abort(context, error)

    async def Fetch(  # noqa: N802 - named by the protocol
        self, request: device_pb2.FetchRequest, context: Context
    ) -> AsyncIterator[device_pb2.FetchPart]:
        """Stream one file of the cache from an offset."""
        try:
            data = self._cache.fetch(request.path, max_bytes=max_bytes_of(request.path))
            if request.offset > len(data):
                raise MalformedError(f"offset {request.offset} is behind the {len(data)} bytes of {request.path}")
        except NflError as error:
            await rpc.abort(context, error)
        total = len(data)
        # A file that was read to its end already still gets one part: it says so.
        for start in range(request.offset, max(total, request.offset + 1), MAX_PART_BYTES):
            yield device_pb2.FetchPart(data=data[start : start + MAX_PART_BYTES], offset=start, total=total)

    async def Report(  # noqa: N802 - named by the protocol
        self, request: device_pb2.ReportRequest, context: Context
    ) -> device_pb2.ReportReply:
        """Take counters."""
        try:
            self._attendance.report(_device(context), request)
        except NflError as error:
            await rpc.abort(context, error)
        return device_pb2.ReportReply(retry_after_ms=self._retry_after_ms())

    async def _contribute(self, parts: AsyncIterator[device_pb2.ContributePart], peer: SpiffeId) -> bytes:
        header = await _header(parts)
        device = parse_device_id(peer.name)
        stored = self._log.receipt(header.contribution_id, device=device, sha256=header.sha256)
        if stored is not None:
            return stored
        body = await _body(parts, num_bytes=int(header.num_bytes))
        receipt = self._log.accept(body, peer=peer)
        if self._log.receipt(header.contribution_id, device=device, sha256=header.sha256) is None:
            # The device signed for another id or body than it announced; what was counted is what it signed.
            raise FrameError("the header of a contribution names another id or digest than its body")
        return receipt

    def is_served(self) -> bool:
        """Return whether the version being rolled out is in the cache: nobody is offered what cannot be fetched."""
        version = self._attendance.rollout_version
        if version and version not in self._served and any(self._manifests.glob(f"*.{version}.json")):
            self._served.add(version)
        return version in self._served

    def _retry_after_ms(self) -> int:
        return 1000 * self._attendance.num_attached // MAX_CALLS_PER_S


async def serve_devices(gateway: Gateway, *, principal: Principal, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Start the gateway and attack its port before any device can.

    Returns:
        The server, started, and its port.

    Raises:
        PortInUseError: The port is taken.
        TlsProfileError: The port accepts what it must not.
        TransportError: It cannot be bound for another reason.
    """
    server = grpc.aio.server(
        interceptors=[AuthorisationInterceptor(principal.spiffe.fleet)], options=nfl_tls.SERVER_OPTIONS
    )
    device_pb2_grpc.add_DeviceServicer_to_server(gateway, server)
    bound = nfl_tls.bind_port(server, host=host, port=port, credentials=nfl_tls.server_credentials(principal))
    await server.start()
    try:
        await asyncio.to_thread(nfl_tls.start_up_self_test, f"{host}:{bound}", principal=principal)
    except NflError:
        await server.stop(0)
        raise
    return server, bound


async def _header(parts: AsyncIterator[device_pb2.ContributePart]) -> device_pb2.ContributionHeader:
    first = await anext(aiter(parts), None)
    if first is None or first.WhichOneof("part") != "header":
        raise FrameError("a contribution begins with data or nothing, expected its header")
    parse_contribution_id(first.header.contribution_id)
    if not 0 < first.header.num_bytes <= MAX_CONTRIBUTION_BYTES:
        raise FrameError(
            f"a contribution announces {first.header.num_bytes} bytes, expected at most {MAX_CONTRIBUTION_BYTES}"
        )
    return first.header


async def _body(parts: AsyncIterator[device_pb2.ContributePart], *, num_bytes: int) -> bytes:
    body = bytearray()
    async for part in parts:
        if part.WhichOneof("part") != "data" or len(part.data) > MAX_PART_BYTES:
            raise FrameError(f"a part of a contribution is no data or longer than {MAX_PART_BYTES} bytes")
        body += part.data
        if len(body) > num_bytes:
            raise FrameError(f"a contribution announces {num_bytes} bytes and brings more")
    if len(body) != num_bytes:
        raise FrameError(f"a contribution announces {num_bytes} bytes and brings {len(body)}")
    return bytes(body)


def _peer(context: Context) -> SpiffeId:
    return nfl_tls.peer_spiffe(context.auth_context())


def _device(context: Context) -> DeviceId:
    return parse_device_id(_peer(context).name)


def _name(context: Context) -> str:
    try:
        return _peer(context).name
    except IdentityError:
        return "somebody without a name"
