"""Update rules as pairs of plain functions, init and update.

    memory = rule.init(parameters)
    rule.update(parameters, gradients, memory, learning_rate=0.05)

Rules kept here:

* Memory is explicit, named and a level's own, because it is knowledge: it is saved with the device, and what a merge
  does to it is the level's choice (`Level.state`).
* `update` moves parameters and memory in place, leaves the gradients alone and keeps nothing else. A rule needs the
  parameters for decoupled decay; and torch's fused kernel moves them itself: 0.10 ms for an Adam of 48,596 parameters
  at one thread, where torch's default loop takes 0.57 (tools/benchmarks/step.py).
* A slot of the memory is a *direction* (momentum: it points away from where the weights were) or it is not (how large
  gradients are, how many were seen). `rescale` shrinks directions alone: see there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam

from nfl_core.errors import SpecError

Memory = dict[str, list[Tensor]]
MOMENTUM_DECAY = 0.9  # the usual heavy ball; Polyak 1964
WEIGHT_DECAY = 0.01  # torch.optim.AdamW
M3_EPSILON = 1e-2  # see `m3`
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon
NEWTON_SCHULZ_STEPS = 5  # Muon


class Update(Protocol):
    """The step of a rule."""

    def __call__(
        self, parameters: list[Tensor], gradients: list[Tensor], memory: Memory, *, learning_rate: float
    ) -> None:
        """Move `parameters` and `memory` in place; `gradients`, one a parameter and of its shape, stay as they are."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """One update rule.

    Attributes:
        init: Makes the memory: for each named slot one tensor a parameter.
        update: Takes a step on the gradients of a chunk.
        directions: The slots that point somewhere.
    """

    init: Callable[[Sequence[Tensor]], Memory]
    update: Update
    directions: tuple[str, ...] = ()


def rescale(optimizer: Optimizer, memory: Memory, *, alpha: float) -> None:
    """Let memory fit weights of which a merge replaced the share `alpha`, in place.

    Directions keep the share 1 - alpha: they were gathered where the weights no longer are. Second moments and counts
    stay whole: how large gradients are is a matter of the data and the architecture more than of the place, and a
    smaller second moment would make the next step larger than any before. So no step after a rescale is longer than the
    same step without it, and at alpha = 1 an Adam starts with no direction and the scale it knows, a soft restart.
    """
    for slot in optimizer.directions:
        torch._foreach_mul_(memory[slot], 1.0 - alpha)


def sgd() -> Optimizer:
    """Return plain gradient descent; it remembers nothing."""

    def update(parameters: list[Tensor], gradients: list[Tensor], memory: Memory, *, learning_rate: float) -> None:
        del memory
        torch._foreach_add_(parameters, gradients, alpha=-learning_rate)

    return Optimizer(init=lambda _: {}, update=update)


def momentum(decay: float = MOMENTUM_DECAY) -> Optimizer:
    """Return heavy-ball momentum, m <- decay * m + g, direction m, as in torch.optim.SGD with dampening 0."""

    def init(parameters: Sequence[Tensor]) -> Memory:
        return {"momentum": zeros_like(parameters)}

    def update(parameters: list[Tensor], gradients: list[Tensor], memory: Memory, *, learning_rate: float) -> None:
        torch._foreach_mul_(memory["momentum"], decay)
        torch._foreach_add_(memory["momentum"], gradients)
        torch._foreach_add_(parameters, memory["momentum"], alpha=-learning_rate)

    return Optimizer(init=init, update=update, directions=("momentum",))


def adam(
    *, first_decay: float = 0.9, second_decay: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """Return Adam with bias correction, as torch has it; with `weight_decay` AdamW, whose decay is decoupled.

    Source: Kingma and Ba, arXiv:1412.6980, Algorithm 1; Loshchilov and Hutter, arXiv:1711.05101, Algorithm 2.
    """

    def init(parameters: Sequence[Tensor]) -> Memory:
        return {
            "first": zeros_like(parameters),
            "second": zeros_like(parameters),
            "count": [torch.zeros(()) for _ in parameters],
        }

    def update(parameters: list[Tensor], gradients: list[Tensor], memory: Memory, *, learning_rate: float) -> None:
        torch_adam(
            parameters,
            gradients,
            memory["first"],
            memory["second"],
            [],
            memory["count"],
            fused=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=first_decay,
            beta2=second_decay,
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=epsilon,
            maximize=False,
        )

    return Optimizer(init=init, update=update, directions=("first",))


def adamw(weight_decay: float = WEIGHT_DECAY) -> Optimizer:
    """Return Adam with decoupled weight decay: besides its step, p <- (1 - learning rate * weight_decay) * p."""
    return adam(weight_decay=weight_decay)


def m3(
    *,
    fast_decay: float = 0.9,
    slow_decay: float = 0.9,
    second_decay: float = 0.999,
    slow_weight: float = 1.0,
    slow_period: int = 10,
    epsilon: float = M3_EPSILON,
    forget: bool = True,
) -> Optimizer:
    """Return multi-scale momentum Muon: p <- p - learning rate * (O1 + slow_weight * O2) / (sqrt(V) + epsilon).

    O1 is a fast momentum that takes every gradient, O2 a slow one that takes the sum of `slow_period` gradients at
    once; both are orthogonalised, convolution kernels as matrices [out, in * height * width], vectors and scalars not.
    V is Adam's second moment.

    As printed, the three moments are sums that never forget (`forget=False`), so that steps shrink for as long as a
    device lives. By default they are means that decay, with Adam's correction of their bias; the slow one is of means
    of its gradients, of the same size as the fast one. The division by V comes after the orthogonalisation and meets
    entries whose gradients are next to nothing: with Adam's epsilon of 1e-8 nothing was learned (as printed at rates
    1e-4, 1e-3 and 1e-2, with decay at 1e-5; one seed). With `M3_EPSILON` one pass over 6,000 images of Fashion-MNIST
    (reference model, batch 16, three seeds) ends at 81.6 +- 0.9 % (rate 1e-4), Adam at 79.5 +- 1.2 (1e-3), SGD at 78.9
    +- 0.7 (0.05); without O2 at 81.6 +- 0.4, so in so short a run there is no sign that the slow momentum is of use.
    As printed: 79.1 +- 1.2 (3e-4). A step costs 2.5 ms of CPU beside the 2.6 of SGD's (tools/benchmarks/step.py).

    Args:
        fast_decay: Of O1's momentum, 0 to 1.
        slow_decay: Of O2's momentum, 0 to 1.
        second_decay: Of V, 0 to 1.
        slow_weight: Share of O2 in a step, >= 0.
        slow_period: Steps between two updates of O2, >= 1.
        epsilon: Floor of the division, of the size of a usual gradient.
        forget: Whether moments decay.

    Source: Behrouz et al., Nested Learning, arXiv:2512.24695, Algorithm 1.
    """
    slots = ("fast", "slow", "chunk", "turned", "second")

    def init(parameters: Sequence[Tensor]) -> Memory:
        return {slot: zeros_like(parameters) for slot in slots} | {"count": [torch.zeros(()) for _ in parameters]}

    def gain(decay: float) -> float:
        return 1.0 - decay if forget else decay

    def correction(decay: float, num: int) -> float:
        return 1.0 - decay**num if forget else 1.0

    def update(parameters: list[Tensor], gradients: list[Tensor], memory: Memory, *, learning_rate: float) -> None:
        torch._foreach_add_(memory["count"], 1.0)
        num = int(memory["count"][0])
        if forget:
            torch._foreach_mul_(memory["fast"], fast_decay)
            torch._foreach_mul_(memory["second"], second_decay)
        torch._foreach_add_(memory["fast"], gradients, alpha=gain(fast_decay))
        torch._foreach_addcmul_(memory["second"], gradients, gradients, value=gain(second_decay))
        steps = [orthogonal(m / correction(fast_decay, num)) for m in memory["fast"]]
        torch._foreach_add_(steps, memory["turned"], alpha=slow_weight)
        floors = torch._foreach_div(memory["second"], correction(second_decay, num))
        torch._foreach_sqrt_(floors)
        torch._foreach_add_(floors, epsilon)
        torch._foreach_addcdiv_(parameters, steps, floors, value=-learning_rate)
        torch._foreach_add_(memory["chunk"], gradients, alpha=1.0 / slow_period if forget else 1.0)
        if num % slow_period == 0:
            turn(memory, num // slow_period)

    def turn(memory: Memory, num: int) -> None:
        if forget:
            torch._foreach_mul_(memory["slow"], slow_decay)
        torch._foreach_add_(memory["slow"], memory["chunk"], alpha=gain(slow_decay))
        torch._foreach_zero_(memory["chunk"])
        turned = [orthogonal(m / correction(slow_decay, num)) for m in memory["slow"]]
        torch._foreach_copy_(memory["turned"], turned)

    return Optimizer(init=init, update=update, directions=("fast", "slow", "chunk", "turned"))


def orthogonal(tensor: Tensor) -> Tensor:
    """Return the orthogonal matrix next to `tensor`, roughly: singular values come to lie between 0.7 and 1.2.

    Args:
        tensor: float32; [out, ...] is taken as a matrix [out, rest]; vectors and scalars are returned as they are.

    Source: the quintic Newton-Schulz iteration of Jordan et al., Muon (2024), five steps with its coefficients.
    """
    if tensor.ndim < 2:
        return tensor
    matrix = tensor.reshape(tensor.shape[0], -1)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.T
        x = NEWTON_SCHULZ[0] * x + (NEWTON_SCHULZ[1] * square + NEWTON_SCHULZ[2] * square @ square) @ x
    turned: Tensor = x.T if tall else x
    return turned.reshape(tensor.shape)


def zeros_like(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return zeros of the same shapes that need no gradient."""
    return [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]


OPTIMIZERS: Mapping[str, Callable[[], Optimizer]] = {
    "sgd": sgd,
    "momentum": momentum,
    "adam": adam,
    "adamw": adamw,
    "m3": m3,
}


def optimizer_of(name: str) -> Optimizer:
    """Return the update rule with this name.

    Raises:
        SpecError: There is none.
    """
    if name not in OPTIMIZERS:
        raise SpecError(f"optimizer {name!r} is unknown, expected one of {sorted(OPTIMIZERS)}")
    return OPTIMIZERS[name]()
