from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.codec.frame import HEADER_BYTES, FrameKind, decode, encode
from nfl_core.errors import FrameError

MAX_BYTES = 4096


@given(payload=st.binary(max_size=1000), kind=st.sampled_from(FrameKind))
def test_round_trip(payload: bytes, kind: FrameKind) -> None:
    assert decode(encode(kind, payload), max_bytes=MAX_BYTES) == (kind, payload)


@given(payload=st.binary(max_size=100), cut=st.integers(1, 132))
def test_cut_frame_is_refused(payload: bytes, cut: int) -> None:
    with pytest.raises(FrameError):
        decode(encode(FrameKind.CONTRIBUTION, payload)[:-cut], max_bytes=MAX_BYTES)


@given(payload=st.binary(max_size=100), padding=st.binary(min_size=1, max_size=100))
def test_padded_frame_is_refused(payload: bytes, padding: bytes) -> None:
    with pytest.raises(FrameError, match="announces"):
        decode(encode(FrameKind.CONTRIBUTION, payload) + padding, max_bytes=MAX_BYTES)


@given(payload=st.binary(max_size=100), place=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused(payload: bytes, place: int, bit: int) -> None:
    frame = bytearray(encode(FrameKind.CONTRIBUTION, payload))
    frame[place % len(frame)] ^= 1 << bit
    with pytest.raises(FrameError):
        decode(bytes(frame), max_bytes=MAX_BYTES)


def forged(
    *, payload: bytes = b"abc", length: int | None = None, kind: int = 1, magic: bytes = b"NFLF", version: int = 1
) -> bytes:
    """Make a frame whose checksum is right, whatever it announces."""
    head = struct.pack("<4sBBHQ", magic, version, kind, 0, len(payload) if length is None else length)
    return head + hashlib.sha256(head + payload).digest()[:16] + payload


@pytest.mark.parametrize("length", [0, 2, 4, 2**31, 2**63, 2**64 - 1])
def test_forged_length_is_refused_and_nothing_allocated(length: int) -> None:
    with pytest.raises(FrameError, match=f"announces {length} bytes and carries 3"):
        decode(forged(length=length), max_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (forged(kind=77), "kind 77"),
        (forged(magic=b"GIF8"), "begins with"),
        (forged(version=2), "begins with"),
        (b"", "it is cut"),
    ],
)
def test_foreign_frame_is_refused(frame: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        decode(frame, max_bytes=MAX_BYTES)


def test_the_forger_of_this_test_makes_whole_frames() -> None:
    assert decode(forged(), max_bytes=MAX_BYTES) == (FrameKind.CONTRIBUTION, b"abc")


def test_frame_beyond_the_limit_is_refused() -> None:
    frame = encode(FrameKind.CONTRIBUTION, b"x" * 100)
    assert decode(frame, max_bytes=HEADER_BYTES + 100)
    with pytest.raises(FrameError, match="expected at most 131"):
        decode(frame, max_bytes=HEADER_BYTES + 99)
