"""Probation: whether a new version may stay on this device, decided from its first inferences. Pure.

Rules, in this order:

* one output that is not finite fails the version at once;
* more late inferences than `max_late_fraction` of the whole allows fail it, as soon as that is certain;
* accuracy, where it is known for some inferences, is judged once at the end: the version fails when so few right
  answers would be rarer than `SIGNIFICANCE` for a model exactly `max_accuracy_drop` below the reference (exact binomial
  test). A plain comparison of means would refuse one good version in ten after eight inferences;
* after `num_inferences` observations without a failure the version is healthy.

    >>> probation = Probation(ProbationSettings(num_inferences=1))
    >>> probation.observe(Observation(latency_ms=2.0, finite=True))
    Verdict(outcome=<Outcome.HEALTHY: 'healthy'>, reason='')
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from nfl_core.errors import ConfigError
from nfl_ota.bundle import ProbationLimits

SIGNIFICANCE = 0.05  # chance to refuse a version that is exactly as much worse as is allowed


class Outcome(str, Enum):
    """Where a probation stands."""

    PENDING = "pending"
    HEALTHY = "healthy"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One inference of the version on probation.

    Attributes:
        latency_ms: How long it took, >= 0.
        finite: Whether every value of the output was.
        correct: Whether the answer was right, None when nobody knows.
    """

    latency_ms: float
    finite: bool
    correct: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the observations so far say.

    Attributes:
        outcome: Pending, healthy or failed.
        reason: "not-finite", "latency" or "accuracy" with the figures; empty unless failed.
    """

    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbationSettings:
    """What the version is held to.

    Attributes:
        latency_budget_ms: Longest inference, > 0.
        num_inferences: Observations that decide, >= 1.
        max_accuracy_drop: Fraction, in [0, 1].
        max_late_fraction: Fraction of observations that may be late, in [0, 1).
        reference_accuracy: Of the version before, measured the same way, in [0, 1]; None: accuracy is not judged.

    Raises:
        ConfigError: A value is out of range.
    """

    latency_budget_ms: float = 30.0
    num_inferences: int = 8
    max_accuracy_drop: float = 0.15
    max_late_fraction: float = 0.5
    reference_accuracy: float | None = None

    def __post_init__(self) -> None:
        ranges_hold = (
            self.latency_budget_ms > 0
            and self.num_inferences >= 1
            and 0 <= self.max_accuracy_drop <= 1
            and 0 <= self.max_late_fraction < 1
            and (self.reference_accuracy is None or 0 <= self.reference_accuracy <= 1)
        )
        if not ranges_hold:
            raise ConfigError(f"probation settings out of range: {self}")

    @classmethod
    def of(cls, limits: ProbationLimits, *, reference_accuracy: float | None) -> ProbationSettings:
        """Join what the signed manifest demands with what this device measured of the version before."""
        return cls(
            latency_budget_ms=limits.latency_budget_ms,
            num_inferences=limits.num_inferences,
            max_accuracy_drop=limits.max_accuracy_drop,
            max_late_fraction=limits.max_late_fraction,
            reference_accuracy=reference_accuracy,
        )


class Probation:
    """The probation of one version on one device.

    Args:
        settings: What it is held to.
    """

    def __init__(self, settings: ProbationSettings) -> None:
        self._settings = settings
        self._num = 0
        self._num_late = 0
        self._num_judged = 0
        self._num_correct = 0
        self._verdict = Verdict(outcome=Outcome.PENDING)

    @property
    def verdict(self) -> Verdict:
        """What the observations so far say."""
        return self._verdict

    def observe(self, observation: Observation) -> Verdict:
        """Take one inference into account. After a verdict nothing changes it any more."""
        if self._verdict.outcome is Outcome.PENDING:
            self._num += 1
            # `not <=` so that a latency that is not a number counts as late.
            self._num_late += not observation.latency_ms <= self._settings.latency_budget_ms
            if observation.correct is not None:
                self._num_judged += 1
                self._num_correct += observation.correct
            self._verdict = self._decide(finite=observation.finite)
        return self._verdict

    def _decide(self, *, finite: bool) -> Verdict:
        settings = self._settings
        if not finite:
            return Verdict(
                outcome=Outcome.FAILED, reason=f"not-finite: output {self._num} holds a value that is not finite"
            )
        if self._num_late > settings.max_late_fraction * settings.num_inferences:
            late = f"{self._num_late} of {settings.num_inferences} inferences"
            why = f"latency: {late} took longer than {settings.latency_budget_ms:g} ms"
            return Verdict(outcome=Outcome.FAILED, reason=why)
        if self._num < settings.num_inferences:
            return Verdict(outcome=Outcome.PENDING)
        if settings.reference_accuracy is not None and self._num_judged:
            least = max(0.0, settings.reference_accuracy - settings.max_accuracy_drop)
            if binomial_tail(self._num_correct, num=self._num_judged, chance=least) < SIGNIFICANCE:
                why = f"accuracy: {self._num_correct} of {self._num_judged} right, expected about {least:.0%} or more"
                return Verdict(outcome=Outcome.FAILED, reason=why)
        return Verdict(outcome=Outcome.HEALTHY)


def binomial_tail(at_most: int, *, num: int, chance: float) -> float:
    """Return the chance of at most `at_most` successes in `num` trials.

    Args:
        at_most: In 0 to `num`.
        num: Trials, >= 0.
        chance: Of one success, in [0, 1].

    Source: the cumulative binomial distribution, summed term by term; in logarithms, because at 1,000 trials its
    coefficients are beyond float.
    """
    if chance <= 0 or at_most >= num:
        return 1.0
    if chance >= 1:
        return 0.0
    wins, losses = math.log(chance), math.log1p(-chance)
    logs = (
        math.lgamma(num + 1) - math.lgamma(hits + 1) - math.lgamma(num - hits + 1) + hits * wins + (num - hits) * losses
        for hits in range(at_most + 1)
    )
    return math.fsum(math.exp(value) for value in logs)
