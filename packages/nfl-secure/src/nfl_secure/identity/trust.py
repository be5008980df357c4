"""What makes a certificate one of this fleet: the rules, without clock, disk or network.

Rules:
* signed by the fleet's CA itself (no intermediates), within its validity;
* exactly one URI SAN, a SPIFFE id whose fleet is the CA's fleet;
* not a CA; key usage `digitalSignature` and nothing else;
* kind `tls`: ECDSA P-256 and an extended key usage; kind `sign`: Ed25519 and no extended key usage. So a key for one
  purpose never serves the other.

gRPC checks the chain of TLS peers by itself; these rules are for certificates inside signed messages and for what an
enrolment answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nfl_core.errors import ExpiredError, IdentityError
from nfl_core.ids import FleetName, parse_fleet_name
from nfl_secure.identity.spiffe import SpiffeId, parse_spiffe

# What `cryptography` raises for bytes that are no certificate or request, or a strange one; not all are ValueErrors.
UNREADABLE = (
    InvalidSignature,
    TypeError,
    UnsupportedAlgorithm,
    ValueError,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class CertificateKind(str, Enum):
    """What a certificate's key is for."""

    TLS = "tls"
    SIGN = "sign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """A fleet's CA certificate, parsed once, and the checks against it."""

    fleet: FleetName
    ca: x509.Certificate

    @staticmethod
    def of(ca_pem: bytes) -> Trust:
        """Return the trust in the CA of `ca_pem`; parsed once a process.

        Raises:
            IdentityError: It is not the certificate of a fleet's CA.
        """
        return _trust_of(ca_pem)

    def check(self, certificate: x509.Certificate, *, kind: CertificateKind, at: datetime) -> SpiffeId:
        """Return whose certificate this is.

        Args:
            certificate: What the peer showed.
            kind: What its key is to be used for.
            at: The time of use, aware.

        Raises:
            IdentityError: A rule above is broken.
            ExpiredError: It is not valid yet or not valid any more.
        """
        try:
            certificate.verify_directly_issued_by(self.ca)
        except UNREADABLE as error:
            raise IdentityError(f"certificate is not signed by the CA of fleet {self.fleet}") from error
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            raise ExpiredError(f"certificate is valid from {begin:{_TIME}} to {end:{_TIME}}, now is {at:{_TIME}}")
        _check_use(certificate, kind)
        spiffe = spiffe_of(certificate)
        if spiffe.fleet != self.fleet:
            raise IdentityError(f"certificate is for {spiffe}, expected one of fleet {self.fleet}")
        return spiffe


def parse_certificate(der: bytes) -> x509.Certificate:
    """Return the certificate in `der`. Raises IdentityError when there is none."""
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise IdentityError(f"{len(der)} bytes are not a DER certificate") from error


def spiffe_of(certificate: x509.Certificate) -> SpiffeId:
    """Return the one SPIFFE id of a certificate. Raises IdentityError when there is not exactly one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE as error:
        raise IdentityError("certificate has no readable subject alternative name") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError(f"certificate has {len(uris)} URI names, expected exactly one SPIFFE id")
    return parse_spiffe(uris[0])


def _check_use(certificate: x509.Certificate, kind: CertificateKind) -> None:
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        key = certificate.public_key()
    except UNREADABLE as error:
        raise IdentityError("certificate lacks readable basic constraints, key usage or public key") from error
    has_purpose = any(isinstance(extension.value, x509.ExtendedKeyUsage) for extension in extensions)
    if constraints.ca or usage.key_cert_sign or usage.crl_sign or not usage.digital_signature:
        raise IdentityError("certificate may sign certificates or may not sign, expected an end certificate")
    if kind is CertificateKind.SIGN:
        fits = isinstance(key, ed25519.Ed25519PublicKey) and not has_purpose
    else:
        fits = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1) and has_purpose
    if not fits:
        raise IdentityError(f"certificate is not one for {kind.value}")


@lru_cache(maxsize=16)
def _trust_of(ca_pem: bytes) -> Trust:
    try:
        ca = x509.load_pem_x509_certificate(ca_pem)
        if not ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise IdentityError("the pinned certificate is not one of a CA")
        names = ca.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        ca.verify_directly_issued_by(ca)
    except UNREADABLE as error:
        raise IdentityError("the pinned CA certificate cannot be read or is not signed by itself") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise IdentityError(f"the pinned CA certificate names {uris}, expected one spiffe://FLEET")
    return Trust(fleet=parse_fleet_name(uris[0].removeprefix("spiffe://")), ca=ca)
