"""What a device holds against a version before it tries it, and what it must never hold against one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfl_core.errors import ConfigError
from nfl_core.learning import (
    Known,
    LearningSettings,
    NestedLearner,
    NestedModel,
    Refusal,
    Samples,
    Track,
    content_of,
    default_spec,
    displacement,
    judge_answers,
    judge_step,
    label_prior,
    load_state,
    merge,
    micro_update,
    schema_of,
    state_of,
)
from nfl_core.learning.plausible import MAX_CONTENTS, MAX_LENGTHS, MAX_MISSED

MakeModel = Callable[..., NestedModel]
MakeSamples = Callable[..., Samples]
FACTOR = LearningSettings().plausible_factor
WAY = {"a": np.float32([[3.0, 0.0]]), "b": np.float32([4.0])}  # of length 5


def along(*lengths: float, start: float = 0.0) -> list[dict[str, np.ndarray]]:
    """Versions whose steps go one way, with these lengths."""
    ends = np.cumsum([start, *lengths])[1:]
    return [{name: np.float32(end / 5) * part for name, part in WAY.items()} for end in ends]


def walked(*lengths: float) -> Track:
    track = Track.begin(along(0.0)[0], version=0)
    for version, shared in enumerate(along(*lengths), start=1):
        track = track.then(shared, version=version)
    return track


def judged(track: Track, length: float, *, version: int | None = None, own: float = 0.0) -> Refusal | None:
    """Judge a step of this length from where the track ends, negative: back."""
    step = along(length)[0]
    incoming = {name: track.published[name] + part for name, part in step.items()}
    number = track.version + 1 if version is None else version
    moved = along(own)[0] if own else {}
    return judge_step(Known(track=track, version=number, own=moved), incoming, factor=FACTOR)


@given(lengths=st.lists(st.floats(0.5, 1.0), min_size=1, max_size=20), last=st.floats(0.5, 1.0))
def test_steps_that_differ_by_less_than_the_factor_are_plausible(lengths: list[float], last: float) -> None:
    assert judged(walked(*lengths), last, own=1.0) is None


@given(lengths=st.lists(st.floats(0.5, 1.0), min_size=1, max_size=20), times=st.floats(2.1, 1e6))
def test_a_step_many_times_as_long_is_not(lengths: list[float], times: float) -> None:
    assert judged(walked(*lengths), times * max(lengths)) is Refusal.LENGTH


def test_before_there_were_steps_its_own_training_says_how_long_they_are() -> None:
    start = walked()
    assert judged(start, 1e6) is None  # nothing is known at all
    assert judged(start, 3.9, own=1.0) is None
    assert judged(start, 4.1, own=1.0) is Refusal.LENGTH


@given(missed=st.integers(1, MAX_MISSED))
def test_who_missed_versions_is_allowed_a_step_for_each(missed: int) -> None:
    track = walked(1.0, 1.0)
    version = track.version + missed
    assert judged(track, 0.99 * FACTOR * missed, version=version) is None
    assert judged(track, 1.01 * FACTOR * missed, version=version) is Refusal.LENGTH
    incoming = along(missed, start=2.0)[0]
    assert track.then(incoming, version=version).lengths[-1] == pytest.approx(1.0, rel=1e-5)


def test_nobody_is_locked_out_by_a_history_of_tiny_steps() -> None:
    """A fleet that stood still learns again, a thousand times as fast: refused, but not for ever, and then usual."""
    track, asked = walked(*[1e-3] * 8), 0
    position = 8e-3
    for asked in range(1, 100):
        position += 1.0
        incoming = along(position)[0]
        version = 8 + asked
        if judge_step(Known(track=track, version=version), incoming, factor=FACTOR) is None:
            track = track.then(incoming, version=version)
            break
    assert asked == MAX_MISSED + 1
    assert track.lengths == pytest.approx((1.0,), rel=1e-3)  # the old lengths are gone
    assert judged(track, 1.0) is None


def test_a_track_too_old_says_nothing_about_direction_and_answers_either() -> None:
    track = walked(1.0, 1.0)
    assert judged(track, -0.7, own=1.0) is Refusal.DIRECTION
    assert judged(track, -0.7, own=1.0, version=track.version + MAX_MISSED + 1) is None


def test_a_step_turned_round_is_refused_by_who_has_trained() -> None:
    track = walked(1.0, 1.0)
    assert judged(track, -0.5, own=1.0) is Refusal.DIRECTION
    assert judged(track, -0.5) is None  # it has not trained: going back may be right


def test_who_sees_a_rare_world_follows_the_fleet_all_the_same() -> None:
    """Its own training goes the other way; where the fleet was going is known, and the version goes on there."""
    assert judged(walked(1.0, 1.0), 1.0, own=-1.0) is None


def test_a_version_that_was_plausible_once_stays_so() -> None:
    track = walked(1.0, 1.0, 1.0)
    back = along(1.0)[0]
    known = Known(track=track, version=4, own=along(1.0)[0])
    assert judge_step(known, back, factor=FACTOR) is None
    after = track.then(back, version=4)
    assert (after.lengths, after.version) == (track.lengths, 4)  # going back tells nothing about lengths
    assert content_of(after.published) == after.contents[-1] == content_of(back)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_whatever_is_known(value: float) -> None:
    bad = {**along(1.0)[0], "b": np.float32([value])}
    for track, version in ((walked(), 1), (walked(1.0), 1000)):
        assert judge_step(Known(track=track, version=version), bad, factor=FACTOR) is Refusal.NOT_FINITE


def test_a_step_beyond_all_floats_is_refused_and_never_remembered() -> None:
    low, high = ({name: np.full_like(p, s * 3e38) for name, p in WAY.items()} for s in (-1, 1))
    assert (
        judge_step(Known(track=replace(walked(1.0), published=low), version=2), high, factor=FACTOR) is Refusal.LENGTH
    )
    with np.errstate(over="ignore"):
        assert Track.begin(low, version=0).then(high, version=1).lengths == ()


@given(st.lists(st.floats(0.0, 2.0), max_size=30))
def test_the_memory_is_bounded(lengths: list[float]) -> None:
    track = walked(*lengths)
    assert len(track.lengths) <= MAX_LENGTHS
    assert len(track.contents) <= MAX_CONTENTS
    assert all(length > 0 for length in track.lengths)
    assert all(part.dtype == np.float16 and np.isfinite(part).all() for part in track.step.values())


@given(version=st.integers(-5, 5))
def test_a_version_number_that_does_not_rise_is_one_step(version: int) -> None:
    assert judged(walked(1.0, 1.0), 1.0, version=version, own=1.0) is None


@pytest.mark.parametrize("setting", [{"plausible_factor": 1.0}, {"plausible_factor": np.nan}, {"plausible_rise": 0.0}])
def test_settings_out_of_range_are_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="plausible_factor"):
        LearningSettings(**setting)


SETTINGS = LearningSettings(batch_size=16, refit_steps=10)


def shared_of(module: NestedModel) -> dict[str, np.ndarray]:
    schema, state = schema_of(module, default_spec()), state_of(module)
    return {tensor.name: state[tensor.name] for tensor in schema.shared}


def train(module: NestedModel, data: Samples, *, epochs: int) -> None:
    learner = NestedLearner(module, spec=default_spec(), settings=SETTINGS, generator=torch.Generator().manual_seed(2))
    micro_update(learner, data.x, data.y, prior=label_prior(data.y, num_classes=3), epochs=epochs, batch_size=16)


def test_a_version_trained_on_wrong_labels_is_told_by_its_answers(
    make_model: MakeModel, make_samples: MakeSamples
) -> None:
    module, data = make_model(), make_samples(200, seed=3)
    train(module, data, epochs=4)
    good = shared_of(module)
    train(module, make_samples(200, seed=4), epochs=1)
    better = shared_of(module)
    train(module, replace(data, y=(data.y + 1) % 3), epochs=10)
    worse = shared_of(module)
    known = Known(track=Track.begin(good, version=1), version=2)
    mine, before = make_samples(60, seed=5), state_of(module)
    judge = {"module": module, "x": mine.x, "y": mine.y, "rise": 0.5}
    assert judge_answers(known, better, **judge) is None
    assert judge_answers(known, worse, **judge) is Refusal.ANSWERS
    assert judge_answers(replace(known, version=2 + MAX_MISSED), worse, **judge) is None
    assert all(np.array_equal(array, before[name]) for name, array in state_of(module).items())


def test_a_merge_refuses_a_version_that_is_not_plausible_untried(
    make_model: MakeModel, make_samples: MakeSamples
) -> None:
    module, data = make_model(), make_samples(145, seed=4)
    schema, start = schema_of(module, default_spec()), state_of(module)
    track = Track.begin(shared_of(module), version=0)
    train(module, data, epochs=2)
    own = displacement(start, state_of(module), schema)
    known = Known(track=track, version=1, own={t.name: own[t.name] for t in schema.shared})
    before = state_of(module)

    def merged(factor: float, settings: LearningSettings = SETTINGS):
        load_state(module, before)
        return merge(
            module,
            incoming={name: start[name] + np.float32(factor) * part for name, part in known.own.items()},
            schema=schema,
            holdout=Samples(x=data.x[:45], y=data.y[:45]),
            train=Samples(x=data.x[45:], y=data.y[45:]),
            settings=settings,
            generator=torch.Generator().manual_seed(7),
            known=known,
        )

    for factor, why in ((-1.0, Refusal.DIRECTION), (10.0, Refusal.LENGTH), (np.nan, Refusal.NOT_FINITE)):
        report = merged(factor)
        assert (report.refusal, report.is_implausible, report.num_trials, report.accepted) == (why, True, 0, False)
        assert (report.loss_after, report.accuracy_after) == (report.loss_before, report.accuracy_before)
        assert all(array.tobytes() == before[name].tobytes() for name, array in state_of(module).items())
    assert merged(1.0).refusal is None
    lenient = replace(SETTINGS, plausible=False, merge_tolerance=1e9, merge_max_drop=1.0)
    assert merged(10.0, lenient).accepted
    strict = replace(SETTINGS, merge_tolerance=0.0, merge_max_drop=0.0, refit_steps=0)
    report = merged(1e-6, strict)
    assert report.accepted or (report.refusal is Refusal.HOLDOUT and not report.is_implausible)
