"""Judging a version by what a device knows of versions, before anything is made of it.

A holdout of some forty samples, asked after the private head was refitted, misses much: the refit heals the owner's own
answers. So a device also keeps a `Track` of the versions that it found plausible, and asks of a new one:

* **length**: is the step from the last plausible version at most `plausible_factor` times as long as steps usually are?
  Usual is the median of the last steps, or, before there were any, twice what the device moved by its own training;
* **direction**: does the step agree with what the device itself learned since, and with the step before it? Only the
  mean of both cosines counts, and only where the device has trained: who sees a rare world may well disagree with the
  fleet, but where the fleet was going is known;
* **answers**: does the shared model answer much worse than the last one did, on all samples of the owner? Published
  models alone are compared: neither has seen these samples more than the other.

Rules kept here:

* What is not known does not speak: no track, no training, no samples. The first versions pass more easily.
* Who missed versions is allowed a step for each of them. After `MAX_MISSED` versions the track is too old and says
  nothing, so no device is locked out by its own history for longer than that.
* What was plausible once stays plausible: a fleet that goes back to an older version is followed.
* A step of length zero tells nothing about how long steps are.

    >>> start = {"w": np.zeros(4, np.float32)}
    >>> track = Track.begin(start, version=1).then({"w": np.full(4, 0.5, np.float32)}, version=2)
    >>> track.lengths
    (1.0,)
    >>> poisoned = {"w": np.full(4, 9.0, np.float32)}
    >>> judge_step(Known(track=track, version=3), poisoned, factor=2.0).value
    'step-length'
"""

from __future__ import annotations

import copy
import hashlib
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import Self

from nfl_core.learning.model import FloatArray, NestedModel, load_state
from nfl_core.learning.objective import label_prior

MAX_LENGTHS = 8  # steps whose median is usual: the last ones, for steps shrink while a fleet learns
MAX_CONTENTS = 8  # versions that a fleet may go back to
MAX_MISSED = 16  # versions after which the track is forgotten
OWN_FACTOR = 2.0  # an owner with few samples moves less than the fleet: first steps were up to 3.6 times as long
LEAST_AGREEMENT = -0.05  # mean cosine; honest steps had 0.32 and more, turned round -0.32 and less (docs/adr/0007)
LEAST_RISE = 0.1  # nats; below this a rise is none, however small the loss was
NUM_ERRORS = 4.0  # standard errors of the mean rise that are still chance
Step = Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.floating]]]  # by tensor name, float32 or float16


class Refusal(StrEnum):
    """Which check refused a version."""

    HOLDOUT = "holdout"
    NOT_FINITE = "not-finite"
    LENGTH = "step-length"
    DIRECTION = "step-direction"
    ANSWERS = "published-answers"

    @property
    def is_implausible(self) -> bool:
        """Whether the version itself was doubted, and not only what the owner would gain by it."""
        return self is not Refusal.HOLDOUT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Track:
    """What a device remembers of the versions that it found plausible.

    Attributes:
        published: Shared tensors of the last of them, as published, float32.
        version: Its number.
        step: The last step, float16, its largest value 1; empty: there was none.
        lengths: Of the last steps, Euclidean, by version, newest last; at most `MAX_LENGTHS`.
        contents: Digests of the last of them, newest last; at most `MAX_CONTENTS`.
    """

    published: Mapping[str, FloatArray]
    version: int
    step: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]] = field(default_factory=dict)
    lengths: tuple[float, ...] = ()
    contents: tuple[str, ...] = ()

    @classmethod
    def begin(cls, published: Mapping[str, FloatArray], *, version: int) -> Self:
        """Return the track of a device that starts from these shared tensors, all finite."""
        return cls(published=dict(published), version=version, contents=(content_of(published),))

    def missed(self, version: int) -> int:
        """Return how many versions lie between the last plausible one and this, this included; at least 1."""
        return max(1, version - self.version)

    def then(self, incoming: Mapping[str, FloatArray], *, version: int) -> Track:
        """Return the track after a plausible version."""
        content, step, lengths = content_of(incoming), self.step, self.lengths
        if content not in self.contents:
            moved = _between(self.published, incoming)
            length, missed = _length(moved), self.missed(version)
            if 0 < length < float("inf"):
                lengths = (*lengths, length / missed)[-MAX_LENGTHS:] if missed <= MAX_MISSED else (length / missed,)
                largest = max(float(np.abs(part).max(initial=0.0)) for part in moved.values())
                step = {name: (part / largest).astype(np.float16) for name, part in moved.items()}
        contents = (*(old for old in self.contents if old != content), content)[-MAX_CONTENTS:]
        return Track(published=dict(incoming), version=version, step=step, lengths=lengths, contents=contents)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """What a device knows when it judges a version.

    Attributes:
        track: Of the versions so far.
        version: Number of the one to be judged.
        own: How far its own training moved the shared tensors since it accepted one, float32; empty or all zeros: it
            has not trained.
    """

    track: Track
    version: int
    own: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def is_too_old(self) -> bool:
        """Whether so many versions were missed that the track says nothing."""
        return self.track.missed(self.version) > MAX_MISSED


def judge_step(known: Known, incoming: Mapping[str, FloatArray], *, factor: float) -> Refusal | None:
    """Judge the step to a version by its length and direction.

    Args:
        known: What the device knows.
        incoming: Shared tensors of the version, of the track's names and shapes, float32.
        factor: How many times the usual length is plausible, > 1.

    Returns:
        What speaks against it; None: nothing.
    """
    if not all(np.isfinite(array).all() for array in incoming.values()):
        return Refusal.NOT_FINITE
    track = known.track
    if known.is_too_old or content_of(incoming) in track.contents:
        return None
    moved = _between(track.published, incoming)
    length, own_length = _length(moved), _length(known.own)
    usual = statistics.median(track.lengths) if track.lengths else OWN_FACTOR * own_length
    if usual > 0 and length > factor * usual * track.missed(known.version):
        return Refusal.LENGTH
    if own_length > 0:
        cosines = [cosine for other in (known.own, track.step) if (cosine := _cosine(moved, other)) is not None]
        if cosines and statistics.fmean(cosines) < LEAST_AGREEMENT:
            return Refusal.DIRECTION
    return None


def judge_answers(
    known: Known, incoming: Mapping[str, FloatArray], *, module: NestedModel, x: Tensor, y: Tensor, rise: float
) -> Refusal | None:
    """Judge a version by what its shared model answers, beside the last plausible one.

    Args:
        known: What the device knows.
        incoming: Shared tensors of the version, float32, finite.
        module: A model of the owner; not changed, its private head is not asked.
        x: float32 [N, *input_shape], N >= 1: all that the owner has.
        y: int64 [N].
        rise: Plausible rise of the mean loss, as a fraction of it, > 0; some chance is allowed on top.

    Returns:
        What speaks against it; None: nothing.

    Raises:
        LearningError: No labels, or a label out of range.
    """
    if known.is_too_old or content_of(incoming) in known.track.contents:
        return None
    prior = label_prior(y, num_classes=module.num_classes)
    probe = copy.deepcopy(module)
    losses_N = []
    for shared in (known.track.published, incoming):
        load_state(probe, shared, partial=True)
        with torch.inference_mode():
            logits = probe.generic(probe.features(x)) + prior
            losses_N.append(cross_entropy(logits, y, reduction="none").double())
    rises_N = losses_N[1] - losses_N[0]
    mean, error = float(rises_N.mean()), float(rises_N.std(correction=0)) / len(y) ** 0.5
    plausible = max(LEAST_RISE, rise * float(losses_N[0].mean()), NUM_ERRORS * error)
    return None if mean <= plausible else Refusal.ANSWERS


def content_of(shared: Mapping[str, FloatArray]) -> str:
    """Return a digest of shared tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(shared):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(shared[name]).tobytes())
    return digest.hexdigest()


def _between(old: Mapping[str, FloatArray], new: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    with np.errstate(over="ignore"):  # an infinite step is longer than any bound
        return {name: new[name] - old[name] for name in old}


def _length(step: Step) -> float:
    return float(np.sqrt(_sum(float(np.square(part, dtype=np.float64).sum()) for part in step.values())))


def _cosine(step: Step, other: Step) -> float | None:
    lengths = _length(step) * _length(other)
    if not 0 < lengths < float("inf"):
        return None
    pairs = ((np.asarray(step[name], np.float64), np.asarray(part, np.float64)) for name, part in other.items())
    return _sum(float((left * right).sum()) for left, right in pairs) / lengths


def _sum(parts: Iterable[float]) -> float:
    return sum(parts, start=0.0)
