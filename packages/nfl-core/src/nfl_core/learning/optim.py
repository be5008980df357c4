"""Update rules as pairs of plain functions, init and update.

    memory = init(parameters)
    directions, memory = update(gradients, memory)

The learner subtracts learning rate times direction; a rule never touches a parameter. Memory is explicit, named and a
level's own, because it is knowledge: it is saved with the device and what a merge does to it is the level's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfl_core.errors import SpecError

Memory = dict[str, list[Tensor]]
MOMENTUM_DECAY = 0.9  # the usual heavy ball; Polyak 1964


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """One update rule.

    Attributes:
        init: Makes the memory: for each named slot one tensor a parameter.
        update: Takes the summed gradients of a chunk and the memory; returns directions and the new memory.
    """

    init: Callable[[Sequence[Tensor]], Memory]
    update: Callable[[Sequence[Tensor], Memory], tuple[Sequence[Tensor], Memory]]


def sgd() -> Optimizer:
    """Return plain gradient descent; it remembers nothing."""
    return Optimizer(init=lambda _: {}, update=lambda gradients, memory: (gradients, memory))


def momentum(decay: float = MOMENTUM_DECAY) -> Optimizer:
    """Return heavy-ball momentum, m <- decay * m + g, direction m, as in torch.optim.SGD with dampening 0."""

    def init(parameters: Sequence[Tensor]) -> Memory:
        return {"momentum": [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]}

    def update(gradients: Sequence[Tensor], memory: Memory) -> tuple[Sequence[Tensor], Memory]:
        moved = [torch.add(g, m, alpha=decay) for g, m in zip(gradients, memory["momentum"], strict=True)]
        return moved, {"momentum": moved}

    return Optimizer(init=init, update=update)


def adam(*, first_decay: float = 0.9, second_decay: float = 0.999, epsilon: float = 1e-8) -> Optimizer:
    """Return Adam with bias correction. Source: Kingma and Ba, arXiv:1412.6980, Algorithm 1."""

    def init(parameters: Sequence[Tensor]) -> Memory:
        return {
            "first": [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters],
            "second": [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters],
            "count": [torch.zeros(()) for _ in parameters],
        }

    def update(gradients: Sequence[Tensor], memory: Memory) -> tuple[Sequence[Tensor], Memory]:
        first = [torch.lerp(g, m, first_decay) for g, m in zip(gradients, memory["first"], strict=True)]
        second = [torch.lerp(g * g, v, second_decay) for g, v in zip(gradients, memory["second"], strict=True)]
        count = [n + 1.0 for n in memory["count"]]
        directions = [
            (m / (1.0 - first_decay**n)) / ((v / (1.0 - second_decay**n)).sqrt() + epsilon)
            for m, v, n in zip(first, second, count, strict=True)
        ]
        return directions, {"first": first, "second": second, "count": count}

    return Optimizer(init=init, update=update)


OPTIMIZERS: Mapping[str, Callable[[], Optimizer]] = {"sgd": sgd, "momentum": momentum, "adam": adam}


def optimizer_of(name: str) -> Optimizer:
    """Return the update rule with this name.

    Raises:
        SpecError: There is none.
    """
    if name not in OPTIMIZERS:
        raise SpecError(f"optimizer {name!r} is unknown, expected one of {sorted(OPTIMIZERS)}")
    return OPTIMIZERS[name]()
