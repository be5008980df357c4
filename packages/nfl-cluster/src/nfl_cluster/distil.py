"""Teach a student on proxy data: by a large teacher downwards, by an ensemble of the fleet's students upwards.

    plan = DistilPlan(student="small-cnn", num_classes=10, teachers=("big.onnx",), proxy=proxy, out=out)
    result = run_plan(plan, say=print)
    propose(home, result.out, reason="taught by big.onnx")      # nfl_cluster.proposal: through the gates

Rules:

* a teacher is a file that cannot run code (an ONNX graph, or tensors with their graph or model), or an installed
  package's own: an entry point of the group `nfl.teachers`, a callable (num_classes, input_shape) -> Teacher;
* the work is kept beside `out` until it is done: the same command goes on after a kill and ends with the same bytes;
* `out` holds what is shared; a private head is its owner's and is not written.

What is not there: nothing here labels proxy data, resizes them to a teacher's inputs, or publishes a student.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from nfl_cluster.teachers import PRIVATE, TEACHERS_GROUP, open_teacher, read_heldout, read_proxy, weights_of
from nfl_core.config import ModelSection, load_fleet
from nfl_core.durable import DualRecord, Journal, make_folder, read_file, write_file
from nfl_core.errors import ConfigError
from nfl_core.ids import digest_of
from nfl_core.learning import create_model, load_state, state_of
from nfl_core.learning.distil import DistilSettings, Ensemble, ModelTeacher, Part, Teacher, ask, teach
from nfl_core.learning.distil.teacher import same_task
from nfl_core.tensors import write_tensors

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilPlan:
    """What shall be taught, by whom and on what.

    Attributes:
        student: Name of the student's model.
        num_classes: Of teacher and student.
        teachers: One teacher, or the members of an ensemble: names, `.onnx` or `.safetensors` files.
        weights: Of the members, >= 0; empty: evenly.
        teacher_model: Model of the `.safetensors` teachers; None: the student's.
        graph: Inference graph of the `.safetensors` teachers, run instead of their model.
        proxy: Proxy data.
        heldout: Labelled samples that score teacher and student at the end.
        start: Weights that the student starts from; None: fresh ones.
        out: Where the student's shared weights go.
        settings: How.
        part: What of the student is taught.
        seed: Of fresh weights and of the order of samples.
    """

    student: str
    num_classes: int
    teachers: tuple[str, ...]
    weights: tuple[float, ...] = ()
    teacher_model: str | None = None
    graph: Path | None = None
    proxy: Path
    heldout: Path | None = None
    start: Path | None = None
    out: Path
    settings: DistilSettings = field(default_factory=DistilSettings)
    part: Part = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a file. Raises ConfigError."""
        if not self.teachers or (self.weights and len(self.weights) != len(self.teachers)):
            raise ConfigError(
                f"{len(self.teachers)} teachers and {len(self.weights)} weights, expected a teacher or an ensemble, "
                "and as many weights or none"
            )
        if self.num_classes < 2:
            raise ConfigError(f"{self.num_classes} classes, expected >= 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilResult:
    """What came out.

    Attributes:
        out: The student's shared weights.
        sha256: Of that file.
        num_teachers: 1, or the members of the ensemble.
        num_parameters: Values in `out`.
        num_samples: Of the proxy data.
        num_labelled: Those with a label.
        num_steps: Of all epochs.
        num_resumed: Epochs that an earlier run had done.
        loss_first: Mean objective of the first epoch.
        loss_last: Of the last.
        agreement: Fraction of the proxy data for which student and teacher name the same class.
        teacher_accuracy: Fraction of `heldout`; None without.
        student_accuracy: The same.
        cpu_s: CPU seconds of the teaching.
    """

    out: Path
    sha256: str
    num_teachers: int
    num_parameters: int
    num_samples: int
    num_labelled: int
    num_steps: int
    num_resumed: int
    loss_first: float
    loss_last: float
    agreement: float
    teacher_accuracy: float | None
    student_accuracy: float | None
    cpu_s: float


def run_plan(plan: DistilPlan, *, say: Say = lambda _: None) -> DistilResult:
    """Carry a plan out, or go on with it.

    Args:
        plan: What to do.
        say: Takes one line of progress.

    Raises:
        NotFoundError: A file is missing.
        TensorFileError: A file is no strict tensor file.
        ProxyError: The proxy or held-out file holds something else.
        TeacherError: A teacher cannot be opened.
        GraphError: Its graph cannot be run.
        ConfigError: The student's model is not installed, or the weights of an ensemble do not fit.
        SchemaError: Weights are those of another model.
        OtherRunError: What is kept beside `out` belongs to another plan.
        DistilError: Teacher, student and proxy do not fit, or teaching failed; see nfl_core.learning.distil.
        StorageFullError: The disk is full; the same command goes on later.
    """
    x, y = read_proxy(plan.proxy)
    shape = tuple(x.shape[1:])
    teacher = _teacher_of(plan, shape=shape)
    same_task("the student", plan.num_classes, shape, of=teacher, called="the teacher")
    student = create_model(plan.student, num_classes=plan.num_classes, input_shape=shape, seed=plan.seed)
    if plan.start is not None:
        load_state(student, weights_of(plan.start, student), partial=True)
    heldout = None if plan.heldout is None else read_heldout(plan.heldout, input_shape=shape)
    work = plan.out.with_name(plan.out.name + ".work")
    make_folder(work)
    lessons = ask(
        teacher,
        x,
        y=y,
        kept=Journal(work / "answers"),
        identity=_identity(plan),
        on_chunk=lambda done, num: say(f"teacher: {done} of {num} samples"),
    )
    report = teach(
        student,
        lessons,
        settings=plan.settings,
        seed=plan.seed,
        part=plan.part,
        record=DualRecord(work / "run"),
        on_epoch=lambda one: say(f"epoch {one.epoch} of {one.num_epochs}: loss {one.loss:.4f}"),
    )
    shared = {name: array for name, array in state_of(student).items() if not name.startswith(PRIVATE)}
    data = write_tensors(shared)
    write_file(plan.out, data)
    shutil.rmtree(work)
    return DistilResult(
        out=plan.out,
        sha256=digest_of(data),
        num_teachers=len(plan.teachers),
        num_parameters=sum(array.size for array in shared.values()),
        num_samples=len(x),
        num_labelled=int((lessons.y >= 0).sum()),
        num_steps=report.num_steps,
        num_resumed=report.num_resumed,
        loss_first=report.losses[0],
        loss_last=report.losses[-1],
        agreement=report.agreement,
        teacher_accuracy=_accuracy(teacher, heldout),
        student_accuracy=_accuracy(ModelTeacher(student), heldout),
        cpu_s=report.cpu_s,
    )


def _teacher_of(plan: DistilPlan, *, shape: tuple[int, ...]) -> Teacher:
    """Return the teacher of a plan; an ensemble when it names several."""
    members = [
        open_teacher(
            one,
            model=plan.teacher_model or plan.student,
            graph=plan.graph,
            num_classes=plan.num_classes,
            shape=shape,
        )
        for one in plan.teachers
    ]
    return members[0] if len(members) == 1 else Ensemble(members, weights=plan.weights or None)


def _identity(plan: DistilPlan) -> str:
    """Return a digest of everything that decides the teacher's answers."""
    files = [Path(one) for one in plan.teachers if Path(one).suffix in (".onnx", ".safetensors")]
    files += [plan.proxy, *([plan.graph] if plan.graph is not None else [])]
    installed = [
        f"{point.name} {point.value} {point.dist.version if point.dist else ''}"
        for point in entry_points(group=TEACHERS_GROUP)
        if point.name in plan.teachers
    ]
    digests = [digest_of(read_file(file)) for file in files]
    about = [plan.teachers, plan.weights, plan.teacher_model or plan.student, plan.num_classes, digests, installed]
    return digest_of(json.dumps(about).encode())


def _accuracy(teacher: Teacher, heldout: tuple[NDArray[np.float32], NDArray[np.int64]] | None) -> float | None:
    if heldout is None:
        return None
    x, y = heldout
    return float((ask(teacher, x).logits_NK.argmax(1).numpy() == y).mean())


def teachers_of(teacher: str | None, ensemble: Sequence[str]) -> tuple[str, ...]:
    """Return who teaches. Raises ConfigError unless it is either a teacher or an ensemble."""
    if (teacher is None) == (not ensemble):
        raise ConfigError(
            f"teacher {teacher!r} and an ensemble of {len(ensemble)}, expected one of the two",
            hint="give --teacher once, or --ensemble once for each member",
        )
    return tuple(ensemble) if teacher is None else (teacher,)


def default_classes(home: Path) -> int:
    """Return the number of classes of the fleet's model, or of the default model where there is no fleet."""
    file = home / "fleet.toml"
    return load_fleet(file).model.num_classes if file.exists() else ModelSection().num_classes


def rows_of(result: DistilResult) -> Table:
    """Return the result as a person reads it."""
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(result):
        table.add_row(name, value)
    return table


def _lines(result: DistilResult) -> list[tuple[str, str]]:
    lines = [
        ("student", f"{result.out}  ({result.num_parameters:,} parameters, sha256 {result.sha256[:12]})"),
        ("taught by", f"{result.num_teachers} teacher{'s' if result.num_teachers > 1 else ''}"),
        ("proxy", f"{result.num_samples:,} samples, {result.num_labelled:,} with a label"),
        ("steps", f"{result.num_steps:,}, {result.cpu_s:.0f} CPU seconds, {result.num_resumed} epochs resumed"),
        ("loss", f"{result.loss_first:.4f} -> {result.loss_last:.4f}"),
        ("agreement", f"{100 * result.agreement:.1f} % of the proxy data"),
    ]
    if result.teacher_accuracy is not None and result.student_accuracy is not None:
        scored = f"teacher {100 * result.teacher_accuracy:.1f} %, student {100 * result.student_accuracy:.1f} %"
        lines.append(("held out", scored))
    return [*lines, ("next", f"nfl fleet propose {result.out}")]
