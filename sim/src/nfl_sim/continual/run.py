"""Learn a stream with a method and say what is remembered after each task."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from nfl_core.learning import NestedModel, Samples
from nfl_sim.continual.methods import Method, Subject
from nfl_sim.continual.metrics import Matrix, Memory, memory_of
from nfl_sim.continual.split import Stream

BATCH = 16
EPOCHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a method made of a stream at one seed.

    Attributes:
        classes_TT: Class-incremental accuracies R[i, j], 0 to 1.
        tasks_TT: Task-incremental ones.
        seen_T: Class-incremental accuracy over all test samples of the tasks seen, after each task.
        num_steps: Batches of the stream that were learned from.
        cpu_s: Of learning alone.
    """

    classes_TT: Matrix
    tasks_TT: Matrix
    seen_T: tuple[float, ...]
    num_steps: int
    cpu_s: float

    @property
    def by_class(self) -> Memory:
        """Class-incremental figures."""
        return memory_of(self.classes_TT)

    @property
    def by_task(self) -> Memory:
        """Task-incremental figures."""
        return memory_of(self.tasks_TT)


def learn_stream(
    method: Method, stream: Stream, *, seed: int, epochs: int = EPOCHS, batch_size: int = BATCH
) -> Outcome:
    """Learn the tasks one after the other and score after each."""
    num = len(stream.tasks)
    classes_TT, tasks_TT, seen = np.zeros((num, num)), np.zeros((num, num)), []
    subject, num_steps, cpu_s = _subject(method, stream, seed=seed), 0, 0.0
    for task in range(num):
        started = time.process_time()
        first = task
        if method.kind == "joint":
            subject, first = _subject(method, stream, seed=seed), 0
        num_steps += _learn(subject, _together(stream.tasks[first : task + 1]), epochs=epochs, batch_size=batch_size)
        cpu_s += time.process_time() - started
        classes_TT[task], tasks_TT[task] = _score(subject.answering(), stream, last=task)
        sizes = [len(test.y) for test in stream.tests[: task + 1]]
        seen.append(float(np.average(classes_TT[task, : task + 1], weights=sizes)))
    return Outcome(classes_TT=classes_TT, tasks_TT=tasks_TT, seen_T=tuple(seen), num_steps=num_steps, cpu_s=cpu_s)


def _subject(method: Method, stream: Stream, *, seed: int) -> Subject:
    _, height, width = stream.tests[0].x.shape[1:]
    channels = stream.tests[0].x.shape[1]
    return Subject(method, num_classes=stream.num_classes, input_shape=(channels, height, width), seed=seed)


def _learn(subject: Subject, samples: Samples, *, epochs: int, batch_size: int) -> int:
    num_steps = 0
    for _ in range(epochs):
        for pick in torch.split(torch.randperm(len(samples.y), generator=subject.generator), batch_size):
            subject.learn(samples.x[pick], samples.y[pick])
            num_steps += 1
    subject.learner.flush()
    return num_steps


def _together(parts: tuple[Samples, ...]) -> Samples:
    return Samples(x=torch.cat([part.x for part in parts]), y=torch.cat([part.y for part in parts]))


def _score(module: NestedModel, stream: Stream, *, last: int) -> tuple[Matrix, Matrix]:
    """Return the accuracies of the generic head on each task up to `last`, zeros for the others, both ways."""
    seen = torch.tensor([c for group in stream.classes[: last + 1] for c in group])
    rows = np.zeros((2, len(stream.tests)))
    for task, test in enumerate(stream.tests[: last + 1]):
        with torch.inference_mode():
            logits = module.generic(module.features(test.x))
        for row, among in enumerate((seen, torch.tensor(stream.classes[task]))):
            answers = among[logits[:, among].argmax(1)]
            rows[row, task] = float((answers == test.y).to(torch.float64).mean())
    return rows[0], rows[1]
