"""What the tests and campaigns of this package share: a tiny model, bundles of it, a publisher, a server in memory."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from nfl_core.errors import NotFoundError
from nfl_core.levels import Level, NestedSpec, Scope
from nfl_core.schema import TensorSchema
from nfl_ota import Bundle, BundleClient, BundleManifest, Floor, Repository, build_bundle, open_bundle

START = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
SPEC = NestedSpec.of(
    [
        Level(name="personal", params=("private.*",), scope=Scope.PRIVATE),
        Level(name="region", params=("middle.*",), period=2, scope=Scope.REGION),
        Level(name="fleet", params=("body.*", "head.*"), period=4, scope=Scope.GLOBAL),
    ]
)
SCHEMA = TensorSchema.of({"body.w": (4, 6), "middle.w": (3, 5), "head.w": (8,), "private.w": (2,)}, SPEC)
GRAPH = b"graph of the model, the same in every version"


def tensors(seed, schema=SCHEMA):
    random = np.random.default_rng(seed)
    return {tensor.name: random.normal(size=tensor.shape).astype(np.float32) for tensor in schema.shared}


def make(version, *, region="north", values=None, at=START, **options):
    return build_bundle(
        model="small-cnn", region=region, version=version, spec=SPEC, schema=SCHEMA,
        tensors=tensors(version) if values is None else values, graph=GRAPH, created_at=at, **options,
    )  # fmt: skip


def opened(version, **options) -> Bundle:
    data, chunks = make(version, **options)
    return open_bundle(BundleManifest.from_bytes(data), lambda ref: chunks[ref.sha256])


class Clock:
    def __init__(self, at=START):
        self.at = at

    def __call__(self):
        return self.at

    def advance(self, **duration):
        self.at += timedelta(**duration)


class Server:
    """Holds the files of a repository in memory and speaks the Fetcher interface, honestly or not."""

    def __init__(self):
        self.files = {}
        self.fetched = []
        self.failing = {}

    def fetch(self, path, *, max_bytes):
        if path in self.failing:
            raise self.failing[path]
        if path not in self.files:
            raise NotFoundError(f"no file {path}")
        self.fetched.append((path, len(self.files[path])))
        return self.files[path]

    def replay(self, files):
        """Serve an older state, but keep what has a name of its own: the strongest replay."""
        self.files = {**self.files, **files}


class World:
    """One fleet: publisher, server, and as many devices as a test makes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.clock = Clock()
        self.repository = Repository.create(folder / "repo", folder / "keys", self.clock)
        self.server = Server()
        self.marker = 0
        self.root = self.repository.root_bytes
        self.push()

    def push(self):
        self.server.files.update(self.repository.files_since(self.marker))
        self.marker = self.repository.marker

    def publish(self, version, **options):
        self.repository.publish([make(version, at=self.clock(), **options)])
        self.push()

    def client(self, name="device", *, fetcher=None):
        return BundleClient(
            self.folder / name, self.root, fetcher or self.server, Floor(self.folder / f"{name}-floor"), self.clock
        )
