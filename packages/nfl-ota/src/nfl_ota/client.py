"""The device's side of an update: refresh signed metadata, take one manifest, download its chunks, all verified.

python-tuf's client does the TUF workflow. This module adds what it lacks on a device that can lose power at any moment:

* the durable floor (`nfl_ota.floor`) is asked before anything that was verified is kept, and again at the end of a
  refresh;
* whatever is trusted later is written through `nfl_core.durable`: bytes before names, names before the floor;
* expiry is judged by the later of the clock and the last refresh that succeeded;
* every download has a byte cap, and every error is one of ours that names what was wrong.

A failed refresh or download changes nothing that the device runs: chunks go to a cache, a bundle to the caller.

    >>> client = BundleClient(Path("update"), trusted_root, fetcher, floor, clock)
    >>> bundle = client.download(client.refresh("bundles/north/3.json"))
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path

from tuf.ngclient.config import UpdaterConfig

from nfl_core.durable import make_folder
from nfl_core.errors import ContentError, NotFoundError
from nfl_core.ids import Digest
from nfl_core.wire.limits import MAX_MANIFEST_BYTES, MAX_METADATA_BYTES
from nfl_ota.archive import ChunkStore
from nfl_ota.bundle import Bundle, BundleManifest, ChunkRef, open_bundle, verified_chunk
from nfl_ota.errors import ManifestError
from nfl_ota.floor import Floor
from nfl_ota.tuf_adapter import DurableUpdater, Fetcher, our_errors


class BundleClient:
    """Fetches and verifies bundles for one device.

    Args:
        folder: For trusted metadata and cached chunks; made when it is missing.
        trusted_root: TUF root metadata that the device was enrolled with.
        fetcher: Brings a file of the repository, by its path.
        floor: The device's anti-rollback floor.
        clock: Returns an aware datetime.

    Raises:
        StorageFullError: The disk is full.
        DurableError: The folder cannot be made.
    """

    def __init__(
        self, folder: Path, trusted_root: bytes, fetcher: Fetcher, floor: Floor, clock: Callable[[], datetime]
    ) -> None:
        self._metadata = folder / "metadata"
        self._staging = folder / "staging"
        for path in (self._metadata / "root_history", self._staging):
            make_folder(path)
        self._chunks = ChunkStore(folder / "chunks")
        self._trusted_root = trusted_root
        self._fetcher = fetcher
        self._floor = floor
        self._clock = clock

    def refresh(self, target_path: str) -> BundleManifest:
        """Bring the metadata up to date and return the manifest that stands at `target_path`.

        Args:
            target_path: For instance "bundles/north/3.json".

        Raises:
            RollbackError: A role or the bundle is older than this device has seen.
            ExpiredError: A role is past its end.
            SignatureError: A role lacks signatures of its keys.
            ContentError: A file is longer than allowed or not what was signed.
            MetadataError: Metadata cannot be read or do not fit together.
            ManifestError: The manifest breaks its rules or stands at the path of another.
            NotFoundError: No such target is signed.
            TransportError: A file cannot be fetched.
            StorageFullError: The disk is full; what was trusted before stands.
            DurableError: Something cannot be written.
        """
        now = self._floor.now(self._clock())
        with our_errors():
            updater = DurableUpdater(
                folder=self._metadata,
                staging=self._staging,
                fetcher=self._fetcher,
                trusted_root=self._trusted_root,
                floor=self._floor,
                now=now,
                config=UpdaterConfig(
                    root_max_length=MAX_METADATA_BYTES,
                    snapshot_max_length=MAX_METADATA_BYTES,
                    targets_max_length=MAX_METADATA_BYTES,
                ),
            )
            updater.refresh()
            info = updater.get_targetinfo(target_path)
            seen = updater.seen()
            if info is None:
                raise NotFoundError(
                    f"no signed target {target_path!r}", hint="the server assigns a bundle that was never published"
                )
            data = updater.target_bytes(info, max_bytes=MAX_MANIFEST_BYTES)
        manifest = BundleManifest.from_bytes(data)
        if manifest.target_path != target_path:
            raise ManifestError(f"the manifest at {target_path} is that of {manifest.target_path}")
        bundle = updater.bundle_mark(manifest.version)
        # Hours, so that a device that asks every second does not wear its flash out.
        hour = now.replace(minute=0, second=0, microsecond=0)
        self._floor.raise_to(seen.model_copy(update={"bundle": bundle, "seen_at": hour}))
        return manifest

    def download(self, manifest: BundleManifest) -> Bundle:
        """Fetch the chunks that are not here yet and return the bundle, verified whole.

        What was fetched stays in the cache, so an interrupted download goes on where it stopped.

        Args:
            manifest: From `refresh`.

        Raises:
            ContentError: A chunk is not what the manifest says.
            NotFoundError: The server has no such chunk.
            TransportError: A chunk cannot be fetched.
            StorageFullError: The disk is full; whole chunks that were fetched stay.
            DurableError: A chunk cannot be written.
        """
        return open_bundle(manifest, self._chunk)

    def missing(self, manifest: BundleManifest) -> tuple[ChunkRef, ...]:
        """Return what `download` would fetch."""
        return tuple(ref for ref in manifest.chunks if not self._chunks.has(Digest(ref.sha256)))

    def remember(self, bundle: Bundle) -> None:
        """Put the chunks of a bundle that is on the device already into the cache, for instance after a cache was lost.

        Raises:
            StorageFullError: The disk is full.
            DurableError: A chunk cannot be written.
        """
        for data in bundle.chunks.values():
            self._chunks.put(data)

    def forget(self, keep: Collection[BundleManifest]) -> int:
        """Remove cached chunks that no manifest in `keep` names; return how many bytes were freed.

        Raises:
            DurableError: A chunk cannot be removed.
        """
        return self._chunks.gc({Digest(ref.sha256) for manifest in keep for ref in manifest.chunks})

    def _chunk(self, ref: ChunkRef) -> bytes:
        digest = Digest(ref.sha256)
        try:
            return self._chunks.get(digest)
        except (NotFoundError, ContentError):  # not here, or damaged by a power cut: fetch it
            data = verified_chunk(ref, self._fetcher.fetch(f"chunks/{digest}", max_bytes=ref.length))
            self._chunks.put(data)
            return data
