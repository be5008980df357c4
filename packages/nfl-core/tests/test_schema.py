from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.errors import NotFoundError, SchemaError, SpecError
from nfl_core.levels import NestedSpec, Scope
from nfl_core.schema import TensorSchema, TensorSpec

NUM_SHARED = 12 + 4 + 8 + 10


def test_shared_vector_holds_shared_tensors_in_order(schema: TensorSchema) -> None:
    assert [tensor.name for tensor in schema.shared] == ["body.w", "body.b", "middle.w", "head.w"]
    assert [tensor.name for tensor in schema.private] == ["private.w", "private.b"]
    assert schema.offsets == (0, 12, 16, 24, NUM_SHARED)
    assert schema.num_shared == NUM_SHARED
    assert schema.slices(Scope.REGION) == [slice(16, 24)]
    assert schema.slices(Scope.GLOBAL) == [slice(0, 12), slice(12, 16), slice(24, 34)]
    assert schema.slice_of("head.w") == slice(24, 34)
    assert schema.tensor("private.b").num_values == 1


@given(seed=st.integers(0, 2**32))
def test_flatten_and_unflatten_are_inverse(schema: TensorSchema, seed: int) -> None:
    vector_P = np.random.default_rng(seed).standard_normal(schema.num_shared, dtype=np.float32)
    tensors = schema.unflatten(vector_P)
    assert {name: array.shape for name, array in tensors.items()} == {t.name: t.shape for t in schema.shared}
    assert schema.flatten(tensors).tobytes() == vector_P.tobytes()
    assert (
        schema.flatten(tensors, ["head.w", "body.b"]).tobytes()
        == np.concatenate([vector_P[24:], vector_P[12:16]]).tobytes()
    )


def test_flatten_names_what_does_not_fit(schema: TensorSchema) -> None:
    tensors = schema.unflatten(np.zeros(NUM_SHARED, np.float32))
    with pytest.raises(SchemaError, match=r"'body\.w' has shape \(4, 3\), expected \(3, 4\)"):
        schema.flatten(tensors | {"body.w": np.zeros((4, 3), np.float32)})
    del tensors["head.w"]
    with pytest.raises(SchemaError, match=r"'head\.w' is missing"):
        schema.flatten(tensors)
    with pytest.raises(SchemaError, match=rf"expected \({NUM_SHARED},\)"):
        schema.unflatten(np.zeros(NUM_SHARED + 1, np.float32))


@pytest.mark.parametrize("ask", ["tensor", "slice_of"])
def test_unknown_tensor_is_not_found(schema: TensorSchema, ask: str) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        getattr(schema, ask)("nothing")


def test_private_tensor_has_no_place_in_the_shared_vector(schema: TensorSchema) -> None:
    with pytest.raises(NotFoundError, match="no shared tensor"):
        schema.slice_of("private.w")
    assert schema.slices(Scope.PRIVATE) == []


def test_json_round_trip_keeps_the_fingerprint(schema: TensorSchema) -> None:
    again = TensorSchema.from_json(schema.to_json())
    assert again == schema
    assert again.fingerprint == schema.fingerprint


def test_fingerprint_is_pinned() -> None:
    """Devices of one version must agree with leaves of the next: a change here is a change of the wire format."""
    schema = TensorSchema((TensorSpec(name="w", shape=(2, 3), level="fleet", scope=Scope.GLOBAL),))
    assert (
        schema.to_json()
        == '{"tensors":[{"dtype":"float32","level":"fleet","name":"w","scope":"global","shape":[2,3]}]}'
    )
    assert schema.fingerprint == "9bb13198276c2a17b88e7ed65c5350a78cf6eac3c9462762c535ebb943d164a6"


def test_fingerprint_tells_order_shape_and_scope_apart(spec: NestedSpec) -> None:
    one = TensorSchema.of({"body.w": (2, 3), "head.w": (2,), "middle.w": (1,), "private.w": (1,)}, spec)
    other = TensorSchema.of({"head.w": (2,), "body.w": (2, 3), "middle.w": (1,), "private.w": (1,)}, spec)
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row.update(extra=1),
        lambda row: row.pop("level"),
        lambda row: row.update(shape=["3", 4]),
        lambda row: row.update(shape=[3.0, 4]),
        lambda row: row.update(shape=[0, 4]),
        lambda row: row.update(shape=[2**30]),
        lambda row: row.update(dtype="float64"),
        lambda row: row.update(scope="everyone"),
        lambda row: row.update(name="body|w"),
        lambda row: row.update(name="body.b"),
    ],
)
def test_damaged_json_is_refused(schema: TensorSchema, damage: object) -> None:
    document = json.loads(schema.to_json())
    damage(document["tensors"][0])  # type: ignore[operator]
    with pytest.raises(SchemaError):
        TensorSchema.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"tensors": []}', "nan", "[" * 100_000, '{"tensors": [], "tensors": []}']
)
def test_foreign_json_is_refused(text: str) -> None:
    with pytest.raises(SchemaError):
        TensorSchema.from_json(text)


def test_schema_of_uncovered_parameter_is_refused(spec: NestedSpec) -> None:
    with pytest.raises(SpecError, match="in no level"):
        TensorSchema.of({"tail.w": (1,)}, spec)
