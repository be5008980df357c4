"""Bring an offered bundle to the device: verified download, with everything that was fetched kept for the next try."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from nfl_core.durable import read_file
from nfl_core.errors import ContentError
from nfl_edge.folder import DeviceFolder
from nfl_edge.link import Link, LinkFetcher
from nfl_edge.settings import DeviceSettings
from nfl_edge.words import Base
from nfl_ota.bundle import Bundle, BundleManifest
from nfl_ota.client import BundleClient
from nfl_ota.floor import Floor


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A verified bundle, and how many bytes came over the link for it."""

    bundle: Bundle
    num_bytes: int


class Updates:
    """Fetches bundles for one device.

    Args:
        folder: The device's folder.
        link: The leaf.
        settings: Which region's bundles are ours.
        clock: Present time, UTC.
        keep: Bundles on the device, whose chunks a later version may name again.
    """

    def __init__(
        self,
        folder: DeviceFolder,
        *,
        link: Link,
        settings: DeviceSettings,
        clock: Callable[[], datetime],
        keep: Callable[[], tuple[BundleManifest, ...]],
    ) -> None:
        self._folder = folder
        self._link = link
        self._settings = settings
        self._clock = clock
        self._keep = keep
        self._client: BundleClient | None = None
        self._fetcher: LinkFetcher | None = None

    async def fetch(self, offer: Base) -> Fetched:
        """Refresh the metadata, check that the offer is what was signed, and download what is missing.

        Raises:
            TransportError: The leaf is away.
            VerificationError: Something is not what was signed, too old or expired.
            NotFoundError: The leaf offers what it does not have.
            StorageFullError: The disk is full.
            DurableError: Something cannot be written.
        """
        if self._fetcher is None:
            self._fetcher = LinkFetcher(self._link, asyncio.get_running_loop())
        return await asyncio.to_thread(self._fetch, self._fetcher, offer)

    def _fetch(self, fetcher: LinkFetcher, offer: Base) -> Fetched:
        if self._client is None:
            floor = Floor(self._folder.state / "floor")
            trusted_root = read_file(self._folder.trusted_root)
            self._client = BundleClient(self._folder.cache, trusted_root, fetcher, floor, self._clock)
        before = fetcher.num_bytes
        manifest = self._client.refresh(offer.target)
        got = (manifest.region, manifest.version, manifest.content_digest)
        if got != (self._settings.region, offer.version, offer.digest):
            raise ContentError(
                f"bundle {offer.target} is {got}, expected {(self._settings.region, offer.version, offer.digest)}"
            )
        bundle = self._client.download(manifest)
        self._client.forget([manifest, *self._keep()])
        return Fetched(bundle=bundle, num_bytes=fetcher.num_bytes - before)
