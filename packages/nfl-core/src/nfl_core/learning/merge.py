"""Merging new shared levels into a personal model without breaking what it learned for its owner.

First the version itself is judged, where the device knows versions (`nfl_core.learning.plausible`); one that is not
plausible is refused untried. Then a shadow of the model takes a share alpha of the new levels, its fast level is
refitted for a bounded number of steps, and the shadow is scored on samples that were never trained on. The largest
share whose loss and accuracy stay within the tolerance is committed at once; when none does, the merge is refused and
the model is untouched.

`decide` holds the rules and does nothing; `merge` does what it says. The whole is deterministic given the generator.

    >>> before, rules = Score(loss=0.50, accuracy=0.8), {"alphas": (1.0, 0.5), "tolerance": 0.05, "max_drop": 0.02}
    >>> decide(before, (), **rules)
    Try(alpha=1.0)
    >>> decide(before, (Trial(alpha=1.0, score=Score(loss=0.51, accuracy=0.8)),), **rules)
    Commit(alpha=1.0)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfl_core.errors import LearningError, SchemaError
from nfl_core.learning.model import FloatArray, NestedModel, load_state, state_of
from nfl_core.learning.objective import Score, score, score_logits
from nfl_core.learning.plausible import Known, Refusal, judge_answers, judge_step
from nfl_core.learning.refit import FeatureCache, cache_features, refit
from nfl_core.learning.settings import LearningSettings
from nfl_core.schema import TensorSchema


@dataclass(frozen=True, slots=True)
class Try:
    """Score a shadow that takes this share of the new levels."""

    alpha: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Take the shadow with this share."""

    alpha: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """Keep the model as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A share that was tried, and the holdout score of its refitted shadow."""

    alpha: float
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge did; all scores are on the holdout samples.

    Attributes:
        accepted: Whether the model changed.
        alpha: Share of the new levels it took, 0 when refused.
        shock: Accuracy lost by the whole new levels before any refit, 0 to 1; negative when they helped at once; 0 when
            they were not tried.
        loss_before: Of the model before the merge, nats.
        loss_after: Of the model that stands now, nats.
        accuracy_before: Of the model before the merge, 0 to 1.
        accuracy_after: Of the model that stands now, 0 to 1.
        refit_steps: Steps that the committed shadow was refitted for.
        num_trials: Shares that were tried; 0: the version was not plausible.
        refusal: Which check refused; None: accepted.
    """

    accepted: bool
    alpha: float
    shock: float
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float
    refit_steps: int
    num_trials: int
    refusal: Refusal | None = None

    @property
    def is_implausible(self) -> bool:
        """Whether the version itself was doubted: then it takes no part in the track of versions."""
        return self.refusal is not None and self.refusal.is_implausible


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs, float32 [N, *input_shape], and labels, int64 [N]."""

    x: Tensor
    y: Tensor


def decide(
    before: Score, trials: Sequence[Trial], *, alphas: Sequence[float], tolerance: float, max_drop: float
) -> Try | Commit | Refuse:
    """Say what to do after these trials: the first share in `alphas` whose loss and accuracy are tolerable wins.

    Args:
        before: Holdout score of the model as it is; an infinite loss makes every finite trial tolerable.
        trials: Those made so far, in the order of `alphas`.
        alphas: Shares to try, descending.
        tolerance: Tolerated rise of the loss, as a fraction of it, >= 0.
        max_drop: Tolerated fall of the accuracy, >= 0; with few samples a single one may be more.
    """
    if trials:
        last = trials[-1].score
        tolerable = last.loss <= before.loss * (1.0 + tolerance) and last.accuracy >= before.accuracy - max_drop
        if math.isfinite(last.loss) and tolerable:
            return Commit(trials[-1].alpha)
    return Try(alphas[len(trials)]) if len(trials) < len(alphas) else Refuse()


def merge(
    module: NestedModel,
    *,
    incoming: Mapping[str, FloatArray],
    schema: TensorSchema,
    holdout: Samples,
    train: Samples,
    settings: LearningSettings,
    generator: torch.Generator,
    fast: Mapping[str, FloatArray] | None = None,
    known: Known | None = None,
) -> MergeReport:
    """Merge new shared levels into `module`, or leave it untouched.

    Args:
        module: Changed only by a commit, at the very end.
        incoming: Every shared tensor of `schema`, float32, and nothing else.
        schema: Says what is shared.
        holdout: Judges the shadows; must not be in `train`. 45 samples or more are advisable.
        train: The refit learns from these.
        settings: Shares, tolerance and refit.
        generator: Draws the refit's batches.
        fast: Private tensors, float32, from which the refit may start, see `NestedLearner.rested`: it does where they
            fit the training samples better than those of `module` (docs/adr/0007).
        known: Of versions so far; None: any version is plausible. Who keeps a track goes on with `Track.then` after a
            report that is not `is_implausible`, whether the merge was accepted or not.

    Raises:
        SchemaError: `incoming` is not exactly the shared tensors.
        LearningError: There are no samples to judge by.
    """
    _check(incoming, schema)
    if not len(holdout.y) or not len(train.y):
        raise LearningError(
            f"merge got {len(holdout.y)} holdout and {len(train.y)} training samples, expected some of both"
        )
    before = score(module, holdout.x, holdout.y)
    refusal = _doubt(known, incoming, module=module, parts=(train, holdout), settings=settings)
    if refusal is not None:
        return _report(before, (), action=Refuse(), shock=0.0, refit_steps=0, refusal=refusal)
    num_refit_steps = settings.num_refit_steps(len(train.y))
    old = state_of(module)
    shock = 0.0
    trials: list[Trial] = []
    shadow = module
    while True:
        action = decide(
            before,
            trials,
            alphas=settings.merge_alphas,
            tolerance=settings.merge_tolerance,
            max_drop=settings.merge_max_drop,
        )
        if not isinstance(action, Try):
            break
        shadow = copy.deepcopy(module)
        load_state(shadow, mix(old, incoming, alpha=action.alpha), partial=True)
        cache = cache_features(shadow, train.x, train.y)
        _start(shadow, cache, fast or {})
        if not trials:
            shock = before.accuracy - score(shadow, holdout.x, holdout.y).accuracy
        refit(
            shadow,
            cache,
            num_steps=num_refit_steps,
            batch_size=settings.batch_size,
            learning_rate=settings.refit_learning_rate,
            generator=generator,
        )
        trials.append(Trial(alpha=action.alpha, score=score(shadow, holdout.x, holdout.y)))
    if isinstance(action, Commit):
        load_state(module, state_of(shadow))
    return _report(before, trials, action=action, shock=shock, refit_steps=num_refit_steps)


def _doubt(
    known: Known | None,
    incoming: Mapping[str, FloatArray],
    *,
    module: NestedModel,
    parts: Sequence[Samples],
    settings: LearningSettings,
) -> Refusal | None:
    if known is None or not settings.plausible:
        return None
    refusal = judge_step(known, incoming, factor=settings.plausible_factor)
    if refusal is not None:
        return refusal
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    return judge_answers(known, incoming, module=module, x=x, y=y, rise=settings.plausible_rise)


def _report(
    before: Score,
    trials: Sequence[Trial],
    *,
    action: Commit | Refuse,
    shock: float,
    refit_steps: int,
    refusal: Refusal = Refusal.HOLDOUT,
) -> MergeReport:
    accepted = isinstance(action, Commit)
    after = trials[-1].score if accepted else before
    return MergeReport(
        accepted=accepted,
        alpha=action.alpha if isinstance(action, Commit) else 0.0,
        shock=shock,
        loss_before=before.loss,
        loss_after=after.loss,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        refit_steps=refit_steps if accepted else 0,
        num_trials=len(trials),
        refusal=None if accepted else refusal,
    )


def _start(shadow: NestedModel, cache: FeatureCache, fast: Mapping[str, FloatArray]) -> None:
    """Give the shadow the private level that fits its features better: its own, or `fast`."""
    own = {name: array for name, array in state_of(shadow).items() if name in fast}
    losses = []
    for candidate in (own, fast):
        load_state(shadow, candidate, partial=True)
        with torch.no_grad():
            losses.append(score_logits(cache.generic + shadow.residual(cache.z), cache.y).loss)
    if not losses[1] < losses[0]:
        load_state(shadow, own, partial=True)


def mix(old: Mapping[str, FloatArray], new: Mapping[str, FloatArray], *, alpha: float) -> dict[str, FloatArray]:
    """Return old + alpha * (new - old) for every tensor of `new`; exactly `new` when alpha is one."""
    if alpha == 1.0:
        return dict(new)
    return {name: (old[name] + alpha * (new[name] - old[name])).astype("float32") for name in new}


def _check(incoming: Mapping[str, FloatArray], schema: TensorSchema) -> None:
    expected = {tensor.name: tensor.shape for tensor in schema.shared}
    if set(incoming) != set(expected):
        raise SchemaError(
            f"merge got tensors that differ in {sorted(set(incoming) ^ set(expected))[:3]} from the shared ones"
        )
    for name, shape in expected.items():
        if incoming[name].shape != shape:
            raise SchemaError(f"tensor {name!r} has shape {incoming[name].shape}, expected {shape}")
