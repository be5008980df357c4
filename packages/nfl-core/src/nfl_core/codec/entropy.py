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
        frame = zstandard.get_frame_parameters(data)
        announced = frame.content_size
        if announced == zstandard.CONTENTSIZE_UNKNOWN or announced > max_bytes:
            raise FrameError(f"compressed data announce {announced} bytes, expected at most {max_bytes}")
        if not frame.has_checksum or frame.dict_id:
            raise FrameError("compressed data have no checksum or need a dictionary, expected a checksum and none")
        if not announced and data != compress(b""):  # the library takes any frame of no content, whatever follows
            raise FrameError(f"compressed data of {len(data)} bytes announce no content")
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=announced, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(f"not one whole zstd frame: {error}") from error
    if len(raw) != announced:
        raise FrameError(f"compressed data hold {len(raw)} bytes and announce {announced}")
    return raw
