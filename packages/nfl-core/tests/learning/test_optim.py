from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nfl_core.errors import SpecError
from nfl_core.learning.optim import optimizer_of

PEERS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, foreach=False),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False),
}
# Ours corrects the bias of both moments first, the peer folds it into the step: a few roundings over ten steps.
ATOL = {"sgd": 0.0, "momentum": 1e-6, "adam": 1e-5}


@pytest.mark.parametrize("name", list(PEERS))
def test_a_rule_moves_like_the_optimizer_of_torch(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(4, 3, generator=generator), torch.randn(3, generator=generator)]
    peers = [p.clone() for p in ours]
    rule, peer = optimizer_of(name), PEERS[name](peers)
    memory = rule.init(ours)
    for _ in range(10):
        gradients = [torch.randn(p.shape, generator=generator) for p in ours]
        for p, g in zip(peers, gradients, strict=True):
            p.grad = g.clone()
        peer.step()
        directions, memory = rule.update(gradients, memory)
        for p, d in zip(ours, directions, strict=True):
            p.add_(d, alpha=-0.1)
    for p, q in zip(ours, peers, strict=True):
        torch.testing.assert_close(p, q, atol=ATOL[name], rtol=0)


def test_an_unknown_rule_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(SpecError, match="momentum"):
        optimizer_of("momentun")
