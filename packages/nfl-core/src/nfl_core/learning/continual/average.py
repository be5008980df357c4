"""The slowest level of a stream: an average of where the fast ones have been, which answers but is never trained.

A model that follows a stream swings with it. Its running average swings less: what it learns of the newest samples
comes later, and what it knew goes later too. One update costs a pass over the parameters.

    average = SlowAverage(module, horizon=200)
    average.update(module)          # after each batch
    answers = average.model(module)(x)

Source: exponential averages of weights as stable memory: Arani et al., Learning Fast, Learning Slow (CLS-ER),
arXiv:2201.12604.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from nfl_core.errors import ConfigError
from nfl_core.learning.model import FloatArray, NestedModel, load_state


class SlowAverage:
    """Running average of a model's parameters.

    Args:
        module: Where it starts.
        horizon: Batches after which about two thirds of the average are newer, >= 1.
    """

    def __init__(self, module: NestedModel, *, horizon: int) -> None:
        if horizon < 1:
            raise ConfigError(f"the horizon of an average is {horizon} batches, expected 1 or more")
        self._share = 1.0 / horizon
        self._means = {name: p.detach().clone() for name, p in module.named_parameters()}

    def update(self, module: NestedModel) -> None:
        """Let the parameters as they are now have their share."""
        with torch.no_grad():
            now = [p.detach() for p in module.parameters()]
            torch._foreach_lerp_(list(self._means.values()), now, self._share)

    def model(self, module: NestedModel) -> NestedModel:
        """Return a copy of `module` with the averaged parameters."""
        answering = copy.deepcopy(module)
        load_state(answering, self.state())
        return answering

    def state(self) -> dict[str, FloatArray]:
        """Return a copy of the average, float32, by parameter name."""
        return {name: np.array(mean.numpy(), copy=True, order="C") for name, mean in self._means.items()}

    def load_state(self, module: NestedModel, state: Mapping[str, FloatArray]) -> None:
        """Go on with a saved average of `module`'s kind. Raises SchemaError when it is of another."""
        load_state(copy.deepcopy(module), state)
        self._means = {name: torch.from_numpy(np.array(array, copy=True)) for name, array in state.items()}
