"""What versions are made of: shared tensors and graph of a published version, from the root's own repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_core.ids import Digest, RegionId, VersionId
from nfl_core.schema import TensorSchema
from nfl_ota import BundleManifest, ChunkStore, Repository, open_bundle

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A published version, whole.

    Attributes:
        version: Its number.
        schema: Of its tensors.
        tensors: Shared tensors by region.
        graph: Its inference graph.
        manifests: By region.
    """

    version: VersionId
    schema: TensorSchema
    tensors: Mapping[RegionId, Tensors]
    graph: bytes
    manifests: Mapping[RegionId, BundleManifest]


class Contents:
    """Reads versions out of a repository; keeps the last one.

    Args:
        repository: Published versions.
        folder: Of the repository, for its chunks.
    """

    def __init__(self, repository: Repository, folder: Path) -> None:
        self._repository = repository
        self._chunks = ChunkStore(folder / "chunks")
        self._last: Content | None = None

    def of(self, version: int) -> Content:
        """Return a version.

        Raises:
            NotFoundError: It was never published, or a chunk is missing.
            ContentError: A chunk was damaged.
        """
        if self._last is not None and self._last.version == version:
            return self._last
        number = VersionId(version)
        manifests = {
            region: self._repository.manifest(region, number)
            for region in self._repository.regions()
            if number in self._repository.versions(region)
        }
        bundles = {
            region: open_bundle(manifest, lambda ref: self._chunks.get(Digest(ref.sha256)))
            for region, manifest in manifests.items()
        }
        first = next(iter(bundles.values()))
        self._last = Content(
            version=number,
            schema=first.manifest.tensor_schema,
            tensors={region: bundle.tensors for region, bundle in bundles.items()},
            graph=first.graph,
            manifests=manifests,
        )
        return self._last
