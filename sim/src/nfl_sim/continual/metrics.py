"""What a learner of tasks in a row remembers, from the accuracies it had after each of them.

`R[i, j]` is the accuracy on the test samples of task j after learning task i. Twice: **class-incremental**, where the
answer is chosen among all classes seen so far, and **task-incremental**, where it is chosen among those of task j.

* accuracy: mean over j of R[last, j]
* backward transfer: mean over j < last of R[last, j] - R[j, j]
* forgetting: mean over j < last of max over i of R[i, j] - R[last, j], >= 0 or nearly
* learned: mean over j of R[j, j]; without it a learner that never learns has no forgetting to show

Class-incremental backward transfer is never near zero by itself: the first task is a choice between two classes and the
last one between ten, so a model trained anew on everything seen so far loses too. It is measured as well, as `joint`.

Source: Lopez-Paz and Ranzato, Gradient Episodic Memory, arXiv:1706.08840; Chaudhry et al., arXiv:1801.10112.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Figures of one matrix, in points (0 to 100)."""

    accuracy: float
    backward_transfer: float
    forgetting: float
    learned: float


def memory_of(R_TT: Matrix) -> Memory:
    """Return the figures of a matrix, float64 [T, T], T >= 2, 0 to 1, lower left triangle filled.

    Raises:
        ValueError: It is not square, or there is one task alone.
    """
    num = len(R_TT)
    if R_TT.shape != (num, num) or num < 2:
        raise ValueError(f"accuracies have shape {R_TT.shape}, expected [T, T] with T >= 2")
    last, learned = R_TT[-1], R_TT.diagonal()
    best = np.array([R_TT[j:, j].max() for j in range(num)])
    return Memory(
        accuracy=100.0 * float(last.mean()),
        backward_transfer=100.0 * float((last - learned)[:-1].mean()),
        forgetting=100.0 * float((best - last)[:-1].mean()),
        learned=100.0 * float(learned.mean()),
    )
