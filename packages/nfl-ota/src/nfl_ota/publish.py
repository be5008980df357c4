"""The root's side of an update: a TUF repository whose targets are bundle manifests, beside a store of their chunks.

Layout, the same in the root's folder, in every leaf's cache and on the wire:

```
metadata/N.root.json  N.targets.json  N.snapshot.json  timestamp.json
targets/bundles/<region>/<sha256>.<version>.json
chunks/<sha256>
```

Rules:

* keys are Ed25519; the root role needs 2 of 3, and the root keys can be kept elsewhere: publishing does without them;
* every file but `timestamp.json` has a name that is never used again for other content (consistent snapshots, content
  addressing), and `timestamp.json` comes last: whoever has received any part of a publication serves the state before;
* versions only grow; a rollback is a new version with the old content, of which a device fetches no chunk it has;
* an interrupted publication leaves the old state in force, and publishing again finishes it.

    >>> repository = Repository.create(Path("repo"), Path("keys"), clock)
    >>> repository.publish([(manifest, chunks)])
    >>> for path, data in repository.files_since(0): send(path, data)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp  # type: ignore[attr-defined]  # python-tuf builds its __all__ at run time

from nfl_core.durable import Journal, make_folder, read_file, write_file
from nfl_core.errors import DurableError, NotFoundError
from nfl_core.ids import Digest, RegionId, VersionId, canonical_json, digest_of
from nfl_ota.archive import ChunkStore
from nfl_ota.bundle import BundleManifest, target_path, verified_chunk
from nfl_ota.errors import PublishError
from nfl_ota.keyring import ROOT_KEYS, Keyring

ROOT_THRESHOLD = 2
_PUBLIC_MODE = 0o644  # everything in a repository is made to be handed out
_ONLINE = (Targets.type, Snapshot.type, Timestamp.type)
_Role = TypeVar("_Role", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiries:
    """How long signed metadata are good. A device that is away for longer keeps what it runs and installs nothing.

    Attributes:
        root: Of the root role.
        targets: Of the targets role.
        snapshot: Of the snapshot role.
        timestamp: Of the timestamp role: how long a freeze can go unnoticed.
    """

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=90)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=1)


class Repository:
    """The signed repository of one fleet on disk. One process at a time writes it.

    Args:
        folder: Holds `metadata`, `targets`, `chunks` and `publications`.
        keys: Signing keys.
        clock: Returns an aware datetime.
        expiries: Of what is signed from now on.

    Raises:
        NotFoundError: There is no repository in `folder`.
        DurableError: It cannot be read.
    """

    def __init__(
        self, folder: Path, keys: Keyring, clock: Callable[[], datetime], *, expiries: Expiries | None = None
    ) -> None:
        self._folder = folder
        self._keys = keys
        self._clock = clock
        self._expiries = expiries or Expiries()
        self._chunks = ChunkStore(folder / "chunks")
        self._journal = Journal(folder / "publications")
        timestamp = self._read("metadata/timestamp.json", Timestamp)
        snapshot = self._read(f"metadata/{timestamp.snapshot_meta.version}.snapshot.json", Snapshot)
        self._timestamp, self._snapshot = timestamp, snapshot
        self._targets = self._read(f"metadata/{snapshot.meta['targets.json'].version}.targets.json", Targets)

    @classmethod
    def create(
        cls, folder: Path, keys_folder: Path, clock: Callable[[], datetime], *, expiries: Expiries | None = None
    ) -> Repository:
        """Make the keys and an empty repository; open it when it is there already.

        Args:
            folder: Of the repository.
            keys_folder: Gets `root-1.pem` to `root-3.pem`, `targets.pem`, `snapshot.pem`, `timestamp.pem`, mode 0600.
            clock: Returns an aware datetime.
            expiries: None: 365, 90, 7 days and 1 day.

        Raises:
            StorageFullError: The disk is full.
            DurableError: Something cannot be written.
        """
        if (folder / "metadata" / "timestamp.json").is_file():
            return cls.open(folder, keys_folder, clock, expiries=expiries)
        for name in ("metadata", "targets", "chunks"):
            make_folder(folder / name)
        keys = Keyring.create(keys_folder)
        expiries = expiries or Expiries()
        now = _seconds(clock())
        root = Root(version=1, expires=now + expiries.root, consistent_snapshot=True)
        for name in ROOT_KEYS:
            root.add_key(keys.public(name), Root.type)
        root.roles[Root.type].threshold = ROOT_THRESHOLD
        for role in _ONLINE:
            root.add_key(keys.public(role), role)
        targets = Targets(version=1, expires=now + expiries.targets)
        snapshot = Snapshot(version=1, expires=now + expiries.snapshot)
        timestamp = Timestamp(version=1, expires=now + expiries.timestamp)
        contents = [
            ("metadata/1.root.json", keys.sign(root, *ROOT_KEYS)),
            ("metadata/1.targets.json", keys.sign(targets, Targets.type)),
        ]
        snapshot.meta["targets.json"] = _meta(contents[-1][1], 1)
        contents.append(("metadata/1.snapshot.json", keys.sign(snapshot, Snapshot.type)))
        timestamp.snapshot_meta = _meta(contents[-1][1], 1)
        contents.append(("metadata/timestamp.json", keys.sign(timestamp, Timestamp.type)))
        Journal(folder / "publications").replace([_entry(1, [path for path, _ in contents[:-1]])])
        for path, data in contents:
            write_file(folder / path, data, mode=_PUBLIC_MODE)
        return cls(folder, keys, clock, expiries=expiries)

    @classmethod
    def open(
        cls, folder: Path, keys_folder: Path, clock: Callable[[], datetime], *, expiries: Expiries | None = None
    ) -> Repository:
        """Open a repository that `create` made.

        Raises:
            NotFoundError: The repository or an online key is missing.
            DurableError: Something cannot be read.
        """
        return cls(folder, Keyring.open(keys_folder), clock, expiries=expiries)

    @property
    def marker(self) -> int:
        """The number of the newest publication: what `files_since` takes."""
        return self._timestamp.version

    @property
    def root_bytes(self) -> bytes:
        """The newest root metadata: what devices are enrolled with."""
        return read_file(self._folder / f"metadata/{self._root_version()}.root.json")

    @property
    def expires_at(self) -> datetime:
        """When the first online role ends: publish or refresh before."""
        return min(self._timestamp.expires, self._snapshot.expires, self._targets.expires)

    def versions(self, region: RegionId) -> tuple[VersionId, ...]:
        """Return the published versions of a region, oldest first."""
        prefix = f"bundles/{region}/"
        numbers = (
            path.removeprefix(prefix).removesuffix(".json") for path in self._targets.targets if path.startswith(prefix)
        )
        return tuple(sorted(VersionId(int(number)) for number in numbers))

    def regions(self) -> tuple[RegionId, ...]:
        """Return the regions that have a bundle, sorted."""
        return tuple(sorted({RegionId(path.split("/")[1]) for path in self._targets.targets}))

    def manifest(self, region: RegionId, version: VersionId) -> BundleManifest:
        """Return a published manifest.

        Raises:
            NotFoundError: That version was not published in that region.
            DurableError: Its file is missing or damaged.
        """
        info = self._targets.targets.get(target_path(region, version))
        if info is None:
            raise NotFoundError(f"version {version} was not published in region {region}")
        data = read_file(self._folder / _target_file(info.path, info.hashes["sha256"]))
        if digest_of(data) != info.hashes["sha256"]:
            raise DurableError(f"the manifest of version {version} in region {region} was damaged on disk")
        return BundleManifest.from_bytes(data)

    def publish(self, bundles: Sequence[tuple[bytes, Mapping[Digest, bytes]]]) -> tuple[str, ...]:
        """Sign bundles and put them into force, all at once.

        Args:
            bundles: Manifest bytes and chunks, as `build_bundle` makes them. Chunks that were published before may be
                absent.

        Returns:
            Target paths, in order. Bundles that are published already, byte for byte, change nothing.

        Raises:
            PublishError: A version is not above all that its region has, or its number is taken by other content.
            ManifestError: A manifest breaks its rules.
            ContentError: A chunk is not what its manifest says.
            NotFoundError: A chunk is missing, or a signing key is.
            StorageFullError: The disk is full; the old state stays in force.
            DurableError: Something cannot be written; the old state stays in force.
        """
        manifests = [BundleManifest.from_bytes(data) for data, _ in bundles]
        paths = [manifest.target_path for manifest in manifests]
        if len(set(paths)) != len(paths):
            raise PublishError(f"a bundle is given twice: {', '.join(paths)}")
        fresh = [pair for pair in zip(manifests, bundles, strict=True) if self._is_new(pair[0], pair[1][0])]
        files: list[str] = []
        for manifest, (data, chunks) in fresh:
            files += self._write_chunks(manifest, chunks)
            path = _target_file(manifest.target_path, digest_of(data))
            make_folder((self._folder / path).parent)
            self._write(path, data)
            files.append(path)
        if fresh:
            self._sign_targets([(manifest.target_path, data) for manifest, (data, _) in fresh], files)
        return tuple(paths)

    def publish_rollback(self, *, to: VersionId, version: VersionId) -> tuple[BundleManifest, ...]:
        """Bring the content of an old version back, in every region that had it, under a new number.

        Args:
            to: Version whose content comes back.
            version: New number, above all published ones.

        Returns:
            The new manifests, by region.

        Raises:
            NotFoundError: No region has version `to`.
            PublishError: `version` is not above all published ones.
            StorageFullError: The disk is full; the old state stays in force.
            DurableError: Something cannot be written; the old state stays in force.
        """
        old = [self.manifest(region, to) for region in self.regions() if to in self.versions(region)]
        if not old:
            raise NotFoundError(f"no region has version {to}, so it cannot be restored")
        update = {"version": version, "restores": to, "created_at": _seconds(self._clock())}
        manifests = tuple(manifest.model_copy(update=update) for manifest in old)
        self.publish([(manifest.to_bytes(), {}) for manifest in manifests])
        return manifests

    def refresh_timestamp(self) -> None:
        """Sign the present state anew; the snapshot and the targets too when half of their time is over.

        Raises:
            NotFoundError: A signing key is missing.
            StorageFullError: The disk is full; the old state stays in force.
            DurableError: Something cannot be written; the old state stays in force.
        """
        now = _seconds(self._clock())
        files: list[str] = []
        if self._targets.expires - now < self._expiries.targets / 2:
            self._sign_targets([], files)
        elif self._snapshot.expires - now < self._expiries.snapshot / 2:
            self._sign_snapshot(self._targets, None, files)
        else:
            self._sign_timestamp(self._targets, self._snapshot, None, files)

    def rotate_root_key(self, name: str) -> None:
        """Replace one root key; signed by old and new keys, so that every device follows.

        Args:
            name: One of `root-1`, `root-2`, `root-3`; its old key is removed from the keys' folder.

        Raises:
            NotFoundError: Root keys are missing: bring them here first.
            StorageFullError: The disk is full; the old root stays in force.
            DurableError: Something cannot be written; the old root stays in force.
        """
        root = self._read(f"metadata/{self._root_version()}.root.json", Root)
        replaced = self._keys.replacing(name)
        # What is neither of the two others leaves: also a key that an interrupted change has replaced on disk already.
        kept = {self._keys.public(other).keyid for other in ROOT_KEYS if other != name}
        old = self._keys.signer(name)
        also = old if old.public_key.keyid in root.roles[Root.type].keyids else None
        for keyid in set(root.roles[Root.type].keyids) - kept:
            root.revoke_key(keyid, Root.type)
        root.add_key(replaced.public(name), Root.type)
        root.version, root.expires = root.version + 1, _seconds(self._clock()) + self._expiries.root
        data = replaced.sign(root, *ROOT_KEYS, also=also)
        path = f"metadata/{root.version}.root.json"
        # Key before root: with the new key on disk and the old root in force, the other two still reach the threshold.
        replaced.save(name)
        self._keys = replaced
        self._write(path, data)
        self._sign_timestamp(self._targets, self._snapshot, None, [path])

    def files_since(self, marker: int) -> Iterator[tuple[str, bytes]]:
        """Yield what a cache lacks that has everything up to a publication; `timestamp.json` last.

        A cache that writes them in this order serves a consistent state after any of them.

        Args:
            marker: `marker` of the state that the cache has; 0: nothing.

        Raises:
            DurableError: A file is missing or cannot be read.
        """
        if marker >= self.marker:
            return
        # A publication that was interrupted leaves an entry above the present marker, and a later one replaces it.
        entries = {
            number: paths for number, paths in map(_parse_entry, self._journal) if marker < number <= self.marker
        }
        for path in dict.fromkeys(path for number in sorted(entries) for path in entries[number]):
            yield path, self._file(path)
        yield "metadata/timestamp.json", self._file("metadata/timestamp.json")

    def _is_new(self, manifest: BundleManifest, data: bytes) -> bool:
        region = RegionId(manifest.region)
        info = self._targets.targets.get(manifest.target_path)
        if info is not None:
            if info.hashes["sha256"] == digest_of(data):
                return False
            raise PublishError(f"version {manifest.version} of region {region} was published with other content")
        newest = max(self.versions(region), default=0)
        if manifest.version <= newest:
            raise PublishError(f"version {manifest.version} of region {region} is not above the newest, {newest}")
        return True

    def _write_chunks(self, manifest: BundleManifest, chunks: Mapping[Digest, bytes]) -> list[str]:
        """Store the chunks of a bundle; return the paths of those that the archive did not have."""
        added = []
        for ref in manifest.chunks:
            digest = Digest(ref.sha256)
            data = chunks.get(digest)
            if data is None:
                verified_chunk(ref, self._chunks.get(digest))
                continue
            if not self._chunks.has(digest):
                self._chunks.put(verified_chunk(ref, data))
            # Listed even if it is here: an interrupted publication may have stored it without telling anybody.
            added.append(f"chunks/{digest}")
        return added

    def _sign_targets(self, added: Sequence[tuple[str, bytes]], files: list[str]) -> None:
        targets = Targets(
            version=self._targets.version + 1,
            expires=_seconds(self._clock()) + self._expiries.targets,
            targets={
                **self._targets.targets,
                **{path: TargetFile.from_data(path, data, ["sha256"]) for path, data in added},
            },
        )
        data = self._keys.sign(targets, Targets.type)
        self._write_listed(f"metadata/{targets.version}.targets.json", data, files)
        self._sign_snapshot(targets, _meta(data, targets.version), files)

    def _sign_snapshot(self, targets: Targets, meta: MetaFile | None, files: list[str]) -> None:
        snapshot = Snapshot(
            version=self._snapshot.version + 1,
            expires=_seconds(self._clock()) + self._expiries.snapshot,
            meta={"targets.json": meta or self._snapshot.meta["targets.json"]},
        )
        data = self._keys.sign(snapshot, Snapshot.type)
        self._write_listed(f"metadata/{snapshot.version}.snapshot.json", data, files)
        self._sign_timestamp(targets, snapshot, _meta(data, snapshot.version), files)

    def _sign_timestamp(self, targets: Targets, snapshot: Snapshot, meta: MetaFile | None, files: list[str]) -> None:
        timestamp = Timestamp(
            version=self._timestamp.version + 1,
            expires=_seconds(self._clock()) + self._expiries.timestamp,
            snapshot_meta=meta or self._timestamp.snapshot_meta,
        )
        data = self._keys.sign(timestamp, Timestamp.type)
        self._journal.append(_entry(timestamp.version, files))
        self._write("metadata/timestamp.json", data)
        self._targets, self._snapshot, self._timestamp = targets, snapshot, timestamp

    def _root_version(self) -> int:
        files = (self._folder / "metadata").glob("[0-9]*.root.json")
        return max(int(path.name.split(".")[0]) for path in files)

    def _read(self, path: str, kind: type[_Role]) -> _Role:
        try:
            signed = Metadata.from_bytes(self._file(path)).signed
        except RepositoryError as error:
            raise DurableError(f"{self._folder / path} is not signed metadata: {error}") from error
        if not isinstance(signed, kind):
            raise DurableError(f"{self._folder / path} holds the role {signed.type}, expected {kind.type}")
        return signed

    def _file(self, path: str) -> bytes:
        return read_file(self._folder / path)

    def _write(self, path: str, data: bytes) -> None:
        write_file(self._folder / path, data, mode=_PUBLIC_MODE)

    def _write_listed(self, path: str, data: bytes, files: list[str]) -> None:
        self._write(path, data)
        files.append(path)


def _target_file(path: str, sha256: str) -> str:
    """Return where a target is stored: python-tuf puts the digest before the file name."""
    folder, _, name = path.rpartition("/")
    return f"targets/{folder}/{sha256}.{name}"


def _meta(data: bytes, version: int) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])


def _entry(number: int, paths: Sequence[str]) -> bytes:
    return canonical_json({"timestamp": number, "files": list(paths)})


def _parse_entry(payload: bytes) -> tuple[int, list[str]]:
    entry = json.loads(payload)
    return int(entry["timestamp"]), [str(path) for path in entry["files"]]


def _seconds(at: datetime) -> datetime:
    """Return UTC without a fraction of a second, the only form that TUF has."""
    return at.astimezone(timezone.utc).replace(microsecond=0)
