"""Which two results of a study would make a cascade, and from which confidence on the second one is asked.

It is decided with the outputs that the files of the results gave on validation data: what two of them answer together
is known exactly, how long that takes on average nearly so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.front.hypervolume import gain
from autocompress.search.stopping import MIN_GAIN, Constraints

SHARES = (0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)  # of the samples, passed on
_ASKING = 0.02  # of the baseline's latency: what looking at the confidence costs
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A network that could be a part.

    Attributes:
        size_ratio, latency_ratio: to the baseline, 0 for an objective that the study does not have.
        outputs: [n, classes] on validation data.
        confidence: largest softmax probability, [n].
    """

    trial: int
    size_bytes: int
    size_ratio: float
    latency_ratio: float
    outputs: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two networks and a threshold of the first one's confidence, with what is expected of them.

    Attributes:
        passed_on: share of the samples whose confidence is below the threshold: the second one answers those.
    """

    first: int
    second: int
    threshold: float
    passed_on: float
    drop: float
    size_bytes: int
    size_ratio: float
    latency_ratio: float


def choose_pair(
    possible: Sequence[Pair], *, front: np.ndarray, constraints: Constraints, baseline_ms: float
) -> tuple[Pair | None, str]:
    """The pair that is expected to add most hypervolume within the bounds, and why there is none otherwise.

    Args:
        front: (drop, size ratio, latency ratio) of every result so far, [points, 3].
        constraints: of the study; `max_size` is compared with the bytes of both files.
    """
    if not possible:
        return None, "there are no two results of which one is faster than the other"
    within = [p for p in possible if _keeps(p, constraints, baseline_ms)]
    if not within:
        return None, f"none of {len(possible)} ways to join two results keeps the bounds of the study"
    gains = [gain((p.drop, p.size_ratio, p.latency_ratio), front) for p in within]
    best = int(np.argmax(gains))
    if gains[best] < MIN_GAIN:
        return None, f"none of {len(possible)} ways to join two results is expected to enter the front"
    return within[best], ""


def pairs(stages: Sequence[Stage], drop_of: Callable[[np.ndarray], float]) -> Iterator[Pair]:
    """Every two networks of which the first is faster, with every threshold of `SHARES`."""
    for first in stages:
        shares = {float(t): float(np.mean(first.confidence < t)) for t in _thresholds(first.confidence)}
        thresholds = {t: share for t, share in shares.items() if 0 < share < 1}  # equal confidences are not told apart
        for second in stages:
            if first.latency_ratio >= second.latency_ratio:
                continue
            for threshold, passed_on in thresholds.items():
                yield Pair(
                    first=first.trial,
                    second=second.trial,
                    threshold=threshold,
                    passed_on=passed_on,
                    drop=drop_of(joined_outputs(first, second, threshold)),
                    size_bytes=first.size_bytes + second.size_bytes,
                    size_ratio=first.size_ratio + second.size_ratio,
                    latency_ratio=first.latency_ratio + _ASKING + passed_on * second.latency_ratio,
                )


def joined_outputs(first: Stage, second: Stage, threshold: float) -> np.ndarray:
    """What a cascade answers, [n, classes]."""
    unsure = first.confidence < np.float32(threshold)
    outputs: np.ndarray = np.where(unsure[:, None], second.outputs, first.outputs)
    return outputs


def stream_rows(confidence: np.ndarray, count: int) -> list[int]:
    """Samples of which each first part passes on about as large a share as all samples do, whatever the threshold.

    Each comes once. Their confidences go over the ranks as multiples of the golden ratio go over [0, 1).

    Args:
        confidence: [n].
        count: at most so many.
    """
    ranked = np.argsort(confidence, kind="stable")
    places = np.argsort(np.argsort(np.arange(1, len(ranked) + 1) * _GOLDEN % 1))
    return [int(row) for row in ranked[places[:count]]]


def _thresholds(confidence: np.ndarray) -> np.ndarray:
    """Between two samples' confidences, so that about each of `SHARES` is below; at most 1, each once."""
    ordered = np.sort(confidence)
    places = np.clip((np.array(SHARES) * len(ordered)).astype(int), 1, len(ordered) - 1)
    middle = (ordered[places - 1].astype(np.float64) + ordered[places]) / 2
    return np.unique(np.clip(middle, 1e-6, 1.0).astype(np.float32))


def _keeps(pair: Pair, constraints: Constraints, baseline_ms: float) -> bool:
    return (
        (constraints.max_drop is None or pair.drop <= constraints.max_drop)
        and (constraints.max_size is None or pair.size_bytes <= constraints.max_size)
        and (constraints.max_latency is None or pair.latency_ratio * baseline_ms <= constraints.max_latency)
    )
