"""Any torch module as a nested model: `nested(module, input_shape=...)`.

    def my_model(num_classes: int, input_shape: tuple[int, ...]) -> NestedModel:    # an entry point of nfl.models
        return nested(MyNetwork(num_classes), input_shape=input_shape)

The module's code stays as its engineer wrote it, and so do the names of its parameters. Its classifier, the layer whose
output is the answer, becomes the generic head; what goes into it are the features; beside it stands a private residual
head that starts at zero, so the answers are the module's own until an owner has learned something. Rules kept here:

* The original is never touched: everything happens in a copy.
* What is frozen (`requires_grad` is False) becomes a constant of the architecture: it is in the graph that devices run,
  and neither in the state, nor in bundles, nor in what is sent. A frozen BatchNorm becomes the affine map it is.
* It learns in eval mode: Dropout would draw from torch's global generator, and the same samples would not give the same
  bytes on a device that was rebooted. `nfl model check` notes a Dropout that is off.
* A module that cannot be nested is refused with a `ModelError` that names the layer and what to use instead.

Shape legend: B batch, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from typing_extensions import override

from nfl_core.learning.model import ModelError, NestedModel, check_built, check_storage, parameters_of, schema_of
from nfl_core.learning.norms import copy_of, with_constants
from nfl_core.levels import Level, NestedSpec, Scope

_INNER, _PRIVATE = "inner.", "private."


class WrappedModel(NestedModel):
    """A module with its classifier taken apart and a private residual head beside it; made by `nested`."""

    def __init__(
        self,
        inner: nn.Module,
        *,
        head: str,
        private: nn.Module,
        num_classes: int,
        input_shape: tuple[int, ...],
        view: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.inner = inner
        self.private = private
        self.head_name = head
        self.num_classes = num_classes
        self.input_shape = input_shape
        self._view = view
        # The layer hands its input through, so that the module's own forward ends with the features.
        inner.get_submodule(head).forward = _same
        self.register_state_dict_post_hook(_to_own_names)  # type: ignore[no-untyped-call]  # torch's

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return what goes into the module's classifier, float32 [B, D]."""
        z_BD: Tensor = self.inner(x_BCHW.reshape(x_BCHW.shape[0], *self._view))
        return z_BD

    def generic(self, z_BD: Tensor) -> Tensor:
        """Return the answer of the module's classifier, float32 [B, K]."""
        layer = self.inner.get_submodule(self.head_name)
        logits_BK: Tensor = type(layer).forward(layer, z_BD)
        return logits_BK

    @override
    def named_parameters(
        self,
        prefix: str = "",
        recurse: bool = True,
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield parameters under the names that they have in the module, then those of the private head."""
        start = f"{prefix}." if prefix else ""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            yield start + name.removeprefix(start).removeprefix(_INNER), parameter

    @override
    def load_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        strict: bool = True,
        assign: bool = False,
    ) -> torch.nn.modules.module._IncompatibleKeys:
        """Load what `state_dict` returned, and with `strict=False` also a checkpoint of the module itself."""
        inner = {name if name.startswith(_PRIVATE) else _INNER + name: value for name, value in state_dict.items()}
        keys: torch.nn.modules.module._IncompatibleKeys = super().load_state_dict(inner, strict, assign)
        return keys


def nested(
    module: nn.Module,
    *,
    input_shape: tuple[int, ...],
    spec: NestedSpec | None = None,
    head: str | None = None,
    view: tuple[int, ...] | None = None,
    private_depth: int = 1,
    private_hidden: int = 64,
    generator: torch.Generator | None = None,
) -> WrappedModel:
    """Return a nested model that answers like `module` in eval mode.

    Args:
        module: Takes float32 [B, *view] and answers with logits, float32 [B, K]; not changed.
        input_shape: Shape of one input of the product, without the batch.
        spec: Checked against the parameters when given; see `propose_spec`.
        head: Name of the classifier; found when left out: the Linear whose output is the answer.
        view: Shape in which the module takes one input, of as many values; `input_shape` when left out. So a recurrent
            network of [B, time, channels] can be fed with inputs (1, time, channels).
        private_depth: Linear layers of the private head, >= 0; without any the model has no private part.
        private_hidden: Width between them, >= 1.
        generator: Draws the first layers of a deeper private head; seeded with 0 when left out.

    Raises:
        ModelError: The module cannot be nested: what it lacks and what to use instead is in message and hint.
        SpecError: The spec does not cover the module's parameters exactly once.
    """
    _check_kind(module)
    check_built(module)
    check_storage(module)
    inner = with_constants(copy_of(module)).eval()
    parameters_of(inner)
    if math.prod(view or input_shape) != math.prod(input_shape):
        raise ModelError(f"view {view} holds other many values than input shape {input_shape}, expected as many")
    shape = tuple(view or input_shape)
    found = _find_head(inner, inner, shape=shape, named=head)
    model = WrappedModel(
        inner,
        head=found.name,
        private=_private(
            found.num_features,
            found.num_classes,
            depth=private_depth,
            hidden=private_hidden,
            generator=generator or torch.Generator().manual_seed(0),
        ),
        num_classes=found.num_classes,
        input_shape=tuple(input_shape),
        view=shape,
    ).eval()
    if any(name.startswith(_PRIVATE) for name, _ in inner.named_parameters()):
        raise ModelError("the module has a part named 'private', which is the name of the owner's residual head")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("nothing in the module learns: every parameter is frozen and there is no private head")
    if spec is not None:
        schema_of(model, spec)
    return model


def propose_spec(module: NestedModel) -> NestedSpec:
    """Return levels for a nested model: its private head, the last block below the classifier, and the rest.

    They are those of the default spec (docs/adr/0003): reflex is private, skill regional, concept global, all of
    period 1. A model without private head gets no reflex, one with a single block below its classifier no skill.

    Raises:
        ModelError: The model's generic head cannot be found.
    """
    head = module.head_name if isinstance(module, WrappedModel) else _head_of(module)
    parameters = {name: p for name, p in module.named_parameters() if not name.startswith(_PRIVATE)}
    below = [name for name in parameters if not name.startswith(f"{head}." if head else "")]
    own = [] if len(below) == len(parameters) else [f"{head}.*"] if head else list(parameters)
    depth = 1
    while len({_block(name, depth, head) for name in below}) == 1 and depth < max(name.count(".") for name in below):
        depth += 1
    blocks = list(dict.fromkeys(_block(name, depth, head) for name in below))
    with_matrix = {_block(name, depth, head) for name in below if parameters[name].ndim > 1}
    start = max((place for place, block in enumerate(blocks) if place and block in with_matrix), default=len(blocks))
    rooms = [
        ("reflex", [f"{_PRIVATE}*"] if any(True for _ in module.private.parameters()) else [], Scope.PRIVATE),
        ("skill", blocks[start:], Scope.REGION),
        ("concept", [*blocks[:start], *own], Scope.GLOBAL),
    ]
    spec = NestedSpec.of(Level(name=name, params=tuple(room), scope=scope) for name, room, scope in rooms if room)
    spec.assign([name for name, _ in module.named_parameters()])
    return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    name: str
    num_features: int
    num_classes: int


def _find_head(
    tree: nn.Module, answer_of: Callable[[Tensor], object], *, shape: tuple[int, ...], named: str | None = None
) -> _Head:
    """Run zeros through a module and find the layer whose output is the answer."""
    calls: list[tuple[str, object, object]] = []

    def record(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        return lambda _, inputs, output: calls.append((name, inputs[0] if inputs else None, output))

    layers = dict(tree.named_modules())
    if named is not None and named not in layers:
        raise ModelError(f"the module has no layer {named!r}", hint=f"it has {', '.join(list(layers)[1:9])} ...")
    hooks = [
        layer.register_forward_hook(record(name))
        for name, layer in layers.items()
        if (isinstance(layer, nn.Linear) if named is None else name == named)
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answer = answer_of(torch.zeros(2, *shape))
    except Exception as e:  # a module may raise anything
        raise ModelError(
            f"the module cannot take a batch of shape {[2, *shape]}: {e}",
            hint="inputs are float32 [B, *input_shape]; give `view` when the module wants another shape",
        ) from e
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(answer, Tensor) or answer.shape[:1] != (2,) or answer.ndim != 2 or answer.shape[1] < 2:
        got = f"shape {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ModelError(
            f"the module answers a batch of 2 with {got}, expected logits, float32 [2, K], K >= 2",
            hint="let forward return one tensor of logits, a row a sample",
        )
    ends = [(name, z) for name, z, output in calls if output is answer]
    if not ends or sum(name == ends[0][0] for name, _, _ in calls) != 1:
        what = "a Linear layer" if named is None else f"layer {named!r}"
        raise ModelError(
            f"the module's answer is not the output of {what} that runs once",
            hint="return the logits of the last layer as they are (no softmax behind it), or name that layer: head=...",
        )
    name, z = ends[0]
    if not isinstance(z, Tensor) or z.ndim != 2:
        got = f"of shape {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise ModelError(f"the input of classifier {name!r} is {got}, expected features [B, D]")
    return _Head(name=name, num_features=z.shape[1], num_classes=answer.shape[1])


def _head_of(module: NestedModel) -> str:
    return _find_head(module, lambda x: module.generic(module.features(x)), shape=module.input_shape).name


def _private(num_features: int, num_classes: int, *, depth: int, hidden: int, generator: torch.Generator) -> nn.Module:
    if depth < 0 or hidden < 1:
        raise ModelError(f"private head of depth {depth} and width {hidden}, expected >= 0 and >= 1")
    if not depth:
        return _Nothing(num_classes)
    widths = [num_features, *[hidden] * (depth - 1), num_classes]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")  # nothing drawn globally
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layers += [linear, nn.ReLU()]
    last = layers[-2]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return last if depth == 1 else nn.Sequential(*layers[:-1])


class _Nothing(nn.Module):
    """The residual of a model without private part."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self._num_classes = num_classes

    def forward(self, z_BD: Tensor) -> Tensor:
        return z_BD.new_zeros(z_BD.shape[0], self._num_classes)


def _check_kind(module: nn.Module) -> None:
    if isinstance(module, (torch.jit.ScriptModule, NestedModel)):
        raise ModelError(f"{type(module).__name__} cannot be nested, expected a plain torch.nn.Module")


def _block(name: str, depth: int, head: str) -> str:
    """Return the pattern of the part, `depth` steps down or more, that owns a parameter and not the classifier."""
    path = name.split(".")[:-1]
    for num in range(depth, len(path) + 1):
        part = ".".join(path[:num])
        if not f"{head}.".startswith(f"{part}."):
            return f"{part}.*"
    return name


def _same(value: Tensor) -> Tensor:
    return value


def _to_own_names(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, object]) -> None:
    del module, metadata
    for name in list(state) if not prefix else ():
        state[name.removeprefix(_INNER)] = state.pop(name)
