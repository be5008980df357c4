"""The objective of a device that keeps what it knew: the joint loss on new and on remembered samples, under one prior.

Both losses of a step are means, so the stream counts 1 and the memory `weight`. The model therefore meets the labels of
a MIXTURE, and it is this mixture's prior that is added to the generic logits: the shared head need not learn that the
newest classes come most often, which is what makes an ordinary network forget the others. The private head learns the
mixture as it is.

    rehearsal = Rehearsal(buffer, generator=learner.generator)
    learner.objective = rehearsal      # the loop stays that of NestedLearner

Source: replay with logits, Buzzega et al., arXiv:2004.07211, Eq. 6, with one draw for both terms; prior added to the
logits: Menon et al., Long-tail learning via logit adjustment, arXiv:2007.07314.

Shape legend: B batch, R remembered, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nfl_core.errors import ConfigError
from nfl_core.learning.continual.augment import Augment
from nfl_core.learning.continual.replay import ReplayBuffer
from nfl_core.learning.model import NestedModel
from nfl_core.learning.objective import label_prior


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalSettings:
    """How remembered samples take part; defaults as measured in docs/adr/0009.

    Attributes:
        num_replayed: Samples drawn a step, R >= 1.
        weight: Of the memory's loss beside the stream's, > 0.
        logit_weight: Of the squared distance to the kept logits, >= 0.
        uses_prior: Whether the prior of the mixture is added to the generic logits.
        augment: Changes remembered inputs; None: they come as they are.
    """

    num_replayed: int = 32
    weight: float = 1.0
    logit_weight: float = 0.3
    uses_prior: bool = True
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if self.num_replayed < 1 or not self.weight > 0 or not self.logit_weight >= 0:
            raise ConfigError(f"rehearsal settings out of range: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the last batch looked like before the step, the remembered samples apart.

    Attributes:
        generic: Logits of the shared head, float32 [B, K].
        mean: Mean of the features, float32 [D].
        loss: Cross-entropy of the personal answers, nats.
    """

    generic: Tensor
    mean: Tensor
    loss: float


class Rehearsal:
    """An objective that draws from a buffer; without anything to draw it is the joint loss, bit for bit.

    Args:
        buffer: Drawn from at every call; not changed.
        generator: Decides what is drawn and how it is augmented.
        settings: How remembered samples take part.
        among: Places of the buffer to draw from, int64; None: all that are there at each call.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        *,
        generator: torch.Generator,
        settings: RehearsalSettings | None = None,
        among: Tensor | None = None,
    ) -> None:
        self.buffer = buffer
        self.settings = settings or RehearsalSettings()
        self.last: Sight | None = None
        self._generator = generator
        self._among = among

    def __call__(self, module: NestedModel, x: Tensor, y: Tensor, prior: Tensor) -> Tensor:
        """Return the loss; `prior` is the stream's, float32 [K] logarithms."""
        available = self.buffer.labels if self._among is None else self.buffer.labels[self._among]
        settings, num = self.settings, len(y)
        old = None
        if len(available):
            old = self.buffer.draw(settings.num_replayed, generator=self._generator, among=self._among)
            changed = old.x if settings.augment is None else settings.augment(old.x, self._generator)
            x = torch.cat([x, changed])
            memory = label_prior(available, num_classes=module.num_classes)
            prior = mix_priors(prior, memory, weight=settings.weight)
        if not settings.uses_prior:
            prior = torch.zeros_like(prior)
        z = module.features(x)
        generic = module.generic(z)
        personal = generic.detach() + module.residual(z)
        self._see(z, generic, personal, y)
        loss = _both(generic[:num] + prior, personal[:num], y)
        if old is not None:
            loss = loss + settings.weight * _both(generic[num:] + prior, personal[num:], old.y)
            if settings.logit_weight and bool(old.known.any()):
                distance = (generic[num:][old.known] - old.logits[old.known]).square().mean()
                loss = loss + settings.logit_weight * distance
        return loss

    def _see(self, z: Tensor, generic: Tensor, personal: Tensor, y: Tensor) -> None:
        num = len(y)
        self.last = Sight(
            generic=generic[:num].detach(),
            mean=z[:num].detach().mean(0),
            loss=float(cross_entropy(personal[:num].detach(), y)),
        )


def mix_priors(stream: Tensor, memory: Tensor, *, weight: float) -> Tensor:
    """Return the logarithms of (exp(stream) + weight * exp(memory)) / (1 + weight), float32 [K]."""
    return torch.logaddexp(stream, memory + torch.tensor(weight).log()) - torch.tensor(1.0 + weight).log()


def _both(generic: Tensor, personal: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(generic, y) + cross_entropy(personal, y)
