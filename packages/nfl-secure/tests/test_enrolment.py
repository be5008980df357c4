from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nfl_core.errors import ConflictError, IdentityError, NotFoundError, PortInUseError, UnreachableError
from nfl_core.wire import enrol_pb2
from nfl_secure import tls
from nfl_secure.errors import ExpiredTokenError, UsedTokenError
from nfl_secure.identity import EnrolmentDesk, Placement, Principal, Role, TokenStore, enrol_device
from nfl_secure.identity.enrolment import serve_enrolment

from .fleet import Fleet


def place(device: str, leaf: str) -> Placement:
    if leaf != "leaf-1":
        raise NotFoundError(f"no leaf {leaf}")
    return Placement(leaf_address="127.0.0.1:7001", region="north", settings_json='{"a": 1}', trusted_root=b"root 1")


@pytest.fixture
def tokens(fleet: Fleet) -> TokenStore:
    return TokenStore(fleet.home / "tokens", clock=fleet.clock)


@pytest.fixture
def desk(fleet: Fleet, tokens: TokenStore) -> EnrolmentDesk:
    return EnrolmentDesk(ca=fleet.ca, tokens=tokens, place=place)


@pytest_asyncio.fixture
async def address(fleet: Fleet, desk: EnrolmentDesk) -> AsyncIterator[str]:
    server, port = await serve_enrolment(desk, principal=fleet.root, host="127.0.0.1", port=0)
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def enrol(fleet: Fleet, address: str, token: str, device_id: str, **changes: object):
    arguments = {"ca_pem": fleet.ca_pem, "folder": fleet.home / "new" / device_id / "keys", "timeout_s": 5.0, **changes}
    return await asyncio.to_thread(lambda: enrol_device(address, token=token, device_id=device_id, **arguments))


async def test_a_device_enrols_with_a_token(fleet: Fleet, tokens: TokenStore, address: str) -> None:
    enrolled = await enrol(fleet, address, tokens.mint("robot-1", "leaf-1"), "robot-1")
    assert str(enrolled.principal.spiffe) == "spiffe://home/device/robot-1"
    assert (enrolled.leaf, enrolled.placement) == ("leaf-1", place("robot-1", "leaf-1"))
    assert Principal.open(fleet.home / "new/robot-1/keys") == enrolled.principal
    await asyncio.to_thread(tls.start_up_self_test, address, principal=fleet.root, client_certificates=False)


async def test_the_private_keys_never_leave_the_device(fleet: Fleet, tokens: TokenStore) -> None:
    token = tokens.mint("robot-1", "leaf-1")
    folder = fleet.home / "new/keys"
    requests = Principal.create(folder, fleet.spiffe(Role.DEVICE, "robot-1"))
    sent = enrol_pb2.EnrolRequest(
        token=token, device_id="robot-1", tls_csr=requests.tls_csr, sign_csr=requests.sign_csr
    ).SerializeToString()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for name in ("tls.key", "sign.key"):
        key = load_pem_private_key((folder / name).read_bytes(), None)
        raw = key.private_bytes_raw() if name == "sign.key" else key.private_numbers().private_value.to_bytes(32, "big")
        assert raw not in sent
    assert (folder / "contribution.key").read_bytes() not in sent


async def test_enrolment_token_used_twice_is_refused(fleet: Fleet, tokens: TokenStore, address: str) -> None:
    token = tokens.mint("robot-1", "leaf-1")
    await enrol(fleet, address, token, "robot-1")
    with pytest.raises(UsedTokenError):
        await enrol(fleet, address, token, "robot-1", folder=fleet.home / "thief")
    assert not (fleet.home / "thief/tls.crt").exists()


async def test_enrolment_token_used_late_is_refused(fleet: Fleet, tokens: TokenStore, address: str) -> None:
    token = tokens.mint("robot-1", "leaf-1", lifetime_s=60)
    fleet.clock.advance(seconds=61)
    with pytest.raises(ExpiredTokenError):
        await enrol(fleet, address, token, "robot-1")


async def test_enrolment_token_of_another_device_is_refused(fleet: Fleet, tokens: TokenStore, address: str) -> None:
    with pytest.raises(IdentityError, match="not for device"):
        await enrol(fleet, address, tokens.mint("robot-1", "leaf-1"), "robot-2")


async def test_guessed_enrolment_token_is_refused(fleet: Fleet, tokens: TokenStore, address: str) -> None:
    tokens.mint("robot-1", "leaf-1")
    with pytest.raises(IdentityError, match="unknown"):
        await enrol(fleet, address, "let-me-in", "robot-1")


async def test_after_a_refusal_the_device_tries_again_with_the_same_keys(
    fleet: Fleet, tokens: TokenStore, address: str
) -> None:
    with pytest.raises(IdentityError):
        await enrol(fleet, address, "wrong", "robot-1")
    key = (fleet.home / "new/robot-1/keys/sign.key").read_bytes()
    await enrol(fleet, address, tokens.mint("robot-1", "leaf-1"), "robot-1")
    assert (fleet.home / "new/robot-1/keys/sign.key").read_bytes() == key


async def test_an_enrolled_device_is_not_enrolled_over(fleet: Fleet, tokens: TokenStore, address: str) -> None:
    await enrol(fleet, address, tokens.mint("robot-1", "leaf-1"), "robot-1")
    second = tokens.mint("robot-1", "leaf-1")
    with pytest.raises(ConflictError):
        await enrol(fleet, address, second, "robot-1")
    tokens.redeem(second, "robot-1")  # it was not used up


async def test_a_token_is_never_shown_to_a_server_of_another_fleet(
    fleet: Fleet, tokens: TokenStore, tmp_path: Path
) -> None:
    stranger = Fleet(tmp_path / "stranger")
    evil = EnrolmentDesk(ca=stranger.ca, tokens=tokens, place=place)
    token = tokens.mint("robot-1", "leaf-1")
    for impostor in (stranger.root, fleet.leaf):  # another fleet's root, and our own leaf in the root's place
        server, port = await serve_enrolment(evil, principal=impostor, host="127.0.0.1", port=0)
        with pytest.raises(UnreachableError):
            await enrol(fleet, f"127.0.0.1:{port}", token, "robot-1")
        await server.stop(None)
    tokens.redeem(token, "robot-1")


async def test_a_lying_root_that_certifies_for_another_fleet_is_refused(
    fleet: Fleet, tokens: TokenStore, tmp_path: Path
) -> None:
    stranger = Fleet(tmp_path / "stranger")
    desk = EnrolmentDesk(ca=stranger.ca, tokens=tokens, place=place)
    server, port = await serve_enrolment(desk, principal=fleet.root, host="127.0.0.1", port=0)
    with pytest.raises(IdentityError, match="another CA"):
        await enrol(fleet, f"127.0.0.1:{port}", tokens.mint("robot-1", "leaf-1"), "robot-1")
    assert not (fleet.home / "new/robot-1/keys/tls.crt").exists()
    await server.stop(None)


def test_a_faulty_request_does_not_use_the_token_up(fleet: Fleet, desk: EnrolmentDesk, tokens: TokenStore) -> None:
    token = tokens.mint("robot-1", "leaf-1")
    good = Principal.create(fleet.home / "k", fleet.spiffe(Role.DEVICE, "robot-1"))
    for tls_csr, sign_csr in ((b"", good.sign_csr), (good.tls_csr, b""), (good.sign_csr, good.tls_csr)):
        with pytest.raises(IdentityError):
            desk.enrol(enrol_pb2.EnrolRequest(token=token, device_id="robot-1", tls_csr=tls_csr, sign_csr=sign_csr))
    desk.enrol(enrol_pb2.EnrolRequest(token=token, device_id="robot-1", tls_csr=good.tls_csr, sign_csr=good.sign_csr))


async def test_enrolment_port_in_use_has_its_own_error(fleet: Fleet, desk: EnrolmentDesk, address: str) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(PortInUseError):
        await serve_enrolment(desk, principal=fleet.root, host="127.0.0.1", port=port)


async def test_nobody_at_the_address_is_unreachable(fleet: Fleet) -> None:
    with pytest.raises(UnreachableError):
        await enrol(fleet, "127.0.0.1:1", "token", "robot-1", timeout_s=2.0)
