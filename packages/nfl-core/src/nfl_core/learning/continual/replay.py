"""What a device keeps of samples that are gone: a bounded, uniform sample of its stream, with the answers of that time.

Every sample gets a rank, a keyed hash of its content, and the lowest ranks stay. So the buffer is a uniform sample of
the DISTINCT samples ever offered, whatever their order; offering one again changes nothing, so a flood of copies cannot
push the rest out and a file that is read twice counts once. With `balanced`, the class that holds most gives way, and
within each class the sample is uniform.

Rules kept here:

* The bound is in bytes and counts every array of the state.
* A buffer belongs to one model. Another schema is an error; another version drops the logits and keeps the labels.
* Inputs that are pixels (k / 255) are kept as uint8, a quarter of the bytes, and come back bit for bit.

    >>> home = ModelIdentity(schema_fingerprint="f" * 64, version=1)
    >>> buffer = ReplayBuffer(max_bytes=4096, input_shape=(1, 4, 4), num_classes=3, identity=home, salt=7)
    >>> buffer.offer(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))
    2
    >>> len(buffer), buffer.num_bytes <= 4096
    (2, True)

Source: logits kept beside samples: Buzzega et al., Dark Experience for General Continual Learning, arXiv:2004.07211.
Lowest ranks as a uniform sample: Cohen and Kaplan, Summarizing data using bottom-k sketches, PODC 2007.

Shape legend: N offered, M kept, R drawn, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from typing_extensions import Self

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning.continual.errors import ReplayMismatchError

Array = NDArray[np.generic]
_UINT8: np.dtype[np.generic] = np.dtype(np.uint8)
_NO_LIMIT = np.iinfo(np.int64).max
_PIXEL_STEPS = np.float32(255)
_FIXED_BYTES = 16  # of each sample beside input, logits and the flag: label and rank


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model a buffer belongs to: fingerprint of its tensor schema, and the version its device runs."""

    schema_fingerprint: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayBatch:
    """Remembered samples.

    Attributes:
        x: float32 [R, *input_shape].
        y: int64 [R].
        logits: float32 [R, K], generic answers of the model that learned them; zeros where not known.
        known: bool [R], whether `logits` means anything.
    """

    x: Tensor
    y: Tensor
    logits: Tensor
    known: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayState:
    """A buffer as named arrays and a JSON object of less than a kilobyte."""

    arrays: dict[str, Array]
    text: str


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_fingerprint: str
    version: int
    salt: int
    balanced: bool


class ReplayBuffer:
    """A bounded memory of a stream.

    Args:
        max_bytes: Bound of all arrays of the state together; must hold one sample.
        input_shape: Of one input, without the batch.
        num_classes: K.
        identity: The model it belongs to.
        salt: Decides which samples stay; fixed for a device.
        balanced: Give each class an equal share instead of its share of the stream.

    Raises:
        ConfigError: The bound does not hold one sample.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        input_shape: tuple[int, ...],
        num_classes: int,
        identity: ModelIdentity,
        salt: int,
        balanced: bool = True,
    ) -> None:
        self.max_bytes = max_bytes
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.identity = identity
        self.balanced = balanced
        self._salt = salt
        self._x: Array = np.zeros((0, *self.input_shape), np.uint8)
        self._y = np.zeros(0, np.int64)
        self._rank = np.zeros(0, np.int64)
        self._logits = np.zeros((0, num_classes), np.float32)
        self._known = np.zeros(0, np.bool_)
        self._limit = np.full(num_classes, _NO_LIMIT, np.int64)  # ranks from here on were turned away once, by class
        if self.capacity < 1:
            raise ConfigError(
                f"replay is bounded to {max_bytes} bytes, expected room for one sample of {list(self.input_shape)}: "
                f"{self._limit.nbytes + self._sample_bytes(self._x.dtype)} or more",
                hint="raise learning.replay_bytes, or set it to 0 to keep nothing",
            )

    @property
    def capacity(self) -> int:
        """How many samples the bound holds."""
        return self._capacity(self._x.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays of the state, at most `max_bytes`."""
        return sum(array.nbytes for array in self._arrays().values())

    @property
    def labels(self) -> Tensor:
        """Labels of what is kept, int64 [M]; `take` counts its places."""
        return torch.from_numpy(self._y.copy())

    def __len__(self) -> int:
        return len(self._y)

    def offer(self, x: Tensor, y: Tensor, *, logits: Tensor | None = None) -> int:
        """Let samples in that rank low enough, and as many out as the bound asks; say how many stayed.

        Args:
            x: float32 [N, *input_shape], finite.
            y: int64 [N], values 0 to K - 1.
            logits: float32 [N, K], what the generic head answers now; None: not known.

        Raises:
            LearningError: A shape, type or label is wrong, or an input is not finite; the buffer is unchanged.
        """
        self._check(x, y, logits)
        inputs = x.detach().numpy()
        if self._x.dtype == np.uint8 and _as_pixels(inputs) is None:
            self._widen()
        stored = inputs.astype(np.float32, copy=False) if self._x.dtype == np.float32 else _pixels(inputs)
        labels = y.detach().numpy()
        ranks = self._ranks(inputs, labels)
        _, first = np.unique(ranks, return_index=True)
        new = first[(ranks[first] < self._limit[labels[first]]) & ~np.isin(ranks[first], self._rank)]
        if not len(new):
            return 0
        answers = np.zeros((len(new), self.num_classes), np.float32)
        if logits is not None:
            answers = logits.detach().numpy()[new]
        self._x = np.concatenate([self._x, stored[new]])
        self._y = np.concatenate([self._y, labels[new]])
        self._rank = np.concatenate([self._rank, ranks[new]])
        self._logits = np.concatenate([self._logits, answers])
        self._known = np.concatenate([self._known, np.full(len(new), logits is not None)])
        self._shrink()
        return int(np.isin(ranks[new], self._rank).sum())

    def draw(self, num: int, *, generator: torch.Generator, among: Tensor | None = None) -> ReplayBatch:
        """Draw samples with replacement.

        Args:
            num: R >= 1.
            generator: Decides which.
            among: Places to draw from, int64, not empty; None: all.

        Raises:
            LearningError: There is nothing to draw from.
        """
        size = len(self) if among is None else len(among)
        if not size:
            raise LearningError("the replay buffer has nothing to draw from, expected at least one sample")
        pick = torch.randint(size, (num,), generator=generator)
        return self.take(pick if among is None else among[pick])

    def take(self, places: Tensor) -> ReplayBatch:
        """Return the samples at these places, int64 [R], as copies."""
        at = places.numpy()
        x = self._x[at]
        if x.dtype == np.uint8:
            x = x.astype(np.float32) / _PIXEL_STEPS
        return ReplayBatch(
            x=torch.from_numpy(x),
            y=torch.from_numpy(self._y[at]),
            logits=torch.from_numpy(self._logits[at]),
            known=torch.from_numpy(self._known[at]),
        )

    def outside(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the places of samples that are not among these, int64: what a new file has forgotten."""
        there = self._ranks(x.detach().numpy(), y.detach().numpy())
        return torch.from_numpy(np.flatnonzero(~np.isin(self._rank, there)))

    def adopt(self, identity: ModelIdentity) -> bool:
        """Belong to this version of the model; say whether logits were dropped, because another one answered them.

        Raises:
            ReplayMismatchError: The schema differs; the buffer is unchanged.
        """
        if identity.schema_fingerprint != self.identity.schema_fingerprint:
            raise ReplayMismatchError(
                f"replay buffer belongs to schema {self.identity.schema_fingerprint[:12]}, "
                f"the model has {identity.schema_fingerprint[:12]}"
            )
        is_other = identity.version != self.identity.version
        dropped = is_other and bool(self._known.any())
        if is_other:
            self._known = np.zeros(len(self), np.bool_)
            self._logits = np.zeros_like(self._logits)
        self.identity = identity
        return dropped

    @property
    def unanswered(self) -> Tensor:
        """Places of samples whose logits are not known, int64."""
        return torch.from_numpy(np.flatnonzero(~self._known))

    def refresh(self, logits: Tensor, *, places: Tensor | None = None) -> None:
        """Replace logits by what the model answers now, float32 [M, K], finite; at these places, or all.

        Raises:
            LearningError: The shape is another, or a value is not finite.
        """
        at = np.arange(len(self)) if places is None else places.numpy()
        if tuple(logits.shape) != (len(at), self.num_classes) or not bool(torch.isfinite(logits).all()):
            raise LearningError(f"logits are {list(logits.shape)}, expected finite {[len(at), self.num_classes]}")
        self._logits[at] = logits.detach().numpy()
        self._known[at] = True

    def state_dict(self) -> ReplayState:
        """Return a copy of everything; equal buffers give equal states."""
        head = _Head(
            schema_fingerprint=self.identity.schema_fingerprint,
            version=self.identity.version,
            salt=self._salt,
            balanced=self.balanced,
        )
        return ReplayState(
            arrays={name: np.array(array, copy=True, order="C") for name, array in self._arrays().items()},
            text=head.model_dump_json(),
        )

    @classmethod
    def restore(cls, state: ReplayState, *, max_bytes: int) -> Self:
        """Return the buffer whose `state_dict` this is; a smaller bound lets the highest ranks out.

        Raises:
            ReplayMismatchError: It is not the state of a buffer.
            ConfigError: The bound does not hold one sample.
        """
        head = _head(state)
        arrays = _checked(state.arrays)
        buffer = cls(
            max_bytes=max_bytes,
            input_shape=tuple(arrays["x"].shape[1:]),
            num_classes=len(arrays["limit"]),
            identity=ModelIdentity(schema_fingerprint=head.schema_fingerprint, version=head.version),
            salt=head.salt,
            balanced=head.balanced,
        )
        buffer._x = np.array(arrays["x"], copy=True)
        buffer._y = arrays["y"].astype(np.int64)
        buffer._rank = arrays["rank"].astype(np.int64)
        buffer._logits = arrays["logits"].astype(np.float32)
        buffer._known = arrays["known"].astype(np.bool_)
        buffer._limit = arrays["limit"].astype(np.int64)
        buffer._shrink()
        return buffer

    def _capacity(self, dtype: np.dtype[np.generic]) -> int:
        return max(0, (self.max_bytes - self._limit.nbytes) // self._sample_bytes(dtype))

    def _sample_bytes(self, dtype: np.dtype[np.generic]) -> int:
        return bytes_for(1, self.input_shape, num_classes=self.num_classes, dtype=dtype) - self._limit.nbytes

    def _arrays(self) -> dict[str, Array]:
        return {
            "x": self._x,
            "y": self._y,
            "rank": self._rank,
            "logits": self._logits,
            "known": self._known,
            "limit": self._limit,
        }

    def _check(self, x: Tensor, y: Tensor, logits: Tensor | None) -> None:
        if x.dtype is not torch.float32 or tuple(x.shape) != (len(y), *self.input_shape):
            raise LearningError(
                f"replay got inputs {x.dtype}{list(x.shape)}, expected torch.float32[{len(y)}, *{self.input_shape}]"
            )
        if y.dtype is not torch.int64 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes):
            raise LearningError(f"replay got labels {y.dtype}, expected torch.int64 within 0 to {self.num_classes - 1}")
        if not bool(torch.isfinite(x).all()):
            raise LearningError("replay got an input that is not finite")
        if logits is not None and (
            tuple(logits.shape) != (len(y), self.num_classes) or not bool(torch.isfinite(logits).all())
        ):
            raise LearningError(
                f"replay got logits {list(logits.shape)}, expected finite [{len(y)}, {self.num_classes}]"
            )

    def _ranks(self, inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        # Of the float values, so that a sample ranks the same however it is stored.
        key = self._salt.to_bytes(16, "little", signed=True)
        content = np.ascontiguousarray(inputs, dtype="<f4")
        digests = [
            hashlib.blake2b(sample.tobytes() + int(label).to_bytes(8, "little"), key=key, digest_size=8).digest()
            for sample, label in zip(content, labels, strict=True)
        ]
        return (np.frombuffer(b"".join(digests), "<u8") >> np.uint64(1)).astype(np.int64)

    def _shrink(self) -> None:
        """Let samples out until the bound holds, then order by rank, so that equal content is equal state."""
        order = np.argsort(self._rank)
        self._keep(order)
        while (surplus := len(self) - self.capacity) > 0:
            leaving = self._leaving(surplus)
            np.minimum.at(self._limit, self._y[leaving], self._rank[leaving])
            if not self.balanced:
                self._limit[:] = self._limit.min()
            stay = np.ones(len(self), np.bool_)
            stay[leaving] = False
            self._keep(np.flatnonzero(stay))

    def _leaving(self, surplus: int) -> NDArray[np.intp]:
        """Return places, sorted by rank already, of up to `surplus` samples that leave next."""
        if not self.balanced:
            return np.arange(len(self) - surplus, len(self))
        counts = np.bincount(self._y, minlength=self.num_classes)
        largest = int(counts.argmax())
        second = int(np.delete(counts, largest).max(initial=0))
        num = min(surplus, max(1, int(counts[largest]) - second))
        return np.flatnonzero(self._y == largest)[-num:]

    def _keep(self, places: NDArray[np.intp]) -> None:
        self._x, self._y, self._rank = self._x[places], self._y[places], self._rank[places]
        self._logits, self._known = self._logits[places], self._known[places]

    def _widen(self) -> None:
        """Go on with float32 inputs; fewer samples fit then."""
        if not self._capacity(np.dtype(np.float32)):
            raise LearningError(f"replay is bounded to {self.max_bytes} bytes, expected room for one float32 sample")
        self._x = self._x.astype(np.float32) / _PIXEL_STEPS
        self._shrink()


def bytes_for(num: int, input_shape: tuple[int, ...], *, num_classes: int, dtype: np.dtype[np.generic] = _UINT8) -> int:
    """Return the bound that holds `num` samples whose inputs are kept as `dtype`, uint8 or float32."""
    return num * (int(np.prod(input_shape)) * dtype.itemsize + 4 * num_classes + _FIXED_BYTES + 1) + 8 * num_classes


def _pixels(inputs: NDArray[np.float32]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.rint(inputs * _PIXEL_STEPS).astype(np.uint8)
    return pixels


def _as_pixels(inputs: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """Return uint8 pixels that give exactly these inputs back, None when there are none."""
    if inputs.size and not 0 <= float(inputs.min()) <= float(inputs.max()) <= 1:
        return None
    pixels = _pixels(inputs)
    return pixels if np.array_equal(pixels.astype(np.float32) / _PIXEL_STEPS, inputs) else None


def _head(state: ReplayState) -> _Head:
    try:
        return _Head.model_validate_json(state.text)
    except ValidationError as e:
        raise ReplayMismatchError(f"the state of a replay buffer cannot be read: {e.errors()[0]['msg']}") from e


def _checked(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    names = {"x", "y", "rank", "logits", "known", "limit"}
    if set(arrays) != names:
        raise ReplayMismatchError(f"replay state differs in {sorted(set(arrays) ^ names)[:3]}")
    num, num_classes = len(arrays["y"]), len(arrays["limit"])
    shapes = {"y": (num,), "rank": (num,), "logits": (num, num_classes), "known": (num,), "limit": (num_classes,)}
    wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
    if wrong or len(arrays["x"]) != num or arrays["x"].dtype not in (np.uint8, np.float32):
        raise ReplayMismatchError(f"replay state has arrays that do not fit together: {wrong or ['x']}")
    if num and not 0 <= int(arrays["y"].min()) <= int(arrays["y"].max()) < num_classes:
        raise ReplayMismatchError(f"replay state has labels outside 0 to {num_classes - 1}")
    return arrays
