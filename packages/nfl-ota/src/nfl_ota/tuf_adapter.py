"""python-tuf's client on a disk that can lose power, with a floor, a clock and a fetcher that are given.

`DurableUpdater` overrides four private methods of `tuf.ngclient.Updater`; the tests pin them, so that a python-tuf that
changes them is noticed. The order of checks and the TUF workflow itself stay python-tuf's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

from tuf.api import exceptions
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp  # type: ignore[attr-defined]  # python-tuf builds its __all__ at run time
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from nfl_core.durable import write_file
from nfl_core.errors import (
    ContentError,
    DurableError,
    ExpiredError,
    NotFoundError,
    RollbackError,
    SignatureError,
    StorageFullError,
    TransportError,
    UnreachableError,
)
from nfl_core.ids import canonical_json, digest_of
from nfl_core.wire.limits import MAX_METADATA_BYTES
from nfl_ota.errors import MetadataError
from nfl_ota.floor import Floor, FloorState, Mark

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Fetcher(Protocol):
    """Brings files of a repository: over the device protocol, from a folder, from memory."""

    def fetch(self, path: str, *, max_bytes: int) -> bytes:
        """Return the content of a file.

        Args:
            path: Relative, for instance "metadata/timestamp.json" or "chunks/<sha256>".
            max_bytes: Stop with a ContentError as soon as more than this arrived.

        Raises:
            NotFoundError: There is no such file.
            ContentError: It is longer than `max_bytes`.
            TransportError: It cannot be fetched.
        """


class DurableUpdater(Updater):
    """`tuf.ngclient.Updater`, made safe against power cuts and replay after them. One refresh per instance.

    Args:
        folder: Trusted metadata; holds a folder `root_history`.
        staging: For downloads that are not verified yet.
        fetcher: Brings files.
        trusted_root: Root metadata that everything starts from.
        floor: Asked before anything is kept.
        now: Time that expiry is judged by, aware.
        config: Byte caps.
    """

    def __init__(
        self,
        *,
        folder: Path,
        staging: Path,
        fetcher: Fetcher,
        trusted_root: bytes,
        floor: Floor,
        now: datetime,
        config: UpdaterConfig,
    ) -> None:
        self._floor = floor
        self._staging = staging
        super().__init__(
            metadata_dir=str(folder),
            metadata_base_url="metadata/",
            target_base_url="targets/",
            fetcher=_FetcherAdapter(fetcher),
            config=config,
            bootstrap=trusted_root,
        )
        self._trusted_set.reference_time = now

    def refresh(self) -> None:
        """Do the TUF workflow, then ask the floor about the whole of it and raise it."""
        super().refresh()
        self._floor.raise_to(self.seen())

    def seen(self) -> FloorState:
        """Return the numbers of the roles that were verified so far in this refresh."""
        trusted = self._trusted_set
        root = trusted.root
        # Who may drive a number up is who signs it or who names it: the snapshot names the number of the targets.
        signers = {
            Timestamp.type: (Timestamp.type,),
            Snapshot.type: (Snapshot.type,),
            Targets.type: (Snapshot.type, Targets.type),
        }
        marks = {
            name: Mark(number=trusted[name].version, keys=_fingerprint(root, *roles))
            for name, roles in signers.items()
            if name in trusted
        }
        return FloorState(root=Mark(number=root.version)).model_copy(update=marks)

    def bundle_mark(self, version: int) -> Mark:
        """Return the mark of a bundle: the targets role alone vouches for its number."""
        return Mark(number=version, keys=_fingerprint(self._trusted_set.root, Targets.type))

    def target_bytes(self, info: TargetFile, *, max_bytes: int) -> bytes:
        """Return a target, verified.

        Raises:
            ContentError: It is signed as longer than `max_bytes`.
        """
        if info.length > max_bytes:
            raise ContentError(f"target {info.path} has {info.length} bytes, expected at most {max_bytes}")
        place = self._staging / "target"
        self.download_target(info, str(place))
        data = place.read_bytes()
        # download_target writes in place: what the disk gives back is checked again, not what was received.
        info.verify_length_and_hashes(data)
        place.unlink()
        return data

    def _load_root(self) -> None:
        super()._load_root()
        # A root is kept even when the rest of the refresh fails: it only ever goes forward.
        self._floor.raise_to(FloorState(root=Mark(number=self._trusted_set.root.version)))

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        self._floor.check(self.seen())
        super()._persist_metadata(rolename, data)

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not path.is_file() or path.read_bytes() != data:
            write_file(path, data)

    def _update_root_symlink(self) -> None:
        """Do nothing: python-tuf reads the link only without `bootstrap`, and removing and making it is not atomic."""


class _FetcherAdapter(FetcherInterface):
    """Our one-method fetcher as python-tuf's."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self._get(url, MAX_METADATA_BYTES)

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """Yield a file whose length was capped before it was received."""
        yield BytesIO(self._get(url, max_length))

    def _get(self, url: str, max_length: int) -> bytes:
        try:
            data = self._fetcher.fetch(url, max_bytes=max_length)
        except NotFoundError as error:
            raise exceptions.DownloadHTTPError(error.message, 404) from error
        except OSError as error:
            raise UnreachableError(f"cannot fetch {url}: {error}") from error
        if len(data) > max_length:
            raise exceptions.DownloadLengthMismatchError(f"{url} has {len(data)} bytes, expected at most {max_length}")
        return data


@contextmanager
def our_errors() -> Iterator[None]:
    """Turn python-tuf's errors, and the disk's, into ours."""
    try:
        yield
    except exceptions.ExpiredMetadataError as error:
        raise ExpiredError(f"signed metadata are past their end: {error}") from error
    except exceptions.BadVersionNumberError as error:
        raise RollbackError(f"signed metadata are older than what this device has: {error}") from error
    except exceptions.UnsignedMetadataError as error:
        raise SignatureError(f"signed metadata lack signatures: {error}") from error
    except (exceptions.LengthOrHashMismatchError, exceptions.DownloadLengthMismatchError) as error:
        raise ContentError(f"a file of the repository is not what was signed: {error}") from error
    except exceptions.RepositoryError as error:
        raise MetadataError(f"signed metadata cannot be used: {str(error)[:300]}") from error
    except exceptions.DownloadHTTPError as error:
        raise NotFoundError(f"the server lacks a file: {error}") from error
    except exceptions.DownloadError as error:
        raise TransportError(f"a file of the repository cannot be fetched: {error}") from error
    except OSError as error:
        kind = StorageFullError if error.errno in _FULL else DurableError
        raise kind(f"cannot keep what was fetched: {error}") from error


def _fingerprint(root: Root, *roles: str) -> str:
    """Name the keys of roles, so that the floor notices when the root replaces them."""
    keys = [[sorted(root.roles[role].keyids), root.roles[role].threshold] for role in roles]
    return digest_of(canonical_json(keys))[:32]
