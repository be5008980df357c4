"""The methods that learn a stream of tasks, ours and those it is measured against; all of them one learner.

| method | memory | what it is |
|---|---|---|
| `naive` | none | one level, plain loss |
| `er`, `der` | 200, a uniform sample | replay; replay with logits (arXiv:2004.07211): one level, plain loss |
| `er-ace` | 200, a uniform sample | new samples compete among the classes of their batch (arXiv:2104.05025) |
| `nested` | 200, balanced | joint loss, rehearsal under the mixture's prior, remembered images changed a little |
| `nested-slow` | 200, balanced | the same, and a slow average of all levels answers |
| `joint` | everything seen | trained anew on all tasks so far: the upper bound |

Endings vary one thing: `/no-prior`, `/no-augment`, `/no-logits`, `/reservoir`; and how body and middle move: `/sum8`
has period 8 and the usual mean step; `/mean8` (period 8, mean of the gradients) and `/rate8` (period 1, an eighth of
the rate) both have an eighth of it, so what tells `/mean8` from `/rate8` is the frequency alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nfl_core.learning import (
    LearningSettings,
    NestedLearner,
    NestedModel,
    create_model,
    joint_loss,
    plain_loss,
    schema_of,
)
from nfl_core.learning.continual import (
    ContinualLearner,
    ModelIdentity,
    RehearsalSettings,
    ReplayBuffer,
    SlowAverage,
    StreamSettings,
    bytes_for,
    shift_and_flip,
)
from nfl_core.levels import Level, NestedSpec, Scope
from nfl_sim.continual.peers import PlainRehearsal

NUM_KEPT = 200
HORIZON = 200  # batches; one task of 8,000 images in two passes
RATE = 0.05
Slow = Literal["", "sum8", "mean8", "rate8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a stream is learned.

    Attributes:
        name: As in the table above.
        kind: Which objective and loop.
        rehearsal: How remembered samples take part; None: nothing is remembered.
        balanced: Whether the memory holds as many of each class.
        averaged: Whether a slow average answers.
        slow: How body and middle move.
    """

    name: str
    kind: Literal["plain", "ace", "nested", "joint"]
    rehearsal: RehearsalSettings | None = None
    balanced: bool = False
    averaged: bool = False
    slow: Slow = ""


_PLAIN = RehearsalSettings(logit_weight=0.0)
_OURS = RehearsalSettings(augment=shift_and_flip)
_NESTED = Method(name="nested", kind="nested", rehearsal=_OURS, balanced=True)
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(name="naive", kind="plain"),
        Method(name="er", kind="plain", rehearsal=_PLAIN),
        Method(name="der", kind="plain", rehearsal=RehearsalSettings()),
        Method(name="er-ace", kind="ace", rehearsal=_PLAIN),
        _NESTED,
        replace(_NESTED, name="nested-slow", averaged=True),
        replace(_NESTED, name="nested/no-prior", rehearsal=replace(_OURS, uses_prior=False)),
        replace(_NESTED, name="nested/no-augment", rehearsal=RehearsalSettings()),
        replace(_NESTED, name="nested/no-logits", rehearsal=replace(_OURS, logit_weight=0.0)),
        replace(_NESTED, name="nested/reservoir", balanced=False),
        *(replace(_NESTED, name=f"nested/{slow}", slow=slow) for slow in ("sum8", "mean8", "rate8")),
        *(Method(name=f"naive/{slow}", kind="plain", slow=slow) for slow in ("sum8", "mean8", "rate8")),
        Method(name="joint", kind="joint"),
    )
}


def spec_of(method: Method) -> NestedSpec:
    """Return the levels: fast heads, and body and middle as the method moves them."""
    period = 8 if method.slow in ("sum8", "mean8") else 1
    slow = Level(
        name="concept",
        params=("body.*", "middle.*"),
        period=period,
        reduce="mean" if method.slow == "mean8" else "sum",
        learning_rate=RATE / 8 if method.slow == "rate8" else None,
        scope=Scope.GLOBAL,
    )
    return NestedSpec.of(
        [
            Level(name="reflex", params=("private.*",), scope=Scope.PRIVATE),
            Level(name="answer", params=("head.*",), scope=Scope.GLOBAL),
            slow,
        ]
    )


class Subject:
    """A model in the middle of a stream: `learn` takes a batch, `answering` returns the model that answers.

    Args:
        method: How it learns.
        num_classes: K.
        input_shape: C, H, W.
        seed: Decides weights, order and memory.
    """

    def __init__(self, method: Method, *, num_classes: int, input_shape: tuple[int, int, int], seed: int) -> None:
        module = create_model("small-cnn", num_classes=num_classes, input_shape=input_shape, seed=seed)
        spec = spec_of(method)
        self.generator = torch.Generator().manual_seed(seed)
        self.learner = NestedLearner(
            module,
            spec=spec,
            settings=LearningSettings(learning_rate=RATE),
            generator=self.generator,
            objective=joint_loss if method.kind == "nested" else plain_loss,
        )
        self._zeros = torch.zeros(num_classes)
        self._stream: ContinualLearner | None = None
        self.learn: Callable[[Tensor, Tensor], None] = self._learn_plainly
        if method.rehearsal is None:
            return
        buffer = ReplayBuffer(
            max_bytes=bytes_for(NUM_KEPT, input_shape, num_classes=num_classes),
            input_shape=input_shape,
            num_classes=num_classes,
            identity=ModelIdentity(schema_fingerprint=schema_of(module, spec).fingerprint, version=1),
            salt=seed,
            balanced=method.balanced,
        )
        if method.kind == "nested":
            self._stream = ContinualLearner(
                self.learner,
                replay=buffer,
                settings=StreamSettings(rehearsal=method.rehearsal),
                average=SlowAverage(module, horizon=HORIZON) if method.averaged else None,
            )
            self.learn = self._learn_stream
        else:
            self._plain = PlainRehearsal(
                buffer, generator=self.generator, settings=method.rehearsal, asymmetric=method.kind == "ace"
            )
            self.learner.objective = self._plain
            self.learn = self._learn_rehearsing

    def answering(self) -> NestedModel:
        """Return the model that answers now."""
        return self.learner.module if self._stream is None else self._stream.answering()

    def _learn_plainly(self, x: Tensor, y: Tensor) -> None:
        self.learner.observe(x, y, prior=self._zeros)

    def _learn_stream(self, x: Tensor, y: Tensor) -> None:
        assert self._stream is not None
        self._stream.observe(x, y)

    def _learn_rehearsing(self, x: Tensor, y: Tensor) -> None:
        self.learner.observe(x, y, prior=self._zeros)
        self._plain.buffer.offer(x, y, logits=self._plain.logits)
