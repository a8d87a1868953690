"""How far a quality may be off because the samples are few: 95 % intervals over samples.

Closed form for a share of samples, resampling for everything else; the seed is fixed, so the same
outputs always give the same interval. Latency has its own, over blocks, in `latency.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Interval = tuple[float, float]
_Z95 = 1.959963984540054
_RESAMPLES = 1000


def wilson_interval(share: float, samples: int) -> Interval:
    """95 % interval of a share of `samples` independent trials, for example of an accuracy.

    Raises:
        ValueError: the share is not in [0, 1], or there are no samples.
    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= share <= 1 or samples < 1:
        raise ValueError(f"a share in [0, 1] of at least one sample was expected, got {share} of {samples}")
    spread = _Z95**2 / samples
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def score_interval(score: Callable[[Array, Array], float], predictions: Array, targets: Array) -> Interval:
    """95 % percentile bootstrap of a score of predicted classes.

    Where every prediction is right, or every one wrong, all resamples are alike and would give no width: then it is
    the interval of that share.

    Args:
        score: of predictions and targets, each [n]; between 0 (all wrong) and 1 (all right).
        predictions, targets: classes, each [n].
    Source: Efron 1979, doi:10.1214/aos/1176344552.
    """
    right = float(np.mean(predictions == targets))
    if right in (0.0, 1.0):
        return wilson_interval(right, len(targets))
    return _bootstrap(lambda chosen: score(predictions[chosen], targets[chosen]), len(targets))


def mean_interval(values: Array) -> Interval:
    """95 % percentile bootstrap of the mean of `values` [n]; without width for a single one."""
    return _bootstrap(lambda chosen: float(values[chosen].mean()), len(values))


def _bootstrap(statistic: Callable[[Array], float], samples: int) -> Interval:
    """Percentiles of a statistic of samples drawn again, by their indices; the statistic of all lies inside."""
    generator = np.random.default_rng(0)
    drawn = [statistic(generator.integers(samples, size=samples)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    whole = statistic(np.arange(samples))
    return min(whole, float(low)), max(whole, float(high))
