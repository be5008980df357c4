"""The numbers that steer learning on one device; defaults are those of fleet.toml, from the experiment of ADR 0003."""

from __future__ import annotations

import math
from dataclasses import dataclass

from typing_extensions import Self

from nfl_core.config import LearningSection
from nfl_core.errors import ConfigError

_DEFAULT = LearningSection()
# Tried from the left: whole new levels first; when none will do, the merge is refused.
MERGE_ALPHAS = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningSettings:
    """Settings of training and merging.

    Attributes:
        learning_rate: Of every level that does not name its own, > 0.
        batch_size: Samples a step, >= 1.
        epochs_per_update: Passes over the training samples in one micro-update, >= 1.
        refit_steps: Least steps of the fast level on cached features after a merge, >= 0; 0: it is not refitted.
        refit_passes: Passes over the cached features, >= 0, where they are more than these steps: an owner with
            thousands of samples gains from them, one with few does not (docs/adr/0007).
        refit_learning_rate: Of these steps, > 0.
        merge_tolerance: By how much the holdout loss may rise in an accepted merge, as a fraction of it, >= 0.
        merge_max_drop: By how much the holdout accuracy may fall in an accepted merge, 0 to 1.
        merge_alphas: Shares of the new levels that a merge tries, descending within (0, 1].
        plausible: Whether a version is judged before it is tried; see `nfl_core.learning.plausible`.
        plausible_factor: How many times the usual length a version's step may have, > 1, finite.
        plausible_rise: By how much the published model's loss on the owner's samples may rise from one version to the
            next, as a fraction of it, > 0, finite.
    """

    learning_rate: float = _DEFAULT.learning_rate
    batch_size: int = _DEFAULT.batch_size
    epochs_per_update: int = _DEFAULT.epochs_per_update
    refit_steps: int = _DEFAULT.refit_steps
    refit_passes: float = _DEFAULT.refit_passes
    refit_learning_rate: float = _DEFAULT.learning_rate
    merge_tolerance: float = 0.05
    merge_max_drop: float = 0.02
    merge_alphas: tuple[float, ...] = MERGE_ALPHAS
    plausible: bool = True
    plausible_factor: float = 2.0
    plausible_rise: float = 0.5

    @classmethod
    def of(cls, section: LearningSection) -> Self:
        """Return the settings that the section `learning` of fleet.toml asks for.

        Raises:
            ConfigError: A number is out of range.
        """
        return cls(
            learning_rate=section.learning_rate,
            batch_size=section.batch_size,
            epochs_per_update=section.epochs_per_update,
            refit_steps=section.refit_steps,
            refit_passes=section.refit_passes,
            refit_learning_rate=section.learning_rate,
        )

    def num_refit_steps(self, num_samples: int) -> int:
        """Return how many steps a refit on so many samples takes; 0 where none was asked for."""
        if not self.refit_steps:
            return 0
        return max(self.refit_steps, math.ceil(self.refit_passes * num_samples / self.batch_size))

    def __post_init__(self) -> None:
        """Check the ranges. Raises ConfigError."""
        if self.learning_rate <= 0 or self.refit_learning_rate <= 0:
            raise ConfigError(f"learning rates are {self.learning_rate} and {self.refit_learning_rate}, expected > 0")
        counts = (self.refit_steps, self.refit_passes, self.merge_tolerance, self.merge_max_drop)
        if min(self.batch_size, self.epochs_per_update) < 1 or min(counts) < 0:
            raise ConfigError(f"learning settings out of range: {self}")
        descending = list(self.merge_alphas) == sorted(set(self.merge_alphas), reverse=True)
        if not self.merge_alphas or not descending or not 0 < self.merge_alphas[-1] <= self.merge_alphas[0] <= 1:
            raise ConfigError(f"merge alphas are {self.merge_alphas}, expected some, descending, within (0, 1]")
        if not 1 < self.plausible_factor < math.inf or not 0 < self.plausible_rise < math.inf:
            raise ConfigError(
                f"plausible_factor is {self.plausible_factor} and plausible_rise {self.plausible_rise}, "
                "expected a finite factor > 1 and a finite rise > 0"
            )
