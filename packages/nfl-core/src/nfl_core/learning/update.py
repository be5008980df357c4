"""One burst of training on the device, and what it moved.

    report = micro_update(learner, x, y, prior=label_prior(y, num_classes=10))
    moved = displacement(accepted, state_of(learner.module), schema)    # shared tensors only

`accepted` is the state from which the burst started: after a merge with a share below one it is that mixture, not the
published version, or the fleet would count the difference twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nfl_core.errors import LearningError, SchemaError
from nfl_core.learning.learner import NestedLearner
from nfl_core.learning.model import FloatArray, NestedModel, load_state, state_of
from nfl_core.learning.refit import cache_features, refit
from nfl_core.schema import TensorSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroUpdateReport:
    """What one micro-update did.

    Attributes:
        num_steps: Batches learned from, without those of the refit.
        loss_before: Mean objective over the first epoch, each batch before its step, nats.
        loss_after: The same over the last epoch; equal to `loss_before` when there was one epoch.
        cpu_s: CPU seconds of this process.
    """

    num_steps: int
    loss_before: float
    loss_after: float
    cpu_s: float


def micro_update(
    learner: NestedLearner,
    x: Tensor,
    y: Tensor,
    *,
    prior: Tensor,
    epochs: int | None = None,
    batch_size: int | None = None,
    refit_steps: int | None = None,
    cpu_clock: Callable[[], float] = time.process_time,
) -> MicroUpdateReport:
    """Learn from all samples, in an order that the learner's generator draws anew each epoch.

    At the end open chunks are flushed and the private head is refitted on the features as they are now: during the
    update it runs after features that move, and the owners with the fewest classes would pay for it (docs/adr/0003).

    Args:
        learner: Trained in place.
        x: float32 [N, *input_shape], N >= 1.
        y: int64 [N].
        prior: float32 [K], logarithms; see `label_prior`.
        epochs: Passes over the samples; from the learner's settings when left out.
        batch_size: Samples a step; from the learner's settings when left out.
        refit_steps: Steps of that refit, >= 0; from the learner's settings when left out.
        cpu_clock: Seconds, monotonic.

    Raises:
        LearningError: There are no samples, a batch cannot be learned from, or loss or weights are not finite any more;
            model and learner are as before then.
    """
    settings = learner.settings
    num_epochs = settings.epochs_per_update if epochs is None else epochs
    size = settings.batch_size if batch_size is None else batch_size
    if not len(y) or len(x) != len(y) or num_epochs < 1 or size < 1:
        raise LearningError(
            f"micro-update got {len(x)} inputs, {len(y)} labels, {num_epochs} epochs, batches of {size}"
        )
    started = cpu_clock()
    weights, before = state_of(learner.module), learner.state_dict()
    means: list[float] = []
    num_steps = 0
    try:
        for _ in range(num_epochs):
            order = torch.randperm(len(y), generator=learner.generator)
            losses = [learner.observe(x[pick], y[pick], prior=prior) for pick in torch.split(order, size)]
            means.append(float(torch.stack(losses).mean()))
            num_steps += len(losses)
        learner.flush()
        _check_finite(learner.module, num_steps=num_steps)
    except LearningError:
        load_state(learner.module, weights)
        learner.load_state_dict(before)
        raise
    num_refit_steps = settings.num_refit_steps(len(y)) if refit_steps is None else refit_steps
    if num_refit_steps:
        refit(
            learner.module,
            cache_features(learner.module, x, y),
            num_steps=num_refit_steps,
            batch_size=size,
            learning_rate=settings.refit_learning_rate,
            generator=learner.generator,
        )
    return MicroUpdateReport(
        num_steps=num_steps, loss_before=means[0], loss_after=means[-1], cpu_s=cpu_clock() - started
    )


def _check_finite(module: NestedModel, *, num_steps: int) -> None:
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise LearningError(
                f"parameter {name!r} is not finite after {num_steps} steps", hint="lower the learning rate"
            )


def displacement(
    accepted: Mapping[str, FloatArray], current: Mapping[str, FloatArray], schema: TensorSchema
) -> dict[str, FloatArray]:
    """Return by how much every shared tensor moved, float32, in schema order; a private one is never in it.

    Raises:
        SchemaError: A shared tensor is missing in one of the states or has another shape.
    """
    moved: dict[str, FloatArray] = {}
    for tensor in schema.shared:
        for state in (accepted, current):
            if tensor.name not in state or state[tensor.name].shape != tensor.shape:
                raise SchemaError(f"shared tensor {tensor.name!r} is missing or not of shape {list(tensor.shape)}")
        moved[tensor.name] = np.subtract(current[tensor.name], accepted[tensor.name], dtype=np.float32)
    return moved


def deviation_scales(moved: Mapping[str, FloatArray], *, num_deviations: float = 2.5) -> tuple[float, ...]:
    """Return a quantisation scale for each tensor: its root mean square times `num_deviations`, never zero.

    Args:
        moved: Displacements of a shadow micro-update, float32; see `displacement`.
        num_deviations: Where the scale stands, in deviations, > 0; 2.5 lost nothing at 2 bits (docs/adr/0003).
    """
    tiny = 1e-8  # a tensor that did not move still needs a step size
    return tuple(
        max(tiny, num_deviations * float(np.sqrt(np.mean(np.square(d, dtype=np.float64))))) for d in moved.values()
    )
