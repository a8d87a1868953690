"""One number for a front: the exact volume of what it dominates, and who contributes how much of it.

Points are (drop, size ratio, latency ratio), all against the baseline and all minimised. The drop is
clipped at 0 from below, the reference is a drop of 0.05 at the baseline's size and latency, and the
result is divided by 0.05: no drop at no size in no time would be 1, the baseline alone is 0.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autocompress.front.pareto import non_dominated

Direction = Literal["maximize", "minimize"]
Floats = NDArray[np.float64]
REFERENCE = {"drop": 0.05, "size_ratio": 1.0, "latency_ratio": 1.0}
_NO_ERROR = 1e-12  # stands for a baseline without any error, of which nothing is a multiple: huge, and still finite
_MANY = 500
_CORNER = np.array(list(REFERENCE.values()))


def metric_drop(value: float, baseline: float, *, direction: Direction = "maximize") -> float:
    """How much worse than the baseline; negative when better.

    Args:
        value, baseline: the study's metric on the same data.
        direction: for "maximize" the drop is the difference, for "minimize" the relative increase.
    Raises:
        ValueError: an unknown direction.
    """
    if direction == "maximize":
        return baseline - value
    if direction != "minimize":
        raise ValueError(f"direction must be 'maximize' or 'minimize', got {direction!r}")
    return (value - baseline) / max(abs(baseline), _NO_ERROR)


def hypervolume(points: ArrayLike) -> float:
    """Share of the reference box that the points dominate, exactly.

    Args:
        points: [n, 3] of (drop, size ratio, latency ratio); a point beyond the reference adds nothing.
    Returns:
        From 0 to 1.
    Raises:
        ValueError: not [n, 3], or a NaN.
    Source: Beume et al. 2009, doi:10.1109/TEVC.2009.2015575 (the sweep in three dimensions).
    """
    return _volume(_inside(points))


def gain(point: ArrayLike, front: ArrayLike) -> float:
    """Hypervolume that `point` [3] would add to `front` [n, 3]; 0 where it is dominated or beyond the reference."""
    box = _inside(np.asarray(point, dtype=np.float64).reshape(1, -1))
    if not len(box):
        return 0.0
    return _exclusive(box[0], _inside(front))


def expected_gain(mean: ArrayLike, sd: ArrayLike, cheap: ArrayLike, front: ArrayLike) -> Floats:
    """Hypervolume that candidates are expected to add, exactly, when only their drop is uncertain.

    With A(y) the area that a candidate's size and latency add to the front's points of a drop of at most y,
    the gain at drop d is the integral of A from d to the reference; A is a staircase, and the integral of
    P(d <= y) over each step has a closed form.

    Args:
        mean, sd: of each candidate's Gaussian drop, [n]; sd above 0.
        cheap: [n, 2] size and latency ratios.
        front: [m, 3] as in `gain`.
    Returns:
        [n], never negative.
    Source: Emmerich et al. 2011, doi:10.1109/CEC.2011.5949880, with two of three objectives known.
    """
    means, sds = np.asarray(mean, float), np.asarray(sd, float)
    inside = _inside(front)
    inside = inside[np.argsort(inside[:, 0], kind="stable")] / _CORNER
    levels = np.concatenate([[0.0], inside[:, 0], [1.0]]) * _CORNER[0]
    chances = _chance_integral(levels[None], means[:, None], sds[:, None])  # [n, m + 2]
    steps = np.diff(chances, axis=1)
    areas = _areas(np.asarray(cheap, float).reshape(-1, 2), inside[:, 1:])
    expected: Floats = (areas * steps).sum(1) / _CORNER[0]
    return expected


def _areas(cheap: Floats, others: Floats) -> Floats:
    """Area of the unit square that boxes at `cheap` [n, 2] add to the first 0, 1, ... m of `others` [m, 2], [n, m + 1].

    Between two neighbouring x of the others, what the first k of them leave free is as high as the lowest of them
    that begins at the left of it.
    """
    order = np.argsort(others[:, 0], kind="stable")
    edges = np.concatenate([[0.0], others[order, 0], [1.0]])
    there = order[None] < np.arange(len(others) + 1)[:, None]  # of the first k
    heights = np.where(there, others[order, 1], 1.0)
    ceilings = np.minimum.accumulate(np.concatenate([np.ones((len(heights), 1)), heights], axis=1), axis=1)
    spans = np.maximum(edges[1:] - np.maximum(edges[:-1], cheap[:, :1]), 0.0)  # [n, m + 1]
    free: Floats = np.array(
        [np.maximum(ceilings - y, 0.0) @ span for y, span in zip(cheap[:, 1], spans, strict=True)]
    ).reshape(len(cheap), len(others) + 1)
    return free


def _chance_integral(y: Floats, mean: Floats, sd: Floats) -> Floats:
    """Integral of P(d <= t) from minus infinity to `y` for a Gaussian d."""
    u = (y - mean) / sd
    density = np.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
    integral: Floats = sd * (u * _normal_cdf(u) + density)
    return integral


def _normal_cdf(u: Floats) -> Floats:
    """P(z <= u), exact to the last digits; a table or a polynomial would not be."""
    erfc = math.erfc
    return np.array([0.5 * erfc(v) for v in (u * -(0.5**0.5)).ravel().tolist()]).reshape(u.shape)


def contributions(points: ArrayLike) -> Floats:
    """Hypervolume that is lost when one point is left out, for each of the points [n, 3].

    A point that occurs twice contributes nothing: its twin covers the same volume.

    Returns:
        [n], never negative.
    """
    clipped = _clipped(points)
    shares = np.zeros(len(clipped))
    unique, inverse, counts = np.unique(clipped, axis=0, return_inverse=True, return_counts=True)
    on_front = non_dominated(unique) & (unique < _CORNER).all(axis=1)
    for index in np.flatnonzero(on_front & (counts == 1)):
        others = np.delete(unique, index, axis=0)  # the dominated ones too: they cover what this one hides
        shares[inverse.reshape(-1) == index] = _exclusive(unique[index], _inside(others))
    return shares


def _clipped(points: ArrayLike) -> Floats:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 3))
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"points must be [n, 3] of (drop, size ratio, latency ratio), got the shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError("points must not contain NaN; leave out what was not measured")
    return np.maximum(array, 0.0)


def _inside(points: ArrayLike) -> Floats:
    clipped = _clipped(points)
    return clipped[(clipped < _CORNER).all(axis=1)]


def _exclusive(point: Floats, others: Floats) -> float:
    """Volume of the point's box less what the others cover of it."""
    box = float(np.prod((_CORNER - point) / _CORNER))
    return max(0.0, box - _volume(np.maximum(others, point)))


def _volume(points: Floats) -> float:
    """Sweep along the last axis and keep the area of a staircase in the first two.

    The staircase holds x increasing and y decreasing; both lists are bracketed by sentinels, so an
    inserted point always has neighbours. Scaled to the unit cube with the reference at (1, 1, 1).
    """
    if not len(points):
        return 0.0
    scaled = points / _CORNER
    if len(scaled) > _MANY:  # the sweep passes over dominated points by itself, only slower
        scaled = scaled[non_dominated(scaled)]
    scaled = scaled[np.argsort(scaled[:, 2], kind="stable")]
    xs, negated_ys = [-np.inf, 1.0], [-1.0, np.inf]
    volume = area = 0.0
    previous_z = 0.0
    for x, y, z in scaled.tolist():
        volume += area * (z - previous_z)
        previous_z = z
        area += _insert(xs, negated_ys, x, y)
    return float(volume + area * (1.0 - previous_z))


def _insert(xs: list[float], negated_ys: list[float], x: float, y: float) -> float:
    """Add a corner to the staircase and return the area it gains; corners it covers are removed."""
    after = bisect_right(xs, x)  # the first corner strictly to the right
    if -negated_ys[after - 1] <= y:  # the corner at the left, or at the same x, is already as low
        return 0.0
    first = bisect_left(xs, x)  # a corner at the same x and above is covered too
    last = bisect_right(negated_ys, -y, first)  # corners from here on are lower than y
    gained, level, left = 0.0, -negated_ys[first - 1], x
    for index in range(first, last):
        gained += (xs[index] - left) * (level - y)
        level, left = -negated_ys[index], xs[index]
    gained += (xs[last] - left) * (level - y)
    xs[first:last], negated_ys[first:last] = [x], [-y]
    return gained
