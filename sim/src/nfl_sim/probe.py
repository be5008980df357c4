"""A published network as a teacher: its features as they are, under a linear probe that a few labels fit.

    teacher = ProbeTeacher.fit(load_network(cache), images_NCHW, y_N, size=64)
    lessons = ask(teacher, x_NCHW)          # nfl_core.learning.distil

Shape legend: N images, B batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from nfl_core.errors import LearningError
from nfl_core.learning.distil import Answer
from nfl_sim.data.efficientnet import EfficientNetLite0, embed

PENALTY = 0.005  # scikit-learn's inverse strength C: 1,008 standardised features need a strong hand
ITERATIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A linear reading of features.

    Attributes:
        weights_DK: float32; features are standardised inside them.
        bias_K: float32.
    """

    weights_DK: NDArray[np.float32]
    bias_K: NDArray[np.float32]

    def logits(self, z_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 [N, K]."""
        logits_NK: NDArray[np.float32] = (z_ND @ self.weights_DK + self.bias_K).astype(np.float32)
        return logits_NK


def fit_probe(z_ND: NDArray[np.float32], y_N: NDArray[np.int64]) -> Probe:
    """Fit a probe to features.

    Args:
        z_ND: float32.
        y_N: Labels 0 to K - 1, each class at least once.

    Raises:
        LearningError: Labels are missing or there is one class.
    """
    num_classes = int(y_N.max(initial=-1)) + 1
    if len(z_ND) != len(y_N) or len(set(y_N.tolist())) != num_classes or num_classes < 2:
        raise LearningError(
            f"the probe got {len(z_ND)} images and labels {sorted(set(y_N.tolist()))[:12]}, "
            "expected one label an image and every class from 0"
        )
    mean_D, spread_D = z_ND.mean(axis=0), z_ND.std(axis=0) + 1e-6
    found = LogisticRegression(C=PENALTY, max_iter=ITERATIONS).fit((z_ND - mean_D) / spread_D, y_N)
    coefficients_KD = found.coef_ if num_classes > 2 else np.concatenate([-found.coef_, found.coef_]) / 2
    intercept_K = found.intercept_ if num_classes > 2 else np.concatenate([-found.intercept_, found.intercept_]) / 2
    weights_DK = (coefficients_KD / spread_D).T
    return Probe(
        weights_DK=weights_DK.astype(np.float32), bias_K=(intercept_K - mean_D @ weights_DK).astype(np.float32)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeTeacher:
    """A frozen network and what the probe reads from its features.

    Attributes:
        network: Not changed.
        size: Height and width to which images are enlarged.
        input_shape: Of one image, (C, H, W), grey or RGB in 0 to 1.
        probe: Reads its features.
    """

    network: EfficientNetLite0
    size: int
    input_shape: tuple[int, ...]
    probe: Probe

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.probe.bias_K)

    @classmethod
    def fit(
        cls, network: EfficientNetLite0, images_NCHW: NDArray[np.uint8], y_N: NDArray[np.int64], *, size: int
    ) -> ProbeTeacher:
        """Fit the probe.

        Args:
            network: Gives the features; not changed.
            images_NCHW: uint8, grey or RGB.
            y_N: Labels 0 to K - 1, each class at least once.
            size: Height and width to which images are enlarged, >= 32.

        Raises:
            LearningError: Labels are missing or there is one class.
        """
        probe = fit_probe(embed(network, images_NCHW, size=size, level="grid"), y_N)
        return cls(network=network, size=size, input_shape=tuple(images_NCHW.shape[1:]), probe=probe)

    def answer(self, x: NDArray[np.float32]) -> Answer:
        """Answer about float32 [B, C, H, W] in 0 to 1."""
        z_BD = embed(self.network, np.rint(x * 255).astype(np.uint8), size=self.size, level="grid")
        return Answer(logits_NK=self.probe.logits(z_BD), features_ND=z_BD)
