from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import nfl_core.learning.distil
from nfl_core.durable import DualRecord, Journal
from nfl_core.errors import ConfigError
from nfl_core.learning import NestedModel, Samples, create_model, state_of
from nfl_core.learning.distil import (
    UNLABELLED,
    Answer,
    ClassCountError,
    DistilError,
    DistilSettings,
    EmptyProxyError,
    Ensemble,
    EpochReport,
    InputShapeError,
    Lessons,
    ModelTeacher,
    OtherRunError,
    TeacherAnswerError,
    ask,
    likeness_loss,
    soft_loss,
    teach,
)
from nfl_core.learning.model import FloatArray
from nfl_core.tensors import write_tensors

NUM_CLASSES, SHAPE = 3, (1, 8, 8)
SETTINGS = DistilSettings(epochs=4, batch_size=16)
MakeModel = Callable[..., NestedModel]
MakeSamples = Callable[..., Samples]


class Oracle:
    """A teacher that compares with patterns, or answers what a test wants."""

    num_classes, input_shape = NUM_CLASSES, SHAPE

    def __init__(self, spoil: Callable[[FloatArray], FloatArray] = lambda logits: logits) -> None:
        patterns = torch.randn(NUM_CLASSES, *SHAPE, generator=torch.Generator().manual_seed(77)).numpy()
        self._patterns, self._spoil, self.num_asked = patterns.reshape(NUM_CLASSES, -1), spoil, 0

    def answer(self, x: FloatArray) -> Answer:
        self.num_asked += 1
        flat = x.reshape(len(x), -1)
        logits = (0.2 * flat @ self._patterns.T).astype(np.float32)
        return Answer(logits_NK=self._spoil(logits), features_ND=flat[:, :7].copy())


@pytest.fixture
def proxy(make_samples: MakeSamples) -> FloatArray:
    found: FloatArray = make_samples(96, seed=5).x.numpy()
    return found


@pytest.fixture
def lessons(proxy: FloatArray) -> Lessons:
    return ask(Oracle(), proxy)


def bytes_of(module: NestedModel) -> bytes:
    return write_tensors(state_of(module))


def test_the_public_surface_is_what_the_package_lists() -> None:
    public = [
        name
        for name, value in vars(nfl_core.learning.distil).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("nfl_core.learning.distil")
    ]
    constants = {"CHUNK", "Part", "UNLABELLED"}
    assert sorted({*public, *constants}) == sorted(nfl_core.learning.distil.__all__)


def test_the_soft_loss_is_its_definition() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student / 4, 1)
    assert float(soft_loss(student, teacher, temperature=4.0)) == pytest.approx(
        16 * float((p * (p / q).log()).sum()), rel=1e-5
    )
    assert float(soft_loss(teacher, teacher, temperature=2.0)) == pytest.approx(0.0, abs=1e-6)


def test_likeness_ignores_width_and_scale_but_not_who_resembles_whom() -> None:
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    wider = torch.cat([3 * z, torch.zeros(6, 5)], dim=1)
    assert float(likeness_loss(z, wider)) == pytest.approx(0.0, abs=1e-6)
    assert float(likeness_loss(z, z.flip(0))) > 1e-3


def test_a_student_learns_its_teacher_without_a_label(
    make_model: MakeModel, lessons: Lessons, make_samples: MakeSamples
) -> None:
    student, unseen = make_model(), make_samples(200, seed=9)
    private = student.private.weight.detach().clone()
    told: list[EpochReport] = []
    settings = dataclasses.replace(SETTINGS, epochs=12)
    report = teach(
        student, lessons, settings=settings, seed=0, on_epoch=told.append, cpu_clock=iter([1.0, 3.5]).__next__
    )
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert report.agreement > 0.9
    assert (report.num_steps, report.num_resumed, report.cpu_s) == (72, 0, 2.5)
    assert [(one.epoch, one.num_epochs) for one in told] == [(n, 12) for n in range(1, 13)]
    with torch.no_grad():
        right = (student.generic(student.features(unseen.x)).argmax(1) == unseen.y).float().mean()
    assert float(right) > 0.9
    assert torch.equal(student.private.weight, private)


def test_labels_teach_where_they_are_known(make_model: MakeModel, make_samples: MakeSamples) -> None:
    samples = make_samples(96, seed=5)
    y = samples.y.numpy().copy()
    y[48:] = UNLABELLED
    mute = Lessons(x=samples.x, logits_NK=torch.zeros(96, NUM_CLASSES), y=torch.from_numpy(y))
    student = make_model()
    teach(student, mute, settings=DistilSettings(epochs=12, batch_size=16, teacher_weight=0), seed=0)
    with torch.no_grad():
        right = (student.generic(student.features(samples.x)).argmax(1) == samples.y).float().mean()
    assert float(right) > 0.9


def test_hints_move_the_features(make_model: MakeModel, lessons: Lessons) -> None:
    assert lessons.features_ND is not None

    def after(weight: float) -> float:
        student = make_model()
        teach(student, lessons, settings=dataclasses.replace(SETTINGS, hint_weight=weight), seed=0)
        with torch.no_grad():
            return float(likeness_loss(student.features(lessons.x), lessons.features_ND))

    assert after(2000.0) < 0.9 * after(0.0)


def test_the_head_alone_leaves_the_features_as_they_are(make_model: MakeModel, lessons: Lessons) -> None:
    student = make_model()
    before = state_of(student)
    teach(student, lessons, settings=SETTINGS, seed=0, part="head")
    moved = {name for name, array in state_of(student).items() if not np.array_equal(array, before[name])}
    assert moved == {"head.weight", "head.bias"}


@pytest.mark.parametrize("max_shift", [0, 1])
def test_same_seed_same_bytes(make_model: MakeModel, lessons: Lessons, max_shift: int) -> None:
    def run(seed: int) -> bytes:
        student = make_model()
        teach(student, lessons, settings=dataclasses.replace(SETTINGS, max_shift=max_shift), seed=seed)
        return bytes_of(student)

    assert run(1) == run(1) != run(2)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_killed_run_goes_on_to_the_same_bytes(
    make_model: MakeModel, lessons: Lessons, tmp_path: Path, after: int
) -> None:
    settings = dataclasses.replace(SETTINGS, max_shift=1)
    whole = make_model()
    teach(whole, lessons, settings=settings, seed=3)

    def kill(report: EpochReport) -> None:
        if report.epoch == after:
            raise Killed

    first, again, record = make_model(), make_model(), DualRecord(tmp_path / "run")
    untouched = bytes_of(first)
    with pytest.raises(Killed):
        teach(first, lessons, settings=settings, seed=3, record=record, on_epoch=kill)
    assert bytes_of(first) == untouched
    report = teach(again, lessons, settings=settings, seed=3, record=record)
    assert report.num_resumed == after
    assert len(report.losses) == settings.epochs
    assert bytes_of(again) == bytes_of(whole)


def test_another_run_is_not_mixed_in(make_model: MakeModel, lessons: Lessons, tmp_path: Path) -> None:
    record = DualRecord(tmp_path / "run")
    teach(make_model(), lessons, settings=SETTINGS, seed=0, record=record)
    other = Lessons(x=lessons.x, logits_NK=lessons.logits_NK + 1, y=lessons.y)
    for module, what, settings, seed in (
        (make_model(1), lessons, SETTINGS, 0),
        (make_model(), other, SETTINGS, 0),
        (make_model(), lessons, dataclasses.replace(SETTINGS, temperature=2.0), 0),
        (make_model(), lessons, SETTINGS, 1),
    ):
        before = bytes_of(module)
        with pytest.raises(OtherRunError):
            teach(module, what, settings=settings, seed=seed, record=record)
        assert bytes_of(module) == before
    record.store(write_tensors({"x": np.zeros(1, np.float32)}))
    with pytest.raises(OtherRunError, match="no run"):
        teach(make_model(), lessons, settings=SETTINGS, seed=0, record=record)


def test_kept_answers_are_not_asked_for_again(make_samples: MakeSamples, tmp_path: Path) -> None:
    x = make_samples(600, seed=1).x.numpy()
    whole, told = ask(Oracle(), x), list[tuple[int, int]]()

    def kill(done: int, of: int) -> None:
        told.append((done, of))
        if done == 512:
            raise Killed

    with pytest.raises(Killed):
        ask(Oracle(), x, kept=Journal(tmp_path / "answers"), identity="a", on_chunk=kill)
    assert told == [(256, 600), (512, 600)]
    teacher = Oracle()
    found = ask(teacher, x, kept=Journal(tmp_path / "answers"), identity="a")
    assert teacher.num_asked == 1
    assert torch.equal(found.logits_NK, whole.logits_NK)
    assert found.features_ND is not None
    assert whole.features_ND is not None
    assert torch.equal(found.features_ND, whole.features_ND)
    with pytest.raises(OtherRunError):
        ask(Oracle(), x, kept=Journal(tmp_path / "answers"), identity="b")


def test_an_ensemble_is_the_weighted_mean_of_its_members(make_model: MakeModel, proxy: FloatArray) -> None:
    members = [ModelTeacher(make_model(seed)) for seed in range(2)]
    one, two = (member.answer(proxy).logits_NK for member in members)
    mean = Ensemble(members, weights=[3, 1]).answer(proxy).logits_NK
    np.testing.assert_allclose(mean, 0.75 * one + 0.25 * two, atol=1e-6)  # two fp32 products
    p, q = (torch.softmax(torch.from_numpy(logits), 1).numpy() for logits in (one, two))
    answered = Ensemble(members, mean="probabilities").answer(proxy).logits_NK
    np.testing.assert_allclose(np.exp(answered), (p + q) / 2, atol=1e-6)


def test_a_fleet_of_specialists_teaches_what_none_of_them_knows(
    make_model: MakeModel, make_samples: MakeSamples, proxy: FloatArray
) -> None:
    def specialist(place: int) -> ModelTeacher:  # never sees class `place`
        samples, student = make_samples(120, seed=place), make_model()
        keep = samples.y != place
        own = Lessons(x=samples.x[keep], logits_NK=torch.zeros(int(keep.sum()), NUM_CLASSES), y=samples.y[keep])
        teach(student, own, settings=DistilSettings(epochs=8, batch_size=16, teacher_weight=0), seed=place)
        return ModelTeacher(student)

    members = [specialist(place) for place in range(NUM_CLASSES)]
    unseen = make_samples(200, seed=9)
    right = [(m.answer(unseen.x.numpy()).logits_NK.argmax(1) == unseen.y.numpy()).mean() for m in members]
    student = make_model(3)
    lessons = ask(Ensemble(members), proxy)
    teach(student, lessons, settings=dataclasses.replace(SETTINGS, epochs=12), seed=0)
    answered = ModelTeacher(student).answer(unseen.x.numpy()).logits_NK.argmax(1)
    assert max(right) < 0.8
    assert (answered == unseen.y.numpy()).mean() > 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.5},
        {"temperature": math.nan},
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"label_weight": -1.0},
        {"teacher_weight": math.nan},
        {"max_shift": -1},
        {"teacher_weight": 0.0, "label_weight": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        DistilSettings(**wrong)  # type: ignore[arg-type]  # some are whole numbers


def test_the_rate_falls_and_never_ends() -> None:
    rates = [SETTINGS.learning_rate_of(epoch) for epoch in range(SETTINGS.epochs)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.1 * SETTINGS.learning_rate


def test_what_no_teacher_can_be_asked_is_refused(proxy: FloatArray) -> None:
    with pytest.raises(EmptyProxyError):
        ask(Oracle(), proxy[:0])
    with pytest.raises(InputShapeError):
        ask(Oracle(), proxy[..., :4])
    with pytest.raises(ClassCountError):
        ask(Oracle(), proxy, y=np.full(len(proxy), NUM_CLASSES))
    with pytest.raises(ClassCountError):
        ask(Oracle(), proxy, y=np.zeros(3, np.int64))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda logits: np.where(np.arange(len(logits))[:, None] == 7, np.float32(np.nan), logits),
        lambda logits: np.full_like(logits, np.inf),
        lambda logits: logits[:, :2],
        lambda logits: logits[:-1],
        lambda logits: logits.astype(np.float64),
    ],
    ids=["nan", "infinite", "too few classes", "too few rows", "double"],
)
def test_a_teacher_that_answers_badly_is_refused(spoil: Callable[[FloatArray], FloatArray], proxy: FloatArray) -> None:
    with pytest.raises(TeacherAnswerError):
        ask(Oracle(spoil), proxy)
    with pytest.raises(TeacherAnswerError):
        ask(Ensemble([Oracle(), Oracle(spoil)]), proxy)


def test_lessons_do_not_hold_what_is_not_finite(lessons: Lessons) -> None:
    with pytest.raises(TeacherAnswerError):
        Lessons(x=lessons.x, logits_NK=lessons.logits_NK * math.nan, y=lessons.y)


def test_a_student_of_another_task_is_refused(lessons: Lessons) -> None:
    with pytest.raises(ClassCountError):
        teach(create_model("small-cnn", num_classes=4, input_shape=SHAPE, seed=0), lessons, settings=SETTINGS, seed=0)
    with pytest.raises(InputShapeError):
        teach(
            create_model("small-cnn", num_classes=NUM_CLASSES, input_shape=(1, 16, 16), seed=0),
            lessons,
            settings=SETTINGS,
            seed=0,
        )


def test_what_cannot_be_learned_from_is_refused(make_model: MakeModel, lessons: Lessons) -> None:
    silent = Lessons(x=lessons.x, logits_NK=lessons.logits_NK, y=lessons.y)
    with pytest.raises(TeacherAnswerError, match="shows no features"):
        teach(make_model(), silent, settings=dataclasses.replace(SETTINGS, hint_weight=1.0), seed=0)
    with pytest.raises(TeacherAnswerError, match="stay as they are"):
        teach(make_model(), lessons, settings=dataclasses.replace(SETTINGS, hint_weight=1.0), seed=0, part="head")
    with pytest.raises(EmptyProxyError, match="labels"):
        teach(make_model(), lessons, settings=dataclasses.replace(SETTINGS, teacher_weight=0.0), seed=0)
    flat = Lessons(x=lessons.x.flatten(1), logits_NK=lessons.logits_NK, y=lessons.y)
    with pytest.raises(InputShapeError):
        teach(make_model(), flat, settings=dataclasses.replace(SETTINGS, max_shift=1), seed=0)


def test_a_loss_that_runs_away_leaves_the_student_as_it_was(make_model: MakeModel, lessons: Lessons) -> None:
    student = make_model()
    before = bytes_of(student)
    with pytest.raises(DistilError, match="epoch"):
        teach(student, lessons, settings=dataclasses.replace(SETTINGS, learning_rate=1e30), seed=0)
    assert bytes_of(student) == before


def test_an_ensemble_that_does_not_hold_together_is_refused(make_model: MakeModel) -> None:
    one = ModelTeacher(make_model())
    four = ModelTeacher(create_model("small-cnn", num_classes=4, input_shape=SHAPE, seed=0))
    large = ModelTeacher(create_model("small-cnn", num_classes=NUM_CLASSES, input_shape=(1, 16, 16), seed=0))
    with pytest.raises(EmptyProxyError):
        Ensemble([])
    with pytest.raises(ClassCountError):
        Ensemble([one, four])
    with pytest.raises(InputShapeError):
        Ensemble([one, large])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan]):
        with pytest.raises(ConfigError):
            Ensemble([one, one], weights=weights)
