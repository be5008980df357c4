"""The tensors of a model, in order, with the level and scope of each; and the vector that the shared ones make.

Shape legend: P is the number of shared values. The shared tensors (scope region or global), flattened in schema order
(C order inside a tensor), make the vector that is quantised, masked and summed. Everybody who agrees on the fingerprint
agrees on every place of that vector.

    >>> schema = TensorSchema.of({"body.w": (2, 3), "middle.w": (2,), "private.w": (4,)}, spec)
    >>> schema.num_shared
    8
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from nfl_core.errors import NotFoundError, SchemaError
from nfl_core.ids import Digest, canonical_json, digest_of
from nfl_core.levels import NestedSpec, Scope

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")  # no separator of the content digest may stand in a name
MAX_VALUES = 2**28  # one tensor; 1 GiB of float32, far beyond what a device trains


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of the model.

    Attributes:
        name: Full parameter name.
        shape: Sizes, all >= 1; `()` is a scalar.
        level: Name of the level that owns it.
        scope: Scope of that level.
        dtype: Always float32 now.
    """

    name: str
    shape: tuple[int, ...]
    level: str
    scope: Scope
    dtype: Literal["float32"] = "float32"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SchemaError(f"tensor name is {self.name[:80]!r}, expected 1 to 200 of A-Z, a-z, 0-9, _, . and -")
        if any(size < 1 for size in self.shape) or self.num_values > MAX_VALUES:
            raise SchemaError(
                f"tensor {self.name!r} has shape {self.shape}, expected sizes >= 1 and at most {MAX_VALUES} values"
            )

    @property
    def num_values(self) -> int:
        """Product of the sizes."""
        return math.prod(self.shape)


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32"]
    level: str
    scope: Scope


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    tensors: tuple[_Row, ...]


@dataclass(frozen=True)
class TensorSchema:
    """All tensors of a model, in order; valid from its making.

    Raises:
        SchemaError: There are no tensors, or a name stands twice.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if not names:
            raise SchemaError("a schema has no tensors, expected at least one")
        if len(set(names)) != len(names):
            doubled = sorted({name for name in names if names.count(name) > 1})
            raise SchemaError(f"tensors stand twice in a schema: {', '.join(doubled)}")

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], spec: NestedSpec) -> Self:
        """Make the schema of named tensors under a spec.

        Args:
            shapes: Name -> shape, in the order of the schema.
            spec: Decides level and scope of each name.

        Raises:
            SpecError: The spec does not cover the names exactly.
            SchemaError: A name or a shape is not allowed.
        """
        levels = spec.assign(list(shapes))
        return cls(
            tuple(
                TensorSpec(name=name, shape=tuple(shape), level=levels[name], scope=spec.level(levels[name]).scope)
                for name, shape in shapes.items()
            )
        )

    @cached_property
    def shared(self) -> tuple[TensorSpec, ...]:
        """Tensors of scope region or global, in schema order."""
        return tuple(tensor for tensor in self.tensors if tensor.scope.is_shared)

    @cached_property
    def private(self) -> tuple[TensorSpec, ...]:
        """Tensors that never leave the device, in schema order."""
        return tuple(tensor for tensor in self.tensors if not tensor.scope.is_shared)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each shared tensor begins in the shared vector, and the vector's length as last entry."""
        return tuple(accumulate((tensor.num_values for tensor in self.shared), initial=0))

    @property
    def num_shared(self) -> int:
        """P, the length of the shared vector."""
        return self.offsets[-1]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each shared tensor."""
        return tuple(tensor.num_values for tensor in self.shared)

    @cached_property
    def fingerprint(self) -> Digest:
        """SHA-256 of the canonical JSON of the schema."""
        return digest_of(self.to_json().encode())

    def tensor(self, name: str) -> TensorSpec:
        """Return the tensor of that name.

        Raises:
            NotFoundError: There is none.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise NotFoundError(f"no tensor {name!r} in the schema")

    def slices(self, scope: Scope) -> list[slice]:
        """Return the places of one shared scope in the shared vector, in order."""
        return [
            slice(start, start + tensor.num_values)
            for start, tensor in zip(self.offsets, self.shared, strict=False)
            if tensor.scope is scope
        ]

    def slice_of(self, name: str) -> slice:
        """Return the place of one shared tensor in the shared vector.

        Raises:
            NotFoundError: No shared tensor has that name.
        """
        for start, tensor in zip(self.offsets, self.shared, strict=False):
            if tensor.name == name:
                return slice(start, start + tensor.num_values)
        raise NotFoundError(f"no shared tensor {name!r} in the schema")

    def flatten(
        self, tensors: Mapping[str, NDArray[np.float32]], names: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """Join tensors into one vector.

        Args:
            tensors: Name -> array of the schema's shape. Names that are not asked for are ignored.
            names: What to join, in this order; None: the shared tensors in schema order.

        Returns:
            float32, one dimension; for the shared tensors [P].

        Raises:
            SchemaError: A tensor is missing or has another shape.
        """
        wanted = self.shared if names is None else tuple(self.tensor(name) for name in names)
        parts = []
        for tensor in wanted:
            if tensor.name not in tensors:
                raise SchemaError(f"tensor {tensor.name!r} is missing")
            array = tensors[tensor.name]
            if array.shape != tensor.shape:
                raise SchemaError(f"tensor {tensor.name!r} has shape {array.shape}, expected {tensor.shape}")
            parts.append(np.asarray(array, dtype=np.float32).reshape(-1))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def unflatten(self, vector_P: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Cut the shared vector into its tensors.

        Args:
            vector_P: [P].

        Returns:
            Name -> float32 array; arrays share memory with `vector_P` where it is float32.

        Raises:
            SchemaError: `vector_P` has another shape.
        """
        if vector_P.shape != (self.num_shared,):
            raise SchemaError(f"a shared vector has shape {vector_P.shape}, expected ({self.num_shared},)")
        flat = np.asarray(vector_P, dtype=np.float32)
        return {
            tensor.name: flat[start : start + tensor.num_values].reshape(tensor.shape)
            for start, tensor in zip(self.offsets, self.shared, strict=False)
        }

    def to_json(self) -> str:
        """Return the canonical JSON of the schema."""
        rows = [
            {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "level": t.level, "scope": t.scope.value}
            for t in self.tensors
        ]
        return canonical_json({"tensors": rows}).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a schema strictly: no unknown keys, no coercion, no doubled keys.

        Raises:
            SchemaError: `text` is not the JSON of a schema.
        """
        try:
            json.loads(text, object_pairs_hook=_once)
            document = _Document.model_validate_json(text, strict=True)
        except (ValidationError, ValueError, RecursionError) as error:
            raise SchemaError(f"not the JSON of a schema: {str(error)[:200]}") from error
        return cls(
            tuple(
                TensorSpec(name=row.name, shape=row.shape, dtype=row.dtype, level=row.level, scope=row.scope)
                for row in document.tensors
            )
        )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError(f"a key stands twice among {[key for key, _ in pairs][:8]}")
    return dict(pairs)
