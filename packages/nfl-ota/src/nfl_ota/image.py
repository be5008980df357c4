"""The one file that a slot is: manifest and chunks of a bundle, one after the other.

A slot does not point into a shared store on purpose: one bad block then damages one slot, not the one to fall back to
as well.

    >>> unpack_image(pack_image(bundle)).manifest == bundle.manifest
    True
"""

from __future__ import annotations

import struct

from nfl_core.errors import ContentError
from nfl_core.ids import Digest
from nfl_ota.bundle import Bundle, BundleManifest, ChunkRef, open_bundle

_HEADER = struct.Struct("<4sI")  # magic, length of the manifest
_MAGIC = b"NFLB"


def pack_image(bundle: Bundle) -> bytes:
    """Return the image of a bundle; equal bundles make equal images."""
    manifest = bundle.manifest.to_bytes()
    return b"".join(
        [
            _HEADER.pack(_MAGIC, len(manifest)),
            manifest,
            *(bundle.chunks[Digest(ref.sha256)] for ref in bundle.manifest.chunks),
        ]
    )


def unpack_image(data: bytes) -> Bundle:
    """Verify an image whole and return its bundle.

    Raises:
        ContentError: It is cut, padded or damaged.
        ManifestError: Its manifest is none.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ContentError(f"an image of {len(data)} bytes does not begin like one")
    _, length = _HEADER.unpack_from(data)
    manifest = BundleManifest.from_bytes(data[_HEADER.size : _HEADER.size + length])
    position = _HEADER.size + length
    places: dict[str, slice] = {}
    for ref in manifest.chunks:
        places[ref.sha256] = slice(position, position + ref.length)
        position += ref.length
    if position != len(data):
        raise ContentError(f"an image has {len(data)} bytes, expected {position}")

    def read_chunk(ref: ChunkRef) -> bytes:
        return data[places[ref.sha256]]

    return open_bundle(manifest, read_chunk)
