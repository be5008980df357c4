"""Normalisation that a fleet can share, and what is frozen as constants.

BatchNorm normalises over whoever else is in the batch and keeps running statistics that no gradient made: averaged over
owners they fit none of them, left alone they go astray in silence, and a device that sees one sample has none. So a
model of a fleet has GroupNorm: `with_group_norm`. Only a frozen BatchNorm may stay, as the affine map that it is.

Shape legend: B batch, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nfl_core.learning.model import ModelError, check_built

MAX_GROUPS, MIN_CHANNELS = 8, 4  # of a GroupNorm and of its groups: as in the reference model


def with_group_norm(module: nn.Module) -> nn.Module:
    """Return a copy in which GroupNorm stands for every BatchNorm, with its scale and shift.

    The copy answers differently: it normalises over groups of at least four channels of one sample (at most eight
    groups), not over a batch, so running statistics are gone and it wants some training. The original is not touched.

    Raises:
        ModelError: A BatchNorm has no shape yet, because no batch has run through it.
    """
    check_built(module)
    return _replaced(copy_of(module), _group_norm)


def with_constants(module: nn.Module) -> nn.Module:
    """Turn what is frozen (`requires_grad` is False) into constants, in place, and return the module.

    A constant is a buffer that is not persistent: neither in the state nor in what is sent. A frozen BatchNorm answers
    from its running statistics whatever the mode.
    """
    module = _replaced(module, lambda norm: _Affine(norm) if _is_frozen(norm) else norm)
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach(), persistent=False)
    return module


def copy_of(module: nn.Module) -> nn.Module:
    """Return a deep copy. Raises ModelError."""
    try:
        return copy.deepcopy(module)
    except Exception as e:  # a module may hold anything
        raise ModelError(f"{type(module).__name__} cannot be copied: {e}") from e


class _Affine(nn.Module):
    """What a frozen BatchNorm computes: a scale and a shift a channel, both constant."""

    scale_C: Tensor
    shift_C: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        scale_C = norm.weight.detach() * torch.rsqrt(_required(norm.running_var) + norm.eps)
        self.register_buffer("scale_C", scale_C, persistent=False)
        self.register_buffer("shift_C", norm.bias.detach() - _required(norm.running_mean) * scale_C, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return x * self.scale_C.reshape(shape) + self.shift_C.reshape(shape)


def _required(statistic: Tensor | None) -> Tensor:
    assert statistic is not None
    return statistic


def _is_frozen(norm: _BatchNorm) -> bool:
    parameters = list(norm.parameters())
    return norm.track_running_stats and bool(parameters) and not any(p.requires_grad for p in parameters)


def _group_norm(norm: _BatchNorm) -> nn.Module:
    num = norm.num_features
    groups = max(g for g in range(1, MAX_GROUPS + 1) if num % g == 0 and (g == 1 or num // g >= MIN_CHANNELS))
    group = nn.GroupNorm(groups, num, eps=norm.eps, affine=norm.affine)
    with torch.no_grad():
        for mine, other in zip(group.parameters(), norm.parameters(), strict=True):
            mine.copy_(other)
            mine.requires_grad_(other.requires_grad)
    return group


def _replaced(module: nn.Module, by: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """Replace every BatchNorm, in place; one that stands in two places stays one."""
    done: dict[nn.Module, nn.Module] = {}
    if isinstance(module, _BatchNorm):
        return by(module)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children skips what it has seen
            if isinstance(child, _BatchNorm):
                if child not in done:
                    done[child] = by(child)
                setattr(parent, name, done[child])
    return module
