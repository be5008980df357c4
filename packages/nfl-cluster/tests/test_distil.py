from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from nfl_cluster import commands
from nfl_cluster.distil import DistilPlan, DistilResult, run_plan, teachers_of
from nfl_cluster.teachers import GraphTeacher, ProxyError, TeacherError, open_teacher, read_proxy
from nfl_cluster.validate.gates import GraphError
from nfl_core.cli import app
from nfl_core.errors import ConfigError, NotFoundError, SchemaError, TensorFileError
from nfl_core.learning import create_model, state_of
from nfl_core.learning.distil import (
    ClassCountError,
    DistilSettings,
    EmptyProxyError,
    InputShapeError,
    OtherRunError,
    TeacherAnswerError,
)
from nfl_core.tensors import write_tensors

K, SHAPE = 3, (1, 8, 8)
SETTINGS = DistilSettings(epochs=3, batch_size=16, max_shift=1)
Values = NDArray[np.float32]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two students of a fleet, their graph, and proxy data."""
    for seed in range(2):
        module = create_model("small-cnn", num_classes=K, input_shape=SHAPE, seed=seed)
        shared = {name: array for name, array in state_of(module).items() if not name.startswith("private.")}
        (tmp_path / f"student-{seed}.safetensors").write_bytes(write_tensors(shared))
    x = np.random.default_rng(0).integers(0, 256, (300, *SHAPE), dtype=np.uint8)
    y = np.where(np.arange(300) < 30, np.arange(300) % K, -1)
    (tmp_path / "proxy.safetensors").write_bytes(write_tensors({"x": x, "y": y}))
    (tmp_path / "heldout.safetensors").write_bytes(write_tensors({"x": x[:30], "y": y[:30]}))
    return tmp_path


def plan_in(folder: Path, *teachers: str, out: str = "out.safetensors", **changes: object) -> DistilPlan:
    fields: dict[str, object] = {
        "student": "small-cnn",
        "num_classes": K,
        "teachers": tuple(str(folder / one) for one in teachers or ("student-0.safetensors",)),
        "proxy": folder / "proxy.safetensors",
        "out": folder / out,
        "settings": SETTINGS,
        "seed": 5,
    }
    return DistilPlan(**{**fields, **changes})  # type: ignore[arg-type]


def matmul_graph(
    shape: tuple[int, ...] = SHAPE, *, num_classes: int = K, bad: float | None = None, outside: bool = False
) -> bytes:
    """Return a graph with its weights inside, as another framework might export one, or outside, as ours are."""
    size = int(np.prod(shape))
    weights = np.random.default_rng(1).standard_normal((size, num_classes)).astype(np.float32)
    weights[0, 0] = weights[0, 0] if bad is None else bad
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    w = onnx.numpy_helper.from_array(weights, "w")
    if outside:
        onnx.external_data_helper.set_external_data(w, "shared", 0, weights.nbytes)
        w.ClearField("raw_data")
    made = onnx.helper.make_graph(
        nodes,
        "teacher",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *shape])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", num_classes])],
        [w],
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def test_downwards_from_an_onnx_file(folder: Path) -> None:
    (folder / "big.onnx").write_bytes(matmul_graph())
    lines: list[str] = []
    result = run_plan(plan_in(folder, "big.onnx", heldout=folder / "heldout.safetensors"), say=lines.append)
    assert (result.num_teachers, result.num_samples, result.num_labelled, result.num_resumed) == (1, 300, 30, 0)
    assert result.loss_last < result.loss_first
    assert result.student_accuracy is not None
    assert lines[0].startswith("teacher: 256 of 300")
    assert lines[-1].startswith("epoch 3 of 3")
    assert not (folder / "out.safetensors.work").exists()
    module = create_model("small-cnn", num_classes=K, input_shape=SHAPE, seed=0)
    assert result.num_parameters == sum(p.numel() for n, p in module.named_parameters() if not n.startswith("private."))


def test_tensors_with_their_graph_answer_like_the_graph_that_holds_them(folder: Path) -> None:
    weights = np.random.default_rng(1).standard_normal((64, K)).astype(np.float32)
    file = _spoiled(folder, "w.safetensors", **{"w": weights, "private.w": weights})
    (folder / "graph.onnx").write_bytes(matmul_graph(outside=True))
    split = open_teacher(str(file), model="none", graph=folder / "graph.onnx", num_classes=K, shape=SHAPE)
    x, _ = read_proxy(folder / "proxy.safetensors")
    whole = GraphTeacher(matmul_graph(), {}, name="whole")
    assert np.array_equal(split.answer(x).logits_NK, whole.answer(x).logits_NK)
    assert np.array_equal(whole.answer(x).logits_NK.argmax(1), (x.reshape(-1, 64) @ weights).argmax(1))


def test_upwards_the_head_alone_from_where_the_fleet_stands(folder: Path) -> None:
    start = folder / "student-0.safetensors"
    plan = plan_in(folder, "student-0.safetensors", "student-1.safetensors", start=start, part="head", weights=(1, 3))
    assert run_plan(plan).num_teachers == 2
    before, after = (_read(path) for path in (start, folder / "out.safetensors"))
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"head.weight", "head.bias"}


def _read(path: Path) -> dict[str, Values]:
    import safetensors.numpy

    return safetensors.numpy.load(path.read_bytes())


def test_a_teacher_of_an_installed_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point is found by what is on the path, as for every installed package."""
    package = folder / "site"
    (package / "wise-1.0.dist-info").mkdir(parents=True)
    (package / "wise-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: wise\nVersion: 1.0\n")
    (package / "wise-1.0.dist-info" / "entry_points.txt").write_text("[nfl.teachers]\nwise = wise_teacher:make\n")
    (package / "wise_teacher.py").write_text(
        "import numpy as np\n"
        "from nfl_core.learning.distil import Answer\n"
        "class Wise:\n"
        "    def __init__(self, k, shape): self.num_classes, self.input_shape = k, shape\n"
        "    def answer(self, x):\n"
        "        return Answer(logits_NK=np.eye(self.num_classes, dtype=np.float32)[np.zeros(len(x), int)] * 9)\n"
        "make = Wise\n"
    )
    monkeypatch.syspath_prepend(str(package))
    result = run_plan(plan_in(folder, teachers=("wise",), settings=DistilSettings(epochs=3, label_weight=0)))
    assert result.agreement == 1.0


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch; torch.set_num_threads(1)
from nfl_cluster.distil import run_plan
import the_plan
def say(line):
    if line.startswith(sys.argv[1]): os._exit(9)
run_plan(the_plan.plan, say=say)
"""


def test_a_killed_process_goes_on_to_the_same_bytes(folder: Path) -> None:
    whole = run_plan(plan_in(folder, "student-0.safetensors", "student-1.safetensors", out="whole.safetensors"))
    plan = plan_in(folder, "student-0.safetensors", "student-1.safetensors")
    (folder / "the_plan.py").write_text(
        "from pathlib import PosixPath\nfrom nfl_cluster.distil import DistilPlan\n"
        f"from nfl_core.learning.distil import DistilSettings\nplan = {plan!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "epoch 2", str(folder)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 9, done.stderr
    assert not (folder / "out.safetensors").exists()
    result = run_plan(plan)
    assert result.num_resumed == 2
    assert result.sha256 == whole.sha256
    assert (folder / "out.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()


def test_kept_work_of_another_plan_is_not_mixed_in(folder: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(line: str) -> None:
        if line.startswith("epoch 1"):
            raise Killed

    with pytest.raises(Killed):
        run_plan(plan_in(folder), say=kill)
    with pytest.raises(OtherRunError):
        run_plan(plan_in(folder, "student-1.safetensors"))
    with pytest.raises(OtherRunError):
        run_plan(plan_in(folder, seed=6))
    assert run_plan(plan_in(folder)).num_resumed == 1


def _spoiled(folder: Path, name: str, **arrays: NDArray[np.generic]) -> Path:
    path = folder / name
    path.write_bytes(write_tensors(arrays))
    return path


def test_proxy_data_that_are_none_are_refused(folder: Path) -> None:
    x = np.zeros((4, *SHAPE), np.uint8)
    y = np.zeros(4, np.int64)
    for arrays in ({"y": y}, {"x": x, "z": y}, {"x": x.astype(np.float64)}, {"x": x, "y": y[:3]}, {"x": y}):
        with pytest.raises(ProxyError):
            run_plan(plan_in(folder, proxy=_spoiled(folder, "bad.safetensors", **arrays)))
    with pytest.raises(ProxyError):
        run_plan(plan_in(folder, heldout=_spoiled(folder, "bad.safetensors", x=x)))
    with pytest.raises(InputShapeError):
        run_plan(plan_in(folder, heldout=_spoiled(folder, "bad.safetensors", x=x[..., :4], y=y)))
    with pytest.raises(EmptyProxyError):
        run_plan(plan_in(folder, proxy=_spoiled(folder, "bad.safetensors", x=x[:0])))
    with pytest.raises(NotFoundError):
        run_plan(plan_in(folder, proxy=folder / "none"))
    (folder / "broken").write_bytes(b"\x80\x04pickle")
    with pytest.raises(TensorFileError):
        run_plan(plan_in(folder, proxy=folder / "broken"))


def test_teachers_that_are_none_are_refused(folder: Path) -> None:
    with pytest.raises(TeacherError, match="none of the installed"):
        run_plan(plan_in(folder, teachers=("nobody",)))
    with pytest.raises(TeacherError, match="none of the installed"):
        run_plan(plan_in(folder, "teacher.pth"))
    with pytest.raises(NotFoundError):
        run_plan(plan_in(folder, "missing.onnx"))
    for name, data in (
        ("junk", b"junk"),
        ("alone", matmul_graph(outside=True)),
        ("other", matmul_graph().replace(b"logits", b"answer")),
    ):
        (folder / f"{name}.onnx").write_bytes(data)
        with pytest.raises(TeacherError):
            run_plan(plan_in(folder, f"{name}.onnx"))
    with pytest.raises(TeacherError, match="lacks"):
        run_plan(plan_in(folder, str(_spoiled(folder, "few.safetensors", x=np.zeros(3, np.float32)))))
    with pytest.raises(TensorFileError):
        run_plan(plan_in(folder, str(_spoiled(folder, "half.safetensors", x=np.zeros(3, np.float16)))))
    large = state_of(create_model("small-cnn", num_classes=K + 1, input_shape=SHAPE, seed=0))
    with pytest.raises(SchemaError):
        run_plan(plan_in(folder, str(_spoiled(folder, "large.safetensors", **large))))


def test_a_teacher_that_does_not_fit_is_refused_before_it_is_asked(folder: Path) -> None:
    for name, data, error in (
        ("four", matmul_graph(num_classes=4), ClassCountError),
        ("wide", matmul_graph((1, 8, 9)), InputShapeError),
        ("nan", matmul_graph(bad=float("nan")), TeacherAnswerError),
    ):
        (folder / f"{name}.onnx").write_bytes(data)
        with pytest.raises(error):
            run_plan(plan_in(folder, f"{name}.onnx"))
        assert not (folder / "out.safetensors").exists()


def test_a_graph_that_fails_is_said() -> None:
    teacher = GraphTeacher(matmul_graph(), {}, name="big.onnx")
    with pytest.raises(GraphError, match=r"big\.onnx"):
        teacher.answer(np.zeros((2, 1, 8, 9), np.float32))


@pytest.mark.parametrize("changes", [{"teachers": ()}, {"weights": (1.0, 1.0)}, {"num_classes": 1}])
def test_plans_that_do_not_hold_together_are_refused(folder: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        plan_in(folder, **changes)


def test_either_a_teacher_or_an_ensemble() -> None:
    assert teachers_of("a.onnx", []) == ("a.onnx",)
    assert teachers_of(None, ["a.onnx", "b.onnx"]) == ("a.onnx", "b.onnx")
    for teacher, ensemble in ((None, []), ("a.onnx", ["b.onnx"])):
        with pytest.raises(ConfigError):
            teachers_of(teacher, ensemble)


def test_the_verb_prints_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["cluster", "distil", "--ensemble", str(folder / "student-0.safetensors"), "--classes", str(K)]
    line += ["--ensemble", str(folder / "student-1.safetensors"), "--proxy", str(folder / "proxy.safetensors")]
    line += ["--out", str(folder / "new.safetensors"), "--epochs", "1", "--weight", "2", "--weight", "1"]
    with pytest.raises(SystemExit) as ended:
        app.main(["--home", str(folder), "--output", "json", *line])
    said = capsys.readouterr()
    assert ended.value.code == 0
    data = json.loads(said.out)["data"]
    assert set(data) == set(DistilResult.__dataclass_fields__)
    assert "epoch 1 of 1" in said.err
    with pytest.raises(SystemExit) as ended:
        app.main(["--home", str(folder), *line])
    assert "nfl fleet propose" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        app.main(["--home", str(folder), "--output", "json", *line, "--teacher", "nobody"])
    assert ended.value.code == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "config.invalid"


def test_the_parts_that_the_verb_knows_are_those_that_can_be_taught() -> None:
    from typing import get_args

    from nfl_core.learning.distil import Part

    assert [part.value for part in commands.Part] == list(get_args(Part))
