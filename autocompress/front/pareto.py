"""Which points no other point beats: the exact non-dominated mask for up to three objectives.

All objectives are minimised; a caller who maximises negates. Nothing here knows what the
objectives mean.

A worked miniature: of (1, 4), (2, 2), (2, 3), (2, 2) the third loses to the second (equal, and 2 < 3).
The two equal points do not beat each other, so both stay: `[True, True, False, True]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]
_MAX_PIVOTS = 8
_FEW = 100


def non_dominated(values: ArrayLike) -> Flags:
    """Mark the points that no other point dominates.

    A point dominates another if it is nowhere larger and somewhere smaller; equal points do not
    dominate each other. O(n log n) in time whatever the share of points on the front.

    Args:
        values: [points, objectives], one to three objectives, all minimised; infinities are ordered as usual.
    Returns:
        [points], True where the point is on the front.
    Raises:
        ValueError: not two-dimensional, more than three objectives, or a NaN, which has no order.
    Source: Kung, Luccio and Preparata 1975, "On finding the maxima of a set of vectors" (divide and conquer).
    """
    axes = _checked(values)
    mask = np.zeros(axes.shape[1], dtype=bool)
    alive = _prefilter(axes)
    mask[alive[_exact(axes[:, alive])]] = True
    return mask


def dominates(left: ArrayLike, right: ArrayLike) -> bool:
    """Whether point `left` [objectives] is nowhere larger than `right` and somewhere smaller."""
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    return bool(np.all(a <= b) and np.any(a < b))


def _checked(values: Any) -> Floats:
    """[3, points], missing objectives are 0: a reduction over the short first axis is ten times as fast."""
    points = np.asarray(values, dtype=np.float64)
    if points.size == 0:
        return np.zeros((3, len(points)))
    if points.ndim != 2 or not 1 <= points.shape[1] <= 3:
        raise ValueError(f"points must be [n, 1 to 3 objectives], got the shape {points.shape}")
    if np.isnan(points).any():
        raise ValueError("points must not contain NaN: it has no order; leave out what was not measured")
    axes = np.zeros((3, len(points)))
    axes[: points.shape[1]] = points.T
    return axes


def _prefilter(axes: Floats) -> Indices:
    """Indices that survive a few strong pivots: in most clouds this leaves next to nothing for the exact step."""
    alive = np.arange(axes.shape[1])
    sums = _scaled_sum(axes)
    for _ in range(_MAX_PIVOTS):
        if len(alive) < 256:
            break
        best = int(np.argmin(sums))
        pivot = axes[:, best : best + 1]
        beaten = (axes >= pivot).all(axis=0) & (axes > pivot).any(axis=0)
        if np.count_nonzero(beaten) * 20 < len(alive):
            break
        alive, axes, sums = alive[~beaten], axes[:, ~beaten], sums[~beaten]
        sums[(axes == pivot).all(axis=0)] = np.inf  # a pivot serves once
    return alive


def _scaled_sum(axes: Floats) -> Floats:
    half = np.clip(axes, -1e300, 1e300) / 2  # halves: the difference of two extremes may overflow
    low = half.min(axis=1, keepdims=True, initial=1e300)
    span = half.max(axis=1, keepdims=True, initial=-1e300) - low
    total: Floats = ((half - low) / np.where(span > 0, span, 1.0)).sum(axis=0)
    return total


def _exact(axes: Floats) -> Flags:
    if axes.shape[1] <= _FEW:
        return _pairwise(axes)
    order = _lexicographic(axes)
    ordered = axes[:, order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    distinct = ordered[:, is_first]
    kept = ~_beaten_by_earlier(distinct[1], distinct[2])
    mask = np.empty(len(order), dtype=bool)
    mask[order] = kept[np.cumsum(is_first) - 1]  # equal points share the verdict of the first
    return mask


def _pairwise(axes: Floats) -> Flags:
    """Every point against every other: for a few points the fixed cost of the sweep is larger."""
    left, right = axes[:, :, None], axes[:, None, :]
    beats = (left <= right).all(axis=0) & (left < right).any(axis=0)
    return np.logical_not(beats.any(axis=0), dtype=np.bool_)


def _lexicographic(axes: Floats) -> Indices:
    order: Indices = np.argsort(axes[0])
    first = axes[0, order]
    return order if (first[1:] > first[:-1]).all() else np.lexsort(axes[::-1])


def _beaten_by_earlier(y: Floats, z: Floats) -> Flags:
    """For distinct points in lexicographic order: whether an earlier one has y and z at most as large.

    Blocks of positions are halved level by level; within a block the points stay in order of y, so a
    running minimum of the left half's z answers for every point of the right half at once. Padding to a
    power of two makes every block a row of one array.
    """
    count = len(y)
    size = 1 << max(count - 1, 0).bit_length()
    depth = np.full(size, size, dtype=np.int64)  # ranks, so that "nothing yet" is above every z, also infinity
    depth[:count] = _ranks(z)
    beaten = np.zeros(size, dtype=bool)
    # A stable order: among equal y the earlier point comes first, so that it can beat the later one.
    rows = np.argsort(np.concatenate([y, np.full(size - count, np.inf)]), kind="stable").reshape(1, size)
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        in_right = rows & half  # half or 0
        is_left = in_right == 0
        depths = depth.take(rows)
        lowest = np.minimum.accumulate(depths + in_right * (size // half), axis=1)  # lifts the right above every z
        beaten[rows.ravel().compress(((lowest <= depths) > is_left).ravel())] = True
        left, right = rows.ravel().compress(is_left.ravel()), rows.ravel().compress(~is_left.ravel())
        rows = np.stack([left.reshape(-1, half), right.reshape(-1, half)], axis=1).reshape(-1, half)
    return beaten[:count]


def _ranks(values: Floats) -> Indices:
    """Position of each value among the distinct ones; equal values share it."""
    order = np.argsort(values)
    ordered = values[order]
    ranks = np.zeros(len(values), dtype=np.int64)
    ranks[order[1:]] = np.cumsum(ordered[1:] > ordered[:-1])
    return ranks
