from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest

from nfl_core.errors import ContentError, NotFoundError, PolicyError, TransportError, UnreachableError
from nfl_core.ids import digest_of, new_contribution_id
from nfl_core.wire import device_pb2
from nfl_core.wire.limits import MAX_PART_BYTES
from nfl_edge.link import FileTap, LinkFetcher, read_tap
from nfl_edge.outbox import Entry
from nfl_secure.identity import FleetCA, Role, SpiffeId

from .world import Device, Fleet


@pytest.fixture
def device(fleet: Fleet) -> Device:
    return fleet.device("robot-1", samples=False)


def put_chunk(fleet: Fleet, size: int = 50_000) -> tuple[str, bytes]:
    data = os.urandom(size)
    path = f"chunks/{digest_of(data)}"
    fleet.mirror.write(path, data)
    return path, data


async def test_a_cut_download_goes_on_where_it_stopped(fleet: Fleet, device: Device) -> None:
    path, data = put_chunk(fleet)
    link = fleet.link(device)
    fleet.leaf.cut_after = 20_000
    with pytest.raises(UnreachableError):
        await link.fetch(path, max_bytes=len(data))
    assert await link.fetch(path, max_bytes=len(data)) == data
    (_, first), (_, second) = fleet.leaf.fetches
    assert first == 0
    assert 0 < second <= 20_000
    assert list((device.folder.cache / "partial").iterdir()) == []
    await link.close()


async def test_a_forged_length_is_refused(fleet: Fleet, device: Device) -> None:
    path, data = put_chunk(fleet)
    link = fleet.link(device)
    with pytest.raises(ContentError, match="end within 49999"):
        await link.fetch(path, max_bytes=len(data) - 1)
    with pytest.raises(NotFoundError):
        await link.fetch("chunks/" + "0" * 64, max_bytes=10)
    await link.close()


async def test_a_beginning_that_does_not_fit_is_dropped_and_fetched_anew(fleet: Fleet, device: Device) -> None:
    path, data = put_chunk(fleet, 100)
    partial = device.folder.cache / "partial"
    partial.mkdir()
    (partial / path.replace("/", "_")).write_bytes(bytes(150))
    link = fleet.link(device)
    with pytest.raises(ContentError):
        await link.fetch(path, max_bytes=200)
    assert await link.fetch(path, max_bytes=200) == data
    await link.close()


async def test_a_leaf_that_is_away_is_found_again(fleet: Fleet, device: Device) -> None:
    link = fleet.link(device)
    await link.hello(device_pb2.HelloRequest())
    await fleet.leaf.stop()
    with pytest.raises(UnreachableError):
        await link.hello(device_pb2.HelloRequest())
    await fleet.leaf.start()
    deadline = time.monotonic() + 20
    while True:
        try:
            await link.hello(device_pb2.HelloRequest())
            break
        except UnreachableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    await link.close()


async def test_a_leaf_that_never_answers_meets_the_deadline(fleet: Fleet, device: Device) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never says a word
        fleet.leaf.address, kept = f"127.0.0.1:{silent.getsockname()[1]}", fleet.leaf.address
        link = fleet.link(device, call_s=0.3)
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            await link.hello(device_pb2.HelloRequest())
        assert time.monotonic() - began < 5
        await link.close()
    fleet.leaf.address = kept


async def test_errors_of_the_leaf_arrive_as_ours(fleet: Fleet, device: Device) -> None:
    link = fleet.link(device)
    fleet.leaf.refuse = PolicyError("policy 3 is closed")
    with pytest.raises(PolicyError, match="policy 3 is closed"):
        await link.contribute(Entry(contribution_id=new_contribution_id(), body=b"body"))
    await link.close()


async def test_another_leaf_of_the_same_fleet_does_not_pass_for_ours(fleet: Fleet, device: Device) -> None:
    await fleet.leaf.stop()
    fleet.leaf.principal = fleet.other_leaf
    await fleet.leaf.start()
    link = fleet.link(device)
    with pytest.raises(TransportError):
        await link.hello(device_pb2.HelloRequest())
    assert fleet.leaf.hellos == []
    await link.close()


async def test_a_leaf_of_another_fleet_is_not_talked_to(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    other = FleetCA.create(tmp_path / "other", "home")
    spiffe = SpiffeId(fleet=other.fleet, role=Role.LEAF, name="leaf-1")
    await fleet.leaf.stop()
    fleet.leaf.principal = other.admit(tmp_path / "other-leaf", spiffe, server_names=["127.0.0.1"])
    await fleet.leaf.start()
    link = fleet.link(device)
    with pytest.raises(TransportError):
        await link.hello(device_pb2.HelloRequest())
    assert fleet.leaf.hellos == []
    await link.close()


async def test_the_tap_sees_every_outgoing_message(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    link = fleet.link(device, tap=FileTap(tmp_path / "tap"))
    body = os.urandom(2 * MAX_PART_BYTES + 5)
    path, data = put_chunk(fleet)
    await link.hello(device_pb2.HelloRequest(agent_version="x"))
    fleet.leaf.refuse = PolicyError("no")
    with pytest.raises(PolicyError):
        await link.contribute(Entry(contribution_id=new_contribution_id(), body=body))
    await link.fetch(path, max_bytes=len(data))
    await link.report(device_pb2.ReportRequest(sequence=1))
    seen = read_tap(tmp_path / "tap")
    assert [method for method, _ in seen] == ["Hello", *["Contribute"] * 4, "Fetch", "Report"]
    sent = [device_pb2.ContributePart.FromString(message).data for method, message in seen if method == "Contribute"]
    assert b"".join(sent) == body
    assert link.sent_bytes == sum(len(message) for _, message in seen)
    await link.close()


async def test_the_bundle_client_fetches_from_its_thread(fleet: Fleet, device: Device) -> None:
    path, data = put_chunk(fleet)
    link = fleet.link(device)
    fetcher = LinkFetcher(link, asyncio.get_running_loop())
    assert await asyncio.to_thread(fetcher.fetch, path, max_bytes=len(data)) == data
    assert fetcher.num_bytes == len(data)
    with pytest.raises(NotFoundError):
        await asyncio.to_thread(fetcher.fetch, "metadata/9.root.json", max_bytes=10)
    await link.close()
