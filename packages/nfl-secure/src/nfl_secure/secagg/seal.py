"""Sealing the seed of a mask to the keeper: HPKE (RFC 9180) with X25519, HKDF-SHA256 and AES-256-GCM.

The seed is bound to everything it was made for: the policy, the device, the contribution, the leaf, the base and the
masked values. A seed that is moved to another place does not open there.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from nfl_core.errors import PolicyError, SignatureError
from nfl_secure.secagg.prg import SEED_BYTES

SEALED_BYTES = 32 + SEED_BYTES + 16  # encapsulated key, seed, tag
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealContext:
    """What a sealed seed is bound to. All are hex or names, so joining them is unambiguous."""

    policy_sha256: str
    device: str
    contribution_id: str
    leaf: str
    base_digest: str
    sha256_masked: str

    def info(self) -> bytes:
        """Return the HPKE info."""
        parts = (self.policy_sha256, self.device, self.contribution_id, self.leaf, self.base_digest, self.sha256_masked)
        return "|".join(("nfl/v1/seed", *parts)).encode()


def seal_seed(seed: bytes, *, keeper_public: bytes, context: SealContext) -> bytes:
    """Return 80 bytes that only the keeper can open, and only for `context`.

    Raises:
        PolicyError: The keeper's key is no X25519 key.
    """
    try:
        key = x25519.X25519PublicKey.from_public_bytes(keeper_public)
        return _SUITE.encrypt(seed, key, context.info())
    except ValueError as error:
        raise PolicyError("the keeper's key is not a usable X25519 key") from error


def open_seed(sealed: bytes, *, key: x25519.X25519PrivateKey, context: SealContext) -> bytes:
    """Return the seed.

    Raises:
        SignatureError: It was sealed to another key or for another context, or was changed.
    """
    try:
        seed = _SUITE.decrypt(sealed, key, context.info())
    except (InvalidTag, ValueError) as error:
        raise SignatureError(
            f"seed of contribution {context.contribution_id} does not open for what it is said to belong to"
        ) from error
    if len(seed) != SEED_BYTES:
        raise SignatureError(
            f"seed of contribution {context.contribution_id} has {len(seed)} bytes, expected {SEED_BYTES}"
        )
    return seed
