"""Replay as it is usually done, for comparison: one head, plain loss, a uniform memory.

Source: ER and DER++: Buzzega et al., arXiv:2004.07211; ER-ACE: Caccia et al., arXiv:2104.05025.

Shape legend: B batch, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nfl_core.learning import NestedModel
from nfl_core.learning.continual import RehearsalSettings, ReplayBuffer

_NEVER = -1e9  # a logit that no answer is chosen for


class PlainRehearsal:
    """CE(stream) + weight * CE(memory) + logit weight * MSE(memory), as an objective.

    Args:
        buffer: Drawn from; whoever learns offers each batch after its step, with `logits`.
        generator: Draws.
        settings: Weights and number; prior and augmentation are not used.
        asymmetric: Let new samples compete among the classes of their batch alone.
    """

    def __init__(
        self, buffer: ReplayBuffer, *, generator: torch.Generator, settings: RehearsalSettings, asymmetric: bool
    ) -> None:
        self.buffer = buffer
        self.logits: Tensor | None = None  # of the last batch, float32 [B, K], before its step
        self._generator, self._settings, self._asymmetric = generator, settings, asymmetric

    def __call__(self, module: NestedModel, x: Tensor, y: Tensor, prior: Tensor) -> Tensor:  # noqa: ARG002 - an Objective
        """Return the loss."""
        num, settings = len(y), self._settings
        if not len(self.buffer):
            logits = module.generic(module.features(x))
            self.logits = logits.detach()
            return cross_entropy(logits, y)
        old = self.buffer.draw(settings.num_replayed, generator=self._generator)
        logits = module.generic(module.features(torch.cat([x, old.x])))
        self.logits = logits[:num].detach()
        new = logits[:num]
        here = torch.zeros(module.num_classes, dtype=torch.bool)
        here[y] = True
        if self._asymmetric and not bool(here[self.buffer.labels].all()):
            new = new.masked_fill(~here, _NEVER)
        loss = cross_entropy(new, y) + settings.weight * cross_entropy(logits[num:], old.y)
        if settings.logit_weight:
            loss = loss + settings.logit_weight * (logits[num:] - old.logits).square().mean()
        return loss
