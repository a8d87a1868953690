"""How many trials the last stage trains further, and for how long each: many for a short time or few for a long one.

Both is foreseen from what training leaves of a loss, as in the search, so what a second of the last stage is worth can
be set against what the next proposal is expected to bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.search.stopping import Rival
from autocompress.search.surrogate import trained_on, training_factor
from autocompress.search.worth import Goal, Point, Worth

_LOOKED_AT = 12  # trials of the best prospects, when trainings are chosen together


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """A trial that may be trained further; `before_s`: seconds that its training so far is worth."""

    rival: Rival
    before_s: float


def prospect(trial: Trainable, worth: Worth | Goal, *, seconds: float) -> float:
    """What a trial is expected to add to what there is, when it is trained for so many seconds more."""
    return worth.of(after(trial, seconds))


def after(trial: Trainable, seconds: float) -> Point:
    """(drop, size ratio, latency ratio) that are expected after so many seconds of training more."""
    left = training_factor(trained_on(trial.before_s, seconds) / trial.before_s)
    return trial.rival.drop * left, trial.rival.size_ratio, trial.rival.latency_ratio


def divide(
    trials: Sequence[Trainable],
    worth: Worth | Goal,
    *,
    seconds: float,
    beside_s: float,
    at_least_s: float,
    at_most_s: float,
    most: int,
) -> tuple[float, int]:
    """(what the last trainings are expected to add, how many there should be), of equal length.

    Args:
        seconds: for all of them; each takes `beside_s` beside its training, which is `at_least_s` to `at_most_s`.
        most: how many there may be.
    """
    value, best = 0.0, 0
    for count in range(1, min(most, len(trials), int(seconds / (at_least_s + beside_s))) + 1):
        added = _together(trials, worth, count, min(at_most_s, seconds / count - beside_s))
        if added > value:
            value, best = added, count
    return value, best


def _together(trials: Sequence[Trainable], worth: Worth | Goal, count: int, seconds: float) -> float:
    """What so many trainings add, chosen one after another as the last stage does."""
    alone = {i: prospect(trial, worth, seconds=seconds) for i, trial in enumerate(trials)}
    left = sorted(alone, key=lambda i: -alone[i])[: max(count, _LOOKED_AT)]
    total = 0.0
    for _ in range(count):
        now = {i: prospect(trials[i], worth, seconds=seconds) for i in left}
        best = max(left, key=lambda i: now[i])
        total += now[best]
        worth = worth.joined(after(trials[best], seconds))
        left.remove(best)
    return total
