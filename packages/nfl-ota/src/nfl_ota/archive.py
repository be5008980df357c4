"""A content-addressed store of chunks: the name of a file is the SHA-256 of its bytes, and reading checks it.

A store is a cache or an archive, never a source of trust: whoever opens a bundle verifies its chunks against the
manifest.

    >>> store = ChunkStore(Path("chunks"))
    >>> digest = store.put(b"weights")
    >>> store.get(digest)
    b'weights'
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from nfl_core.durable import make_folder, read_file, remove_file, write_file
from nfl_core.errors import ContentError
from nfl_core.ids import Digest, digest_of, parse_digest


class ChunkStore:
    """Chunks in one folder.

    Args:
        folder: Made when it is missing.

    Raises:
        StorageFullError: The disk is full.
        DurableError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder

    def put(self, data: bytes) -> Digest:
        """Keep `data` and return its name; do nothing when it is there and whole.

        Raises:
            StorageFullError: The disk is full; nothing was added.
            DurableError: The chunk cannot be written.
        """
        digest = digest_of(data)
        if not self.has(digest):
            write_file(self._folder / digest, data, mode=0o644)
        return digest

    def get(self, digest: Digest) -> bytes:
        """Return a chunk, verified.

        Raises:
            NotFoundError: The store has no such chunk.
            ContentError: The file was damaged.
            DurableError: The file cannot be read.
        """
        data = read_file(self._folder / parse_digest(digest))
        if (got := digest_of(data)) != digest:
            raise ContentError(
                f"chunk {digest} on disk has digest {got}", hint="it is fetched again at the next update"
            )
        return data

    def has(self, digest: Digest) -> bool:
        """Whether the chunk is there and whole."""
        path = self._folder / parse_digest(digest)
        return path.is_file() and digest_of(path.read_bytes()) == digest

    def __iter__(self) -> Iterator[Digest]:
        """Yield the names of all chunks, sorted; a name does not prove that the file is whole."""
        yield from sorted(Digest(path.name) for path in self._folder.iterdir() if not path.name.startswith("."))

    def gc(self, keep: Collection[Digest]) -> int:
        """Remove every chunk that is not in `keep`; return how many bytes were freed.

        Raises:
            DurableError: A chunk cannot be removed.
        """
        freed = 0
        for digest in tuple(self):
            if digest not in keep:
                path = self._folder / digest
                freed += path.stat().st_size
                remove_file(path)
        return freed
