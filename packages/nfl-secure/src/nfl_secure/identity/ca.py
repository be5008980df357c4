"""The fleet's certificate authority: one ECDSA P-256 key that says who belongs to the fleet.

Its certificate carries a critical name constraint: whoever steals the key of one fleet cannot make identities of
another for a verifier that pins both. Certificates are short-lived (a device's 24 h, a service's 72 h) and start
five minutes in the past, so that a device with a slow clock can use them at once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typing_extensions import Self

from nfl_core.durable import read_file
from nfl_core.errors import ConflictError, IdentityError
from nfl_core.ids import FleetName, parse_fleet_name
from nfl_secure.identity.keys import CertificateRequests, Principal
from nfl_secure.identity.spiffe import Role, SpiffeId, role_server_name
from nfl_secure.identity.trust import UNREADABLE, CertificateKind, Trust
from nfl_secure.keystore import make_private_folder, private_pem, read_tls_key, utc_now, write_public, write_secret

CA_LIFETIME = timedelta(days=3650)
DEVICE_LIFETIME = timedelta(hours=24)
SERVICE_LIFETIME = timedelta(hours=72)
BACKDATE = timedelta(minutes=5)  # tolerated clock skew

_KEY_FILE, _CERTIFICATE_FILE = "ca.key", "ca.pem"


class FleetCA:
    """The key that makes identities. Only the root has it.

    Args:
        key: Signs certificates.
        ca_pem: The certificate that everybody pins.
        clock: Now, aware.
    """

    def __init__(
        self, *, key: ec.EllipticCurvePrivateKey, ca_pem: bytes, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._key = key
        self._clock = clock
        self.ca_pem = ca_pem
        self.trust = Trust.of(ca_pem)
        if self.trust.ca.public_key() != key.public_key():
            raise IdentityError("the key of the CA does not belong to its certificate")

    @property
    def fleet(self) -> FleetName:
        """The fleet this CA speaks for."""
        return self.trust.fleet

    @classmethod
    def create(cls, folder: Path, fleet: str, *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Make the CA of a new fleet in `folder`: `ca.key` (mode 0600) and `ca.pem`.

        Raises:
            ConflictError: There is one already; it is left alone.
            IdentityError: `fleet` is no valid name.
            DurableError: A file cannot be written.
        """
        name = parse_fleet_name(fleet)
        make_private_folder(folder)
        if (folder / _CERTIFICATE_FILE).exists():
            hint = "a fleet has one CA for life: open it, or make the new fleet in another home"
            raise ConflictError(f"{folder / _CERTIFICATE_FILE} exists already", hint=hint)
        key = ec.generate_private_key(ec.SECP256R1())
        write_secret(folder / _KEY_FILE, private_pem(key))
        # The certificate last: a creation that was interrupted has none and is begun again.
        write_public(folder / _CERTIFICATE_FILE, _self_signed(key, name, clock()))
        return cls.open(folder, clock=clock)

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Open the CA that `create` made.

        Raises:
            NotFoundError: A file is missing.
            IdentityError: A file is not what it should be.
        """
        key = read_tls_key(folder / _KEY_FILE)
        return cls(key=key, ca_pem=read_file(folder / _CERTIFICATE_FILE), clock=clock)

    def issue(
        self,
        csr: bytes,
        spiffe: SpiffeId,
        *,
        kind: CertificateKind,
        server_names: Sequence[str] = (),
        lifetime: timedelta | None = None,
    ) -> bytes:
        """Make a certificate for the key of a request. Only the key is taken from it; all names come from the caller.

        Args:
            csr: DER, signed by the key it is about.
            spiffe: The name that is granted.
            kind: What the key is for.
            server_names: IP addresses and DNS names under which a service can be reached, beside the names made from
                its id; kind `tls` of services alone.
            lifetime: From now; None: 24 h for a device, 72 h for a service.

        Returns:
            The certificate, DER.

        Raises:
            IdentityError: The request is malformed, does not prove possession of its key or has a key of the wrong
                type; or the name is of another fleet, or server names do not fit.
        """
        key = check_request(csr, kind=kind)
        if spiffe.fleet != self.fleet:
            raise IdentityError(f"{spiffe} is not of fleet {self.fleet}")
        is_device = spiffe.role is Role.DEVICE
        if server_names and (is_device or kind is not CertificateKind.TLS):
            raise IdentityError(f"{spiffe} asks for server names in a certificate that serves nothing")
        now = self._clock()
        lifetime = lifetime or (DEVICE_LIFETIME if is_device else SERVICE_LIFETIME)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe))]
        if kind is CertificateKind.TLS and not is_device:
            own_names = (spiffe.server_name, role_server_name(spiffe.role, fleet=spiffe.fleet))
            names += map(_server_name, (*own_names, *server_names))
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{spiffe.role.value} {spiffe.name}"[:64])])
            )
            .issuer_name(self.trust.ca.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if kind is CertificateKind.TLS:
            purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([] if is_device else [ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def certify(
        self,
        requests: CertificateRequests,
        spiffe: SpiffeId,
        *,
        server_names: Sequence[str] = (),
        lifetime: timedelta | None = None,
    ) -> tuple[bytes, bytes]:
        """Make both certificates of a principal: (tls, sign), DER. Raises IdentityError like `issue`."""
        tls = self.issue(
            requests.tls_csr, spiffe, kind=CertificateKind.TLS, server_names=server_names, lifetime=lifetime
        )
        return tls, self.issue(requests.sign_csr, spiffe, kind=CertificateKind.SIGN, lifetime=lifetime)

    def admit(
        self, folder: Path, spiffe: SpiffeId, *, server_names: Sequence[str] = (), lifetime: timedelta | None = None
    ) -> Principal:
        """Make or renew a service of this machine: keys (kept when they are there) and fresh certificates in `folder`.

        Raises:
            IdentityError: Like `issue`.
            DurableError: A file cannot be written.
        """
        tls, sign = self.certify(Principal.create(folder, spiffe), spiffe, server_names=server_names, lifetime=lifetime)
        return Principal.install(folder, tls_certificate=tls, sign_certificate=sign, ca_pem=self.ca_pem)


def check_request(csr: bytes, *, kind: CertificateKind) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    """Return the key of a certificate request.

    Raises:
        IdentityError: It is malformed, is not signed by its own key, or the key is of the wrong type for `kind`.
    """
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        is_proven = request.is_signature_valid
    except UNREADABLE as error:
        raise IdentityError(f"{len(csr)} bytes are not a certificate request") from error
    if not is_proven:
        raise IdentityError("certificate request is not signed by the key it asks a certificate for")
    if kind is CertificateKind.SIGN and isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if (
        kind is CertificateKind.TLS
        and isinstance(key, ec.EllipticCurvePublicKey)
        and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    wanted = "Ed25519" if kind is CertificateKind.SIGN else "ECDSA P-256"
    raise IdentityError(f"certificate request for {kind.value} has a {type(key).__name__}, expected {wanted}")


def _server_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, digital_signature: bool = False, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _self_signed(key: ec.EllipticCurvePrivateKey, fleet: FleetName, now: datetime) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{fleet} fleet CA"[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{fleet}")]), critical=False
        )
        # RFC 5280 4.2.1.10: a URI constraint names the host part, which in a SPIFFE id is the fleet.
        .add_extension(x509.NameConstraints([x509.UniformResourceIdentifier(fleet)], None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
