"""Statistics of paired runs: relative differences, a bootstrap interval, an exact signed-rank test, Holm's correction.

Two runs are a pair when task, seed and with them the teacher are the same. Nothing here knows what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 10_000
FEWEST = 5  # pairs per task; the bootstrap of fewer is too narrow to believe


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its 95 % percentile interval; the bounds are NaN where there are too few pairs for one."""

    mean: float
    low: float
    high: float


def relative_differences(ours: ArrayLike, theirs: ArrayLike) -> Floats:
    """(ours - theirs) per pair, as a share of the mean of theirs; empty where theirs are all 0.

    The mean and not each pair's own value divides, so that a run that crashed (0) counts like any other instead of
    dividing by nothing, and the mean of the differences is the ratio of the two means less one.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    scale = float(b.mean()) if len(b) else 0.0
    return (a - b) / scale if scale > 0 else np.zeros(0)


def bootstrap(by_task: Sequence[ArrayLike], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """Mean over tasks of the mean over pairs, with its interval; None without any pair.

    Pairs are drawn again within their task: the tasks were chosen, not drawn, so the interval says nothing of others.
    A task counts the same however many pairs it has.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile interval).
    """
    groups = [array for values in by_task if len(array := np.asarray(values, dtype=np.float64))]
    if not groups:
        return None
    generator = np.random.default_rng(seed)
    mean = float(np.mean([group.mean() for group in groups]))
    if min(map(len, groups)) < FEWEST:
        return Interval(mean=mean, low=float("nan"), high=float("nan"))
    means = np.mean([_resampled(group, resamples, generator) for group in groups], axis=0)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean=mean, low=float(low), high=float(high))


def signed_rank_p(differences: ArrayLike) -> float:
    """Two-sided p of the Wilcoxon signed-rank test, exact also with ties; zeros are left out, none left is 1.

    Under the hypothesis every sign is a coin, so the rank sum's distribution is counted by adding one rank after the
    other. Ranks are doubled, which makes the mid-ranks of ties whole.

    Source: Wilcoxon 1945, doi:10.2307/3001968; Pratt and Gibbons 1981, chapter 3, for the ties.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    doubled = _doubled_ranks(np.abs(values))
    ways = np.zeros(int(doubled.sum()) + 1)
    ways[0] = 1.0
    for rank in doubled:  # probabilities, not counts: 2**n would overflow the exact integers of a float
        ways[rank:] = 0.5 * (ways[rank:] + ways[: len(ways) - rank])
        ways[:rank] *= 0.5
    observed = int(doubled[values > 0].sum())
    return float(min(1.0, 2 * min(ways[: observed + 1].sum(), ways[observed:].sum())))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Each p corrected for being one of many, in the order given.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(p_values, key=lambda name: p_values[name])
    corrected: dict[str, float] = {}
    largest = 0.0
    for index, name in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - index) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _resampled(group: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    rows = generator.integers(len(group), size=(resamples, len(group)))
    means: Floats = group[rows].mean(axis=1)
    return means


def _doubled_ranks(sizes: Floats) -> NDArray[np.int64]:
    """Twice the rank of each value from 1; equal values share the mean of theirs: 5, 7, 7 are 2, 5, 5."""
    ordered = np.sort(sizes)
    first = np.searchsorted(ordered, sizes, side="left") + 1
    last = np.searchsorted(ordered, sizes, side="right")
    return (first + last).astype(np.int64)
