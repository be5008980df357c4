"""The Ed25519 keys that sign a repository, as PEM files of mode 0600 in one folder.

Root keys can be taken away: everything but changing the root works without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import (  # type: ignore[attr-defined]  # builds its __all__ at run time, like python-tuf
    CryptoSigner,
    Key,
)
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]  # python-tuf builds its __all__ at run time

from nfl_core.durable import make_folder, read_file, write_file
from nfl_core.errors import DurableError, NotFoundError

ROOT_KEYS = ("root-1", "root-2", "root-3")
_Role = TypeVar("_Role", Root, Targets, Snapshot, Timestamp)
_ONLINE_KEYS = (Targets.type, Snapshot.type, Timestamp.type)


class Keyring:
    """Named signing keys.

    Args:
        folder: Where they are kept.
        signers: Name -> signer.
    """

    def __init__(self, folder: Path, signers: Mapping[str, CryptoSigner]) -> None:
        self._folder = folder
        self._signers = dict(signers)

    @classmethod
    def create(cls, folder: Path) -> Keyring:
        """Make all keys that are missing.

        Raises:
            StorageFullError: The disk is full.
            DurableError: A key cannot be written or read.
        """
        make_folder(folder)
        for name in (*ROOT_KEYS, *_ONLINE_KEYS):
            if not (folder / f"{name}.pem").is_file():
                write_file(folder / f"{name}.pem", CryptoSigner.generate_ed25519().private_bytes)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Keyring:
        """Read the keys that are there; root keys may be elsewhere.

        Raises:
            NotFoundError: An online key is missing.
            DurableError: A key cannot be read.
        """
        present = [name for name in ROOT_KEYS if (folder / f"{name}.pem").is_file()]
        return cls(folder, {name: _load(folder / f"{name}.pem") for name in (*present, *_ONLINE_KEYS)})

    def signer(self, name: str) -> CryptoSigner:
        """Return the signer of that name.

        Raises:
            NotFoundError: The key is not here.
        """
        if name not in self._signers:
            raise NotFoundError(
                f"the key {name} is not in {self._folder}", hint="bring the key back to the folder that is named"
            )
        return self._signers[name]

    def public(self, name: str) -> Key:
        """Return the public key of that name.

        Raises:
            NotFoundError: The key is not here.
        """
        return self.signer(name).public_key

    def sign(self, signed: _Role, *names: str, also: CryptoSigner | None = None) -> bytes:
        """Return the metadata of a role, signed by the keys of these names and by `also`.

        Raises:
            NotFoundError: A key is not here.
        """
        metadata = Metadata(signed)
        for signer in (*(self.signer(name) for name in names), *([] if also is None else [also])):
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def replacing(self, name: str) -> Keyring:
        """Return a ring in which that key is a fresh one, not yet on disk.

        Raises:
            NotFoundError: There is no such key here.
        """
        self.signer(name)
        return Keyring(self._folder, {**self._signers, name: CryptoSigner.generate_ed25519()})

    def save(self, name: str) -> None:
        """Write that key to disk over the one that was there.

        Raises:
            StorageFullError: The disk is full; the old key stands.
            DurableError: It cannot be written.
        """
        write_file(self._folder / f"{name}.pem", self.signer(name).private_bytes)


def _load(path: Path) -> CryptoSigner:
    try:
        return CryptoSigner(load_pem_private_key(read_file(path), None))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DurableError(f"{path} is not a private key: {error}") from error
