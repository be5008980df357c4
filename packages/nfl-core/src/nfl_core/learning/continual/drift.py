"""When the world of a device changed, and what that asks for.

Two signals are watched, one value a batch: the loss of the personal answers, which belongs to the private level, and
for the shared levels how far the mean of the features stands from where it stood lately. `decide` holds the rules and
does nothing:

* a loss that rises while the features stay: the change is the owner's own. The private level learns faster, and closes
  its chunks earlier, for a bounded number of batches.
* features that move: what all share no longer fits here. The same, and the device asks for an early sync.
* a fall of the loss is learning, not drift.

    >>> decide(Drift(loss=True, features=False), DriftSettings())
    Response(boost_batches=50, rate_factor=3.0, wants_sync=False)

A monitor's state is the list of values since it last found something, bounded: a detector is a function of them, so a
restored one goes on exactly like the one that was saved, whichever detector it is.

Source: ADWIN: Bifet and Gavalda, SDM 2007; Page-Hinkley: Page, Biometrika 41, 1954; both from river.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning.continual.errors import MissingExtraError

DetectorName = Literal["adwin", "page-hinkley"]
_SMALL_LOSS = 0.01  # nats; below, twice the loss is no surprise
_SMALL = 0.1  # a change below this is not looked for; with less, noise alone adds up to alarms
MAX_VALUES = 1024  # 8 kilobytes of a device's state; half of them start the next window


class Detector(Protocol):
    """What is used of a detector of river."""

    drift_detected: bool

    def update(self, x: float) -> object:
        """Take the next value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSettings:
    """How changes are found and answered.

    Attributes:
        detector: Which test is used. A level that learns fast heals its loss within ten batches: Page-Hinkley has
            seen it by then, ADWIN has not; ADWIN needs no threshold and suits changes that last.
        sensitivity: ADWIN's delta, the bound of false alarms, within (0, 1).
        threshold: Page-Hinkley's lambda, > 0; signals are brought within 0 to 1 first.
        min_batches: Before any alarm, >= 2.
        boost_batches: How long a level learns faster, >= 0.
        rate_factor: By how much, >= 1.
        memory: Share that the last batch has in where the features stood lately, within (0, 1).
    """

    detector: DetectorName = "page-hinkley"
    sensitivity: float = 0.002
    threshold: float = 1.0
    min_batches: int = 20
    boost_batches: int = 50
    rate_factor: float = 3.0
    memory: float = 0.02

    def __post_init__(self) -> None:
        fractions = 0 < self.sensitivity < 1 and 0 < self.memory < 1
        if not fractions or self.threshold <= 0 or self.min_batches < 2:
            raise ConfigError(f"drift settings out of range: {self}")
        if self.boost_batches < 0 or not math.isfinite(self.rate_factor) or self.rate_factor < 1:
            raise ConfigError(f"drift settings out of range: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What was found at a batch: of the private level's loss, of the shared levels' features."""

    loss: bool
    features: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What to do about it.

    Attributes:
        boost_batches: Batches for which private levels learn faster from now on; 0: nothing changes.
        rate_factor: By how much.
        wants_sync: Whether an early version of the shared levels would help.
    """

    boost_batches: int
    rate_factor: float
    wants_sync: bool


def decide(drift: Drift, settings: DriftSettings) -> Response:
    """Say what a drift asks for; see the rules of this module."""
    is_any = drift.loss or drift.features
    return Response(
        boost_batches=settings.boost_batches if is_any else 0,
        rate_factor=settings.rate_factor if is_any else 1.0,
        wants_sync=drift.features,
    )


class Monitor:
    """Watches one signal for a change upwards.

    Args:
        settings: Which detector, how sensitive.
        values: Of a saved monitor.

    Raises:
        MissingExtraError: river is not installed.
    """

    def __init__(self, settings: DriftSettings, *, values: Sequence[float] = ()) -> None:
        self._settings = settings
        self._values: list[float] = []
        self._detector = _detector(settings)
        for value in values:
            self._feed(float(value))

    @property
    def values(self) -> tuple[float, ...]:
        """Everything it knows: the values since the last change it found."""
        return tuple(self._values)

    def update(self, value: float) -> bool:
        """Take the next value, finite; say whether it ends a change upwards.

        Raises:
            LearningError: The value is not finite; nothing was taken.
        """
        if not math.isfinite(value):
            raise LearningError(f"drift monitor got {value}, expected a finite number")
        found = self._feed(value)
        if not found:
            return False
        num = max(1, len(self._values) // 8)
        recent, before = self._values[-num:], self._values[:-num]
        is_rise = bool(before) and sum(recent) / num > sum(before) / len(before)
        self._restart(recent)
        return is_rise

    def _feed(self, value: float) -> bool:
        if len(self._values) == MAX_VALUES:
            self._restart(self._values[MAX_VALUES // 2 :])
        self._values.append(value)
        self._detector.update(value)
        return self._detector.drift_detected

    def _restart(self, values: Sequence[float]) -> None:
        self._detector = _detector(self._settings)
        self._values = []
        for value in values:
            self._values.append(value)
            self._detector.update(value)


class _Saved(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    loss: tuple[float, ...]
    features: tuple[float, ...]
    mean: tuple[float, ...] | None
    usual: float
    usual_loss: float | None


class DriftWatch:
    """Watches a device's loss and features, and says what a change asks for.

    Args:
        settings: How changes are found and answered.

    Raises:
        MissingExtraError: river is not installed.
    """

    def __init__(self, settings: DriftSettings | None = None) -> None:
        self.settings = settings or DriftSettings()
        self._loss = Monitor(self.settings)
        self._features = Monitor(self.settings)
        self._mean: Tensor | None = None
        self._usual = 0.0  # usual distance of a batch from the mean; the unit of the features' signal
        self._usual_loss: float | None = None  # the same of the loss

    def observe(self, *, loss: float, mean: Tensor) -> Drift:
        """Take what a batch looked like.

        Args:
            loss: Of the personal answers before the step, nats, finite.
            mean: Of the features, float32 [D], finite.

        Raises:
            LearningError: A value is not finite; nothing was taken.
        """
        if not math.isfinite(loss) or not bool(torch.isfinite(mean).all()):
            raise LearningError(f"drift watch got loss {loss} and features that may not be finite, expected numbers")
        moved = self._features.update(_squash(self._distance(mean)))
        return Drift(loss=self._loss.update(_squash(self._surprise(loss))), features=moved)

    def to_json(self) -> str:
        """Return everything it knows."""
        return _Saved(
            loss=self._loss.values,
            features=self._features.values,
            mean=None if self._mean is None else tuple(self._mean.tolist()),
            usual=self._usual,
            usual_loss=self._usual_loss,
        ).model_dump_json()

    def load_json(self, text: str) -> None:
        """Go on where `to_json` was called.

        Raises:
            LearningError: It is not the state of a watch; nothing changed.
        """
        try:
            saved = _Saved.model_validate_json(text)
        except ValidationError as e:
            raise LearningError(f"the state of a drift watch cannot be read: {e.errors()[0]['msg']}") from e
        self._loss = Monitor(self.settings, values=saved.loss)
        self._features = Monitor(self.settings, values=saved.features)
        self._mean = None if saved.mean is None else torch.tensor(saved.mean, dtype=torch.float32)
        self._usual, self._usual_loss = saved.usual, saved.usual_loss

    def _surprise(self, loss: float) -> float:
        before = loss if self._usual_loss is None else self._usual_loss
        self._usual_loss = before + self.settings.memory * (loss - before)
        return (loss + _SMALL_LOSS) / (before + _SMALL_LOSS)

    def _distance(self, mean: Tensor) -> float:
        if self._mean is None:
            self._mean = mean.clone()
        distance = float((mean - self._mean).norm())
        share = self.settings.memory
        self._usual = distance if not self._usual else (1 - share) * self._usual + share * distance
        self._mean = torch.lerp(self._mean, mean, share)
        return distance / self._usual if self._usual else 1.0


def _squash(value: float) -> float:
    """Bring a value >= 0 below 1, as ADWIN assumes: one huge loss must not hide the next."""
    return value / (1.0 + value)


def _detector(settings: DriftSettings) -> Detector:
    try:
        drift = importlib.import_module("river.drift")
    except ImportError as e:
        raise MissingExtraError("drift detection needs river, which is not installed") from e
    detector: Detector
    if settings.detector == "adwin":
        detector = drift.ADWIN(delta=settings.sensitivity, clock=1, grace_period=settings.min_batches)
    else:
        detector = drift.PageHinkley(
            min_instances=settings.min_batches, delta=_SMALL, threshold=settings.threshold, mode="up"
        )
    return detector
