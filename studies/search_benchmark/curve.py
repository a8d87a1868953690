"""What a run had found by a given moment, judged on test data.

A front is chosen by the validation values of the trials that had ended by then; its hypervolume is computed from their
test values, against the reference of the design (or another accuracy drop, to see how much the choice matters).
Accuracy only: a drop is a difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.front.hypervolume import REFERENCE, hypervolume, metric_drop
from autocompress.front.pareto import non_dominated

SHARES = (0.05, 0.10, 0.20, 0.35, 0.50, 0.75, 1.00)
DROP = REFERENCE["drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A complete trial: when it ended, its accuracies, and its bytes and latency as ratios to the dense artifact."""

    spent_s: float
    val: float
    test: float
    size_ratio: float
    latency_ratio: float


def chosen(points: Sequence[Point]) -> list[Point]:
    """The non-dominated points on validation accuracy, size and latency."""
    if not points:
        return []
    mask = non_dominated([(-p.val, p.size_ratio, p.latency_ratio) for p in points])
    return [point for point, on_front in zip(points, mask, strict=True) if on_front]


def hypervolume_on_test(points: Sequence[Point], baseline_test: float, *, drop: float = DROP) -> float:
    """Hypervolume on test data of the front that validation data chose among `points`.

    Args:
        baseline_test: test accuracy of the dense artifact.
        drop: of the reference point; 0.05 is the design's. Drops are scaled to it, so 1 is always the ideal.
    """
    return _volume(chosen(points), baseline_test, drop=drop, split="test")


def hypervolume_on_val(points: Sequence[Point], baseline_val: float, *, drop: float = DROP) -> float:
    """The same front on the data it was chosen on: what the search itself believed, and too good by that."""
    return _volume(chosen(points), baseline_val, drop=drop, split="val")


def at_shares(
    points: Sequence[Point],
    baseline_test: float,
    *,
    budget_s: float,
    shares: Sequence[float] = SHARES,
    drop: float = DROP,
) -> list[float]:
    """Test hypervolume of what had ended by each share of the budget; what ended after the budget never counts."""
    return [
        hypervolume_on_test([p for p in points if p.spent_s <= share * budget_s], baseline_test, drop=drop)
        for share in shares
    ]


def over_time(points: Sequence[Point], baseline_test: float, *, budget_s: float) -> list[tuple[float, float]]:
    """(seconds, test hypervolume) after every trial that ended within the budget."""
    ended = sorted((p for p in points if p.spent_s <= budget_s), key=lambda p: p.spent_s)
    return [(p.spent_s, hypervolume_on_test(ended[: i + 1], baseline_test)) for i, p in enumerate(ended)]


def first_reach(curve: Sequence[tuple[float, float]], target: float) -> float:
    """Seconds until a curve first is at the target; infinite if it never is.

    A target of 0 is no achievement, so nothing reaches it.
    """
    if target <= 0:
        return math.inf
    return next((seconds for seconds, value in curve if value >= target), math.inf)


def _volume(front: Sequence[Point], baseline: float, *, drop: float, split: str) -> float:
    scale = DROP / drop  # the volume's corner is fixed at DROP, so another reference stretches the axis
    rows = [
        (metric_drop(p.test if split == "test" else p.val, baseline) * scale, p.size_ratio, p.latency_ratio)
        for p in front
    ]
    return hypervolume(np.array(rows).reshape(-1, 3))
