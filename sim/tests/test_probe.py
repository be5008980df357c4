from __future__ import annotations

import numpy as np
import pytest
import torch

from nfl_core.errors import LearningError
from nfl_core.learning.distil import ask
from nfl_sim.data.efficientnet import EfficientNetLite0
from nfl_sim.probe import ProbeTeacher


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    """The architecture without its published weights: random features are enough for a probe of bright and dark."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EfficientNetLite0().eval()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_probe_reads_the_features_and_teaches(network: EfficientNetLite0, num_classes: int) -> None:
    generator = np.random.default_rng(0)
    y = np.arange(24) % num_classes
    noise = generator.integers(0, 30, (24, 1, 8, 8))
    images = (noise + (y * (200 // num_classes))[:, None, None, None]).astype(np.uint8)
    teacher = ProbeTeacher.fit(network, images, y, size=32)
    assert (teacher.num_classes, teacher.input_shape) == (num_classes, (1, 8, 8))
    lessons = ask(teacher, images.astype(np.float32) / 255)
    assert (lessons.logits_NK.argmax(1).numpy() == y).mean() > 0.9
    assert lessons.features_ND is not None
    assert lessons.features_ND.shape == (24, 1008)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 2, 0], [0, 1]])
def test_labels_that_leave_a_class_out_are_refused(network: EfficientNetLite0, labels: list[int]) -> None:
    with pytest.raises(LearningError, match="probe"):
        ProbeTeacher.fit(network, np.zeros((3, 1, 8, 8), np.uint8), np.asarray(labels), size=32)
