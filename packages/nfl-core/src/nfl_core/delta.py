"""A delta: how far shared tensors moved from an accepted base, as whole steps of a shared scale. A value with `+`.

Shape legend: P values of the shared vector, T shared tensors.

Laws, kept by property tests: `+` is associative and commutative and exact; only deltas of the same schema, base, scales
and bits add; a delta with an unknown, private, misshaped or non-finite tensor cannot be made.

    >>> delta, residual_P = Delta.build(schema, moved, base=digest, scales=(0.1, 0.1, 0.1), bits=2)
    >>> (delta + delta).weight
    2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from nfl_core.codec.quantise import dequantise_mean, expand_scales, qmax, quantise
from nfl_core.errors import DeltaError
from nfl_core.ids import Digest
from nfl_core.schema import TensorSchema

_INT32 = np.iinfo(np.int32)


def flatten_displacement(schema: TensorSchema, displacement: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Check a displacement against the allow-list of a schema and join it.

    Args:
        schema: Decides which names may leave.
        displacement: Every shared tensor by name, float32, of the schema's shape, finite; nothing else.

    Returns:
        float32 [P].

    Raises:
        DeltaError: A tensor is unknown, private, missing, misshaped, of another type or not finite.
    """
    shared = {tensor.name: tensor for tensor in schema.shared}
    private = {tensor.name for tensor in schema.private}
    for name in displacement:
        if name in private:
            raise DeltaError(f"tensor {name!r} is private, expected shared tensors alone")
        if name not in shared:
            raise DeltaError(f"tensor {name!r} is unknown to the schema")
    for name, tensor in shared.items():
        if name not in displacement:
            raise DeltaError(f"tensor {name!r} is missing, expected every shared tensor")
        array = displacement[name]
        if array.shape != tensor.shape or array.dtype != np.float32:
            raise DeltaError(
                f"tensor {name!r} is {array.dtype} of shape {array.shape}, expected float32 of {tensor.shape}"
            )
        if not np.isfinite(array).all():
            raise DeltaError(f"tensor {name!r} holds a value that is not finite")
    return schema.flatten(displacement)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delta:
    """Summed displacements of one or more devices.

    Attributes:
        schema: Gives every place of the vector its meaning.
        base: Content digest of the version the displacement starts from.
        counts_P: int32 [P], sum over devices of weight * steps.
        weight: Sum of the weights, >= 1.
        scales: T scales, one a shared tensor.
        bits: Of one device's value.

    Raises:
        DeltaError: The counts have another shape or type, or a number is out of range.
    """

    schema: TensorSchema
    base: Digest
    counts_P: NDArray[np.int32]
    weight: int
    scales: tuple[float, ...]
    bits: int

    def __post_init__(self) -> None:
        if self.counts_P.dtype != np.int32 or self.counts_P.shape != (self.schema.num_shared,):
            expected = f"int32 of ({self.schema.num_shared},)"
            raise DeltaError(f"counts are {self.counts_P.dtype} of shape {self.counts_P.shape}, expected {expected}")
        if self.weight < 1:
            raise DeltaError(f"the weight of a delta is {self.weight}, expected at least 1")
        expand_scales(self.scales, self.schema.sizes)
        bound = qmax(self.bits) * self.weight
        if self.counts_P.size and int(np.abs(self.counts_P.astype(np.int64)).max()) > bound:
            raise DeltaError(f"a count is beyond +-{bound}, more than weight {self.weight} and {self.bits} bits allow")

    @classmethod
    def build(
        cls,
        schema: TensorSchema,
        displacement: Mapping[str, NDArray[np.float32]],
        *,
        base: Digest,
        scales: tuple[float, ...],
        bits: int,
        weight: int = 1,
        residual_P: NDArray[np.float32] | None = None,
    ) -> tuple[Self, NDArray[np.float32]]:
        """Make the delta of one device.

        Args:
            schema: Decides which names may leave.
            displacement: Every shared tensor by name, float32, finite.
            base: Content digest of the version it starts from.
            scales: T scales, > 0.
            bits: 2 to 16.
            weight: Of this device, >= 1.
            residual_P: float32 [P], what was not sent before; None: nothing.

        Returns:
            The delta, and the residual to keep for the next one, float32 [P].

        Raises:
            DeltaError: A tensor is unknown, private, missing, misshaped or not finite, or a number is out of range.
        """
        x_P = flatten_displacement(schema, displacement)
        q_P, left_P = quantise(x_P, expand_scales(scales, schema.sizes), bits, residual_P=residual_P)
        counts_P = q_P.astype(np.int64) * weight
        return cls(
            schema=schema, base=base, counts_P=_narrow(counts_P), weight=weight, scales=scales, bits=bits
        ), left_P

    @property
    def schema_fingerprint(self) -> Digest:
        """Fingerprint of the schema."""
        return self.schema.fingerprint

    def __add__(self, other: Delta) -> Delta:
        for what in ("schema_fingerprint", "base", "scales", "bits"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise DeltaError(f"deltas differ in {what}: {mine} and {theirs}; expected the same for a sum")
        counts_P = self.counts_P.astype(np.int64) + other.counts_P
        return Delta(
            schema=self.schema,
            base=self.base,
            counts_P=_narrow(counts_P),
            weight=self.weight + other.weight,
            scales=self.scales,
            bits=self.bits,
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Delta)
            and (self.schema_fingerprint, self.base, self.weight, self.scales, self.bits)
            == (other.schema_fingerprint, other.base, other.weight, other.scales, other.bits)
            and np.array_equal(self.counts_P, other.counts_P)
        )

    __hash__ = None  # type: ignore[assignment]  # holds an array

    def mean(self) -> NDArray[np.float32]:
        """Return the weighted mean displacement, float32 [P]."""
        return dequantise_mean(
            self.counts_P, self.weight, scales_P=expand_scales(self.scales, self.schema.sizes), bits=self.bits
        )


def _narrow(counts_P: NDArray[np.int64]) -> NDArray[np.int32]:
    if counts_P.size and (int(counts_P.min()) < _INT32.min or int(counts_P.max()) > _INT32.max):
        raise DeltaError("a sum of counts does not fit in 32 bits, expected smaller weights or fewer contributions")
    return counts_P.astype(np.int32)
