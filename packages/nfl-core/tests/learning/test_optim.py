from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nfl_core.errors import SpecError
from nfl_core.learning.optim import OPTIMIZERS, Optimizer, adamw, m3, optimizer_of, orthogonal, rescale

RATE, NUM_STEPS = 0.05, 25
SHAPES = ((4, 3), (3,), (), (5, 2, 3, 3))
PEERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=RATE),
    "momentum": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=RATE, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.01, fused=True),
}


def world(seed: int = 0) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return parameters, and the gradients of some steps."""
    generator = torch.Generator().manual_seed(seed)
    draw = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(NUM_STEPS + 1)]
    return draw[0], draw[1:]


def moved(rule: Optimizer, seed: int = 0) -> list[Tensor]:
    """Return the parameters after all steps."""
    parameters, gradients = world(seed)
    memory = rule.init(parameters)
    for step in gradients:
        before = [g.clone() for g in step]
        rule.update(parameters, step, memory, learning_rate=RATE)
        assert all(torch.equal(b, g) for b, g in zip(before, step, strict=True)), "a rule leaves its gradients alone"
    return parameters


@pytest.mark.parametrize("name", list(PEERS))
def test_a_rule_moves_like_the_optimizer_of_torch_bit_for_bit(name: str) -> None:
    parameters, gradients = world()
    peer = PEERS[name](parameters)
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g.clone()
        peer.step()
    for ours, theirs in zip(moved(optimizer_of(name)), parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_adam_is_the_published_formula() -> None:
    """The kernel and its peer are one piece of code, so the formula is written out once more, in float64."""
    parameters, gradients = world()
    expected = [p.double() for p in parameters]
    first, second = ([torch.zeros_like(p) for p in expected] for _ in range(2))
    for n, step in enumerate(gradients, start=1):
        for i, g in enumerate(step):
            first[i] = 0.9 * first[i] + 0.1 * g.double()
            second[i] = 0.999 * second[i] + 0.001 * g.double() ** 2
            root = (second[i] / (1 - 0.999**n)).sqrt() + 1e-8
            expected[i] = expected[i] * (1 - RATE * 0.1) - RATE * first[i] / (1 - 0.9**n) / root
    for ours, theirs in zip(moved(adamw(0.1)), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=5e-6, rtol=0)  # 25 float32 steps of values below 4


def m3_reference(*, forget: bool) -> list[Tensor]:
    """Algorithm 1 of arXiv:2512.24695 as a plain loop over steps, one parameter after the other, in float64."""
    parameters, gradients = world()
    moved = []
    for i, p in enumerate(parameters):
        theta, chunk = p.double(), []
        m1, m2, v, o2 = (torch.zeros_like(theta) for _ in range(4))
        for t in range(1, NUM_STEPS + 1):
            g = gradients[t - 1][i].double()
            chunk.append(g)
            m1 = 0.9 * m1 + 0.1 * g if forget else m1 + 0.9 * g
            v = 0.999 * v + 0.001 * g * g if forget else v + 0.999 * g * g
            o1 = orthogonal(m1 / (1 - 0.9**t) if forget else m1)
            root = (v / (1 - 0.999**t) if forget else v).sqrt()
            theta = theta - RATE * (o1 + 0.5 * o2) / (root + 1e-2)
            if t % 4 == 0:
                total = torch.stack(chunk).sum(0)
                m2 = 0.8 * m2 + 0.2 * total / 4 if forget else m2 + 0.8 * total
                o2 = orthogonal(m2 / (1 - 0.8 ** (t // 4)) if forget else m2)
                chunk = []
        moved.append(theta)
    return moved


@pytest.mark.parametrize("forget", [True, False])
def test_m3_is_the_published_algorithm(forget: bool) -> None:
    ours = moved(m3(slow_decay=0.8, slow_weight=0.5, slow_period=4, forget=forget))
    for p, q in zip(ours, m3_reference(forget=forget), strict=True):
        torch.testing.assert_close(p.double(), q, atol=5e-5, rtol=0)  # five float32 matrix products a step, 25 steps
    with_slow = moved(m3(slow_period=4, forget=forget))
    assert not torch.equal(with_slow[0], moved(m3(slow_period=NUM_STEPS + 1, forget=forget))[0])


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 2, 3, 3)])
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_sizes(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    turned = orthogonal(tensor)
    values = torch.linalg.svdvals(turned.reshape(shape[0], -1))
    assert turned.shape == tensor.shape
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(tensor.reshape(shape[0], -1), full_matrices=False)
    nearest = (left @ right).reshape(shape)
    cosine = torch.nn.functional.cosine_similarity(turned.flatten(), nearest.flatten(), dim=0)
    assert float(cosine) > 0.98  # singular values between 0.7 and 1.2 instead of 1
    torch.testing.assert_close(orthogonal(1000.0 * tensor), turned, atol=1e-4, rtol=0)
    assert orthogonal(torch.zeros(shape)).abs().max() == 0


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_rescaling_shrinks_directions_and_keeps_scales_and_counts(name: str) -> None:
    rule, (parameters, gradients) = optimizer_of(name), world()
    memory = rule.init(parameters)
    for step in gradients[:12]:
        rule.update(parameters, step, memory, learning_rate=RATE)
    before = {slot: [m.clone() for m in tensors] for slot, tensors in memory.items()}
    rescale(rule, memory, alpha=0.75)
    for slot, tensors in memory.items():
        share = 0.25 if slot in rule.directions else 1.0
        assert all(torch.equal(m, share * b) for m, b in zip(tensors, before[slot], strict=True)), slot
    assert set(memory) - set(rule.directions) <= {"second", "count"}


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_a_step_after_a_rescale_is_never_longer_than_without_it(name: str, alpha: float) -> None:
    """With nothing new to learn, an optimizer whose second moment shrank too would leap."""
    lengths = []
    for share in (0.0, alpha):
        rule, (parameters, gradients) = optimizer_of(name), world()
        memory = rule.init(parameters)
        for step in gradients:
            rule.update(parameters, step, memory, learning_rate=RATE)
        rescale(rule, memory, alpha=share)
        before = [p.clone() for p in parameters]
        rule.update(parameters, [torch.zeros_like(p) for p in parameters], memory, learning_rate=RATE)
        lengths.append([float((p - b).norm()) for p, b in zip(parameters, before, strict=True)])
    assert all(short <= long for long, short in zip(*lengths, strict=True))


def test_an_unknown_rule_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(SpecError, match="momentum"):
        optimizer_of("momentun")
