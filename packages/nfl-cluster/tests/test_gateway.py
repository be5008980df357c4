"""The gateway over real mutual TLS on loopback, attacked."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import nfl_secure.tls as nfl_tls

import grpc  # isort: skip
import grpc.aio  # isort: skip

from nfl_cluster.gateway import serve_devices
from nfl_core.errors import (
    ConflictError,
    FrameError,
    MalformedError,
    NflError,
    NotFoundError,
    PolicyError,
    PortInUseError,
    StorageFullError,
)
from nfl_core.wire import device_pb2, device_pb2_grpc
from nfl_core.wire.limits import MAX_CONTRIBUTION_BYTES, MAX_PART_BYTES
from nfl_secure.identity import FleetCA, Principal, Role, SpiffeId
from nfl_secure.messages import verify
from nfl_secure.rpc import error_of

from .world import LEAVES, World

LEAF = LEAVES[0]


class Served:
    """A gateway that listens, and a device's way to it."""

    def __init__(self, world: World, port: int) -> None:
        self.world, self.address = world, f"127.0.0.1:{port}"
        self._channels: list[grpc.aio.Channel] = []

    def stub(self, principal: Principal) -> device_pb2_grpc.DeviceStub:
        channel = grpc.aio.secure_channel(self.address, nfl_tls.channel_credentials(principal))
        self._channels.append(channel)
        return device_pb2_grpc.DeviceStub(channel)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def contribute(
        self, name: str, body: bytes, *, contribution_id: str, num_bytes: int | None = None, sha256: str = ""
    ) -> bytes:
        header = device_pb2.ContributionHeader(
            contribution_id=contribution_id,
            num_bytes=len(body) if num_bytes is None else num_bytes,
            sha256=sha256 or hashlib.sha256(body).hexdigest(),
        )

        def parts() -> Iterator[device_pb2.ContributePart]:
            yield device_pb2.ContributePart(header=header)
            for start in range(0, len(body), MAX_PART_BYTES):
                yield device_pb2.ContributePart(data=body[start : start + MAX_PART_BYTES])

        try:
            receipt = await self.stub(self.world.device(name)).Contribute(parts(), timeout=10)
        except grpc.RpcError as error:
            raise error_of(error, peer=self.address) from error
        return bytes(receipt.signed)


@pytest.fixture
async def served(world: World) -> AsyncIterator[Served]:
    world.settle()
    leaf = world.leaves[LEAF]
    server, port = await serve_devices(leaf.gateway, principal=leaf.principal, host="127.0.0.1", port=0)
    served = Served(world, port)
    yield served
    await served.close()
    await server.stop(0)


async def _hello(served: Served, principal: Principal) -> device_pb2.HelloReply:
    try:
        return await served.stub(principal).Hello(device_pb2.HelloRequest(), timeout=5)
    except grpc.RpcError as error:
        raise error_of(error, peer=served.address) from error


async def test_hello_offers_version_and_policy(served: Served) -> None:
    reply = await _hello(served, served.world.device("d0"))
    assert (reply.newest_version, reply.bundle_target) == (1, "bundles/north/1.json")
    assert reply.policy
    assert reply.retry_after_ms == 5  # one device at 200 calls a second


async def test_a_contribution_gets_a_receipt_signed_by_the_leaf_and_a_repeat_gets_the_same(served: Served) -> None:
    world = served.world
    base = (await _hello(served, world.device("d0"))).newest_digest
    sealed = world.seal("d0", LEAF, base=base)
    receipt = await served.contribute("d0", sealed.frame, contribution_id=sealed.contribution_id)
    spiffe, payload = verify(receipt, kind="receipt", ca_pem=world.ca.ca_pem, role=Role.LEAF, at=world.clock())
    statement = device_pb2.ReceiptStatement.FromString(payload)
    assert spiffe.name == LEAF
    assert (statement.contribution_id, statement.sha256) == (
        sealed.contribution_id,
        hashlib.sha256(sealed.frame).hexdigest(),
    )
    world.clock.advance(3)
    assert await served.contribute("d0", sealed.frame, contribution_id=sealed.contribution_id) == receipt
    world.restart(LEAF)
    log = world.leaves[LEAF].log
    assert log.receipt(sealed.contribution_id, device="d0", sha256=statement.sha256) == receipt  # type: ignore[arg-type]
    assert list(log.sizes().values()) == [1]


async def test_a_client_without_certificate_is_refused(served: Served) -> None:
    credentials = nfl_tls.enrolment_channel_credentials(served.world.ca.ca_pem)
    async with grpc.aio.secure_channel(served.address, credentials) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await device_pb2_grpc.DeviceStub(channel).Hello(device_pb2.HelloRequest(), timeout=3)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_of_another_fleet_is_refused(served: Served, tmp_path: Path) -> None:
    other = FleetCA.create(tmp_path / "other", "other")
    stranger = other.admit(tmp_path / "stranger", SpiffeId(fleet=other.fleet, role=Role.DEVICE, name="d0"))
    credentials = grpc.ssl_channel_credentials(served.world.ca.ca_pem, stranger.tls_key_pem, stranger.tls_cert_pem)
    async with grpc.aio.secure_channel(served.address, credentials) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await device_pb2_grpc.DeviceStub(channel).Hello(device_pb2.HelloRequest(), timeout=3)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_leaf_certificate_may_not_call_as_a_device(served: Served) -> None:
    with pytest.raises(NflError) as caught:
        await _hello(served, served.world.leaves[LEAVES[1]].principal)
    assert caught.value.code == "authorisation.denied"


def _offer_tls12(address: str, principal: Principal, folder: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=principal.ca_pem.decode())
    pair = folder / "pair.pem"
    pair.write_bytes(principal.tls_cert_pem + principal.tls_key_pem)
    context.load_cert_chain(pair)
    context.set_alpn_protocols(["h2"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw, context.wrap_socket(raw, server_hostname=host):
        pass


async def test_a_client_that_offers_tls_1_2_is_refused(served: Served, tmp_path: Path) -> None:
    import asyncio

    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(_offer_tls12, served.address, served.world.device("d0"), tmp_path)


@pytest.mark.parametrize(
    "path", ["../keys/tls.key", "chunks/../../keys/tls.key", "/etc/passwd", "state/devices.0", "metadata/x.json", ""]
)
async def test_fetch_of_an_unknown_path_is_not_found(served: Served, path: str) -> None:
    stub = served.stub(served.world.device("d0"))
    with pytest.raises(grpc.RpcError) as caught:
        _ = [part async for part in stub.Fetch(device_pb2.FetchRequest(path=path), timeout=5)]
    assert isinstance(error_of(caught.value, peer="leaf"), NotFoundError)


async def test_fetch_resumes_from_an_offset(served: Served) -> None:
    stub = served.stub(served.world.device("d0"))
    path = "metadata/timestamp.json"
    whole = b"".join([part.data async for part in stub.Fetch(device_pb2.FetchRequest(path=path))])
    rest = [part async for part in stub.Fetch(device_pb2.FetchRequest(path=path, offset=100))]
    assert whole[:100] + b"".join(part.data for part in rest) == whole
    assert rest[0].total == len(whole)
    ended = [part async for part in stub.Fetch(device_pb2.FetchRequest(path=path, offset=len(whole)))]
    assert [(part.data, part.total) for part in ended] == [(b"", len(whole))]
    with pytest.raises(grpc.RpcError) as caught:
        _ = [part async for part in stub.Fetch(device_pb2.FetchRequest(path=path, offset=len(whole) + 1))]
    assert isinstance(error_of(caught.value, peer="leaf"), MalformedError)


async def test_oversize_and_forged_lengths_are_refused(served: Served) -> None:
    world = served.world
    base = (await _hello(served, world.device("d0"))).newest_digest
    sealed = world.seal("d0", LEAF, base=base)
    for num_bytes in (0, MAX_CONTRIBUTION_BYTES + 1, len(sealed.frame) - 1, len(sealed.frame) + 1):
        with pytest.raises(FrameError):
            await served.contribute("d0", sealed.frame, contribution_id=sealed.contribution_id, num_bytes=num_bytes)
    assert not world.leaves[LEAF].log.sizes()


async def test_a_changed_body_is_refused(served: Served) -> None:
    world = served.world
    base = (await _hello(served, world.device("d0"))).newest_digest
    sealed = world.seal("d0", LEAF, base=base)
    body = bytearray(sealed.frame)
    body[-1] ^= 1
    with pytest.raises(MalformedError):
        await served.contribute("d0", bytes(body), contribution_id=sealed.contribution_id)
    assert not world.leaves[LEAF].log.sizes()


async def test_a_contribution_of_another_device_is_refused(served: Served) -> None:
    world = served.world
    base = (await _hello(served, world.device("d0"))).newest_digest
    sealed = world.seal("d0", LEAF, base=base)
    with pytest.raises(NflError) as caught:
        await served.contribute("d1", sealed.frame, contribution_id=sealed.contribution_id)
    assert caught.value.code == "identity.invalid"


async def test_a_contribution_under_an_unknown_policy_is_refused(served: Served) -> None:
    world = served.world
    base = (await _hello(served, world.device("d0"))).newest_digest
    sealed = world.seal("d0", LEAF, base=base)
    log = world.leaves[LEAF].log
    log._policies.clear()
    with pytest.raises(PolicyError):
        await served.contribute("d0", sealed.frame, contribution_id=sealed.contribution_id)


async def test_the_id_of_another_contribution_is_a_conflict(served: Served) -> None:
    world = served.world
    base = (await _hello(served, world.device("d0"))).newest_digest
    first, second = world.seal("d0", LEAF, base=base), world.seal("d1", LEAF, base=base)
    await served.contribute("d0", first.frame, contribution_id=first.contribution_id)
    with pytest.raises(ConflictError):
        await served.contribute("d1", second.frame, contribution_id=first.contribution_id)


async def test_an_unpinned_counter_is_refused(served: Served) -> None:
    stub = served.stub(served.world.device("d0"))
    request = device_pb2.ReportRequest(sequence=1, counters={"favourite_room": 3})
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Report(request, timeout=5)
    assert isinstance(error_of(caught.value, peer="leaf"), MalformedError)


async def test_a_full_disk_refuses_the_contribution_and_gives_no_receipt(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = served.world
    base = (await _hello(served, world.device("d0"))).newest_digest
    sealed = world.seal("d0", LEAF, base=base)
    log = world.leaves[LEAF].log

    def full(_: bytes) -> None:
        raise StorageFullError("disk of the leaf is full")

    with monkeypatch.context() as patch:
        patch.setattr(log._journal, "append", full)
        with pytest.raises(StorageFullError):
            await served.contribute("d0", sealed.frame, contribution_id=sealed.contribution_id)
    assert not log.sizes()
    assert not log.accepted()
    assert await served.contribute("d0", sealed.frame, contribution_id=sealed.contribution_id)


async def test_a_port_in_use_is_named(served: Served) -> None:
    leaf = served.world.leaves[LEAF]
    with pytest.raises(PortInUseError):
        await serve_devices(
            leaf.gateway, principal=leaf.principal, host="127.0.0.1", port=int(served.address.split(":")[1])
        )
