"""Robust rules over vectors: what the middle of some vectors is when a few of them may be anything.

    combined_P = RULES["dnc"].combine(rows, weights, num_bad=1)

The vectors are batch means where sums are sealed, and the contributions of devices where a leaf may see them; the rules
are the same. Each takes the vectors, how much each counts, and how many may be bad.

Rules of this module:

* arithmetic is float64; vectors are read in blocks, so the extra memory is `BLOCK` values a vector whatever P is;
* no chance: the same vectors give the same result, because a root that was killed decides again;
* the order of the vectors changes nothing but rounding, and equal vectors are their own middle;
* `num_bad` beyond `Rule.most` is an error with a name: with half of the vectors bad, nobody can say which half it is.

Shape legend: n vectors, P values.

    >>> rows = [np.float32([1, 1]), np.float32([1, 1]), np.float32([9, -9])]
    >>> RULES["median"].combine(rows, np.ones(3), num_bad=1)
    array([1., 1.])

Sources: coordinate median and trimmed mean: Yin et al., arXiv:1803.01498; Krum: Blanchard et al. 2017; geometric median
by smoothed Weiszfeld: Pillutla et al., arXiv:1912.13445; centred clipping: Karimireddy et al., arXiv:2012.10333;
nearest neighbour mixing: Allouah et al., arXiv:2302.01772; DnC: Shejwalkar and Houmansadr, NDSS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfl_core.errors import ConfigError, DeltaError

BLOCK = 1 << 16  # values of each vector that are in memory as float64 at a time: half a megabyte
WEISZFELD_STEPS = 64  # each costs n * n, nothing beside reading the vectors once
SMOOTHING = 1e-3  # of the smallest ball with half of the vectors: one that is the middle must not divide by zero
# Times the median length. Means of two honest ternary contributions were 0.8 to 1.13 times as long, those with a device
# in them that scales what it sends 1.18 to 1.6 (docs/adr/0008).
DNC_LENGTH = 1.15
DNC_FACTOR = 1.5  # times num_bad are dropped: a good one that goes costs less than a bad one that stays
Vector = NDArray[np.float32] | NDArray[np.float64]
Rows = Sequence[Vector] | NDArray[np.float32] | NDArray[np.float64]
Weights = NDArray[np.float64]
Combine = Callable[..., NDArray[np.float64]]


class TooFewBatchesError(ConfigError):
    """So many of the vectors may be bad that a rule could not tell them from the good ones."""

    code = "aggregate.too-few-batches"
    hint = (
        "use smaller batches or more of them for a version, or a smaller max_attacker_fraction; "
        "more than 2f vectors are needed to stand f bad ones, 4f + 1 are advisable"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        name: As in fleet.toml.
        function: Does it; see `combine`.
        is_robust: Whether it stands any bad vector at all.
    """

    name: str
    function: Combine
    is_robust: bool = True

    def most(self, num_vectors: int) -> int:
        """Return the largest number of bad vectors among `num_vectors` that the rule stands; 0: none."""
        return max(0, (num_vectors - 1) // 2) if self.is_robust else 0

    def combine(self, rows: Rows, weights: Weights, *, num_bad: int) -> NDArray[np.float64]:
        """Return the middle of vectors.

        Args:
            rows: n >= 1 vectors, float32 or float64 [P], finite.
            weights: How much each counts, [n], > 0.
            num_bad: How many may be anything, 0 to `most(n)`.

        Returns:
            float64 [P].

        Raises:
            TooFewBatchesError: `num_bad` is more than the rule stands.
            DeltaError: There is no vector, lengths differ, or a value or weight is not finite.
        """
        check(rows, weights)
        if not 0 <= num_bad <= self.most(len(rows)):
            raise TooFewBatchesError(
                f"rule {self.name} stands {self.most(len(rows))} bad of {len(rows)} vectors, {num_bad} may be bad"
            )
        return self.function(rows, np.asarray(weights, np.float64), num_bad)


def check(rows: Rows, weights: Weights) -> None:
    """Raise DeltaError unless there are finite vectors of one length and as many finite weights above zero."""
    if not len(rows) or len(rows) != len(weights) or len({np.shape(row) for row in rows}) != 1:
        shapes = sorted({np.shape(row) for row in rows})
        raise DeltaError(f"{len(rows)} vectors of shapes {shapes} with {len(weights)} weights, expected as many, alike")
    if not (np.isfinite(weights).all() and np.greater(weights, 0).all()):
        raise DeltaError(f"weights are {list(weights)[:5]}, expected finite ones above zero")
    if not all(np.isfinite(row).all() for row in rows):
        raise DeltaError("a vector holds a value that is not finite")


def blocks(rows: Rows) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield (place, float64 [n, up to BLOCK]) until all P values were seen."""
    for start in range(0, len(rows[0]), BLOCK):
        place = slice(start, start + BLOCK)
        yield place, np.stack([np.asarray(row[place], np.float64) for row in rows])


def squared_distances(rows: Rows) -> NDArray[np.float64]:
    """Return the squared Euclidean distance of each two vectors, float64 [n, n]."""
    return _apart(_gram(rows))


def mixed(rows: Rows, shares_nn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return shares @ rows, float64 [m, P]; meant for one or few rows of shares, because the result is whole."""
    result = np.empty((len(shares_nn), len(rows[0])), np.float64)
    for place, block in blocks(rows):
        result[:, place] = shares_nn @ block
    return result


def mean(rows: Rows, weights: Weights, num_bad: int = 0) -> NDArray[np.float64]:  # noqa: ARG001 - like all rules
    """Return the weighted mean. It stands no bad vector."""
    return _sum(rows, weights / weights.sum())


def median(rows: Rows, weights: Weights, num_bad: int = 0) -> NDArray[np.float64]:  # noqa: ARG001 - like all rules
    """Return the weighted median of every coordinate: half of the weight on each side, the mean of two middle ones."""
    return _by_coordinate(rows, lambda block: _median(block, weights))


def trimmed_mean(rows: Rows, weights: Weights, num_bad: int) -> NDArray[np.float64]:
    """Return for every coordinate the weighted mean without the `num_bad` smallest and largest values."""
    return _by_coordinate(rows, lambda block: _trimmed(block, weights, num_bad))


def nnm_trimmed_mean(rows: Rows, weights: Weights, num_bad: int) -> NDArray[np.float64]:
    """Return the trimmed mean of vectors that were each replaced by the weighted mean of their nearest neighbours.

    Weights count in the mixing alone: mixed vectors are often equal, and which of two equal ones is trimmed must not
    decide how much weight goes with it.
    """
    shares_nn, alike_n = neighbour_shares(rows, weights, num_bad), np.ones(len(rows))
    return _by_coordinate(rows, lambda block: _trimmed(shares_nn @ block, alike_n, num_bad))


def neighbour_shares(rows: Rows, weights: Weights, num_bad: int) -> NDArray[np.float64]:
    """Return nearest neighbour mixing as shares [n, n]: row i is the weighted mean of the n - f nearest to vector i."""
    near_nn = np.argsort(squared_distances(rows), axis=1, kind="stable")[:, : len(rows) - num_bad]
    shares_nn = np.zeros((len(rows), len(rows)))
    np.put_along_axis(shares_nn, near_nn, weights[near_nn], axis=1)
    return np.asarray(shares_nn / shares_nn.sum(axis=1, keepdims=True))


def geometric_median(
    rows: Rows,
    weights: Weights,
    num_bad: int = 0,  # noqa: ARG001 - like all rules
    *,
    smoothing: float | None = None,
    num_steps: int = WEISZFELD_STEPS,
) -> NDArray[np.float64]:
    """Return the point whose weighted sum of distances is least.

    Args:
        rows: [n, P].
        weights: [n].
        num_bad: Not used.
        smoothing: Least distance in a division; None: `SMOOTHING` times the radius of the closest half of the vectors.
        num_steps: Weiszfeld steps from the mean, >= 0.
    """
    gram_nn = _gram(rows)
    if smoothing is None:
        smoothing = SMOOTHING * _closest_half(_apart(gram_nn))
    shares_n = np.full(len(rows), 1 / len(rows))
    for _ in range(num_steps):
        shares_n = weights / np.maximum(_distances_from(shares_n, gram_nn), smoothing)
        shares_n = shares_n / shares_n.sum()
    return _sum(rows, shares_n)


def krum(rows: Rows, weights: Weights, num_bad: int) -> NDArray[np.float64]:  # noqa: ARG001 - like all rules
    """Return the vector that is nearest to its n - f - 1 nearest others. A reference: it throws all others away."""
    return np.asarray(rows[int(np.argmin(_krum_scores(rows, num_bad)))], np.float64)


def multi_krum(rows: Rows, weights: Weights, num_bad: int) -> NDArray[np.float64]:
    """Return the weighted mean of the n - f vectors with the best score of `krum`."""
    return _of_these(rows, weights, np.argsort(_krum_scores(rows, num_bad), kind="stable")[: len(rows) - num_bad])


def centred_clipping(
    rows: Rows, weights: Weights, *, radius: float, num_steps: int = 1, centre: Vector | None = None
) -> NDArray[np.float64]:
    """Return the centre, moved by the mean of what the vectors differ from it, each difference held to a radius.

    Args:
        rows: [n, P].
        weights: [n].
        radius: Largest norm of a difference, > 0.
        num_steps: How often, >= 1.
        centre: [P]; None: zeros. The last displacement is a good one.
    """
    origin = np.zeros(len(rows[0])) if centre is None else np.asarray(centre, np.float64)
    gram_nn = _gram(rows, origin=origin)
    parts_n, shares_n = weights / weights.sum(), np.zeros(len(rows))
    for _ in range(num_steps):
        distances_n = _distances_from(shares_n, gram_nn)
        held_n = parts_n * np.minimum(1.0, radius / np.maximum(distances_n, np.finfo(np.float64).tiny))
        shares_n = shares_n * (1 - held_n.sum()) + held_n
    return np.asarray(origin * (1 - shares_n.sum()) + _sum(rows, shares_n))


def dnc(rows: Rows, weights: Weights, num_bad: int) -> NDArray[np.float64]:
    """Return the weighted mean without the vectors that are long, or lie far along the direction of most difference.

    As many are dropped as DnC drops. First go those longer than `DNC_LENGTH` times the median, the longest first:
    a trigger that is scaled up to survive the mean is long before it is anything else. The rest are the furthest along
    the first principal direction of what is left. All coordinates are looked at, not a random part of them: the Gram
    matrix of the vectors makes that cheap.
    """
    num_kept = max(1, len(rows) - math.ceil(DNC_FACTOR * num_bad))
    lengths_n = np.sqrt(np.diag(_gram(rows, origin=np.zeros(len(rows[0])))))
    shortest_first = np.argsort(lengths_n, kind="stable")
    num_usual = int((lengths_n <= DNC_LENGTH * np.median(lengths_n)).sum())
    usual = np.sort(shortest_first[: max(num_kept, num_usual)])
    scores = spectral_scores([rows[number] for number in usual])
    # Of two that are left, both are as far from their middle: the shorter one stays, not the first one.
    keep = np.lexsort((lengths_n[usual], np.round(scores / max(scores.max(), np.finfo(float).tiny), 9)))[:num_kept]
    return _of_these(rows, weights, usual[keep])


def spectral_scores(rows: Rows) -> NDArray[np.float64]:
    """Return the squared length of each centred vector along the first principal direction, float64 [n]."""
    values, vectors = np.linalg.eigh(_gram(rows))
    return np.asarray(np.maximum(values[-1], 0.0) * vectors[:, -1] ** 2)


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(name="mean", function=mean, is_robust=False),
        Rule(name="norm-bound", function=mean),
        Rule(name="median", function=median),
        Rule(name="trimmed-mean", function=trimmed_mean),
        Rule(name="nnm-trimmed-mean", function=nnm_trimmed_mean),
        Rule(name="geometric-median", function=geometric_median),
        Rule(name="krum", function=krum),
        Rule(name="multi-krum", function=multi_krum),
        Rule(name="dnc", function=dnc),
    )
}


def _sum(rows: Rows, shares_n: NDArray[np.float64]) -> NDArray[np.float64]:
    total_P: NDArray[np.float64] = mixed(rows, shares_n[None])[0]
    return total_P


def _of_these(rows: Rows, weights: Weights, keep: NDArray[np.int64]) -> NDArray[np.float64]:
    shares_n = np.zeros(len(rows))
    shares_n[keep] = weights[keep] / weights[keep].sum()
    return _sum(rows, shares_n)


def _by_coordinate(rows: Rows, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.empty(len(rows[0]), np.float64)
    for place, block in blocks(rows):
        result[place] = function(block)
    return result


def _trimmed(block: NDArray[np.float64], weights: Weights, num_bad: int) -> NDArray[np.float64]:
    order = np.argsort(block, axis=0, kind="stable")[num_bad : len(block) - num_bad]
    kept = weights[order]
    return np.asarray((kept * np.take_along_axis(block, order, axis=0)).sum(axis=0) / kept.sum(axis=0))


def _median(block: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    order = np.argsort(block, axis=0, kind="stable")
    ordered, below = np.take_along_axis(block, order, axis=0), np.cumsum(weights[order], axis=0)
    half, slack = weights.sum() / 2, 1e-12 * weights.sum()  # sums of weights in another order differ by rounding
    low, high = np.argmax(below >= half - slack, axis=0), np.argmax(below > half + slack, axis=0)
    picked = [np.take_along_axis(ordered, place[None], axis=0)[0] for place in (low, high)]
    return np.asarray((picked[0] + picked[1]) / 2)


def _krum_scores(rows: Rows, num_bad: int) -> NDArray[np.float64]:
    nearest = np.sort(squared_distances(rows), axis=1)[:, 1 : len(rows) - num_bad]
    return np.asarray(nearest.mean(axis=1)) if nearest.size else np.zeros(len(rows))


def _gram(rows: Rows, *, origin: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the inner products, float64 [n, n], of the vectors less `origin`; None: less their mean."""
    total_nn = np.zeros((len(rows), len(rows)))
    for place, block in blocks(rows):
        apart = block - (block.mean(axis=0) if origin is None else origin[place])
        total_nn += apart @ apart.T
    return total_nn


def _closest_half(apart_nn: NDArray[np.float64]) -> float:
    """Return how far half of the vectors are from the one among them that has them closest; far ones do not move it."""
    radius = float(np.sqrt(np.sort(apart_nn, axis=1)[:, len(apart_nn) // 2].min()))
    if radius:
        return radius
    others = apart_nn[apart_nn > 0]
    return float(np.sqrt(others.min())) if others.size else 1.0


def _apart(gram_nn: NDArray[np.float64]) -> NDArray[np.float64]:
    squares_n = np.diag(gram_nn)
    apart_nn = np.maximum(squares_n[:, None] + squares_n[None] - 2 * gram_nn, 0.0)
    np.fill_diagonal(apart_nn, 0.0)
    return np.asarray(apart_nn)


def _distances_from(shares_n: NDArray[np.float64], gram_nn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each vector is from shares @ vectors, by their inner products."""
    along_n = gram_nn @ shares_n
    return np.asarray(np.sqrt(np.maximum(np.diag(gram_nn) - 2 * along_n + shares_n @ along_n, 0.0)))
