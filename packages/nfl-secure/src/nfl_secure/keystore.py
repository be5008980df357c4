"""Keys on disk: folders of mode 0700, secrets 0600, certificates 0644, each written at once or not at all.

Keys are not encrypted at rest: a robot has nobody to type a passphrase. Who can read the files is the device.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

from nfl_core.durable import make_folder, read_file, write_file
from nfl_core.errors import IdentityError

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey

FOLDER_MODE = 0o700
SECRET_MODE = 0o600
PUBLIC_MODE = 0o644


def utc_now() -> datetime:
    """Return the time of this machine, aware."""
    return datetime.now(timezone.utc)


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, and close one that is open to others.

    Raises:
        DurableError: It cannot be made.
    """
    make_folder(path, mode=FOLDER_MODE)
    path.chmod(FOLDER_MODE)


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read. Raises StorageFullError or DurableError."""
    write_file(path, data, mode=SECRET_MODE)


def write_public(path: Path, data: bytes) -> None:
    """Write a file that everybody can read. Raises StorageFullError or DurableError."""
    write_file(path, data, mode=PUBLIC_MODE)


def private_pem(key: PrivateKey) -> bytes:
    """Return a key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the ECDSA key in a PEM file.

    Raises:
        NotFoundError: There is no such file.
        IdentityError: It holds something else, or others can read it.
    """
    key = _read_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{path} holds a {type(key).__name__}, expected an ECDSA P-256 key")
    return key


def read_sign_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """Return the Ed25519 key in a PEM file. Raises like `read_tls_key`."""
    key = _read_key(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise IdentityError(f"{path} holds a {type(key).__name__}, expected an Ed25519 key")
    return key


def read_seal_key(path: Path) -> x25519.X25519PrivateKey:
    """Return the X25519 key in a PEM file. Raises like `read_tls_key`."""
    key = _read_key(path)
    if not isinstance(key, x25519.X25519PrivateKey):
        raise IdentityError(f"{path} holds a {type(key).__name__}, expected an X25519 key")
    return key


def _read_key(path: Path) -> object:
    pem = read_file(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise IdentityError(
            f"{path} has mode {mode:04o}, expected 0600", hint=f"make it private again: chmod 600 '{path}'"
        )
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{path} holds no private key") from error
