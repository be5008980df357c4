"""Signed statements: who said what, of which kind. What is verified is used as it came and is never serialised again.

Rules:
* the signer's certificate for signing is inside, and is one of the pinned fleet, valid now, of the expected role;
* the kind is part of what is signed: a statement of one kind never passes for another.

    >>> signed = principal.sign("roster", b"...")
    >>> spiffe, payload = verify(signed, kind="roster", ca_pem=principal.ca_pem, role=Role.LEAF, at=now)
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from google.protobuf.message import DecodeError

from nfl_core.errors import IdentityError, MalformedError, SignatureError
from nfl_core.wire import sites_pb2
from nfl_core.wire.limits import MAX_SITE_MESSAGE_BYTES
from nfl_secure.identity.envelope import signed_bytes
from nfl_secure.identity.spiffe import Role, SpiffeId
from nfl_secure.identity.trust import CertificateKind, Trust, parse_certificate


class Verified(NamedTuple):
    """A statement that was verified.

    Attributes:
        spiffe: Who signed it.
        payload: What was signed.
    """

    spiffe: SpiffeId
    payload: bytes


def verify(signed: bytes, *, kind: str, ca_pem: bytes, role: Role, at: datetime) -> Verified:
    """Return who signed a statement, and the statement.

    Args:
        signed: Bytes of a `Signed` message, from anybody.
        kind: The kind it has to be of.
        ca_pem: The pinned CA; its fleet is the only one that counts.
        role: The role the signer has to have.
        at: The time of use, aware.

    Raises:
        MalformedError: The bytes are no `Signed` message.
        SignatureError: Kind or signature do not fit.
        IdentityError: The certificate is not one for signing of this fleet, or of another role.
        ExpiredError: The certificate is not valid at that time.
    """
    if len(signed) > MAX_SITE_MESSAGE_BYTES:
        raise MalformedError(f"a signed statement has {len(signed)} bytes, expected at most {MAX_SITE_MESSAGE_BYTES}")
    try:
        message = sites_pb2.Signed.FromString(signed)
    except DecodeError as error:
        raise MalformedError(f"{len(signed)} bytes are not a signed statement") from error
    if message.kind != kind:
        raise SignatureError(f"statement is of kind {message.kind[:40]!r}, expected {kind!r}")
    certificate = parse_certificate(message.certificate)
    spiffe = Trust.of(ca_pem).check(certificate, kind=CertificateKind.SIGN, at=at)
    if spiffe.role is not role:
        raise IdentityError(f"{kind} is signed by {spiffe}, expected a principal of role {role.value}")
    key = certificate.public_key()
    if not isinstance(key, ed25519.Ed25519PublicKey):  # Trust.check said so already; this tells the type checker
        raise IdentityError(f"certificate of {spiffe} holds no Ed25519 key")
    try:
        key.verify(message.signature, signed_bytes(kind=kind, payload=message.payload))
    except InvalidSignature as error:
        raise SignatureError(f"signature of {spiffe} does not fit its {kind}") from error
    return Verified(spiffe, message.payload)
