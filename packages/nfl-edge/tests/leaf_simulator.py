"""A leaf in this process that speaks the real interface: servicer, gRPC, mutual TLS, signatures, bundles."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc.aio

import nfl_secure.tls as tls  # before grpc
from nfl_core.errors import NflError
from nfl_core.ids import LeafId
from nfl_core.wire import device_pb2, device_pb2_grpc
from nfl_core.wire.limits import MAX_CHUNK_BYTES
from nfl_ota.mirror import Mirror
from nfl_secure import rpc
from nfl_secure.identity.keys import Principal
from nfl_secure.keystore import utc_now
from nfl_secure.policy import VerifiedPolicy
from nfl_secure.secagg.contribution import open_contribution


@dataclass
class LeafSimulator(device_pb2_grpc.DeviceServicer):
    """What a test may set, and what it may look at afterwards."""

    principal: Principal
    mirror: Mirror
    policy: VerifiedPolicy | None = None
    newest: tuple[int, str, str] = (0, "", "")  # version, target, digest
    assigned: bool = True
    receipt_signer: Principal | None = None
    receipt_sha256: str | None = None
    refuse: NflError | None = None
    cut_after: int | None = None  # bytes of the next chunk download, then the stream breaks
    part_bytes: int = 4096
    bodies: list[bytes] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    hellos: list[device_pb2.HelloRequest] = field(default_factory=list)
    reports: list[device_pb2.ReportRequest] = field(default_factory=list)
    fetches: list[tuple[str, int]] = field(default_factory=list)
    address: str = ""
    _server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen; a second start takes the port of the first."""
        port = int(self.address.rpartition(":")[2] or 0)
        self._server = grpc.aio.server(options=tls.SERVER_OPTIONS)
        device_pb2_grpc.add_DeviceServicer_to_server(self, self._server)
        credentials = tls.server_credentials(self.principal)
        bound = tls.bind_port(self._server, host="127.0.0.1", port=port, credentials=credentials)
        self.address = f"127.0.0.1:{bound}"
        await self._server.start()

    async def stop(self) -> None:
        """Go away."""
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    async def Hello(self, request, context):
        self.peers.add(str(tls.peer_spiffe(context.auth_context())))
        self.hellos.append(request)
        version, target, digest = self.newest
        return device_pb2.HelloReply(
            policy=self.policy.signed if self.policy else b"",
            newest_version=version,
            bundle_target=target if self.assigned else "",
            newest_digest=digest,
        )

    async def Contribute(self, request_iterator: AsyncIterator[device_pb2.ContributePart], context):
        header, body = None, bytearray()
        async for part in request_iterator:
            if part.WhichOneof("part") == "header":
                header = part.header
            else:
                body += part.data
        assert header is not None
        assert header.num_bytes == len(body)
        data = bytes(body)
        self.bodies.append(data)
        if self.refuse is not None:
            await rpc.abort(context, self.refuse)
        assert self.policy is not None
        leaf = LeafId(self.principal.spiffe.name)
        try:
            opened = open_contribution(
                data,
                policy=self.policy,
                leaf=leaf,
                ca_pem=self.principal.ca_pem,
                at=utc_now(),
                peer=tls.peer_spiffe(context.auth_context()),
            )
        except NflError as error:
            await rpc.abort(context, error)
        statement = device_pb2.ReceiptStatement(
            contribution_id=opened.statement.contribution_id,
            sha256=self.receipt_sha256 or hashlib.sha256(data).hexdigest(),
            leaf=leaf,
            policy_id=self.policy.policy_id,
            received_at_unix=int(utc_now().timestamp()),
        )
        signer = self.receipt_signer or self.principal
        return device_pb2.Receipt(signed=signer.sign("receipt", statement.SerializeToString()))

    async def Fetch(self, request, context):
        self.fetches.append((request.path, request.offset))
        try:
            data = self.mirror.fetch(request.path, max_bytes=MAX_CHUNK_BYTES)
        except NflError as error:
            await rpc.abort(context, error)
        cut, limit = False, len(data)
        if self.cut_after is not None and request.path.startswith("chunks/") and len(data) > self.cut_after:
            cut, limit, self.cut_after = True, self.cut_after, None
        for start in range(request.offset, limit, self.part_bytes):
            piece = data[start : min(start + self.part_bytes, limit)]
            yield device_pb2.FetchPart(data=piece, offset=start, total=len(data))
        if cut:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")

    async def Report(self, request, context):
        self.reports.append(request)
        return device_pb2.ReportReply()
