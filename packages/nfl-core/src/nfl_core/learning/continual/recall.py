"""Old fast levels, kept for the day their world comes back. They never leave the device.

A snapshot is the private level together with a signature of the world it was learned in: mean of the features and
shares of the labels. When the world changes, `recall` scores the bounded number of snapshots on recent samples, the
nearest first, and takes the best at once when it is better than what runs; nothing is taken on the word of a signature.

    shelf = RecallShelf(max_snapshots=4)
    shelf.keep(signature_of(cache, num_classes=10), private_state(module))
    report = shelf.recall(module, cache)      # cache: features of recent samples, see `cache_features`

Shape legend: N recent samples, D features, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning.model import FloatArray, NestedModel, load_state, state_of
from nfl_core.learning.refit import FeatureCache

_PRIVATE = "private."


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a world looks like.

    Attributes:
        mean: Of the features, float32 [D].
        labels: Share of each class, float32 [K], sums to 1.
    """

    mean: FloatArray
    labels: FloatArray

    def distance(self, other: Signature) -> float:
        """Return how far another world is, >= 0: relative distance of the means plus total variation of the labels."""
        scale = max(float(np.linalg.norm(self.mean)), float(np.linalg.norm(other.mean)), 1e-6)
        apart = float(np.linalg.norm(self.mean - other.mean)) / scale
        return apart + 0.5 * float(np.abs(self.labels - other.labels).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """What a recall did; losses are on the recent samples, nats.

    Attributes:
        recalled: Whether the private level changed.
        loss_before: Of what ran.
        loss_after: Of what runs now.
        num_tried: Snapshots that were scored.
    """

    recalled: bool
    loss_before: float
    loss_after: float
    num_tried: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    signature: Signature
    state: dict[str, FloatArray]


class RecallShelf:
    """A bounded number of old private levels, the one used last at the end.

    Args:
        max_snapshots: Bound, >= 1; the one not used for longest goes first.
        same_world: Signatures nearer than this are one world, whose snapshot is replaced.
        margin: By how much a snapshot's loss must be lower, as a fraction, within [0, 1).
    """

    def __init__(self, *, max_snapshots: int = 4, same_world: float = 0.2, margin: float = 0.05) -> None:
        if max_snapshots < 1 or same_world < 0 or not 0 <= margin < 1:
            raise ConfigError(f"recall got {max_snapshots} snapshots, radius {same_world}, margin {margin}")
        self.max_snapshots, self._same_world, self._margin = max_snapshots, same_world, margin
        self._kept: list[_Snapshot] = []

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, signature: Signature, state: Mapping[str, FloatArray]) -> None:
        """Keep a copy of a private level under the signature of the world it was learned in."""
        copy = {name: np.array(array, copy=True, order="C") for name, array in state.items()}
        others = [s for s in self._kept if s.signature.distance(signature) >= self._same_world]
        self._kept = [*others, _Snapshot(signature=signature, state=copy)][-self.max_snapshots :]

    def recall(self, module: NestedModel, recent: FeatureCache) -> RecallReport:
        """Take the best snapshot when it answers recent samples better than the private level that runs.

        Args:
            module: Only its private head changes, and only for the better.
            recent: Features of recent samples under the present shared levels, N >= 1.

        Raises:
            LearningError: No samples, or a snapshot is of another model.
        """
        if not len(recent.y):
            raise LearningError("recall got no recent samples, expected at least one")
        before = _loss(module, recent, private_state(module))
        here = signature_of(recent, num_classes=module.num_classes)
        nearest = sorted(self._kept, key=lambda snapshot: snapshot.signature.distance(here))
        losses = [_loss(module, recent, snapshot.state) for snapshot in nearest]
        best = min(range(len(losses)), key=losses.__getitem__, default=None)
        if best is None or not losses[best] < before * (1.0 - self._margin):
            return RecallReport(recalled=False, loss_before=before, loss_after=before, num_tried=len(losses))
        load_state(module, nearest[best].state, partial=True)
        self._kept = [s for s in self._kept if s is not nearest[best]] + [nearest[best]]
        return RecallReport(recalled=True, loss_before=before, loss_after=losses[best], num_tried=len(losses))

    def state_dict(self) -> tuple[dict[str, FloatArray], str]:
        """Return all snapshots as named arrays, and their number and order as a JSON object."""
        arrays: dict[str, FloatArray] = {}
        for place, snapshot in enumerate(self._kept):
            arrays[f"{place}:mean"], arrays[f"{place}:labels"] = snapshot.signature.mean, snapshot.signature.labels
            arrays |= {f"{place}:{name}": array for name, array in snapshot.state.items()}
        return {name: np.array(a, copy=True) for name, a in arrays.items()}, json.dumps({"num": len(self._kept)})

    def load_state_dict(self, arrays: Mapping[str, FloatArray], text: str) -> None:
        """Go on where `state_dict` was called.

        Raises:
            LearningError: It is not the state of a shelf; nothing changed.
        """
        try:
            num = int(json.loads(text)["num"])
            kept = [_snapshot(arrays, f"{place}:") for place in range(num)]
        except (ValueError, KeyError, TypeError) as e:
            raise LearningError(f"the state of a recall shelf cannot be read: {e!r}") from e
        self._kept = kept[-self.max_snapshots :]


def signature_of(recent: FeatureCache, *, num_classes: int) -> Signature:
    """Return what the world of these samples looks like, N >= 1."""
    shares = torch.bincount(recent.y, minlength=num_classes).to(torch.float32) / len(recent.y)
    return Signature(mean=recent.z.mean(0).numpy().copy(), labels=shares.numpy())


def private_state(module: NestedModel) -> dict[str, FloatArray]:
    """Return a copy of the private level alone, by name."""
    return {name: array for name, array in state_of(module).items() if name.startswith(_PRIVATE)}


def _loss(module: NestedModel, recent: FeatureCache, state: Mapping[str, FloatArray]) -> float:
    tensors = {name.removeprefix(_PRIVATE): torch.from_numpy(array) for name, array in state.items()}
    try:
        with torch.no_grad():
            residual = functional_call(module.private, tensors, (recent.z,), strict=True)
            return float(cross_entropy(recent.generic + residual, recent.y))
    except RuntimeError as e:
        raise LearningError(f"a snapshot does not fit the private head: {e}") from e


def _snapshot(arrays: Mapping[str, FloatArray], prefix: str) -> _Snapshot:
    mine = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    signature = Signature(mean=mine.pop("mean"), labels=mine.pop("labels"))
    return _Snapshot(signature=signature, state=mine)
