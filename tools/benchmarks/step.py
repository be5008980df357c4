"""What one training step on the device costs: the learner with each optimizer, beside a bare loop over torch.optim.

The batch, the loss and the gradient are the same; `update` is the optimizer's part alone.
"""

from collections.abc import Callable
from functools import partial

import torch
from _measure import finish, interleaved
from torch import Tensor

from nfl_core.learning import LearningSettings, NestedLearner, NestedModel, create_model, joint_loss, label_prior
from nfl_core.learning.optim import OPTIMIZERS
from nfl_core.levels import Level, NestedSpec, Scope

BATCH, REPEATS, RATE = 16, 20, 1e-4
Things = dict[str, Callable[[], object]]
PEERS: dict[str, dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "torch": {
        "sgd": lambda p: torch.optim.SGD(p, lr=RATE),
        "momentum": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=RATE),
        "adamw": lambda p: torch.optim.AdamW(p, lr=RATE),
    },
    "torch_fused": {
        "adam": lambda p: torch.optim.Adam(p, lr=RATE, fused=True),
        "adamw": lambda p: torch.optim.AdamW(p, lr=RATE, fused=True),
    },
}


def make() -> NestedModel:
    """Return the reference model."""
    return create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=0)


def spec_of(optimizer: str) -> NestedSpec:
    """Return the default levels with one optimizer."""
    rooms = (("private.*",), ("middle.*",), ("body.*", "head.*"))
    return NestedSpec.of(
        Level.model_validate({"name": scope.value, "params": room, "scope": scope, "optimizer": optimizer})
        for room, scope in zip(rooms, Scope, strict=True)
    )


def main(runs: int = 15) -> None:
    """Measure `runs` times and print one JSON line."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, 1, 28, 28, generator=generator), torch.randint(10, (BATCH,), generator=generator)
    prior = label_prior(y, num_classes=10)
    gradients = [1e-2 * torch.randn(p.shape, generator=generator) for p in make().parameters()]
    things: Things = {}
    for name in OPTIMIZERS:
        things |= {f"ours {part}_{name}": thing for part, thing in ours(name, x, y, prior, gradients).items()}
        for peer, optimizers in PEERS.items():
            if name in optimizers:
                made = theirs(optimizers[name], x, y, prior, gradients)
                things |= {f"{peer} {part}_{name}": thing for part, thing in made.items()}
    many = {name: partial(repeat, thing) for name, thing in things.items()}
    cpu_ms = {name: value / REPEATS for name, value in interleaved(many, runs=runs).items()}
    figures = {
        who: {f"cpu_ms_{name.split()[1]}": value for name, value in cpu_ms.items() if name.split()[0] == who}
        for who in ("ours", *PEERS)
    }
    finish("step", ours=figures.pop("ours"), against=figures, runs=runs)


def ours(name: str, x: Tensor, y: Tensor, prior: Tensor, gradients: list[Tensor]) -> Things:
    """Return a step of the learner, and the rule alone."""
    settings = LearningSettings(learning_rate=RATE, batch_size=BATCH)
    learner = NestedLearner(make(), spec=spec_of(name), settings=settings, generator=torch.Generator())
    parameters = [p.detach() for p in make().parameters()]
    rule = OPTIMIZERS[name]()
    memory = rule.init(parameters)
    return {
        "step": lambda: learner.observe(x, y, prior=prior),
        "update": lambda: rule.update(parameters, gradients, memory, learning_rate=RATE),
    }


def theirs(
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    x: Tensor,
    y: Tensor,
    prior: Tensor,
    gradients: list[Tensor],
) -> Things:
    """Return a step as one would take it without levels, and the optimizer alone."""
    model, held = make(), [p.detach().requires_grad_() for p in make().parameters()]
    optimizer, alone = make_optimizer(list(model.parameters())), make_optimizer(held)
    for p, g in zip(held, gradients, strict=True):
        p.grad = g.clone()

    def step() -> None:
        optimizer.zero_grad()
        joint_loss(model, x, y, prior).backward()
        optimizer.step()

    return {"step": step, "update": alone.step}


def repeat(thing: Callable[[], object]) -> None:
    """Run a thing often enough to be timed."""
    for _ in range(REPEATS):
        thing()
