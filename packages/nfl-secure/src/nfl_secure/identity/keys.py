"""A principal: the keys of one device or service, made where they are used, and the certificates that name it.

A folder `keys/` holds `tls.key`, `tls.crt`, `sign.key`, `sign.crt`, `ca.pem` and `contribution.key`, a secret from
which the ids of contributions are derived.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from typing_extensions import Self

from nfl_core.durable import read_file
from nfl_core.errors import IdentityError, NotFoundError
from nfl_core.ids import ContributionId
from nfl_secure.identity.envelope import sign_with
from nfl_secure.identity.spiffe import SpiffeId
from nfl_secure.identity.trust import UNREADABLE, Trust, parse_certificate, spiffe_of
from nfl_secure.keystore import (
    make_private_folder,
    private_pem,
    read_sign_key,
    read_tls_key,
    write_public,
    write_secret,
)

_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRequests:
    """What a new principal sends to the CA: requests signed by its keys, which prove that it has them.

    Attributes:
        tls_csr: DER.
        sign_csr: DER.
    """

    tls_csr: bytes
    sign_csr: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """One device or service with its keys. `repr` shows no secret.

    Attributes:
        spiffe: Its name.
        ca_pem: The pinned CA of its fleet.
        tls_cert_pem: Certificate for TLS.
        sign_certificate: DER of the certificate for signing.
    """

    spiffe: SpiffeId
    ca_pem: bytes
    tls_cert_pem: bytes
    sign_certificate: bytes
    _tls_key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)
    _sign_key: ed25519.Ed25519PrivateKey = field(repr=False, compare=False)
    _contribution_key: bytes = field(repr=False, compare=False)

    def __repr__(self) -> str:
        return f"Principal({self.spiffe})"

    @property
    def tls_key_pem(self) -> bytes:
        """The private key for TLS, PEM. gRPC wants it in this form."""
        return private_pem(self._tls_key)

    def sign(self, kind: str, payload: bytes) -> bytes:
        """Return the bytes of a `Signed` message around `payload`."""
        return sign_with(self._sign_key, kind=kind, payload=payload, certificate=self.sign_certificate)

    def contribution_id(self, *, policy_id: int, base: str) -> ContributionId:
        """Return the id of this device's contribution under a policy: the same each time; outsiders cannot link two."""
        message = f"nfl/v1/contribution-id\0{policy_id}|{base}".encode()
        return ContributionId(hmac.new(self._contribution_key, message, hashlib.sha256).hexdigest()[:32])

    @staticmethod
    def create(folder: Path, spiffe: SpiffeId) -> CertificateRequests:
        """Make the keys of a principal that are not there yet, and requests for its certificates.

        Calling it again keeps the keys, so an enrolment that was interrupted can be repeated.

        Args:
            folder: `keys/`; made with mode 0700.
            spiffe: The name it asks for. The CA gives the name it has granted, whatever is asked.

        Raises:
            IdentityError: A file in the folder is no key.
            DurableError: A file cannot be written.
        """
        make_private_folder(folder)
        tls_path, sign_path, contribution_path = folder / "tls.key", folder / "sign.key", folder / "contribution.key"
        if not tls_path.exists():
            write_secret(tls_path, private_pem(ec.generate_private_key(ec.SECP256R1())))
        if not sign_path.exists():
            write_secret(sign_path, private_pem(ed25519.Ed25519PrivateKey.generate()))
        if not contribution_path.exists():
            write_secret(contribution_path, secrets.token_bytes(_SECRET_BYTES))
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe))]), critical=True)
        )
        tls_key, sign_key = (
            read_tls_key(tls_path),
            read_sign_key(sign_path),
        )
        der = serialization.Encoding.DER
        return CertificateRequests(
            tls_csr=request.sign(tls_key, hashes.SHA256()).public_bytes(der),
            sign_csr=request.sign(sign_key, None).public_bytes(der),
        )

    @classmethod
    def install(cls, folder: Path, *, tls_certificate: bytes, sign_certificate: bytes, ca_pem: bytes) -> Self:
        """Put certificates beside the keys that `create` made, and open the whole.

        Args:
            folder: `keys/`.
            tls_certificate: DER.
            sign_certificate: DER.
            ca_pem: The CA that the caller trusts.

        Raises:
            IdentityError: The certificates are not for these keys, not of this CA's fleet, or name two principals.
        """
        tls_pem = parse_certificate(tls_certificate).public_bytes(serialization.Encoding.PEM)
        principal = cls._assemble(folder, tls_pem=tls_pem, sign_certificate=sign_certificate, ca_pem=ca_pem)
        write_public(folder / "ca.pem", ca_pem)
        write_public(folder / "sign.crt", parse_certificate(sign_certificate).public_bytes(serialization.Encoding.PEM))
        write_public(folder / "tls.crt", tls_pem)  # last: `open` succeeds only when all are there
        return principal

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a principal.

        Raises:
            NotFoundError: It is not enrolled: a file is missing.
            IdentityError: The files do not belong together, or others can read a key.
        """
        sign_pem = read_file(folder / "sign.crt")
        return cls._assemble(
            folder,
            tls_pem=read_file(folder / "tls.crt"),
            sign_certificate=_pem_to_der(sign_pem),
            ca_pem=read_file(folder / "ca.pem"),
        )

    @classmethod
    def _assemble(cls, folder: Path, *, tls_pem: bytes, sign_certificate: bytes, ca_pem: bytes) -> Self:
        tls_key = read_tls_key(folder / "tls.key")
        sign_key = read_sign_key(folder / "sign.key")
        contribution_key = read_file(folder / "contribution.key")
        tls, sign = parse_certificate(_pem_to_der(tls_pem)), parse_certificate(sign_certificate)
        if tls.public_key() != tls_key.public_key() or sign.public_key() != sign_key.public_key():
            raise IdentityError(f"a certificate is not for the keys in {folder}")
        spiffe = spiffe_of(tls)
        fleet = Trust.of(ca_pem).fleet
        if spiffe != spiffe_of(sign) or spiffe.fleet != fleet:
            raise IdentityError(
                f"certificates name {spiffe} and {spiffe_of(sign)}, expected one principal of fleet {fleet}"
            )
        if len(contribution_key) != _SECRET_BYTES:
            raise IdentityError(
                f"{folder / 'contribution.key'} has {len(contribution_key)} bytes, expected {_SECRET_BYTES}"
            )
        return cls(
            spiffe=spiffe,
            ca_pem=ca_pem,
            tls_cert_pem=tls_pem,
            sign_certificate=sign_certificate,
            _tls_key=tls_key,
            _sign_key=sign_key,
            _contribution_key=contribution_key,
        )


def is_enrolled(folder: Path) -> bool:
    """Return whether `folder` holds an enrolled principal."""
    try:
        read_file(folder / "tls.crt")
    except NotFoundError:
        return False
    return True


def _pem_to_der(pem: bytes) -> bytes:
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    except UNREADABLE as error:
        raise IdentityError("a certificate file holds no PEM certificate") from error
