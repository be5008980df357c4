"""Real sockets and a real gRPC server on loopback; every peer that must not get in tries to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from nfl_core.errors import (
    AuthorisationError,
    IdentityError,
    NflError,
    PortInUseError,
    TransportError,
    UnreachableError,
)
from nfl_core.wire import device_pb2, device_pb2_grpc
from nfl_secure import rpc, tls
from nfl_secure.authz import AuthorisationInterceptor
from nfl_secure.errors import TlsProfileError
from nfl_secure.identity import Principal, Role

from .fleet import Fleet


class Leaf(device_pb2_grpc.DeviceServicer):
    """Answers with who it thinks is calling."""

    async def Hello(self, request, context):
        return device_pb2.HelloReply(bundle_target=str(tls.peer_spiffe(context.auth_context())))

    async def Contribute(self, request_iterator, context):
        return device_pb2.Receipt(signed=b"".join([part.data async for part in request_iterator]))

    async def Fetch(self, request, context):
        for data in (b"one", b"two"):
            yield device_pb2.FetchPart(data=data)

    async def Report(self, request, context):
        await rpc.abort(context, IdentityError("not you"))


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials, *, fleet_name: str = "home") -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=[AuthorisationInterceptor(fleet_name)], options=tls.SERVER_OPTIONS)
    device_pb2_grpc.add_DeviceServicer_to_server(Leaf(), server)
    port = tls.bind_port(server, host="127.0.0.1", port=0, credentials=credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest_asyncio.fixture
async def address(fleet: Fleet) -> AsyncIterator[str]:
    async with serving(tls.server_credentials(fleet.leaf)) as where:
        yield where


async def call(
    address: str, credentials: grpc.ChannelCredentials, *, peer: str = "leaf-1.leaf.home", method: str = "Hello"
):
    requests = {
        "Hello": device_pb2.HelloRequest(),
        "Fetch": device_pb2.FetchRequest(),
        "Report": device_pb2.ReportRequest(),
        "Contribute": iter([device_pb2.ContributePart(data=b"a"), device_pb2.ContributePart(data=b"b")]),
    }
    async with grpc.aio.secure_channel(address, credentials, options=tls.channel_options(peer)) as channel:
        stub = device_pb2_grpc.DeviceStub(channel)
        try:
            if method == "Fetch":
                return [part.data async for part in stub.Fetch(requests[method], timeout=5)]
            return await getattr(stub, method)(requests[method], timeout=5)
        except grpc.aio.AioRpcError as failure:
            raise rpc.error_of(failure, peer=address) from failure


async def test_a_device_is_who_its_certificate_says(fleet: Fleet, address: str) -> None:
    credentials = tls.channel_credentials(fleet.device("a"))
    assert (await call(address, credentials)).bundle_target == "spiffe://home/device/a"
    assert await call(address, credentials, method="Fetch") == [b"one", b"two"]
    assert (await call(address, credentials, method="Contribute")).signed == b"ab"


async def test_an_error_of_ours_crosses_the_wire(fleet: Fleet, address: str) -> None:
    with pytest.raises(IdentityError, match="not you"):
        await call(address, tls.channel_credentials(fleet.device("a")), method="Report")


async def test_every_sort_of_method_is_denied_to_another_role(fleet: Fleet, address: str) -> None:
    credentials = tls.channel_credentials(fleet.keeper_principal)
    for method in ("Hello", "Fetch", "Contribute", "Report"):
        with pytest.raises(AuthorisationError, match="role keeper may not call"):
            await call(address, credentials, method=method)


async def test_a_method_that_nobody_serves_is_denied(fleet: Fleet, address: str) -> None:
    credentials = tls.channel_credentials(fleet.device("a"))
    async with grpc.aio.secure_channel(
        address, credentials, options=tls.channel_options("leaf-1.leaf.home")
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/nfl.device.v1.Device/Shutdown")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_identity_comes_from_the_certificate_never_from_a_header(fleet: Fleet, address: str) -> None:
    credentials = tls.channel_credentials(fleet.device("a"))
    async with grpc.aio.secure_channel(
        address, credentials, options=tls.channel_options("leaf-1.leaf.home")
    ) as channel:
        metadata = (("peer_uri", "spiffe://home/root/root"), ("x-device-id", "b"), ("x-forwarded-for", "b"))
        reply = await device_pb2_grpc.DeviceStub(channel).Hello(device_pb2.HelloRequest(), metadata=metadata, timeout=5)
    assert reply.bundle_target == "spiffe://home/device/a"


async def test_a_client_without_certificate_gets_nothing(fleet: Fleet, address: str) -> None:
    with pytest.raises(UnreachableError):
        await call(address, tls.enrolment_channel_credentials(fleet.ca_pem))


async def test_a_client_of_another_fleet_gets_nothing(fleet: Fleet, address: str, tmp_path: Path) -> None:
    for name in ("other", "home"):
        stranger = Fleet(tmp_path / name, name=name).device("a")
        credentials = grpc.ssl_channel_credentials(fleet.ca_pem, stranger.tls_key_pem, stranger.tls_cert_pem)
        with pytest.raises(UnreachableError):
            await call(address, credentials)


async def test_an_expired_client_gets_nothing(fleet: Fleet, address: str) -> None:
    fleet.clock.advance(hours=-48)
    expired = fleet.device("late")
    with pytest.raises(UnreachableError):
        await call(address, tls.channel_credentials(expired))


async def test_a_server_of_another_fleet_or_name_is_not_talked_to(fleet: Fleet, tmp_path: Path) -> None:
    device = tls.channel_credentials(fleet.device("a"))
    stranger = Fleet(tmp_path / "stranger").leaf
    async with serving(tls.server_credentials(stranger)) as address:
        with pytest.raises(UnreachableError):
            await call(address, device)
    second = fleet.service(Role.LEAF, "leaf-2")
    async with serving(tls.server_credentials(second)) as address:
        with pytest.raises(UnreachableError):
            await call(address, device)
        await call(address, device, peer="leaf-2.leaf.home")


async def test_a_device_cannot_pose_as_a_leaf(fleet: Fleet) -> None:
    evil = fleet.device("evil")
    async with serving(tls.server_credentials(evil)) as address:
        for peer in ("leaf-1.leaf.home", "evil.device.home"):
            with pytest.raises(UnreachableError):
                await call(address, tls.channel_credentials(fleet.device("a")), peer=peer)


async def test_a_device_of_another_fleet_is_denied_even_when_its_certificate_chains(fleet: Fleet) -> None:
    async with serving(tls.server_credentials(fleet.leaf), fleet_name="other") as address:
        with pytest.raises(AuthorisationError, match="not of fleet"):
            await call(address, tls.channel_credentials(fleet.device("a")))


def _offer(address: str, fleet: Fleet, version: ssl.TLSVersion, tmp_path: Path) -> str:
    """Connect with a device's good certificate and one TLS version, and return the version that was agreed."""
    device = fleet.device("a")
    (tmp_path / "pair.pem").write_bytes(device.tls_cert_pem + device.tls_key_pem)
    context = ssl.create_default_context(cadata=fleet.ca_pem.decode())
    context.load_cert_chain(tmp_path / "pair.pem")
    context.minimum_version = context.maximum_version = version
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="leaf-1.leaf.home") as wrapped,
    ):
        return str(wrapped.version())


async def test_a_client_that_offers_tls_1_2_is_refused(fleet: Fleet, address: str, tmp_path: Path) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(_offer, address, fleet, ssl.TLSVersion.TLSv1_2, tmp_path)
    assert await asyncio.to_thread(_offer, address, fleet, ssl.TLSVersion.TLSv1_3, tmp_path) == "TLSv1.3"


async def test_self_test_passes_on_our_own_ports(fleet: Fleet, address: str) -> None:
    await asyncio.to_thread(tls.start_up_self_test, address, principal=fleet.leaf)
    async with serving(tls.enrolment_server_credentials(fleet.leaf)) as bare:
        await asyncio.to_thread(tls.start_up_self_test, bare, principal=fleet.leaf, client_certificates=False)


async def test_self_test_finds_a_port_without_client_certificates(fleet: Fleet) -> None:
    async with serving(tls.enrolment_server_credentials(fleet.leaf)) as address:
        with pytest.raises(TlsProfileError, match="without certificate"):
            await asyncio.to_thread(tls.start_up_self_test, address, principal=fleet.leaf)


@pytest.fixture
def plain_server(fleet: Fleet, tmp_path: Path) -> Iterator[Callable[[ssl.TLSVersion, Principal], str]]:
    """A server by `ssl` alone, which speaks any version: what grpc would do without the profile."""
    import threading

    listeners: list[socket.socket] = []

    def start(lowest: ssl.TLSVersion, principal: Principal) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (tmp_path / "server.pem").write_bytes(principal.tls_cert_pem + principal.tls_key_pem)
        context.load_cert_chain(tmp_path / "server.pem")
        context.minimum_version = lowest
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    raw, _ = listener.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(raw, server_side=True) as wrapped:
                        wrapped.recv(64)
                        wrapped.sendall(b"hello")
                except OSError:
                    raw.close()

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_self_test_finds_a_port_that_accepts_tls_1_2(fleet: Fleet, plain_server) -> None:
    """The positive control: without this, a self-test that never finds anything would look as green."""
    with pytest.raises(TlsProfileError, match=r"accepts TLSv1\.2"):
        tls.start_up_self_test(plain_server(ssl.TLSVersion.TLSv1_2, fleet.leaf), principal=fleet.leaf)


def test_self_test_fails_when_it_proves_nothing(fleet: Fleet, plain_server, tmp_path: Path) -> None:
    stranger = Fleet(tmp_path / "stranger").leaf
    with pytest.raises(TlsProfileError, match=r"does not speak TLS 1\.3"):
        tls.start_up_self_test(plain_server(ssl.TLSVersion.TLSv1_3, stranger), principal=fleet.leaf)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(UnreachableError):
        tls.start_up_self_test(f"127.0.0.1:{port}", principal=fleet.leaf)


def test_self_test_does_not_wait_for_ever(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnreachableError, match="within"):
        tls.start_up_self_test(f"127.0.0.1:{silent.getsockname()[1]}", principal=fleet.leaf, timeout_s=0.2)


async def test_a_port_in_use_has_its_own_error(fleet: Fleet, address: str) -> None:
    port = int(address.rpartition(":")[2])
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    with pytest.raises(PortInUseError, match=str(port)):
        tls.bind_port(server, host="127.0.0.1", port=port, credentials=tls.server_credentials(fleet.leaf))
    with pytest.raises(TransportError) as caught:
        tls.bind_port(server, host="192.0.2.1", port=port, credentials=tls.server_credentials(fleet.leaf))
    assert not isinstance(caught.value, PortInUseError)
    await server.stop(None)


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"peer_uri": []},
        {"peer_uri": [b"spiffe://home/device/a", b"spiffe://home/root/root"]},
        {"peer_uri": [b"\xff"]},
        {"peer_uri": [b"spiffe://home/device/a"], "ssl_tls_version": [b"TLSv1.2"]},
        {"x509_common_name": [b"a"], "x509_subject_alternative_name": [b"spiffe://home/device/a"]},
    ],
)
def test_a_peer_is_nobody_without_exactly_one_uri_in_tls_1_3(context: dict[str, list[bytes]]) -> None:
    with pytest.raises((IdentityError, TlsProfileError)):
        tls.peer_spiffe(context)


def _kinds(parent: type[NflError]) -> Iterator[type[NflError]]:
    for child in parent.__subclasses__():
        yield child
        yield from _kinds(child)


def _failure(details: str, code: grpc.StatusCode) -> grpc.RpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def test_every_error_of_ours_survives_the_way_back() -> None:
    ours = [kind for kind in _kinds(NflError) if kind.__module__.startswith(("nfl_core.", "nfl_secure."))]
    from_message_alone = [kind for kind in ours if kind.__init__ is NflError.__init__]
    assert len(from_message_alone) > 20
    for kind in from_message_alone:
        error = kind("what: got, expected")
        back = rpc.error_of(_failure(f"{error.code}: {error.message}", rpc.status_of(error)), peer="x")
        assert (back.code, back.message) == (error.code, error.message)


def test_failures_that_are_not_ours_are_transport_errors() -> None:
    assert type(rpc.error_of(_failure("reset: by peer", grpc.StatusCode.UNAVAILABLE), peer="x")) is UnreachableError
    assert type(rpc.error_of(_failure("odd", grpc.StatusCode.INTERNAL), peer="x")) is TransportError
    assert type(rpc.error_of(grpc.RpcError("closed"), peer="x")) is TransportError
