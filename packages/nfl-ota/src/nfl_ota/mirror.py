"""A copy of the repository in a folder: a leaf's cache, a USB stick. It is trusted by nobody and needs no keys.

Paths come from other machines, so they are checked against the few forms that a repository has before they touch the
disk.

    >>> mirror = Mirror(Path("cache"))
    >>> mirror.write("metadata/timestamp.json", data)
    >>> mirror.fetch("metadata/timestamp.json", max_bytes=1_000_000) == data
    True
"""

from __future__ import annotations

import re
from pathlib import Path

from nfl_core.durable import make_folder, write_file
from nfl_core.errors import ContentError, NotFoundError
from nfl_core.ids import digest_of
from nfl_core.wire.limits import MAX_CHUNK_BYTES, MAX_MANIFEST_BYTES, MAX_METADATA_BYTES

_FORMS = (
    (re.compile(r"metadata/(timestamp|[1-9][0-9]{0,18}\.(root|targets|snapshot))\.json"), MAX_METADATA_BYTES),
    (re.compile(r"targets/bundles/[a-z0-9][a-z0-9-]{0,62}/[0-9a-f]{64}\.[1-9][0-9]{0,15}\.json"), MAX_MANIFEST_BYTES),
    (re.compile(r"chunks/[0-9a-f]{64}"), MAX_CHUNK_BYTES),
)


def max_bytes_of(path: str) -> int:
    """Return how long the file at a path of a repository may be.

    Raises:
        NotFoundError: No repository has a file of such a path.
    """
    for form, limit in _FORMS:
        if form.fullmatch(path):
            return limit
    raise NotFoundError(f"{path[:100]!r} is not the path of a repository's file")


class Mirror:
    """A folder that holds files of a repository, and a `Fetcher` of them.

    Args:
        folder: Made when it is missing.

    Raises:
        StorageFullError: The disk is full.
        DurableError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder

    def write(self, path: str, data: bytes) -> None:
        """Keep a file, durably. Write files in the order of `Repository.files_since`.

        Raises:
            NotFoundError: The path is none of a repository.
            ContentError: The file is too long, or a chunk has another digest than its name says.
            StorageFullError: The disk is full; what was there stands.
            DurableError: It cannot be written.
        """
        limit = max_bytes_of(path)
        if len(data) > limit:
            raise ContentError(f"{path} has {len(data)} bytes, expected at most {limit}")
        # A chunk needs no signature to be told from a damaged one: notice it here, not in every device.
        if path.startswith("chunks/") and digest_of(data) != path.removeprefix("chunks/"):
            raise ContentError(f"{path} has digest {digest_of(data)}")
        make_folder((self._folder / path).parent)
        write_file(self._folder / path, data, mode=0o644)

    def has(self, path: str) -> bool:
        """Whether the file is there.

        Raises:
            NotFoundError: The path is none of a repository.
        """
        max_bytes_of(path)
        return (self._folder / path).is_file()

    def fetch(self, path: str, *, max_bytes: int) -> bytes:
        """Return the content of a file.

        Raises:
            NotFoundError: There is no such file, or the path is none of a repository.
            ContentError: It is longer than `max_bytes`.
        """
        if not self.has(path):
            raise NotFoundError(f"no file {path}")
        with (self._folder / path).open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise ContentError(f"{path} has more than {max_bytes} bytes")
        return data
