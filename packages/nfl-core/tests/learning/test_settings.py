from __future__ import annotations

import pytest

from nfl_core.config import LearningSection
from nfl_core.errors import ConfigError
from nfl_core.learning import LearningSettings


def test_the_section_of_the_fleet_file_becomes_settings() -> None:
    section = LearningSection(batch_size=8, epochs_per_update=3, refit_steps=5, learning_rate=0.2)
    settings = LearningSettings.of(section)
    assert (settings.batch_size, settings.epochs_per_update, settings.refit_steps) == (8, 3, 5)
    assert settings.learning_rate == settings.refit_learning_rate == 0.2


def test_the_defaults_of_the_fleet_file_are_the_defaults_here() -> None:
    assert LearningSettings.of(LearningSection()) == LearningSettings()


def test_a_refit_grows_with_the_samples_and_can_be_left_out() -> None:
    settings = LearningSettings(batch_size=32, refit_steps=20, refit_passes=2.0)
    assert [settings.num_refit_steps(num) for num in (1, 300, 321, 3200)] == [20, 20, 21, 200]
    assert LearningSettings(refit_steps=0, refit_passes=2.0).num_refit_steps(3200) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearningSettings(learning_rate=0),
        lambda: LearningSettings(refit_learning_rate=-1),
        lambda: LearningSettings(batch_size=0),
        lambda: LearningSettings(refit_steps=-1),
        lambda: LearningSettings(refit_passes=-1.0),
        lambda: LearningSettings(merge_tolerance=-0.1),
        lambda: LearningSettings(merge_alphas=()),
        lambda: LearningSettings(merge_alphas=(0.5, 1.0)),
        lambda: LearningSettings(merge_alphas=(1.0, 0.0)),
        lambda: LearningSettings(merge_alphas=(1.5, 1.0)),
    ],
)
def test_settings_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match=r"learning|merge"):
        make()  # type: ignore[operator] # a lambda of the table above
