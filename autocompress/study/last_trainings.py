"""How many trials the last stage trains further, and for how long each: many for a short time or few for a long one.

Both is foreseen from what training leaves of a loss, as in the search, so what a second of the last stage is worth can
be set against what the next proposal is expected to bring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.front.hypervolume import Floats, gain
from autocompress.search.stopping import BEYOND, Rival
from autocompress.search.surrogate import trained_on, training_factor

_UNSURE = 0.25  # standard deviation of a drop that is foreseen, relative
_LOOKED_AT = 12  # trials of the best prospects, when trainings are chosen together


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """A trial that may be trained further; `before_s`: seconds that its training so far is worth."""

    rival: Rival
    before_s: float


def prospect(trial: Trainable, front: Floats, *, seconds: float, max_drop: float | None = None) -> float:
    """Hypervolume that a trial is expected to add when it is trained for so many seconds more.

    One that would probably still lose more than `max_drop` counts for little.

    Args:
        front: [n, 3] of (drop, size ratio, latency ratio).
    """
    point = after(trial, seconds)
    return _share(point[0], max_drop) * gain(point, front)


def _share(drop: float, max_drop: float | None) -> float:
    """How much a gain counts: by the chance that the drop stays within the bound."""
    if max_drop is None or drop <= 0:
        return 1.0
    inside = 1 / (1 + math.exp(1.7 * (1 - max_drop / drop) / _UNSURE))  # the logistic curve that is nearly normal
    return BEYOND + (1 - BEYOND) * inside


def after(trial: Trainable, seconds: float) -> tuple[float, float, float]:
    """(drop, size ratio, latency ratio) that are expected after so many seconds of training more."""
    left = training_factor(trained_on(trial.before_s, seconds) / trial.before_s)
    return trial.rival.drop * left, trial.rival.size_ratio, trial.rival.latency_ratio


def divide(
    trials: Sequence[Trainable],
    front: Floats,
    *,
    seconds: float,
    beside_s: float,
    at_least_s: float,
    at_most_s: float,
    most: int,
    max_drop: float | None = None,
) -> tuple[float, int]:
    """(hypervolume that the last trainings are expected to add, how many there should be), of equal length.

    Args:
        seconds: for all of them; each takes `beside_s` beside its training, which is `at_least_s` to `at_most_s`.
        most: how many there may be.
    """
    value, best = 0.0, 0
    for count in range(1, min(most, len(trials), int(seconds / (at_least_s + beside_s))) + 1):
        added = _together(trials, front, count, min(at_most_s, seconds / count - beside_s), max_drop)
        if added > value:
            value, best = added, count
    return value, best


def _together(trials: Sequence[Trainable], front: Floats, count: int, seconds: float, max_drop: float | None) -> float:
    """What so many trainings add, chosen one after another as the last stage does."""
    alone = {i: prospect(trial, front, seconds=seconds, max_drop=max_drop) for i, trial in enumerate(trials)}
    left = sorted(alone, key=lambda i: -alone[i])[: max(count, _LOOKED_AT)]
    total = 0.0
    for _ in range(count):
        now = {i: prospect(trials[i], front, seconds=seconds, max_drop=max_drop) for i in left}
        best = max(left, key=lambda i: now[i])
        total += now[best]
        front = np.vstack([front, after(trials[best], seconds)])
        left.remove(best)
    return total
