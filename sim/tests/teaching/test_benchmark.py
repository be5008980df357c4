from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from nfl_core.errors import ContentError

FOLDER = Path(__file__).resolve().parents[3] / "tools/benchmarks"
DOWN = {"teacher": 0.9, "taught": 0.89, "taught_few_labels": 0.88, "alone": 0.87, "alone_few_labels": 0.8}
UP = {"average": 0.7, "ensemble": 0.72, "fused": 0.74}
PITCH = {"teacher": 0.96, "taught": 0.97, "alone": 0.99, "taught_speech": 0.97, "alone_speech": 0.9}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("bench_distil", FOLDER / "distil.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_images", lambda *_, **__: None)
    monkeypatch.setattr(module, "image_runs", lambda *_, **__: {"down": [DOWN, DOWN], "up": [UP, UP]})
    monkeypatch.setattr(module, "pitch_runs", lambda *_, **__: [PITCH, PITCH])
    return module


def test_what_is_missing_is_left_out_loudly(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ContentError("no weights", hint="install them")

    monkeypatch.setattr(bench, "pretrained_runs", missing)
    bench.main(2)
    said = capsys.readouterr()
    line = json.loads(said.out)
    assert line["ours"]["num_left_out"] == 1
    assert line["ours"]["pitch_accuracy_points"] == pytest.approx(97)
    assert "pretrained_accuracy_points" not in line["ours"]
    assert "LEFT OUT: pretrained. no weights; install them" in said.err
    assert said.err.splitlines()[-1].startswith("LEFT OUT: pretrained")


def test_every_figure_stands_beside_its_teacher_and_the_student_alone(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "pretrained_runs", lambda *_, **__: [DOWN, DOWN])
    bench.main(2)
    line = json.loads(capsys.readouterr().out)
    for figure in ("accuracy_points", "pitch_accuracy_points", "pretrained_accuracy_points"):
        assert {f"{figure}/teacher", f"{figure}/alone"} <= set(line["ratios"])
    assert "fused_accuracy_points/average" in line["ratios"]
