"""What a spec makes of a module, before a fleet learns with it: levels, bytes, memory, time.

model = load_model("my_network.py:make", num_classes=10, input_shape=(1, 28, 28))
profile = profile_model(model, propose_spec(model), settings=LearningSettings(), bits=2, max_batch=32)
"""

from __future__ import annotations

import importlib.util
import inspect
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from nfl_core.codec.quantise import modulus_bits
from nfl_core.errors import ConfigError
from nfl_core.learning.learner import NestedLearner
from nfl_core.learning.model import NestedModel, create_model, schema_of
from nfl_core.learning.nested import nested
from nfl_core.learning.settings import LearningSettings
from nfl_core.levels import Level, NestedSpec, Scope

NUM_STEPS = 30  # timed; the median of fewer jumps on a busy machine


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelProfile:
    """One level of a model.

    Attributes:
        level: As the spec has it.
        learning_rate: Of its step; 0 when it stands still.
        num_tensors: It owns.
        num_parameters: It owns.
        share: Fraction of the model's parameters.
        bytes_up_fp32: Of one displacement, unpacked; a sum masked in 32-bit integers weighs the same.
        bytes_up_sealed: Of one contribution's masked vector.
        memory_bytes: On the device: optimizer, open chunk, anchors, and a private level as it was last accepted.
    """

    level: Level
    learning_rate: float
    num_tensors: int
    num_parameters: int
    share: float
    bytes_up_fp32: int
    bytes_up_sealed: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A model under a spec.

    Attributes:
        model: Name of its class.
        num_classes: K.
        input_shape: Of one input.
        num_parameters: That it learns.
        num_constants: Frozen values, part of the graph and of nothing else.
        private: Names of the tensors that never leave the device.
        levels: Fastest first.
        modulus_bits: Of one value of a sealed contribution.
        bytes_up_fp32: A version, mean over versions: a level that is exchanged every n-th counts an n-th.
        bytes_up_sealed: The same, sealed.
        batch_size: Samples of the step that was timed.
        step_ms: Median of one training step at one thread, milliseconds of wall time.
        advice: What is allowed but seldom meant.
    """

    model: str
    num_classes: int
    input_shape: tuple[int, ...]
    num_parameters: int
    num_constants: int
    private: tuple[str, ...]
    levels: tuple[LevelProfile, ...]
    modulus_bits: int
    bytes_up_fp32: int
    bytes_up_sealed: int
    batch_size: int
    step_ms: float
    advice: tuple[str, ...]


def load_model(
    reference: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    head: str | None = None,
    view: tuple[int, ...] | None = None,
    seed: int = 0,
) -> NestedModel:
    """Make a model by the name of an entry point, or by `file.py:factory`.

    Args:
        reference: A factory in a file takes (num_classes, input_shape) or nothing, and returns a torch module; one that
            is no nested model is wrapped.
        num_classes: K, for a factory that takes it.
        input_shape: Of one input of the product.
        head: See `nested`.
        view: See `nested`.
        seed: Decides the initial weights.

    Raises:
        ConfigError: There is no such entry point, file or factory, or it fails.
        ModelError: What it makes cannot be nested.
    """
    if ".py:" not in reference:
        return create_model(reference, num_classes=num_classes, input_shape=input_shape, seed=seed)
    factory = _factory(reference)
    takes_shape = len(inspect.signature(factory).parameters) >= 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = factory(num_classes, input_shape) if takes_shape else factory()
        except Exception as e:  # foreign code
            raise ConfigError(f"{reference} fails: {type(e).__name__}: {e}", hint="correct the factory") from e
    if isinstance(module, NestedModel):
        return module
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{reference} returns a {type(module).__name__}, expected a torch module", hint="return it")
    return nested(module, input_shape=input_shape, head=head, view=view)


def profile_model(
    module: NestedModel, spec: NestedSpec, *, settings: LearningSettings, bits: int, max_batch: int
) -> ModelProfile:
    """Say what `spec` makes of a model; it is trained for some steps on noise, so give one that is not kept.

    Args:
        module: Trained in place.
        spec: Its levels.
        settings: Learning rate and batch size.
        bits: Of one quantised value.
        max_batch: Contributions that are summed at most, >= 1.

    Raises:
        ModelError: The module cannot be learned in a fleet.
        SpecError: The spec does not fit it.
        LearningError: A step on noise failed.
        DeltaError: Bits and batch need more than a value of a sealed contribution may have.
    """
    schema = schema_of(module, spec)
    learner = NestedLearner(module, spec=spec, settings=settings, generator=torch.Generator().manual_seed(0))
    parameters = dict(module.named_parameters())
    names = {level.name: [t.name for t in schema.tensors if t.level == level.name] for level in spec.levels}
    num_all = sum(p.numel() for p in parameters.values())
    k = modulus_bits(bits, max_batch)
    levels = []
    for level in spec.levels:
        num = sum(parameters[name].numel() for name in names[level.name])
        sent = num if level.scope.is_shared else 0
        levels.append(
            LevelProfile(
                level=level,
                learning_rate=settings.learning_rate if level.learning_rate is None else level.learning_rate,
                num_tensors=len(names[level.name]),
                num_parameters=num,
                share=num / num_all,
                bytes_up_fp32=4 * sent,
                bytes_up_sealed=-(-sent * k // 8),
                memory_bytes=_memory_bytes(learner, names[level.name]),
            )
        )
    return ModelProfile(
        model=type(module.inner if hasattr(module, "inner") else module).__name__,
        num_classes=module.num_classes,
        input_shape=module.input_shape,
        num_parameters=num_all,
        num_constants=sum(buffer.numel() for buffer in module.buffers()),
        private=tuple(tensor.name for tensor in schema.private),
        levels=tuple(levels),
        modulus_bits=k,
        bytes_up_fp32=sum(round(p.bytes_up_fp32 / p.level.sync_every) for p in levels),
        bytes_up_sealed=sum(round(p.bytes_up_sealed / p.level.sync_every) for p in levels),
        batch_size=settings.batch_size,
        step_ms=_step_ms(learner),
        advice=(*spec.advice(), *_advice(levels), *_still_layers(module)),
    )


def _advice(levels: list[LevelProfile]) -> list[str]:
    notes = [
        f"{p.level.name!r} stands still (learning rate 0), yet {p.bytes_up_sealed} bytes of it are sent: freeze its "
        "parameters instead (requires_grad_(False)), then they are constants of the graph"
        for p in levels
        if not p.learning_rate and p.bytes_up_sealed
    ]
    if not any(p.level.scope is Scope.PRIVATE for p in levels):
        notes.append("nothing is private: every owner of a region gets the same answers")
    if not any(p.level.scope.is_shared for p in levels):
        notes.append("nothing is shared: no owner learns from another")
    return notes


def _still_layers(module: NestedModel) -> list[str]:
    off = [(n, m) for n, m in module.named_modules() if isinstance(m, _DropoutNd) and not m.training]
    return [
        f"layer {name.removeprefix('inner.')!r} is a {type(m).__name__}, and off: a nested module learns in eval mode"
        for name, m in off
    ]


def _memory_bytes(learner: NestedLearner, names: list[str]) -> int:
    arrays = learner.state_dict().arrays
    return sum(array.nbytes for key, array in arrays.items() if any(key.endswith(f".{name}") for name in names))


def _step_ms(learner: NestedLearner) -> float:
    module, generator = learner.module, learner.generator
    size = learner.settings.batch_size
    x = torch.randn(size, *module.input_shape, generator=generator)
    y = torch.randint(module.num_classes, (size,), generator=generator)
    prior = torch.full((module.num_classes,), -1.0)
    before, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(NUM_STEPS):
            started = time.perf_counter()
            learner.observe(x, y, prior=prior)
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return 1e3 * statistics.median(times)


def _factory(reference: str) -> Callable[..., object]:
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"there is no file {file}", hint="give an installed model, or file.py:factory")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as e:  # foreign code
        raise ConfigError(f"{file} cannot be run: {type(e).__name__}: {e}", hint="correct the file") from e
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ConfigError(f"{file} has no function {name!r}", hint="name a function that returns the module")
    made: Callable[..., object] = factory
    return made
