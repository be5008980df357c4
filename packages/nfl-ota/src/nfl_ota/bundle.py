"""Bundles: one region's shared levels of one version, with the graph that runs them, as content-addressed chunks.

The manifest is what is signed; everything else is named in it by SHA-256. Rules:

* a manifest has one form, canonical JSON (RFC 8785): other bytes of the same meaning are refused;
* a bundle carries exactly the shared tensors of its schema: a private one can neither be put in nor taken out;
* a chunk's name is the digest of its stored bytes, so any cache can check it without knowing what it is;
* nothing of a bundle is handed out before all of it is verified: every chunk, every shape, the content digest;
* a bundle whose gates did not pass needs an override that says why.

    >>> manifest, chunks = build_bundle(model="small-cnn", region="north", version=3, ...)
    >>> open_bundle(manifest, lambda ref: chunks[ref.sha256]).tensors["body.w"].shape
    (2, 3)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import rfc8785
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from typing_extensions import Self

from nfl_core.codec.entropy import compress, decompress
from nfl_core.errors import ContentError, MalformedError, NflError, SchemaError
from nfl_core.ids import NAME_PATTERN, Digest, RegionId, VersionId, canonical_json, digest_of
from nfl_core.levels import Level, NestedSpec
from nfl_core.schema import TensorSchema
from nfl_core.tensors import content_digest
from nfl_core.wire.limits import MAX_CHUNK_BYTES, MAX_MANIFEST_BYTES
from nfl_ota.errors import GateError, ManifestError

MAX_VERSION = 2**53 - 1  # the largest whole number that every JSON reader keeps exact (RFC 8785, 3.2.2.3)
GRAPH = "graph"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ChunkRef(_Strict):
    """Where one piece of a bundle is and how it is stored.

    Attributes:
        name: Tensor name, or "graph".
        sha256: Of the stored bytes; the chunk's name in every cache.
        length: Of the stored bytes.
        raw_length: Of the bytes after decoding.
        encoding: "raw" or "zstd" (one frame).
    """

    name: str = Field(min_length=1, max_length=200)
    sha256: Sha256
    length: int = Field(ge=1, le=MAX_CHUNK_BYTES)
    raw_length: int = Field(ge=1, le=MAX_CHUNK_BYTES)
    encoding: Literal["raw", "zstd"]


class GateResult(_Strict):
    """What one gate of the root said about a version.

    Attributes:
        name: Of the gate.
        passed: Whether it let the version through.
        value: What it measured.
        limit: What it allowed.
    """

    name: str = Field(pattern=NAME_PATTERN)
    passed: bool
    value: Finite
    limit: Finite


class MergeSettings(_Strict):
    """How devices merge this version; same meaning as in `nfl_core.learning.LearningSettings`.

    Attributes:
        alphas: Shares of the new levels that a merge tries, descending, within (0, 1].
        tolerance: By how much the holdout loss may rise, as a fraction of it.
        max_drop: By how much the holdout accuracy may fall, 0 to 1.
        refit_steps: Steps of the fast level after the merge.
        refit_learning_rate: Of these steps.
    """

    alphas: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(1.0, 0.75, 0.5, 0.25), min_length=1)
    tolerance: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    max_drop: float = Field(default=0.02, ge=0, le=1, allow_inf_nan=False)
    refit_steps: int = Field(default=20, ge=0)
    refit_learning_rate: float = Field(default=0.05, gt=0, allow_inf_nan=False)


class ProbationLimits(_Strict):
    """What a device holds this version to before it confirms it; see `nfl_ota.health`.

    Attributes:
        latency_budget_ms: Longest inference.
        num_inferences: Observations that decide.
        max_accuracy_drop: Fraction of accuracy it may lose against the version before.
        max_late_fraction: Fraction of the observations that may take longer than the budget.
    """

    latency_budget_ms: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    num_inferences: int = Field(default=8, ge=1)
    max_accuracy_drop: float = Field(default=0.15, ge=0, le=1)
    max_late_fraction: float = Field(default=0.5, ge=0, lt=1)


class BundleManifest(_Strict):
    """The signed description of a bundle.

    Attributes:
        format: Of the manifest itself.
        model: Name of the model in the group `nfl.models`.
        region: Whose regional levels these are.
        version: Release counter, unique and growing in the fleet.
        restores: Version whose content comes back under this number; None for new content.
        base: Version that this one was made from; None for the first.
        levels: The nested spec, fastest first.
        schema_document: The tensor schema as JSON (key "schema").
        tensors: One chunk a shared tensor, in schema order.
        graph: The inference graph.
        content_digest: Of all shared tensors (`nfl_core.tensors.content_digest`).
        gates: What the gates said.
        override: Why it was published although a gate refused; None when all passed.
        merge: How devices merge it.
        probation: What devices hold it to.
        created_at: UTC.
    """

    format: Literal["nfl-bundle/1"] = "nfl-bundle/1"
    model: str = Field(pattern=NAME_PATTERN)
    region: str = Field(pattern=NAME_PATTERN)
    version: Version
    restores: Version | None = None
    base: Version | None = None
    levels: tuple[Level, ...]
    schema_document: dict[str, JsonValue] = Field(alias="schema")
    tensors: tuple[ChunkRef, ...]
    graph: ChunkRef
    content_digest: Sha256
    gates: tuple[GateResult, ...] = ()
    override: str | None = Field(default=None, min_length=1, max_length=1000)
    merge: MergeSettings = MergeSettings()
    probation: ProbationLimits = ProbationLimits()
    created_at: AwareDatetime

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a manifest strictly.

        Args:
            data: Exactly what was signed.

        Raises:
            ManifestError: `data` is not the canonical JSON of a manifest that holds together.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ManifestError(f"a manifest has {len(data)} bytes, expected at most {MAX_MANIFEST_BYTES}")
        try:
            manifest = cls.model_validate_json(data, strict=True)
            canonical = manifest.to_bytes()
            manifest._check()
        except (ValidationError, rfc8785.CanonicalizationError, RecursionError) as error:
            raise ManifestError(f"not a bundle manifest: {str(error)[:300]}") from error
        except NflError as error:
            raise (
                error
                if isinstance(error, ManifestError | GateError)
                else ManifestError(f"not a bundle manifest: {error}")
            ) from error
        if canonical != data:
            raise ManifestError("a manifest is not in its canonical form (RFC 8785)")
        return manifest

    def to_bytes(self) -> bytes:
        """Return the canonical JSON: the bytes that are signed."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True))

    @property
    def spec(self) -> NestedSpec:
        """The levels as a spec."""
        return NestedSpec.of(self.levels)

    @cached_property  # asked for at every greeting of a device
    def tensor_schema(self) -> TensorSchema:
        """The schema of the model's tensors."""
        return TensorSchema.from_json(canonical_json(self.schema_document))

    @property
    def target_path(self) -> str:
        """Where the manifest stands among the signed targets."""
        return target_path(RegionId(self.region), VersionId(self.version))

    @property
    def chunks(self) -> tuple[ChunkRef, ...]:
        """All chunks, each digest once, graph last."""
        return tuple({ref.sha256: ref for ref in (*self.tensors, self.graph)}.values())

    def _check(self) -> None:
        """Raise unless the parts of the manifest agree with each other."""
        schema, spec = self.tensor_schema, self.spec
        if spec.assign([tensor.name for tensor in schema.tensors]) != {
            tensor.name: tensor.level for tensor in schema.tensors
        }:
            raise ManifestError("the levels of a manifest put a tensor elsewhere than its schema")
        if any(spec.level(tensor.level).scope is not tensor.scope for tensor in schema.tensors):
            raise ManifestError("the scopes in a manifest's schema are not those of its levels")
        wanted = [(tensor.name, 4 * math.prod(tensor.shape)) for tensor in schema.shared]
        if [(ref.name, ref.raw_length) for ref in self.tensors] != wanted:
            raise ManifestError("the tensors of a manifest are not the shared tensors of its schema, in order and size")
        if self.graph.name != GRAPH:
            raise ManifestError(f"the graph of a manifest is named {self.graph.name!r}, expected {GRAPH!r}")
        for what, older in (("restores", self.restores), ("base", self.base)):
            if older is not None and older >= self.version:
                raise ManifestError(
                    f"a manifest of version {self.version} has {what} {older}, expected an older version"
                )
        _check_gates(self.gates, self.override)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was verified whole.

    Attributes:
        manifest: What was signed.
        tensors: Name -> float32 array of every shared tensor.
        graph: Serialised inference graph.
        chunks: Digest -> stored bytes of every chunk.
    """

    manifest: BundleManifest
    tensors: Mapping[str, NDArray[np.float32]]
    graph: bytes
    chunks: Mapping[Digest, bytes]


def target_path(region: RegionId, version: VersionId) -> str:
    """Return the path of a bundle's manifest among the signed targets."""
    return f"bundles/{region}/{version}.json"


def build_bundle(
    *,
    model: str,
    region: RegionId,
    version: VersionId,
    spec: NestedSpec,
    schema: TensorSchema,
    tensors: Mapping[str, NDArray[np.float32]],
    graph: bytes,
    created_at: datetime,
    base: VersionId | None = None,
    gates: tuple[GateResult, ...] = (),
    override: str | None = None,
    merge: MergeSettings | None = None,
    probation: ProbationLimits | None = None,
) -> tuple[bytes, dict[Digest, bytes]]:
    """Make the manifest and the chunks of a version.

    Args:
        model: Name of the model.
        region: Whose bundle it is.
        version: Its number.
        spec: The levels.
        schema: The tensors under that spec.
        tensors: Exactly the shared tensors of `schema`, float32, finite.
        graph: Serialised inference graph, not empty.
        created_at: Aware datetime; kept to the second.
        base: Version it was made from.
        gates: What the gates said.
        override: Why it is published although a gate refused.
        merge: None: the defaults.
        probation: None: the defaults.

    Returns:
        The manifest's bytes; digest -> stored bytes of each chunk.

    Raises:
        GateError: A gate refused and there is no override.
        SchemaError: `tensors` are not finite or not exactly the shared tensors of `schema`.
        ManifestError: The parts do not hold together.
    """
    _check_gates(gates, override)
    names = {tensor.name for tensor in schema.shared}
    if tensors.keys() != names:
        raise SchemaError(
            f"a bundle holds exactly the shared tensors, got {sorted(tensors.keys() ^ names)[:5]} too many or too few"
        )
    digest = content_digest(schema, tensors)
    if not all(np.isfinite(array).all() for array in tensors.values()):
        raise SchemaError("a tensor for a bundle holds a value that is not finite")
    chunks: dict[Digest, bytes] = {}
    refs = [_store(chunks, name, _to_bytes(tensors[name])) for name in (tensor.name for tensor in schema.shared)]
    try:
        manifest = BundleManifest(
            model=model,
            region=region,
            version=version,
            base=base,
            levels=spec.levels,
            schema=json.loads(schema.to_json()),
            tensors=tuple(refs),
            graph=_store(chunks, GRAPH, graph),
            content_digest=digest,
            gates=gates,
            override=override,
            merge=merge or MergeSettings(),
            probation=probation or ProbationLimits(),
            created_at=created_at.astimezone(timezone.utc).replace(microsecond=0),
        )
    except ValidationError as error:
        raise ManifestError(f"no manifest can be made of this: {str(error)[:300]}") from error
    data = manifest.to_bytes()
    BundleManifest.from_bytes(data)
    return data, chunks


def open_bundle(manifest: BundleManifest, read_chunk: Callable[[ChunkRef], bytes]) -> Bundle:
    """Verify a bundle whole and return it.

    Args:
        manifest: Verified already: signed, or from a slot whose hash is right.
        read_chunk: Returns the stored bytes of a chunk; what it returns is verified here.

    Raises:
        ContentError: A chunk is not what the manifest says, or the tensors together are not.
    """
    stored = {Digest(ref.sha256): verified_chunk(ref, read_chunk(ref)) for ref in manifest.chunks}
    schema = manifest.tensor_schema
    tensors = {
        tensor.name: np.frombuffer(_decode(ref, stored), "<f4").astype(np.float32).reshape(tensor.shape)
        for tensor, ref in zip(schema.shared, manifest.tensors, strict=True)
    }
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ContentError(f"tensor {name!r} of bundle {manifest.target_path} holds a value that is not finite")
    digest = content_digest(schema, tensors)
    if digest != manifest.content_digest:
        raise ContentError(f"bundle {manifest.target_path} has content {digest}, expected {manifest.content_digest}")
    return Bundle(manifest=manifest, tensors=tensors, graph=_decode(manifest.graph, stored), chunks=stored)


def verified_chunk(ref: ChunkRef, data: bytes) -> bytes:
    """Return `data` if it is the chunk.

    Raises:
        ContentError: Its length or digest is another.
    """
    if len(data) != ref.length:
        raise ContentError(f"chunk {ref.name!r} has {len(data)} bytes, expected {ref.length}")
    if (digest := digest_of(data)) != ref.sha256:
        raise ContentError(f"chunk {ref.name!r} has digest {digest}, expected {ref.sha256}")
    return data


def _check_gates(gates: tuple[GateResult, ...], override: str | None) -> None:
    refused = [gate.name for gate in gates if not gate.passed]
    if refused and override is None:
        raise GateError(f"gates refused the version: {', '.join(refused)}")


def _to_bytes(array: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(array, dtype="<f4").tobytes()


def _store(chunks: dict[Digest, bytes], name: str, raw: bytes) -> ChunkRef:
    """Add the smaller of both encodings to `chunks`."""
    packed = compress(raw)
    encoding: Literal["raw", "zstd"] = "zstd" if len(packed) < len(raw) else "raw"
    data = packed if encoding == "zstd" else raw
    digest = digest_of(data)
    chunks[digest] = data
    try:
        return ChunkRef(name=name, sha256=digest, length=len(data), raw_length=len(raw), encoding=encoding)
    except ValidationError as error:
        raise ManifestError(f"{name!r} makes no chunk: {len(raw)} bytes, expected 1 to {MAX_CHUNK_BYTES}") from error


def _decode(ref: ChunkRef, stored: Mapping[Digest, bytes]) -> bytes:
    data = stored[Digest(ref.sha256)]
    try:
        raw = data if ref.encoding == "raw" else decompress(data, max_bytes=ref.raw_length)
    except MalformedError as error:
        raise ContentError(f"chunk {ref.name!r} cannot be decoded: {error}") from error
    if len(raw) != ref.raw_length:
        raise ContentError(f"chunk {ref.name!r} decodes to {len(raw)} bytes, expected {ref.raw_length}")
    return raw
