from __future__ import annotations

import contextlib
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.codec.entropy import compress, decompress
from nfl_core.errors import FrameError

MIB = 1024 * 1024


@given(st.binary(max_size=2000))
def test_round_trip(data: bytes) -> None:
    assert decompress(compress(data), max_bytes=2000) == data


def test_equal_content_gives_equal_bytes() -> None:
    assert compress(b"weights" * 1000) == compress(b"weights" * 1000)


def test_bomb_is_refused_before_anything_is_allocated() -> None:
    bomb = compress(bytes(64 * MIB))
    tracemalloc.start()
    with pytest.raises(FrameError, match=f"announce {64 * MIB} bytes"):
        decompress(bomb, max_bytes=MIB)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < MIB


def test_bomb_that_lies_about_its_size_is_refused() -> None:
    honest = bytearray(compress(bytes(64 * MIB)))
    small = compress(bytes(300))
    size_at = bytes(honest).index((64 * MIB).to_bytes(4, "little"))
    honest[size_at : size_at + 4] = (300).to_bytes(4, "little")
    assert len(small)
    with pytest.raises(FrameError):
        decompress(bytes(honest), max_bytes=MIB)


def test_content_of_unknown_size_is_refused() -> None:
    stream = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    with pytest.raises(FrameError, match="announce"):
        decompress(stream, max_bytes=MIB)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_cut_padded_or_changed_data_are_refused(raw: bytes, data: st.DataObject) -> None:
    whole = compress(raw)
    cut = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for wrong in (whole[:cut], whole + b"\0", whole + whole):
        with pytest.raises(FrameError):
            decompress(wrong, max_bytes=300)
    with contextlib.suppress(FrameError):
        # zstd leaves a few header bits without meaning; what it accepts must be what was compressed.
        assert decompress(bytes(changed), max_bytes=300) == raw
