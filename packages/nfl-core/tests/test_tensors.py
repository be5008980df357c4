from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.errors import MalformedError, SchemaError, TensorFileError
from nfl_core.schema import TensorSchema
from nfl_core.tensors import DTYPES, MAX_HEADER_BYTES, content_digest, read_tensors, to_input, write_tensors

MAX_BYTES = 1024 * 1024
W = np.arange(6, dtype=np.float32).reshape(2, 3)
EXPECTED: dict[str, tuple[tuple[int, ...], str]] = {"w": ((2, 3), "float32"), "b": ((4,), "float32")}
TENSORS = {"w": W, "b": np.ones(4, np.float32)}
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def file_of(header: object, values: bytes = W.tobytes(), *, raw: bytes | None = None) -> bytes:
    """Make a file with any header."""
    head = json.dumps(header).encode() if raw is None else raw
    return len(head).to_bytes(8, "little") + head + values


@given(
    st.dictionaries(
        st.sampled_from(["a", "b.c", "d_e"]),
        st.tuples(st.sampled_from(sorted(DTYPES.values())), st.lists(st.integers(0, 4), max_size=3)),
    )
)
def test_round_trip_of_every_type_and_shape(shapes: dict[str, tuple[str, list[int]]]) -> None:
    tensors = {
        name: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for name, (dtype, shape) in shapes.items()
    }
    data = write_tensors(tensors)
    read = read_tensors(
        data, {name: (array.shape, array.dtype.name) for name, array in tensors.items()}, max_bytes=MAX_BYTES
    )
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    assert write_tensors(read) == data


def test_the_library_reads_what_we_write_and_we_what_it_writes() -> None:
    np.testing.assert_array_equal(safetensors.numpy.load(write_tensors(TENSORS))["w"], W)
    np.testing.assert_array_equal(read_tensors(safetensors.numpy.save(TENSORS), EXPECTED, max_bytes=MAX_BYTES)["w"], W)


def test_what_is_read_owns_its_memory() -> None:
    read = read_tensors(write_tensors(TENSORS), EXPECTED, max_bytes=MAX_BYTES)
    read["w"][0, 0] = 7
    assert read["w"].flags.owndata or read["w"].base.flags.owndata


def test_transposed_array_is_written_by_value() -> None:
    np.testing.assert_array_equal(read_tensors(write_tensors({"t": W.T}), None, max_bytes=MAX_BYTES)["t"], W.T)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_value_that_is_not_finite_is_refused(value: float, dtype: type) -> None:
    array = np.array([1, value], dtype)
    with pytest.raises(TensorFileError, match="'w' holds a value that is not finite"):
        read_tensors(safetensors.numpy.save({"w": array}), None, max_bytes=MAX_BYTES)
    with pytest.raises(TensorFileError, match="'w' holds a value that is not finite"):
        write_tensors({"w": array})


def test_extra_missing_and_different_tensors_are_named() -> None:
    data = write_tensors(TENSORS)
    with pytest.raises(TensorFileError, match=r"lacks \['c'\]"):
        read_tensors(data, EXPECTED | {"c": ((1,), "float32")}, max_bytes=MAX_BYTES)
    with pytest.raises(TensorFileError, match=r"has \['b'\] too many"):
        read_tensors(data, {"w": EXPECTED["w"]}, max_bytes=MAX_BYTES)
    with pytest.raises(TensorFileError, match=r"'w' is float32 of shape \(2, 3\), expected float32 of \(3, 2\)"):
        read_tensors(data, EXPECTED | {"w": ((3, 2), "float32")}, max_bytes=MAX_BYTES)
    with pytest.raises(TensorFileError, match=r"'w' is float32 of shape .* expected float64"):
        read_tensors(data, EXPECTED | {"w": ((2, 3), "float64")}, max_bytes=MAX_BYTES)


ENTRY_TEXT = json.dumps(ENTRY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "announces a header"),
        (b"\x10", "announces a header"),
        (file_of({"w": ENTRY})[:20], "announces a header"),
        (file_of({"w": ENTRY}, W.tobytes() + b"\0"), "1 bytes behind"),
        (file_of({"w": ENTRY}, W.tobytes()[:-1]), "expected to follow"),
        (file_of({}, b"abc"), "3 bytes behind"),
        (file_of({"w": ENTRY, "__metadata__": {"format": "pt"}}), "metadata"),
        (file_of(None, raw=f'{{"w": {ENTRY_TEXT}, "w": {ENTRY_TEXT}}}'.encode()), "a key stands twice"),
        (
            file_of(None, raw=b'{"w": {"dtype": "F32", "dtype": "I32", "shape": [2, 3], "data_offsets": [0, 24]}}'),
            "twice",
        ),
        (file_of(None, raw=b"[]"), "not a JSON object"),
        (file_of(None, raw=b"not json"), "not plain JSON"),
        (file_of(None, raw=b"\xff\xfe{}"), "not plain JSON"),
        (file_of(None, raw=b"[" * 100_000), "not plain JSON"),
        (file_of(None, raw=b'{"w": ' + b"1" * 5000 + b"}"), "not plain JSON"),
        (file_of({"w": ENTRY | {"dtype": "BF16"}}), "is described by"),
        (file_of({"w": ENTRY | {"note": "x"}}), "is described by"),
        (file_of({"w": ENTRY | {"shape": [2, -3]}}), "is described by"),
        (file_of({"w": ENTRY | {"shape": [6] + [1] * 100}}), "is described by"),
        (file_of({"w": ENTRY | {"shape": [2, True]}}), "is described by"),
        (file_of({"w": ENTRY | {"shape": [2.0, 3]}}), "is described by"),
        (file_of({"w": ENTRY | {"data_offsets": [0, 24, 24]}}), "is described by"),
        (file_of({"w": ENTRY | {"data_offsets": [24, 0]}}), "is described by"),
        (file_of({"w": ENTRY | {"data_offsets": [False, 24]}}), "is described by"),
        (file_of({"w": {"dtype": "F32"}}), "is described by"),
        (file_of({"w": []}), "is described by"),
        (file_of({"w": ENTRY | {"shape": [2, 4]}}), "to fit"),
        (file_of({"w": ENTRY | {"shape": [2**40, 2**40]}}), "to fit"),
        (file_of({"w": ENTRY | {"data_offsets": [4, 28]}}, W.tobytes() + bytes(4)), "expected to follow"),
        (file_of({"a": ENTRY, "b": ENTRY}), "expected to follow"),
    ],
)
def test_malformed_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(TensorFileError, match=message):
        read_tensors(data, None, max_bytes=MAX_BYTES)


@pytest.mark.parametrize("announced", [MAX_HEADER_BYTES + 1, 2**40, 2**64 - 1])
def test_huge_header_is_refused(announced: int) -> None:
    data = announced.to_bytes(8, "little") + b" " * (2 * MAX_HEADER_BYTES)
    with pytest.raises(TensorFileError, match="announces a header"):
        read_tensors(data, None, max_bytes=4 * MAX_BYTES)


def test_file_beyond_the_limit_is_refused() -> None:
    data = write_tensors(TENSORS)
    with pytest.raises(TensorFileError, match="expected at most"):
        read_tensors(data, None, max_bytes=len(data) - 1)


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_flipped_bit_is_refused_or_changes_a_value_and_never_crashes(place: int, bit: int) -> None:
    data = bytearray(write_tensors(TENSORS))
    data[place % len(data)] ^= 1 << bit
    try:
        read = read_tensors(bytes(data), EXPECTED, max_bytes=MAX_BYTES)
    except TensorFileError:
        return
    assert {name: array.shape for name, array in read.items()} == {name: shape for name, (shape, _) in EXPECTED.items()}


@given(st.binary(max_size=200))
def test_noise_never_crashes(data: bytes) -> None:
    with pytest.raises(TensorFileError):
        read_tensors(b"\xff" + data, None, max_bytes=MAX_BYTES)


def test_unknown_type_is_not_written() -> None:
    with pytest.raises(TensorFileError, match="complex64"):
        write_tensors({"w": np.zeros(2, np.complex64)})


def test_pixels_are_scaled_and_features_stay() -> None:
    assert to_input(np.array([0, 51, 255], np.uint8)).tolist() == [0.0, np.float32(0.2), 1.0]
    features = np.array([-2.5, 300.0], np.float32)
    assert to_input(features).tobytes() == features.tobytes()


@pytest.mark.parametrize("bad", [np.zeros(2), np.zeros(2, np.int64), np.array([np.nan], np.float32)])
def test_inputs_that_no_model_takes_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(MalformedError, match="inputs"):
        to_input(bad)


def test_content_digest_is_of_the_shared_tensors_alone(schema: TensorSchema) -> None:
    tensors = schema.unflatten(np.arange(schema.num_shared, dtype=np.float32))
    digest = content_digest(schema, tensors)
    assert digest == content_digest(schema, tensors | {"private.w": np.ones((2, 5), np.float32)})
    assert digest == content_digest(schema, {name: np.asfortranarray(array) for name, array in tensors.items()})
    changed = tensors["head.w"].copy()
    changed[0, 0] += 1
    assert digest != content_digest(schema, tensors | {"head.w": changed})


def test_content_digest_is_pinned(schema: TensorSchema) -> None:
    """Root and devices compute it apart from each other, in different versions."""
    tensors = schema.unflatten(np.arange(schema.num_shared, dtype=np.float32))
    definition = b"".join(
        f"{tensor.name}|{'x'.join(map(str, tensor.shape))}|".encode()
        + struct.pack(f"<{tensor.num_values}f", *tensors[tensor.name].flat)
        for tensor in schema.shared
    )
    assert content_digest(schema, tensors) == hashlib.sha256(definition).hexdigest()
    assert content_digest(schema, tensors) == "52644effaaddd765c63117df0570d8c74a78fcbc73429bdc6f9cd331928e4209"


@pytest.mark.parametrize("wrong", [None, np.zeros((4, 3), np.float32), np.zeros((3, 4), np.float64)])
def test_content_digest_names_what_does_not_fit(schema: TensorSchema, wrong: np.ndarray | None) -> None:
    tensors = schema.unflatten(np.zeros(schema.num_shared, np.float32))
    del tensors["body.w"]
    with pytest.raises(SchemaError, match=r"'body\.w' is"):
        content_digest(schema, tensors if wrong is None else tensors | {"body.w": wrong})
