"""One frame around one payload: it says what it is, how long it is, and that it is whole.

Layout, little-endian, 32 bytes before the payload:

```
"NFLF" | version u8 | kind u8 | zero u16 | length u64 | SHA-256(first 16 bytes + payload), first 16 bytes
```

The checksum finds accidents; who sent the frame is what the signature inside it proves.

    >>> decode(encode(FrameKind.CONTRIBUTION, b"abc"), max_bytes=1024)
    (<FrameKind.CONTRIBUTION: 1>, b'abc')
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

from nfl_core.errors import FrameError

MAGIC = b"NFLF"
VERSION = 1
_HEAD = struct.Struct("<4sBBHQ")
_CHECK_BYTES = 16
HEADER_BYTES = _HEAD.size + _CHECK_BYTES


class FrameKind(IntEnum):
    """What a payload is."""

    CONTRIBUTION = 1
    SITE_MESSAGE = 2


def encode(kind: FrameKind, payload: bytes) -> bytes:
    """Frame a payload."""
    head = _HEAD.pack(MAGIC, VERSION, kind, 0, len(payload))
    return head + _check(head, payload) + payload


def decode(data: bytes, *, max_bytes: int) -> tuple[FrameKind, bytes]:
    """Take a frame apart.

    Args:
        data: Exactly one frame.
        max_bytes: Largest length of `data`.

    Returns:
        Kind and payload.

    Raises:
        FrameError: `data` is not one whole frame: cut, padded, too long, of an unknown version or kind, or changed.
    """
    if len(data) > max_bytes:
        raise FrameError(f"a frame has {len(data)} bytes, expected at most {max_bytes}")
    if len(data) < HEADER_BYTES:
        raise FrameError(f"a frame has {len(data)} bytes, expected at least {HEADER_BYTES}: it is cut")
    magic, version, kind, zero, length = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION or zero:
        raise FrameError(f"a frame begins with {data[:8].hex()}, expected {MAGIC.hex()} and version {VERSION}")
    if len(data) - HEADER_BYTES != length:
        raise FrameError(f"a frame announces {length} bytes and carries {len(data) - HEADER_BYTES}")
    payload = data[HEADER_BYTES:]
    if data[_HEAD.size : HEADER_BYTES] != _check(data[: _HEAD.size], payload):
        raise FrameError("a frame does not have its checksum: it was changed on the way")
    try:
        return FrameKind(kind), payload
    except ValueError as error:
        raise FrameError(f"a frame is of kind {kind}, expected one of {[int(known) for known in FrameKind]}") from error


def _check(head: bytes, payload: bytes) -> bytes:
    digest = hashlib.sha256(head)
    digest.update(payload)
    return digest.digest()[:_CHECK_BYTES]
