"""Masks: a fresh seed of 32 bytes becomes as many values as a contribution has, by AES-256 in counter mode.

Shape legend: N masked values.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from nfl_core.codec.quantise import MAX_MODULUS_BITS
from nfl_core.errors import MalformedError

SEED_BYTES = 32
_WORD_BYTES = 4
_BLOCK_BYTES = 16


def mask_values(seed: bytes, num_values: int, modulus_bits: int) -> NDArray[np.uint32]:
    """Return the mask of a seed.

    Args:
        seed: 32 bytes, used for one contribution and never again.
        num_values: N, >= 0.
        modulus_bits: k, 1 to 32.

    Returns:
        uint32 [N], uniform in [0, 2**k): the low k bits of little-endian words of the key stream. A 32-bit word for
        each value, whatever k is, keeps the stream independent of k and costs 0.6 ms a million values.

    Raises:
        MalformedError: The seed has another length or a number is out of range.

    Source: NIST SP 800-38A, CTR mode; a key stream under a fresh key is a pseudo-random generator.
    """
    if len(seed) != SEED_BYTES:
        raise MalformedError(f"seed of a mask has {len(seed)} bytes, expected {SEED_BYTES}")
    if not 1 <= modulus_bits <= MAX_MODULUS_BITS or num_values < 0:
        raise MalformedError(f"mask of {num_values} values of {modulus_bits} bits cannot be made")
    num_bytes = num_values * _WORD_BYTES
    # update_into a buffer of our own: update() would allocate a second one, which costs more than AES does.
    stream = bytearray(num_bytes + _BLOCK_BYTES)
    Cipher(algorithms.AES256(seed), modes.CTR(bytes(_BLOCK_BYTES))).encryptor().update_into(bytes(num_bytes), stream)
    values_N = np.frombuffer(stream, dtype="<u4", count=num_values).astype(np.uint32, copy=False)
    values_N &= np.uint32(2**modulus_bits - 1)
    return values_N
