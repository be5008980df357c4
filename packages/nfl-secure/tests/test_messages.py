from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfl_core.errors import ExpiredError, IdentityError, MalformedError, NflError, SignatureError
from nfl_core.wire import sites_pb2
from nfl_secure.identity import Role
from nfl_secure.messages import Verified, verify

from .fleet import Fleet


def _verify(fleet: Fleet, signed: bytes, *, kind: str = "roster", role: Role = Role.LEAF) -> Verified:
    return verify(signed, kind=kind, ca_pem=fleet.ca_pem, role=role, at=fleet.clock())


def _changed(signed: bytes, **fields: object) -> bytes:
    message = sites_pb2.Signed.FromString(signed)
    for name, value in fields.items():
        setattr(message, name, value)
    return message.SerializeToString()


def test_what_was_signed_comes_back_with_its_signer(fleet: Fleet) -> None:
    spiffe, payload = _verify(fleet, fleet.leaf.sign("roster", b"who"))
    assert (str(spiffe), payload) == ("spiffe://home/leaf/leaf-1", b"who")
    assert fleet.leaf.sign("roster", b"who") == fleet.leaf.sign("roster", b"who")


def test_a_statement_of_one_kind_does_not_pass_for_another(fleet: Fleet) -> None:
    receipt = fleet.leaf.sign("receipt", b"x")
    with pytest.raises(SignatureError, match="kind"):
        _verify(fleet, receipt)
    with pytest.raises(SignatureError, match="does not fit"):
        _verify(fleet, _changed(receipt, kind="roster"))


def test_tampered_payload_and_forged_signature_are_refused(fleet: Fleet) -> None:
    signed = fleet.leaf.sign("roster", b"x")
    for forged in (
        _changed(signed, payload=b"y"),
        _changed(signed, signature=bytes(64)),
        _changed(signed, signature=b""),
    ):
        with pytest.raises(SignatureError, match="does not fit"):
            _verify(fleet, forged)


def test_key_substitution_signer_shows_another_principals_certificate(fleet: Fleet) -> None:
    forged = _changed(fleet.device("a").sign("roster", b"x"), certificate=fleet.leaf.sign_certificate)
    with pytest.raises(SignatureError, match="does not fit"):
        _verify(fleet, forged)


def test_a_role_does_not_sign_for_another(fleet: Fleet) -> None:
    with pytest.raises(IdentityError, match="role leaf"):
        _verify(fleet, fleet.device("a").sign("roster", b"x"))


def test_a_principal_of_another_fleet_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    for name in ("other", "home"):  # another name, and the same name with another CA
        stranger = Fleet(tmp_path / f"stranger-{name}", name=name)
        with pytest.raises(IdentityError, match="not signed by the CA"):
            _verify(fleet, stranger.leaf.sign("roster", b"x"))


def test_a_tls_certificate_does_not_sign_statements(fleet: Fleet) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    der = x509.load_pem_x509_certificate(fleet.leaf.tls_cert_pem).public_bytes(Encoding.DER)
    with pytest.raises(IdentityError, match="not one for sign"):
        _verify(fleet, _changed(fleet.leaf.sign("roster", b"x"), certificate=der))


def test_an_expired_signer_is_refused(fleet: Fleet) -> None:
    signed = fleet.leaf.sign("roster", b"x")
    fleet.clock.now += timedelta(hours=73)
    with pytest.raises(ExpiredError):
        _verify(fleet, signed)


def test_a_kind_with_a_nul_cannot_be_signed(fleet: Fleet) -> None:
    with pytest.raises(MalformedError):
        fleet.leaf.sign("roster\0x", b"")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_bytes_is_refused_with_a_declared_error(fleet: Fleet, data: st.DataObject) -> None:
    signed = fleet.leaf.sign("roster", b"payload of some length")
    place = data.draw(st.integers(0, len(signed) - 1))
    bit = data.draw(st.integers(0, 7))
    forged = bytearray(signed)
    forged[place] ^= 1 << bit
    try:
        verified = _verify(fleet, bytes(forged))
    except NflError:
        return
    # protobuf may skip a changed unknown field; what was signed is then still exactly what comes back.
    assert verified.payload == b"payload of some length"


@given(junk=st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_refused_with_a_declared_error(fleet: Fleet, junk: bytes) -> None:
    with pytest.raises(NflError):
        _verify(fleet, junk)
