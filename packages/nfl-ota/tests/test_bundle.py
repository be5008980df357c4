from __future__ import annotations

import json
from datetime import timedelta, timezone

import numpy as np
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.errors import ContentError, SchemaError
from nfl_core.ids import digest_of
from nfl_core.tensors import content_digest
from nfl_ota import (
    BundleManifest,
    GateError,
    GateResult,
    ManifestError,
    MergeSettings,
    open_bundle,
    pack_image,
    unpack_image,
)

GATE = GateResult(name="heldout", passed=True, value=0.8, limit=0.7)
REFUSED = GateResult(name="heldout", passed=False, value=0.1, limit=0.7)


def changed(data, **fields):
    """The canonical bytes of a manifest with other fields."""
    return rfc8785.dumps({**json.loads(data), **fields})


def test_the_same_version_makes_the_same_bytes(worlds):
    assert worlds.make(1) == worlds.make(1)


def test_a_manifest_reads_back(worlds):
    data, _ = worlds.make(3, base=2, gates=(GATE,), merge=MergeSettings(refit_steps=7))
    manifest = BundleManifest.from_bytes(data)
    assert manifest.to_bytes() == data
    assert (manifest.version, manifest.base, manifest.restores, manifest.gates) == (3, 2, None, (GATE,))
    assert manifest.spec == worlds.SPEC
    assert manifest.tensor_schema == worlds.SCHEMA
    assert manifest.content_digest == content_digest(worlds.SCHEMA, worlds.tensors(3))
    assert manifest.target_path == "bundles/north/3.json"
    assert manifest.merge.refit_steps == 7


def test_other_zones_and_fractions_of_seconds_make_the_same_manifest(worlds):
    elsewhere = worlds.START.astimezone(timezone(timedelta(hours=5))) + timedelta(microseconds=5)
    assert worlds.make(1, at=elsewhere) == worlds.make(1)


def test_regions_share_the_chunks_of_global_levels(worlds):
    _, north = worlds.make(1)
    _, south = worlds.make(1, region="south", values={**worlds.tensors(1), "middle.w": worlds.tensors(2)["middle.w"]})
    assert len(north.keys() & south.keys()) == len(north) - 1


def test_a_private_tensor_cannot_be_put_into_a_bundle(worlds):
    with pytest.raises(SchemaError, match=r"private\.w"):
        worlds.make(1, values={**worlds.tensors(1), "private.w": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"head.w": np.zeros(7, np.float32)},
        {"head.w": np.zeros(8, np.float64)},
        {"head.w": np.full(8, np.nan, np.float32)},
        {"head.w": np.full(8, np.inf, np.float32)},
    ],
)
def test_wrong_tensors_make_no_bundle(worlds, values):
    with pytest.raises(SchemaError):
        worlds.make(1, values={**worlds.tensors(1), **values} if values else {"head.w": np.zeros(8, np.float32)})


def test_a_refused_gate_needs_an_override(worlds):
    with pytest.raises(GateError, match="heldout"):
        worlds.make(1, gates=(REFUSED,))
    data, _ = worlds.make(1, gates=(REFUSED,), override="the operator wants to see it fail")
    assert BundleManifest.from_bytes(data).override == "the operator wants to see it fail"
    with pytest.raises(GateError):
        BundleManifest.from_bytes(changed(data, override=None))


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "nfl-bundle/2"},
        {"version": 0},
        {"version": "1"},
        {"version": 1.5},
        {"version": True},
        {"restores": 5},
        {"base": 5},
        {"region": "../north"},
        {"model": "Small CNN"},
        {"content_digest": "AB" * 32},
        {"created_at": "2026-03-01T12:00:00"},
        {"unknown": 1},
        {"tensors": []},
        {"levels": []},
        {"schema": {"tensors": []}},
        {"merge": {"alphas": [2.0]}},
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(worlds, fields):
    data, _ = worlds.make(5)
    with pytest.raises(ManifestError):
        BundleManifest.from_bytes(changed(data, **fields))


def test_a_version_beyond_exact_numbers_is_refused(worlds):
    data, _ = worlds.make(5)
    for number in (b"9007199254740992", b"5e3", b"5.0"):
        with pytest.raises(ManifestError):
            BundleManifest.from_bytes(data.replace(b'"version":5', b'"version":' + number))


def test_a_manifest_with_reordered_tensors_is_refused(worlds):
    data, _ = worlds.make(1)
    with pytest.raises(ManifestError, match="in order"):
        BundleManifest.from_bytes(changed(data, tensors=json.loads(data)["tensors"][::-1]))


def test_a_manifest_whose_levels_disagree_with_its_schema_is_refused(worlds):
    """Else a signed mistake could make a private tensor look shared."""
    data, _ = worlds.make(1)
    schema = json.loads(data)["schema"]
    for row in schema["tensors"]:
        if row["name"] == "middle.w":
            row["scope"] = "global"
    with pytest.raises(ManifestError, match="scopes"):
        BundleManifest.from_bytes(changed(data, schema=schema))
    for row in schema["tensors"]:
        if row["name"] == "middle.w":
            row |= {"scope": "global", "level": "fleet"}
    with pytest.raises(ManifestError, match="elsewhere"):
        BundleManifest.from_bytes(changed(data, schema=schema))


def test_a_manifest_has_one_form(worlds):
    data, _ = worlds.make(1)
    for other in (
        data + b" ",
        json.dumps(json.loads(data)).encode(),
        data.replace(b'"version":1', b'"version":1,"version":1'),
    ):
        with pytest.raises(ManifestError):
            BundleManifest.from_bytes(other)


def test_a_huge_manifest_is_refused_unread():
    with pytest.raises(ManifestError, match="at most"):
        BundleManifest.from_bytes(b"[" * (2**20 + 1))


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists, max_leaves=5).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_a_manifest_or_a_manifest_error(data):
    with pytest.raises(ManifestError):
        BundleManifest.from_bytes(data)


def test_any_changed_byte_of_a_manifest_is_an_error_or_another_manifest(worlds):
    """Never a crash: the signature comes first, but the reader does not lean on it."""
    data, _ = worlds.make(1)
    for place in range(0, len(data), 7):
        try:
            manifest = BundleManifest.from_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        except ManifestError:
            continue
        assert manifest.to_bytes() != data


def tampered(worlds, name, data):
    """A manifest that names `data` as the chunk of `name`."""
    manifest = BundleManifest.from_bytes(worlds.make(1)[0])
    refs = [
        ref.model_copy(update={"sha256": digest_of(data), "length": len(data)}) if ref.name == name else ref
        for ref in manifest.tensors
    ]
    return manifest.model_copy(update={"tensors": tuple(refs)})


def reader(chunks, extra=b""):
    stored = {**chunks, digest_of(extra): extra}
    return lambda ref: stored[ref.sha256]


def test_a_chunk_that_was_signed_with_other_content_is_refused_by_the_content_digest(worlds):
    _, chunks = worlds.make(1)
    other = np.zeros(8, "<f4").tobytes()
    manifest = tampered(worlds, "head.w", other)
    raw = manifest.model_copy(
        update={
            "tensors": tuple(
                ref.model_copy(update={"encoding": "raw"}) if ref.name == "head.w" else ref for ref in manifest.tensors
            )
        }
    )
    with pytest.raises(ContentError, match="has content"):
        open_bundle(raw, reader(chunks, other))


def test_a_chunk_that_is_not_finite_is_refused(worlds):
    _, chunks = worlds.make(1)
    other = np.full(8, np.nan, "<f4").tobytes()
    manifest = tampered(worlds, "head.w", other)
    raw = manifest.model_copy(
        update={
            "tensors": tuple(
                ref.model_copy(update={"encoding": "raw"}) if ref.name == "head.w" else ref for ref in manifest.tensors
            )
        }
    )
    with pytest.raises(ContentError, match="not finite"):
        open_bundle(raw, reader(chunks, other))


def test_a_compressed_bomb_is_refused(worlds):
    from nfl_core.codec.entropy import compress

    bomb = compress(bytes(50_000_000))
    manifest = tampered(worlds, "head.w", bomb)
    zstd = manifest.model_copy(
        update={
            "tensors": tuple(
                ref.model_copy(update={"encoding": "zstd"}) if ref.name == "head.w" else ref for ref in manifest.tensors
            )
        }
    )
    with pytest.raises(ContentError, match="decoded"):
        open_bundle(zstd, reader(worlds.make(1)[1], bomb))


def test_an_image_is_a_bundle(worlds):
    bundle = worlds.opened(1)
    image = pack_image(bundle)
    again = unpack_image(image)
    assert again.manifest == bundle.manifest
    assert again.graph == bundle.graph
    assert all((again.tensors[name] == bundle.tensors[name]).all() for name in bundle.tensors)
    assert pack_image(again) == image


def test_an_image_cut_padded_or_changed_is_refused(worlds):
    image = pack_image(worlds.opened(1))
    for data in (
        b"",
        image[:5],
        image[:-1],
        image + b"\0",
        b"XXXX" + image[4:],
        image[:4] + b"\xff\xff\xff\xff" + image[8:],
    ):
        with pytest.raises((ContentError, ManifestError)):
            unpack_image(data)
    for place in range(0, len(image), 11):
        try:
            other = unpack_image(image[:place] + bytes([image[place] ^ 1]) + image[place + 1 :])
        except (ContentError, ManifestError):
            continue
        # Another date, for instance: the hash of the whole slot tells (see test_slots).
        assert other.manifest != BundleManifest.from_bytes(worlds.make(1)[0])
