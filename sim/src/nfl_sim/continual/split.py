"""Split Fashion-MNIST: five tasks of two classes, one after the other, one head for all.

stream = split_fashion(load_images(cache), seed=0)
len(stream.tasks), stream.classes[2]      # 5, (4, 5)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nfl_core.learning import Samples
from nfl_core.tensors import to_input
from nfl_sim.data.fashion import DataSet

NUM_TEST = 10_000  # the published test part stands at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Tasks in their order.

    Attributes:
        tasks: Training samples of each task.
        tests: Test samples of each task, never trained on.
        classes: Classes of each task.
        num_classes: K of the head.
    """

    tasks: tuple[Samples, ...]
    tests: tuple[Samples, ...]
    classes: tuple[tuple[int, ...], ...]
    num_classes: int


def split_fashion(
    data: DataSet, *, seed: int, num_train: int = 8000, num_test: int = 4000, num_tasks: int = 5
) -> Stream:
    """Draw training and test images and split them by class, classes 0 and 1 first.

    Args:
        data: Its last 10,000 images (of a smaller set, its last quarter) are for testing.
        seed: Draws the images.
        num_train: Training images of all tasks together.
        num_test: Test images of all tasks together.
        num_tasks: Divides the number of classes.
    """
    generator = np.random.default_rng(seed)
    num_tests = min(NUM_TEST, len(data.y_N) // 4)
    first_test = len(data.y_N) - num_tests
    train = generator.permutation(first_test)[:num_train]
    test = first_test + generator.permutation(num_tests)[:num_test]
    num_classes = int(data.y_N.max()) + 1
    each = num_classes // num_tasks
    classes = tuple(tuple(range(first, first + each)) for first in range(0, each * num_tasks, each))
    return Stream(
        tasks=tuple(samples_of(data, train[np.isin(data.y_N[train], group)]) for group in classes),
        tests=tuple(samples_of(data, test[np.isin(data.y_N[test], group)]) for group in classes),
        classes=classes,
        num_classes=num_classes,
    )


def samples_of(data: DataSet, places: NDArray[np.integer]) -> Samples:
    """Return these images as a model takes them, in this order."""
    return Samples(x=torch.from_numpy(to_input(data.x_NCHW[places])), y=torch.from_numpy(data.y_N[places]))
