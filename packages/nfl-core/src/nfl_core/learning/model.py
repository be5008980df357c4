"""What a nested model is, and its state as named numpy arrays.

A nested model has four rooms, told apart by the prefix of a parameter's name: `body.`, `middle.` and `head.` may be
shared, `private.` holds the residual head of one owner. Its answer is `generic(z) + private(z)` with `z = features(x)`;
the private head starts at zero, so a fresh device answers exactly like the fleet.

Rules kept here:

* Everything a model knows is a parameter, float32, with one name: a persistent buffer (BatchNorm statistics, for
  example) would be averaged or lost in silence, so a model that has one is refused.
* State crosses this border as copies. Nobody outside ever holds memory that a trainer writes to.
* Nothing is loaded in part by accident: unknown, missing or misshaped names raise before the first value is written.

Shape legend: B batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import entry_points
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nfl_core.errors import ConfigError, SchemaError
from nfl_core.levels import NestedSpec
from nfl_core.schema import TensorSchema

FloatArray = npt.NDArray[np.float32]
MODELS_GROUP = "nfl.models"


class ModelError(SchemaError):
    """A module cannot be learned in a fleet as it is."""

    code = "model.unfit"
    hint = "change the layer that is named; `nfl model check` tries again"


class NestedModel(nn.Module, ABC):
    """A module with shared features, a shared generic head and a private residual head."""

    private: nn.Module
    num_classes: int
    input_shape: tuple[int, ...]

    @abstractmethod
    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the features z, float32 [B, D], of inputs, float32 [B, *input_shape]."""

    @abstractmethod
    def generic(self, z_BD: Tensor) -> Tensor:
        """Return the logits of the shared head, float32 [B, K]."""

    def residual(self, z_BD: Tensor) -> Tensor:
        """Return what the owner's private head adds to the generic logits, float32 [B, K]."""
        logits_BK: Tensor = self.private(z_BD)
        return logits_BK

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the personal logits, float32 [B, K]."""
        z_BD = self.features(x_BCHW)
        return self.generic(z_BD) + self.residual(z_BD)


def create_model(name: str, *, num_classes: int, input_shape: tuple[int, ...], seed: int) -> NestedModel:
    """Make a model that an installed package offers in the entry-point group `nfl.models`.

    Args:
        name: Name of the entry point, for example `small-cnn`.
        num_classes: Number of classes K, >= 2.
        input_shape: Shape of one input without the batch, for example (1, 28, 28).
        seed: Decides the initial weights; the same seed gives the same bytes and leaves torch's global state alone.

    Raises:
        ConfigError: No installed package offers `name`, or what it makes is not a nested model.
    """
    found = {point.name: point for point in entry_points(group=MODELS_GROUP)}
    if name not in found:
        raise ConfigError(f"model {name!r} is not installed, expected one of {sorted(found)}")
    factory = found[name].load()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = factory(num_classes, input_shape)
    if not isinstance(module, NestedModel):
        raise ConfigError(f"model {name!r} makes a {type(module).__name__}, expected a NestedModel")
    return module


def schema_of(module: nn.Module, spec: NestedSpec) -> TensorSchema:
    """Return the tensors of `module` in their own order, each with the level and scope that `spec` gives it.

    Raises:
        SpecError: A parameter belongs to no level or to more than one.
        ModelError: The module holds something that cannot be learned in a fleet; see `parameters_of`.
    """
    return TensorSchema.of({name: tuple(parameter.shape) for name, parameter in parameters_of(module).items()}, spec)


def state_of(module: nn.Module) -> dict[str, FloatArray]:
    """Return a copy of every parameter, float32, C-contiguous, by name in the module's order.

    Raises:
        ModelError: The module holds something that cannot be learned in a fleet; see `parameters_of`.
    """
    return {
        name: np.array(parameter.detach().numpy(), copy=True, order="C")
        for name, parameter in parameters_of(module).items()
    }


def load_state(module: nn.Module, state: Mapping[str, FloatArray], *, partial: bool = False) -> None:
    """Copy arrays into the parameters of the same name.

    Args:
        module: Its parameters are overwritten in place.
        state: float32 arrays by parameter name; they are copied, never kept.
        partial: Allow parameters that `state` does not name; they keep their values.

    Raises:
        SchemaError: A name is unknown or missing, or a shape or dtype differs. Nothing was written then.
    """
    parameters = parameters_of(module)
    unknown = sorted(set(state) - set(parameters))
    if unknown:
        raise SchemaError(f"state has unknown tensors {unknown[:3]}, expected only parameters of the model")
    missing = sorted(set(parameters) - set(state))
    if missing and not partial:
        raise SchemaError(f"state lacks {len(missing)} tensors, the first is {missing[0]!r}")
    for name, array in state.items():
        shape = tuple(parameters[name].shape)
        if array.shape != shape or array.dtype != np.float32:
            raise SchemaError(f"tensor {name!r} is {array.dtype}{list(array.shape)}, expected float32{list(shape)}")
    with torch.no_grad():
        for name, array in state.items():
            parameters[name].copy_(torch.from_numpy(np.array(array, copy=True, order="C")))


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by name, if they are all that the module knows and all that a fleet can share.

    Raises:
        ModelError: A parameter has no shape yet, is not float32 or has two names, or there is a BatchNorm or another
            persistent buffer.
    """
    check_built(module)
    _check_buffers(module)
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if parameter.dtype is not torch.float32:
            raise ModelError(
                f"parameter {name!r} is {parameter.dtype}, expected torch.float32",
                hint="make the module with real float32 parameters: module.float(); two real ones for a complex one",
            )
    check_storage(module)
    return parameters


def check_built(module: nn.Module) -> None:
    """Refuse parameters and statistics that get their shape from the first batch. Raises ModelError."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ModelError(
                f"{name!r} of the module has no shape yet", hint="run one batch through the module before it is nested"
            )


def check_storage(module: nn.Module) -> None:
    """Refuse parameters that share memory: tied weights, or views of one tensor. Raises ModelError."""
    named = list(module.named_parameters(remove_duplicate=False))
    spans = [(p.data_ptr(), p.data_ptr() + _num_bytes(p), name) for name, p in named if p.numel()]
    spans.sort(key=lambda span: span[0])
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise ModelError(
                f"parameters {name!r} and {other!r} share memory, expected one name for each tensor",
                hint="untie them, or keep one layer under one name and call it twice: tied weights would step twice",
            )


def _num_bytes(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _check_buffers(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            raise ModelError(
                f"layer {name!r} is a {type(part).__name__}: its statistics would be averaged over levels and owners, "
                "or lost",
                hint="use GroupNorm: with_group_norm(module) of nfl_core.learning returns a copy that has it; "
                "or freeze the layer and wrap the module with `nested`",
            )
    extra = sorted(set(module.state_dict()) - {name for name, _ in module.named_parameters(remove_duplicate=False)})
    if extra:
        raise ModelError(
            f"the module keeps a persistent buffer {extra[0]!r}, expected parameters alone",
            hint="make it a parameter, or a constant: register_buffer(..., persistent=False)",
        )
