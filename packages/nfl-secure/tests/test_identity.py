from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from nfl_core.errors import ConflictError, ExpiredError, IdentityError, NotFoundError
from nfl_secure.identity import CertificateKind, FleetCA, Principal, Role, SpiffeId, Trust, parse_spiffe
from nfl_secure.identity.ca import check_request
from nfl_secure.identity.trust import parse_certificate

from .fleet import Fleet


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://home/device/a",
        "spiffe://home/device",
        "spiffe://home/device/a/b",
        "spiffe://home/admin/a",
        "spiffe://home/device/A",
        "spiffe://home/device/../root",
        "spiffe:///device/a",
        "spiffe://home/device/a?role=root",
        "spiffe://home/device/a\nspiffe://home/root/root",
        "spiffe://home:443/device/a",
        " spiffe://home/device/a",
    ],
)
def test_malformed_spiffe_ids_are_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        parse_spiffe(uri)


def test_spiffe_id_round_trip() -> None:
    assert str(parse_spiffe("spiffe://home/keeper/keeper-2")) == "spiffe://home/keeper/keeper-2"


def test_key_files_are_private(fleet: Fleet) -> None:
    fleet.device("a")
    secrets = [path for path in fleet.home.rglob("*.key") if path.is_file()]
    assert {path.name for path in secrets} == {"ca.key", "tls.key", "sign.key", "contribution.key", "keeper.key"}
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert {path.parent.stat().st_mode & 0o777 for path in secrets} == {0o700}


def test_a_key_that_others_can_read_is_refused(fleet: Fleet) -> None:
    fleet.device("a")
    (fleet.home / "device/a/sign.key").chmod(0o640)
    with pytest.raises(IdentityError, match="mode 0640"):
        Principal.open(fleet.home / "device/a")


def test_certificates_are_what_the_profile_says(fleet: Fleet) -> None:
    device, leaf = fleet.device("a"), fleet.leaf
    tls = x509.load_pem_x509_certificate(device.tls_cert_pem)
    sign = parse_certificate(device.sign_certificate)
    served = x509.load_pem_x509_certificate(leaf.tls_cert_pem)
    assert list(tls.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert ExtendedKeyUsageOID.SERVER_AUTH in list(
        served.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    )
    with pytest.raises(x509.ExtensionNotFound):
        sign.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert isinstance(sign.public_key(), ed25519.Ed25519PublicKey)
    now = fleet.clock()
    assert (tls.not_valid_before_utc, tls.not_valid_after_utc) == (
        now - timedelta(minutes=5),
        now + timedelta(hours=24),
    )
    assert served.not_valid_after_utc == now + timedelta(hours=72)
    names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["leaf-1.leaf.home", "leaf.home", "localhost"]
    constraints = fleet.ca.trust.ca.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert fleet.ca.trust.ca.not_valid_after_utc > now + timedelta(days=3640)


def test_a_second_ca_does_not_replace_the_first(fleet: Fleet) -> None:
    before = (fleet.home / "ca/ca.key").read_bytes()
    with pytest.raises(ConflictError):
        FleetCA.create(fleet.home / "ca", "home")
    assert (fleet.home / "ca/ca.key").read_bytes() == before
    assert FleetCA.open(fleet.home / "ca").ca_pem == fleet.ca_pem


def test_creation_of_a_ca_that_was_interrupted_is_begun_again(tmp_path: Path) -> None:
    FleetCA.create(tmp_path / "ca", "home")
    (tmp_path / "ca/ca.pem").unlink()
    assert FleetCA.create(tmp_path / "ca", "home").fleet == "home"


def test_keys_survive_a_renewal_and_an_interrupted_enrolment(fleet: Fleet) -> None:
    first = fleet.device("a")
    key, secret = first.tls_key_pem, first.contribution_id(policy_id=1, base="b")
    again = fleet.ca.admit(fleet.home / "device/a", first.spiffe)
    assert (again.tls_key_pem, again.contribution_id(policy_id=1, base="b")) == (key, secret)
    assert again.sign_certificate != first.sign_certificate


def test_open_without_certificates_says_not_found(tmp_path: Path) -> None:
    Principal.create(tmp_path / "keys", SpiffeId(fleet="home", role=Role.DEVICE, name="a"))
    with pytest.raises(NotFoundError):
        Principal.open(tmp_path / "keys")


def test_key_substitution_certificate_for_another_key_is_not_installed(fleet: Fleet) -> None:
    folder, spiffe = fleet.home / "device/b", fleet.spiffe(Role.DEVICE, "b")
    Principal.create(folder, spiffe)
    other = Principal.create(fleet.home / "elsewhere", spiffe)
    tls, sign = fleet.ca.certify(other, spiffe)
    with pytest.raises(IdentityError, match="not for the keys"):
        Principal.install(folder, tls_certificate=tls, sign_certificate=sign, ca_pem=fleet.ca_pem)
    assert not (folder / "tls.crt").exists()


def test_a_request_without_proof_of_possession_is_refused(fleet: Fleet) -> None:
    csr = Principal.create(fleet.home / "x", fleet.spiffe(Role.DEVICE, "x")).tls_csr
    forged = csr[:-1] + bytes([csr[-1] ^ 1])
    with pytest.raises(IdentityError, match="not signed by the key"):
        fleet.ca.issue(forged, fleet.spiffe(Role.DEVICE, "x"), kind=CertificateKind.TLS)


@pytest.mark.parametrize("kind", list(CertificateKind))
def test_a_request_with_the_wrong_key_type_is_refused(fleet: Fleet, kind: CertificateKind) -> None:
    requests = Principal.create(fleet.home / "x", fleet.spiffe(Role.DEVICE, "x"))
    wrong = requests.sign_csr if kind is CertificateKind.TLS else requests.tls_csr
    with pytest.raises(IdentityError, match="expected"):
        fleet.ca.issue(wrong, fleet.spiffe(Role.DEVICE, "x"), kind=kind)
    with pytest.raises(IdentityError, match="not a certificate request"):
        fleet.ca.issue(b"junk", fleet.spiffe(Role.DEVICE, "x"), kind=kind)


def test_the_ca_takes_only_the_key_from_a_request_never_the_name(fleet: Fleet) -> None:
    asks_to_be_root = Principal.create(fleet.home / "x", fleet.spiffe(Role.ROOT, "root"))
    der = fleet.ca.issue(asks_to_be_root.sign_csr, fleet.spiffe(Role.DEVICE, "x"), kind=CertificateKind.SIGN)
    granted = fleet.ca.trust.check(parse_certificate(der), kind=CertificateKind.SIGN, at=fleet.clock())
    assert granted == fleet.spiffe(Role.DEVICE, "x")


def test_the_ca_serves_its_own_fleet_alone(fleet: Fleet) -> None:
    requests = Principal.create(fleet.home / "x", fleet.spiffe(Role.DEVICE, "x"))
    with pytest.raises(IdentityError, match="not of fleet"):
        fleet.ca.certify(requests, SpiffeId(fleet="other", role=Role.DEVICE, name="x"))
    with pytest.raises(IdentityError, match="server names"):
        fleet.ca.certify(requests, fleet.spiffe(Role.DEVICE, "x"), server_names=["127.0.0.1"])


def test_a_device_certificate_cannot_make_another_one(fleet: Fleet) -> None:
    """A device that plays CA: its certificate signs one for a friend."""
    device_key = serialization.load_pem_private_key(fleet.device("a").tls_key_pem, None)
    assert isinstance(device_key, ec.EllipticCurvePrivateKey)
    friend = ed25519.Ed25519PrivateKey.generate()
    real = parse_certificate(fleet.device("b").sign_certificate)
    builder = x509.CertificateBuilder(
        issuer_name=x509.load_pem_x509_certificate(fleet.device("a").tls_cert_pem).subject,
        subject_name=real.subject,
        public_key=friend.public_key(),
        serial_number=1,
        not_valid_before=real.not_valid_before_utc,
        not_valid_after=real.not_valid_after_utc,
        extensions=list(real.extensions),
    )
    forged = builder.sign(device_key, hashes.SHA256())
    with pytest.raises(IdentityError, match="not signed by the CA"):
        fleet.ca.trust.check(forged, kind=CertificateKind.SIGN, at=fleet.clock())


def test_certificates_serve_one_purpose_and_their_time(fleet: Fleet) -> None:
    trust = Trust.of(fleet.ca_pem)
    sign = parse_certificate(fleet.device("a").sign_certificate)
    with pytest.raises(IdentityError, match="not one for tls"):
        trust.check(sign, kind=CertificateKind.TLS, at=fleet.clock())
    with pytest.raises(IdentityError, match="not one for sign"):
        trust.check(
            x509.load_pem_x509_certificate(fleet.device("a").tls_cert_pem), kind=CertificateKind.SIGN, at=fleet.clock()
        )
    trust.check(sign, kind=CertificateKind.SIGN, at=fleet.clock() - timedelta(minutes=5))
    for at in (fleet.clock() - timedelta(minutes=6), fleet.clock() + timedelta(hours=25)):
        with pytest.raises(ExpiredError):
            trust.check(sign, kind=CertificateKind.SIGN, at=at)
    with pytest.raises(IdentityError):
        trust.check(trust.ca, kind=CertificateKind.SIGN, at=fleet.clock())


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_pinned_ca_that_is_none_is_refused(pem: bytes) -> None:
    with pytest.raises(IdentityError):
        Trust.of(pem)


def test_an_end_certificate_is_no_ca_to_pin(fleet: Fleet) -> None:
    with pytest.raises(IdentityError):
        Trust.of(fleet.leaf.tls_cert_pem)


def _flipped(der: bytes) -> Iterator[bytes]:
    for place, bit in itertools.product(range(len(der)), range(8)):
        yield der[:place] + bytes([der[place] ^ (1 << bit)]) + der[place + 1 :]


# Flipping a bit makes negative serial numbers too, which the library warns about before the signature refuses them.
_STRANGE = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


def _refused_or_same(read: Callable[[bytes], object], der: bytes, expected: object) -> int:
    """Return how many changes were refused. What passes says the same: a DER signature has spare bits at its end."""
    num_refused = 0
    for forged in _flipped(der):
        try:
            assert read(forged) == expected
        except IdentityError:
            num_refused += 1
    return num_refused


@_STRANGE
def test_every_flipped_bit_of_a_certificate_is_refused_with_our_error(fleet: Fleet) -> None:
    """A leaf or keeper that dies of a strange certificate could be killed by one device."""

    def read(der: bytes) -> tuple[SpiffeId, object]:
        certificate = parse_certificate(der)
        spiffe = fleet.ca.trust.check(certificate, kind=CertificateKind.SIGN, at=fleet.clock())
        return spiffe, certificate.public_key()

    der = fleet.device("a").sign_certificate
    assert _refused_or_same(read, der, read(der)) >= 8 * len(der) - 7


@_STRANGE
@pytest.mark.parametrize("kind", list(CertificateKind))
def test_every_flipped_bit_of_a_request_is_refused_with_our_error(fleet: Fleet, kind: CertificateKind) -> None:
    requests = Principal.create(fleet.home / "x", fleet.spiffe(Role.DEVICE, "x"))
    csr = requests.tls_csr if kind is CertificateKind.TLS else requests.sign_csr
    expected = check_request(csr, kind=kind)
    assert _refused_or_same(lambda der: check_request(der, kind=kind), csr, expected) >= 8 * len(csr) - 7


@_STRANGE
def test_every_flipped_bit_of_the_pinned_ca_is_refused_with_our_error(fleet: Fleet) -> None:
    def read(der: bytes) -> tuple[str, object]:
        trust = Trust.of(b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n")
        return trust.fleet, trust.ca.public_key()

    der = fleet.ca.trust.ca.public_bytes(serialization.Encoding.DER)
    assert _refused_or_same(read, der, read(der)) >= 8 * len(der) - 7
