"""Teach upwards: the ensemble of a fleet's students teaches the next version, or a large model, without labels.

Shape legend: N samples, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.learning import (
    LearningSettings,
    NestedLearner,
    NestedModel,
    create_model,
    default_spec,
    label_prior,
    load_state,
    micro_update,
    state_of,
)
from nfl_core.learning.distil import (
    DistilSettings,
    Ensemble,
    ModelTeacher,
    ask,
    teach,
)
from nfl_sim.data import DataSet, share_out
from nfl_sim.teaching.images import NUM_CLASSES, SHAPE, STUDENT, Say, Size, Split, make_teacher


def upwards(data: DataSet, split: Split, *, size: Size, seed: int, say: Say = lambda _: None) -> dict[str, float]:
    """Return the accuracy of the owners' students, of their average, and of what their ensemble teaches.

    A few rounds of federated averaging make the version that all owners start from. `average` is what one more round
    would publish; `fused` starts there and is taught by the ensemble on unlabelled images. `teacher` is a wide model
    that learned as many labelled images as one owner has, `teacher_taught` the same after the ensemble taught it.
    """
    students, weights, average, x_proxy = _fleet(data, split, size=size, seed=seed)
    ensemble = Ensemble([ModelTeacher(one) for one in students], weights=weights)
    lessons = ask(ensemble, x_proxy)
    settings = DistilSettings(epochs=size.proxy_epochs, learning_rate=1e-3, max_shift=0)
    fused = copy.deepcopy(average)
    teach(fused, lessons, settings=settings, seed=seed)
    few = replace(split, x=split.x[: size.images_per_owner], y=split.y[: size.images_per_owner])
    large = make_teacher(few, size=replace(size, teacher_epochs=20), seed=seed)
    found = {
        "mean_student": float(np.mean([split.accuracy(one) for one in students])),
        "average": split.accuracy(average),
        "ensemble": float((ask(ensemble, split.x_test).logits_NK.argmax(1).numpy() == split.y_test).mean()),
        "fused": split.accuracy(fused),
        "teacher": split.accuracy(large),
    }
    teach(large, lessons, settings=settings, seed=seed)
    found["teacher_taught"] = split.accuracy(large)
    say(f"seed {seed}: " + ", ".join(f"{name} {100 * value:.2f} %" for name, value in found.items()))
    return found


def _fleet(
    data: DataSet, split: Split, *, size: Size, seed: int
) -> tuple[list[NestedModel], list[float], NestedModel, NDArray[np.float32]]:
    """Return the owners' students, how much each counts, their average, and unlabelled images that nobody owns."""
    pool = DataSet(name=data.name, source=data.source, x_NCHW=data.x_NCHW[: len(split.y)], y_N=data.y_N[: len(split.y)])
    shares = share_out(
        pool,
        num_owners=size.num_owners,
        concentration=size.concentration,
        images_per_owner=size.images_per_owner,
        generator=np.random.default_rng(seed),
        num_heldout=size.num_proxy,
    )
    rows = [np.concatenate([owner.train, owner.holdout]) for owner in shares.owners]
    weights = [float(len(mine)) for mine in rows]
    average = create_model(STUDENT, num_classes=NUM_CLASSES, input_shape=SHAPE, seed=seed)
    students: list[NestedModel] = []
    for number in range(size.rounds + 1):
        students = [copy.deepcopy(average) for _ in rows]
        for place, (student, mine) in enumerate(zip(students, rows, strict=True)):
            _learn(student, split, mine, epochs=size.local_epochs, seed=(seed * 100 + number) * len(rows) + place)
        load_state(average, _mean(students, weights))
    return students, weights, average, split.x[shares.heldout]


def _learn(student: NestedModel, split: Split, rows: NDArray[np.int64], *, epochs: int, seed: int) -> None:
    x, y = torch.from_numpy(split.x[rows]), torch.from_numpy(split.y[rows])
    generator = torch.Generator().manual_seed(seed)
    learner = NestedLearner(student, spec=default_spec(), settings=LearningSettings(), generator=generator)
    micro_update(learner, x, y, prior=label_prior(y, num_classes=NUM_CLASSES), epochs=epochs, refit_steps=0)


def _mean(students: Sequence[NestedModel], weights: Sequence[float]) -> dict[str, NDArray[np.float32]]:
    states, shares = [state_of(one) for one in students], np.asarray(weights, np.float32) / np.float32(sum(weights))
    return {
        name: np.sum(
            [share * state[name] for share, state in zip(shares, states, strict=True)], axis=0, dtype=np.float32
        )
        for name in states[0]
    }
