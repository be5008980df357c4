"""Masks and seals: known answers, round trips, and statistics with a positive control."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nfl_core.errors import MalformedError, PolicyError, SignatureError
from nfl_secure.secagg import SealContext, mask_values, open_seed, seal_seed
from nfl_secure.secagg.seal import SEALED_BYTES

CONTEXT = SealContext(
    policy_sha256="a" * 64,
    device="spiffe://home/device/a",
    contribution_id="b" * 32,
    leaf="leaf-1",
    base_digest="c" * 64,
    sha256_masked="d" * 64,
)


def test_mask_is_the_aes_256_ctr_key_stream() -> None:
    """Block 0 of the stream is AES-256 of the zero block: NIST AESAVS, KeySbox and VarKey known answers."""
    key = bytes.fromhex("c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558")
    words = mask_values(key, 4, 32)
    assert words.astype("<u4").tobytes().hex() == "46f2fb342d6f0ab477476fc501242c5f"
    zero = mask_values(bytes(32), 4, 32)
    assert zero.astype("<u4").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_blocks_count_up() -> None:
    """CTR with a zero nonce: block i is AES of the big-endian number i; block 1 of the all-zero key is known."""
    stream = mask_values(bytes(32), 8, 32).astype("<u4").tobytes()
    assert stream[16:].hex() == "530f8afbc74536b9a963b4f1c4cb738b"


@given(seed=st.binary(min_size=32, max_size=32), num=st.integers(0, 300), bits=st.integers(1, 32))
def test_masks_of_fewer_values_or_bits_are_parts_of_larger_ones(seed: bytes, num: int, bits: int) -> None:
    mask_N = mask_values(seed, num, bits)
    assert mask_N.dtype == np.uint32
    np.testing.assert_array_equal(mask_N, mask_values(seed, num + 5, 32)[:num] & np.uint32(2**bits - 1))


@pytest.mark.parametrize(
    ("seed", "num", "bits"), [(b"", 1, 8), (bytes(31), 1, 8), (bytes(32), -1, 8), (bytes(32), 1, 0), (bytes(32), 1, 33)]
)
def test_impossible_masks_are_refused(seed: bytes, num: int, bits: int) -> None:
    with pytest.raises(MalformedError):
        mask_values(seed, num, bits)


def _chi2(values: NDArray[np.uint32], *, bits: int) -> float:
    """Return the chi-squared statistic in standard deviations from its mean."""
    cells = min(bits, 8)
    counts = np.bincount(values >> np.uint32(bits - cells), minlength=2**cells)
    expected = values.size / 2**cells
    freedom = 2**cells - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("bits", [1, 5, 6, 8, 17, 32])
def test_masked_values_are_uniform_whatever_is_masked(bits: int) -> None:
    plain_N = np.zeros(200_000, np.uint32)  # the worst input: the same everywhere
    masked_N = (plain_N + mask_values(hashlib.sha256(b"fixed").digest(), plain_N.size, bits)) & np.uint32(2**bits - 1)
    assert abs(_chi2(masked_N, bits=bits)) < 4  # one chance in 16,000, and the seed is fixed


def test_positive_control_a_weak_generator_fails_the_same_statistic() -> None:
    """28 of 32 bits ever set, the known fault of a seed that is text: the statistic has to see it."""
    weak_N = mask_values(bytes(32), 200_000, 32) & np.uint32(0x7F7F7F7F)
    assert abs(_chi2(weak_N, bits=32)) > 100


def test_hkdf_known_answer() -> None:
    """RFC 5869, test case 1: the KDF that HPKE builds on here."""
    okm = HKDF(hashes.SHA256(), 42, bytes(range(13)), bytes(range(0xF0, 0xFA))).derive(b"\x0b" * 22)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def test_sealed_seed_round_trip() -> None:
    key = x25519.X25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    seed = bytes(range(32))
    sealed = seal_seed(seed, keeper_public=public, context=CONTEXT)
    assert len(sealed) == SEALED_BYTES == 80
    assert open_seed(sealed, key=key, context=CONTEXT) == seed
    assert seal_seed(seed, keeper_public=public, context=CONTEXT) != sealed  # a fresh ephemeral key each time


@pytest.mark.parametrize(
    "field", ["policy_sha256", "device", "contribution_id", "leaf", "base_digest", "sha256_masked"]
)
def test_a_seed_does_not_open_in_another_place(field: str) -> None:
    key = x25519.X25519PrivateKey.generate()
    sealed = seal_seed(bytes(32), keeper_public=key.public_key().public_bytes_raw(), context=CONTEXT)
    fields = {name: getattr(CONTEXT, name) for name in CONTEXT.__slots__}
    with pytest.raises(SignatureError):
        open_seed(sealed, key=key, context=SealContext(**{**fields, field: "e" + fields[field][1:]}))


@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, 79), bit=st.integers(0, 7))
@example(place=31, bit=7)  # X25519 ignores this bit of a public key (RFC 7748, 5); HPKE has to bind it
def test_a_tampered_sealed_seed_does_not_open(place: int, bit: int) -> None:
    key = x25519.X25519PrivateKey.from_private_bytes(bytes(range(32)))
    forged = bytearray(seal_seed(bytes(32), keeper_public=key.public_key().public_bytes_raw(), context=CONTEXT))
    forged[place] ^= 1 << bit
    with pytest.raises(SignatureError):
        open_seed(bytes(forged), key=key, context=CONTEXT)


@pytest.mark.parametrize("cut", [0, 31, 32, 79])
def test_a_cut_sealed_seed_does_not_open(cut: int) -> None:
    key = x25519.X25519PrivateKey.generate()
    sealed = seal_seed(bytes(32), keeper_public=key.public_key().public_bytes_raw(), context=CONTEXT)
    with pytest.raises(SignatureError):
        open_seed(sealed[:cut], key=key, context=CONTEXT)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32)])
def test_a_keeper_key_that_is_none_or_of_low_order_is_refused(public: bytes) -> None:
    with pytest.raises(PolicyError):
        seal_seed(bytes(32), keeper_public=public, context=CONTEXT)
