"""How far batches agree with a shadow update: the displacement that the root's own samples lead to.

A rule over batches alone must believe the majority of them, and with batches of four a fifth of bad devices makes most
batches bad. The shadow update is a direction that no device chose. Two uses:

* `agreement` weighs batches: one that points against the shadow counts nothing;
* `score_batches` gives each batch figures that are means over its devices, so that `nfl_cluster.aggregate.reputation`
  can tell over rounds who pulls them.

Shape legend: n batches, P shared values.

Source: trust by the cosine to an update of the server: Cao et al., FLTrust, arXiv:2012.13995; here over sealed batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfl_cluster.aggregate.buffer import Measured
from nfl_core.errors import DeltaError
from nfl_core.ids import BatchId


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchScore:
    """What is odd about a batch, next to the median batch of its round.

    Both figures are means over the batch's devices, up to what their updates have in common; large is odd.

    Attributes:
        batch_id: The batch.
        against: Minus the part of its mean along the shadow, in typical norms of one device.
        energy: Its squared norm times its size, in squares of that norm.
    """

    batch_id: BatchId
    against: float
    energy: float


def agreement(
    batches: Sequence[Measured], shadow_P: NDArray[np.float32], *, spans: Sequence[slice] = (slice(None),)
) -> NDArray[np.float64]:
    """Return for each batch max(0, cosine to the shadow), float64 [n].

    Args:
        batches: n >= 1.
        shadow_P: float32 [P].
        spans: Places that are compared.

    Raises:
        DeltaError: The shadow has another length than the batches, or a value that is not finite.
    """
    along_n, norms_n, length = _along(batches, shadow_P, spans)
    return np.asarray(np.maximum(along_n, 0.0) / np.maximum(norms_n * length, np.finfo(np.float64).tiny))


def score_batches(batches: Sequence[Measured], shadow_P: NDArray[np.float32]) -> tuple[BatchScore, ...]:
    """Score the batches of one round, before anything was bounded. Raises DeltaError like `agreement`."""
    along_n, norms_n, length = _along(batches, shadow_P, (slice(None),))
    sizes_n = np.array([batch.num for batch in batches], np.float64)
    typical = max(float(np.median(norms_n * np.sqrt(sizes_n))), np.finfo(np.float64).tiny)
    length = max(length, np.finfo(np.float64).tiny)
    against_n, energy_n = -along_n / length / typical, sizes_n * (norms_n / typical) ** 2
    return tuple(
        BatchScore(batch_id=batch.batch_id, against=float(against), energy=float(energy))
        for batch, against, energy in zip(
            batches, against_n - np.median(against_n), energy_n - np.median(energy_n), strict=True
        )
    )


def _along(
    batches: Sequence[Measured], shadow_P: NDArray[np.float32], spans: Sequence[slice]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return inner products with the shadow [n], norms [n] and the shadow's norm; one vector is float64 at a time."""
    if not np.isfinite(shadow_P).all() or any(batch.mean_P.shape != shadow_P.shape for batch in batches):
        raise DeltaError(f"a shadow of shape {shadow_P.shape} is not finite or does not fit the batches")
    shadow = _part(shadow_P, spans)
    rows = (_part(batch.mean_P, spans) for batch in batches)
    pairs_n2 = np.array([(row @ shadow, np.linalg.norm(row)) for row in rows]).reshape(-1, 2)
    return pairs_n2[:, 0], pairs_n2[:, 1], float(np.linalg.norm(shadow))


def _part(vector_P: NDArray[np.float32], spans: Sequence[slice]) -> NDArray[np.float64]:
    return np.concatenate([vector_P[span] for span in spans]).astype(np.float64)
