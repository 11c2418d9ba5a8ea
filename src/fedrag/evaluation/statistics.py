"""How sure a mean is, and a difference of means: bootstrap intervals and a permutation test.

- `interval`: percentile bootstrap (Efron & Tibshirani 1993, ch. 13). Examples are drawn again with replacement, or
  whole clusters of examples where some share a source (a document, a site) and so are not independent.
- `sign_flip`: two-sided paired permutation test (Fisher 1935; Dror et al. 2018 for NLP). Under the null hypothesis
  neither system is better and the sign of each example's (or cluster's) difference is a coin toss.
- `holm`: the p-values of a family of tests, adjusted (Holm 1979); valid however the tests depend on each other.

Where all values are equal, all wrong say, resampling sees no spread and would claim certainty. There the exact
binomial (Clopper-Pearson) bound is used, extended to any values within known bounds.

>>> low, high = interval(np.array([[0.0], [1.0], [1.0], [1.0]]))
>>> low.item(), high.item()
(0.25, 1.0)
>>> interval(np.zeros((1000, 1)))[1].round(4).item()
0.0037
>>> sign_flip(np.array([[0.1], [0.2], [0.4], [0.1], [0.3]])).item()
0.0625
>>> holm([0.01, 0.04, 0.02])
[0.03, 0.04, 0.04]
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
_EXACT = 13  # 2**13 sign patterns are fewer than the random ones
_BLOCK = 2**21  # random numbers held at a time


def interval(
    values: Floats,
    *,
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Return the lower and upper ends `[m]` of the 95 % intervals of the column means of `values` `[n, m]`.

    `clusters` names the cluster of each row; without, each row is its own. `bounds` are the least and greatest value
    that a row could have. The columns share their resamples.
    """
    sums, sizes = _by_cluster(values, clusters)  # [c, m], [c]
    count = len(sums)
    means = _resampled(sums, sizes, seed)
    low, high = np.quantile(means, [_TAIL, 1 - _TAIL], axis=0)
    # If the mean were further out, `count` equal draws would have had a probability below the tail.
    constant = np.ptp(sums / sizes[:, None], axis=0) < 1e-12
    centre, sure = values.mean(axis=0), _TAIL ** (1 / count)
    least, most = (sure * centre + (1 - sure) * bound for bound in bounds)
    return np.where(constant, least, low), np.where(constant, most, high)


def ratio_interval(
    after: Floats, before: Floats, *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of the 95 % interval of mean(after) / mean(before), two columns `[n]` over the same rows.

    A resample in which nothing scored before makes the upper end infinite.

    >>> ratio_interval(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0]))
    (1.0, 1.0)
    """
    sums, sizes = _by_cluster(np.stack([before, after], axis=1), clusters)
    means = _resampled(sums, sizes, seed)
    ratios = np.divide(means[:, 1], means[:, 0], out=np.full(len(means), np.inf), where=means[:, 0] > 0)
    low, high = np.quantile(ratios, [_TAIL, 1 - _TAIL], method="nearest")
    return float(low), float(high)


def sign_flip(differences: Floats, *, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> Floats:
    """Return the two-sided p-values `[m]` of the paired differences `[n, m]`, each column by itself.

    Exact, by all sign patterns, when at most 13 rows (or clusters) differ at all; else by 10,000 random patterns,
    where the least p-value is 1 / 10,001.
    """
    sums, _ = _by_cluster(differences, clusters)  # [c, m]
    observed = np.abs(sums.sum(axis=0))
    reach = observed - 1e-12 * np.abs(sums).sum(axis=0)  # sums that differ by rounding alone are equal
    differing = np.count_nonzero(sums, axis=0)
    rng = np.random.default_rng(seed)
    beyond = np.zeros(len(observed))
    if differing.max(initial=0) > _EXACT:
        step = max(1, _BLOCK // len(sums))
        for start in range(0, RESAMPLES, step):
            flips = rng.integers(2, size=(min(step, RESAMPLES - start), len(sums)), dtype=np.int8)
            signs = 1.0 - 2.0 * flips
            beyond += np.count_nonzero(np.abs(signs @ sums) >= reach, axis=0)
    p = (beyond + 1) / (RESAMPLES + 1)
    for column in np.flatnonzero(differing <= _EXACT):
        kept = sums[sums[:, column] != 0, column]
        patterns = (np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept))) & 1
        p[column] = np.mean(np.abs((1 - 2 * patterns) @ kept) >= reach[column])
    return p


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being the smallest among many, in their own order."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def _resampled(sums: Floats, sizes: Floats, seed: int) -> Floats:
    """The means `[10,000, m]` of resamples of the clusters, whose sums are `[c, m]` and sizes `[c]`."""
    rng = np.random.default_rng(seed)
    count = len(sums)
    means = np.empty((RESAMPLES, sums.shape[1]))
    step = max(1, _BLOCK // count)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = rng.integers(count, size=(rows, count)) + np.arange(0, rows * count, count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        means[start : start + rows] = (times @ sums) / (times @ sizes)[:, None]
    return means


def _by_cluster(values: Floats, clusters: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Return the sums `[c, m]` and sizes `[c]` of the clusters, in the order in which they first come."""
    if clusters is None:
        return values, np.ones(len(values))
    number = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    which = np.array([number[name] for name in clusters])
    sums = np.zeros((len(number), values.shape[1]))
    np.add.at(sums, which, values)
    return sums, np.bincount(which, minlength=len(number)).astype(np.float64)
