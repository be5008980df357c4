from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nfl_core.errors import ConfigError, LearningError
from nfl_core.learning import LearningSettings, NestedLearner, load_state, schema_of, state_of
from nfl_core.learning.continual import (
    ContinualLearner,
    DriftSettings,
    DriftWatch,
    ModelIdentity,
    RecallShelf,
    RehearsalSettings,
    ReplayBuffer,
    SlowAverage,
    StreamRefusedError,
    StreamSettings,
    bytes_for,
)
from nfl_core.levels import Level, NestedSpec, Scope

SPEC = NestedSpec.of(
    [
        Level(name="reflex", params=("private.*",), scope=Scope.PRIVATE, period=2),
        Level(name="concept", params=("middle.*", "body.*", "head.*"), scope=Scope.GLOBAL, period=4, reduce="mean"),
    ]
)
SETTINGS = StreamSettings(rehearsal=RehearsalSettings(num_replayed=8), snapshot_batches=5, num_recent=16)
# Labels that change their meaning contradict what is remembered; here the stream alone decides.
LIGHT = replace(SETTINGS, rehearsal=RehearsalSettings(num_replayed=8, weight=0.01, logit_weight=0.0), num_recent=48)


def learner_of(make_model, *, seed: int = 0, spec: NestedSpec = SPEC) -> NestedLearner:  # type: ignore[no-untyped-def]
    return NestedLearner(
        make_model(seed),
        spec=spec,
        settings=LearningSettings(learning_rate=0.05),
        generator=torch.Generator().manual_seed(seed),
    )


def stream_of(  # type: ignore[no-untyped-def]
    make_model, *, watched: bool = True, seed: int = 0, spec: NestedSpec = SPEC, settings: StreamSettings = SETTINGS
) -> ContinualLearner:
    learner = learner_of(make_model, seed=seed, spec=spec)
    module = learner.module
    buffer = ReplayBuffer(
        max_bytes=bytes_for(30, (1, 8, 8), num_classes=3, dtype=np.dtype(np.float32)),
        input_shape=(1, 8, 8),
        num_classes=3,
        identity=ModelIdentity(schema_fingerprint=schema_of(module, spec).fingerprint, version=1),
        salt=seed,
    )
    return ContinualLearner(
        learner,
        replay=buffer,
        settings=settings,
        drift=DriftWatch(DriftSettings(boost_batches=6)) if watched else None,
        shelf=RecallShelf() if watched else None,
        average=SlowAverage(module, horizon=10),
    )


def everything(stream: ContinualLearner) -> dict[str, bytes]:
    state = stream.state_dict()
    found = {name: array.tobytes() for name, array in state.arrays.items()}
    found |= {f"model/{name}": array.tobytes() for name, array in state_of(stream.learner.module).items()}
    return found | {"text": state.text.encode()}


def test_after_a_reboot_in_mid_chunk_it_goes_on_bit_for_bit(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("river")
    samples = make_samples(60 * 8)
    turned = samples.y.clone()
    turned[30 * 8 :] = (turned[30 * 8 :] + 1) % 3  # a drift, so that a boost is under way at the reboot
    batches = list(zip(torch.split(samples.x, 8), torch.split(turned, 8), strict=True))
    whole, cut = stream_of(make_model, settings=LIGHT), 0
    for place, (x, y) in enumerate(batches):
        report = whole.observe(x, y)
        if report.boosted and not cut and whole.learner.clock.gathered("concept") == 2:  # of its chunk of four
            cut, saved, weights = place + 1, whole.state_dict(), state_of(whole.learner.module)
    assert 30 < cut < 55
    again = stream_of(make_model, settings=LIGHT, seed=3)
    load_state(again.learner.module, weights)
    again.replay.adopt(whole.replay.identity)
    again.load_state_dict(saved)
    for x, y in batches[cut:]:
        again.observe(x, y)
    assert everything(again) == everything(whole)


def test_a_batch_that_raises_leaves_everything_as_it_was(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    stream, samples = stream_of(make_model, watched=False), make_samples(40)
    for x, y in zip(torch.split(samples.x, 8), torch.split(samples.y, 8), strict=True):
        stream.observe(x, y)
    before = everything(stream)
    broken = samples.x[:4].clone()
    broken[1, 0, 2, 2] = torch.nan
    for x, y in (
        (samples.x[:0], samples.y[:0]),
        (broken, samples.y[:4]),
        (samples.x[:4], samples.y[:4] + 3),
        (samples.x[:4, :, :4], samples.y[:4]),
    ):
        with pytest.raises(StreamRefusedError):
            stream.observe(x, y)
    with pytest.raises(LearningError, match="loss is"):
        stream.observe(samples.x[:4] * 1e20, samples.y[:4])
    assert everything(stream) == before


def test_one_class_alone_teaches_the_private_level_and_leaves_the_shared_ones(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    stream, samples = stream_of(make_model, watched=False), make_samples(60)
    one = samples.x[samples.y == 1]
    before = state_of(stream.learner.module)
    for x in torch.split(one[:16], 4):
        report = stream.observe(x, torch.ones(len(x), dtype=torch.int64))
        assert report.degradations == ("one-class",)
    after = state_of(stream.learner.module)
    assert all((before[name] == after[name]).all() for name in before if not name.startswith("private."))
    assert (before["private.weight"] != after["private.weight"]).any()
    report = stream.observe(samples.x[:16], samples.y[:16])  # the others come: all levels learn again
    assert report.degradations == ()
    stream.learner.flush()
    assert (state_of(stream.learner.module)["body.0.weight"] != before["body.0.weight"]).any()
    shared = NestedSpec.of([Level(name="all", params=("*",), scope=Scope.GLOBAL)])
    with pytest.raises(StreamRefusedError, match="no private level"):
        stream_of(make_model, watched=False, spec=shared).observe(one[:4], torch.ones(4, dtype=torch.int64))


def test_a_local_drift_boosts_the_fast_level_for_a_while_and_brings_the_old_one_back(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("river")
    samples = make_samples(16 * 260, noise=0.3)
    stream, found = stream_of(make_model, settings=LIGHT), []
    for batch, (x, y) in enumerate(zip(torch.split(samples.x, 16), torch.split(samples.y, 16), strict=True)):
        abroad = 100 <= batch < 180
        found.append(stream.observe(x, (y + 1) % 3 if abroad else y))
    drifts = [batch for batch, report in enumerate(found) if report.drift is not None and report.drift.loss]
    assert not [batch for batch in drifts if batch < 100]
    assert [batch for batch in drifts if 100 <= batch < 130]
    first = min(batch for batch in drifts if batch >= 100)
    assert [report.boosted for report in found[first + 1 : first + 7]] == [True] * 6
    home = [report.recall for report in found[180:] if report.recall is not None]
    assert any(report.recalled and report.loss_after < 0.7 * report.loss_before for report in home)
    quiet = found[40:100]
    assert not any(report.boosted or report.wants_sync for report in quiet)


def test_memory_keeps_what_the_stream_no_longer_shows(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    samples, test = make_samples(900, noise=0.3), make_samples(90, seed=9, noise=0.3)
    order = torch.argsort(samples.y, stable=True)  # class after class

    def accuracy(stream: ContinualLearner) -> float:
        module = stream.learner.module
        return float((module(test.x).argmax(1) == test.y).to(torch.float32).mean())

    stream = stream_of(make_model, watched=False)
    plain = learner_of(make_model)
    for pick in torch.split(order, 8):
        stream.observe(samples.x[pick], samples.y[pick])
        plain.observe(samples.x[pick], samples.y[pick], prior=torch.zeros(3))
    naive = float((plain.module(test.x).argmax(1) == test.y).to(torch.float32).mean())
    assert naive < 0.6
    assert accuracy(stream) > 0.9
    assert stream.answering() is not stream.learner.module


def test_a_state_of_other_parts_or_another_model_is_refused(make_model, make_samples) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("river")
    stream, samples = stream_of(make_model), make_samples(16)
    stream.observe(samples.x, samples.y)
    before, state = everything(stream), stream.state_dict()
    for wrong, why in (
        (replace(state, text="{}"), "cannot be read"),
        (stream_of(make_model, watched=False).state_dict(), "drift watch"),
        (replace(state, arrays={k: v for k, v in state.arrays.items() if "counts" not in k}), "counts"),
        (replace(state, text=state.text.replace(stream.replay.identity.schema_fingerprint, "0" * 64)), "schema"),
    ):
        with pytest.raises(LearningError, match=why):
            stream.load_state_dict(wrong)
    assert everything(stream) == before
    other = ReplayBuffer(max_bytes=9999, input_shape=(1, 4, 4), num_classes=3, identity=stream.replay.identity, salt=0)
    with pytest.raises(LearningError, match="replay holds"):
        ContinualLearner(learner_of(make_model), replay=other)
    for bad in ({"num_recent": 0}, {"label_memory": 0.0}, {"snapshot_batches": 0}):
        with pytest.raises(ConfigError, match="out of range"):
            StreamSettings(**bad)
    with pytest.raises(ConfigError, match="horizon"):
        SlowAverage(make_model(), horizon=0)


def test_a_slow_average_follows_at_its_horizon(make_model) -> None:  # type: ignore[no-untyped-def]
    module = make_model()
    average = SlowAverage(module, horizon=4)
    start = state_of(module)["head.bias"]
    load_state(module, {"head.bias": start + 1}, partial=True)
    for _ in range(3):
        average.update(module)
    assert average.state()["head.bias"] == pytest.approx(start + 1 - 0.75**3, abs=1e-6)
    assert state_of(average.model(module))["head.bias"] == pytest.approx(start + 1 - 0.75**3, abs=1e-6)
