"""Lossless compression (zstd) with a wall against bombs: nothing larger than the reader allows is ever allocated.

Example:
    >>> decompress(compress(b"aaaa"), max_bytes=4)
    b'aaaa'
"""

from __future__ import annotations

import zstandard

from nfl_core.errors import FrameError

LEVEL = 9  # weights barely compress; beyond 9 only time grows


def compress(data: bytes) -> bytes:
    """Compress into one zstd frame that states its content size and carries a checksum."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True).compress(data)


def decompress(data: bytes, *, max_bytes: int) -> bytes:
    """Decompress exactly one zstd frame.

    Args:
        data: What `compress` made.
        max_bytes: Largest length of the result.

    Raises:
        FrameError: Not one whole zstd frame, or its content is larger than `max_bytes` or than it announces.
    """
    try:
        announced = zstandard.get_frame_parameters(data).content_size
        if announced == zstandard.CONTENTSIZE_UNKNOWN or announced > max_bytes:
            raise FrameError(f"compressed data announce {announced} bytes, expected at most {max_bytes}")
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=announced, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(f"not one whole zstd frame: {error}") from error
    if len(raw) != announced:
        raise FrameError(f"compressed data hold {len(raw)} bytes and announce {announced}")
    return raw
