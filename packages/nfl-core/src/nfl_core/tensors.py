"""Strict safetensors: bytes from anybody become arrays only when every rule holds.

Refused: a header that is larger than 1 MiB or not one JSON object, a key that stands twice, metadata, a type outside
`DTYPES`, offsets that overlap, leave a gap or do not end at the end of the file, NaN and infinities, and, where the
reader says what it expects, a name, shape or type that is missing, extra or different.

    >>> read_tensors(write_tensors({"w": np.zeros(2, np.float32)}), {"w": ((2,), "float32")}, max_bytes=1024)
    {'w': array([0., 0.], dtype=float32)}

Source: format of safetensors 0.8, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from nfl_core.errors import MalformedError, SchemaError, TensorFileError
from nfl_core.ids import Digest
from nfl_core.schema import TensorSchema

Array: TypeAlias = NDArray[np.generic]

MAX_HEADER_BYTES = 1024 * 1024  # some 10,000 tensors
MAX_DIMENSIONS = 8
_LENGTH_BYTES = 8
DTYPES = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "U8": "uint8",
    "I8": "int8",
    "I32": "int32",
    "I64": "int64",
}


def read_tensors(
    data: bytes, expected: Mapping[str, tuple[tuple[int, ...], str]] | None, *, max_bytes: int
) -> dict[str, Array]:
    """Read a safetensors file strictly.

    Args:
        data: The whole file.
        expected: Name -> (shape, type name such as "float32"), exactly these; None: whatever the file holds.
        max_bytes: Largest length of `data`.

    Returns:
        Name -> array that owns its memory, in the order of the file.

    Raises:
        TensorFileError: A rule of this module is broken.
    """
    if len(data) > max_bytes:
        raise TensorFileError(f"a tensor file has {len(data)} bytes, expected at most {max_bytes}")
    header, start = _header(data)
    tensors: dict[str, Array] = {}
    position = start
    for name, entry in header.items():
        shape, dtype, begin, end = _entry(name, entry)
        if start + begin != position or end - begin != math.prod(shape) * dtype.itemsize or start + end > len(data):
            raise TensorFileError(
                f"tensor {name!r} has offsets {begin} to {end}, expected to follow the one before and to fit {shape}"
            )
        position = start + end
        array = np.frombuffer(data, dtype, count=math.prod(shape), offset=start + begin).reshape(shape).copy()
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise TensorFileError(f"tensor {name!r} holds a value that is not finite")
        tensors[name] = array
    if position != len(data):
        raise TensorFileError(f"a tensor file has {len(data) - position} bytes behind its last tensor, expected none")
    if expected is not None:
        _compare(tensors, expected)
    return tensors


def write_tensors(tensors: Mapping[str, Array]) -> bytes:
    """Return the safetensors file of named arrays; equal arrays give equal bytes.

    Raises:
        TensorFileError: An array has a type outside `DTYPES` or is not finite.
    """
    plain = {}
    for name, array in tensors.items():
        if array.dtype.name not in DTYPES.values():
            raise TensorFileError(
                f"tensor {name!r} has type {array.dtype}, expected one of {', '.join(DTYPES.values())}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TensorFileError(f"tensor {name!r} holds a value that is not finite")
        plain[name] = np.ascontiguousarray(array).reshape(array.shape)
    return safetensors.numpy.save(plain)


def to_input(x: Array) -> NDArray[np.float32]:
    """Turn stored samples into a model's input: the one rule, for learning, inference and the root's gates.

    Args:
        x: Pixels, uint8, or features, float32 and finite; any shape.

    Returns:
        Pixels as float32 in [0, 1]; features as they are.

    Raises:
        MalformedError: Another type, or a value that is not finite.
    """
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    if x.dtype != np.float32:
        raise MalformedError(f"inputs are {x.dtype}, expected uint8 pixels or float32 features")
    features = x.astype(np.float32, copy=False)
    if not np.isfinite(features).all():
        raise MalformedError("inputs hold a value that is not finite")
    return features


def content_digest(schema: TensorSchema, tensors: Mapping[str, NDArray[np.float32]]) -> Digest:
    """Return the digest of the shared tensors: what a device's shared levels are, however they came.

    Args:
        schema: Decides names and order.
        tensors: At least every shared tensor, float32.

    Returns:
        SHA-256 over name, shape and little-endian values of each shared tensor in schema order.

    Raises:
        SchemaError: A shared tensor is missing, misshaped or not float32.
    """
    digest = hashlib.sha256()
    for tensor in schema.shared:
        array = tensors.get(tensor.name)
        if array is None or array.shape != tensor.shape or array.dtype != np.float32:
            got = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise SchemaError(f"tensor {tensor.name!r} is {got}, expected float32 of {tensor.shape}")
        digest.update(f"{tensor.name}|{'x'.join(map(str, tensor.shape))}|".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return Digest(digest.hexdigest())


def _header(data: bytes) -> tuple[dict[str, object], int]:
    """Return the header's entries in file order and where the values begin."""
    num_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or num_bytes > min(MAX_HEADER_BYTES, len(data) - _LENGTH_BYTES):
        raise TensorFileError(
            f"a tensor file of {len(data)} bytes announces a header of {num_bytes}, expected it to fit in 1 MiB"
        )
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + num_bytes], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"the header of a tensor file is not plain JSON: {str(error)[:120]}") from error
    if not isinstance(header, dict):
        raise TensorFileError("the header of a tensor file is not a JSON object")
    if "__metadata__" in header:
        raise TensorFileError("a tensor file carries metadata, expected none")
    return header, _LENGTH_BYTES + num_bytes


def _entry(name: str, entry: object) -> tuple[tuple[int, ...], np.dtype[np.generic], int, int]:
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(end)], **rest}:
            sound = (
                not rest
                and code in DTYPES
                and len(shape) <= MAX_DIMENSIONS
                and all(type(size) is int and size >= 0 for size in shape)
            )
            if sound and type(begin) is int and type(end) is int and 0 <= begin <= end:
                return tuple(shape), np.dtype(DTYPES[code]).newbyteorder("<"), begin, end
    raise TensorFileError(
        f"tensor {name[:80]!r} is described by {str(entry)[:120]}, expected dtype, shape and data_offsets"
    )


def _compare(tensors: Mapping[str, Array], expected: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise TensorFileError(f"a tensor file lacks {missing[:5]} and has {extra[:5]} too many")
    for name, (shape, dtype) in expected.items():
        array = tensors[name]
        if array.shape != tuple(shape) or array.dtype.name != dtype:
            raise TensorFileError(
                f"tensor {name!r} is {array.dtype} of shape {array.shape}, expected {dtype} of {tuple(shape)}"
            )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key stands twice")
    return entries
