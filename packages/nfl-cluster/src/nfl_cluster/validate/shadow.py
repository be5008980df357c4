"""A shadow update: the root trains once on its own samples to learn how far a micro-update moves each tensor.

The next policy's scales come from it, so no device has to tell. It trains a copy and changes nothing. The only torch of
the root; imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_cluster.validate.data import Samples
from nfl_core.config import FleetConfig
from nfl_core.learning import (
    LearningSettings,
    NestedLearner,
    create_model,
    deviation_scales,
    displacement,
    label_prior,
    load_state,
    micro_update,
    schema_of,
    state_of,
)

NUM_DEVIATIONS = 2.5  # lost nothing at two bits with error feedback: facts of docs/adr/0003
MAX_SAMPLES = 300  # a device has about as many; more would measure longer updates than devices make
_SEED = 0


def scales_of(moved: Mapping[str, NDArray[np.float32]]) -> tuple[float, ...]:
    """Return one quantisation scale for each tensor of a shadow update, in its order."""
    return deviation_scales(moved, num_deviations=NUM_DEVIATIONS)


def shadow_update(
    config: FleetConfig, tensors: Mapping[str, NDArray[np.float32]], samples: Samples, *, seed: int = _SEED
) -> dict[str, NDArray[np.float32]]:
    """Return by how much one micro-update on the root's own samples moves each shared tensor, in schema order.

    Args:
        config: Model, levels and learning settings.
        tensors: Shared tensors of the running version in one region; not changed.
        samples: The root's shadow data.
        seed: Of the order of batches; the same seed gives the same update.

    Raises:
        LearningError: Training failed.
        ConfigError: The model is not installed.
    """
    module = create_model(
        config.model.name, num_classes=config.model.num_classes, input_shape=config.model.input_shape, seed=seed
    )
    schema = schema_of(module, config.spec)
    load_state(module, dict(tensors), partial=True)
    before = state_of(module)
    generator = torch.Generator().manual_seed(seed)
    learner = NestedLearner(
        module, spec=config.spec, settings=LearningSettings.of(config.learning), generator=generator
    )
    x, y = torch.from_numpy(samples.x[:MAX_SAMPLES].copy()), torch.from_numpy(samples.y[:MAX_SAMPLES].copy())
    micro_update(learner, x, y, prior=label_prior(y, num_classes=config.model.num_classes), refit_steps=0)
    return displacement(before, state_of(module), schema)
