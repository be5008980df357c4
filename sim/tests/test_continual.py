"""Streams of tasks and a fleet whose world grows, on few and small images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nfl_sim.continual.fleet import run_fleet
from nfl_sim.continual.methods import METHODS
from nfl_sim.continual.metrics import memory_of
from nfl_sim.continual.run import Outcome, learn_stream
from nfl_sim.continual.split import Stream, split_fashion
from nfl_sim.data.fashion import enlarged_digits


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def digits_stream() -> Stream:
    return split_fashion(enlarged_digits(), seed=0, num_train=600, num_test=300)


def learned(name: str) -> Outcome:
    return learn_stream(METHODS[name], digits_stream(), seed=0, epochs=4)


def test_figures_of_a_matrix() -> None:
    figures = memory_of(np.array([[0.9, 0.0, 0.0], [0.6, 0.8, 0.0], [0.7, 0.5, 1.0]]))
    assert figures.accuracy == pytest.approx(100 * 2.2 / 3)
    assert figures.backward_transfer == pytest.approx(-25.0)  # 0.7 - 0.9 and 0.5 - 0.8
    assert figures.forgetting == pytest.approx(25.0)
    assert figures.learned == pytest.approx(90.0)
    for wrong in (np.zeros((2, 3)), np.zeros((1, 1))):
        with pytest.raises(ValueError, match="expected"):
            memory_of(wrong)


def test_a_stream_holds_each_class_in_one_task_and_tests_nothing_it_trains_on() -> None:
    stream = digits_stream()
    for classes, train, test in zip(stream.classes, stream.tasks, stream.tests, strict=True):
        assert set(train.y.tolist()) == set(test.y.tolist()) == set(classes)
    assert sum(len(task.y) for task in stream.tasks) == 600
    again = split_fashion(enlarged_digits(), seed=0, num_train=600, num_test=300)
    assert torch.equal(again.tasks[2].x, stream.tasks[2].x)


def test_memory_beats_none_and_equal_seeds_give_equal_figures() -> None:
    naive, ours, again = learned("naive"), learned("nested/no-augment"), learned("nested/no-augment")
    assert naive.by_class.accuracy < 40  # the last task alone
    assert ours.by_class.accuracy > naive.by_class.accuracy + 30
    assert ours.by_class.backward_transfer > naive.by_class.backward_transfer + 30
    assert np.array_equal(ours.classes_TT, again.classes_TT)
    assert ours.num_steps == naive.num_steps
    assert ours.seen_T[0] > 0.9


@pytest.mark.parametrize("name", ["der", "er-ace", "nested-slow", "nested/sum8", "naive/mean8", "joint"])
def test_every_kind_of_method_runs(name: str) -> None:
    stream = split_fashion(enlarged_digits(), seed=0, num_train=120, num_test=60, num_tasks=2)
    outcome = learn_stream(METHODS[name], stream, seed=0, epochs=1)
    assert np.isfinite(outcome.classes_TT).all()
    assert (np.triu(outcome.classes_TT, 1) == 0).all()


def test_owners_that_remember_keep_old_classes_through_merges() -> None:
    data = enlarged_digits()
    forgetful, remembering = (
        run_fleet(data, seed=0, remembers=kept, joins=(0, 0, 3), num_train=60, num_test=30) for kept in (0, 60)
    )
    assert [len(version.after_merge) for version in remembering] == [2, 2, 2, 3, 3, 3, 3, 3, 3]
    assert np.mean(remembering[-1].oldest) > np.mean(forgetful[-1].oldest) + 0.2
    assert forgetful[0] == remembering[0]  # one file so far: nothing is replayed
