"""The envelope of everything that is signed: how a statement becomes the bytes that Ed25519 signs.

signature = Ed25519 over `nfl/v1/KIND`, NUL, payload. The kind has no NUL in it, so no two (kind, payload) give the same
bytes.
"""

from __future__ import annotations

import re

from cryptography.hazmat.primitives.asymmetric import ed25519

from nfl_core.errors import MalformedError
from nfl_core.wire import sites_pb2

_KIND = re.compile(r"[a-z][a-z-]{0,31}")


def sign_with(key: ed25519.Ed25519PrivateKey, *, kind: str, payload: bytes, certificate: bytes) -> bytes:
    """Return the bytes of a `Signed` message. The same input gives the same bytes.

    Args:
        key: Signs.
        kind: What sort of statement it is, `[a-z-]`.
        payload: What is stated.
        certificate: DER of the certificate for `key`.

    Raises:
        MalformedError: `kind` has another form.
    """
    message = sites_pb2.Signed(
        kind=kind,
        payload=payload,
        certificate=certificate,
        signature=key.sign(signed_bytes(kind=kind, payload=payload)),
    )
    return message.SerializeToString(deterministic=True)


def signed_bytes(*, kind: str, payload: bytes) -> bytes:
    """Return what is signed for a statement. Raises MalformedError when `kind` has a wrong form."""
    if not _KIND.fullmatch(kind):
        raise MalformedError(f"kind of a statement is {kind[:40]!r}, expected a-z and -")
    return b"nfl/v1/" + kind.encode() + b"\0" + payload
