"""What a result is worth in a study with bounds: hypervolume within them counts in full, any other a tenth.

A file that breaks a bound takes nothing away from one that keeps it: however small and accurate it is, nobody who
set the bound can use it. Where one file is asked for that keeps them all, the best one is all that counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.front.hypervolume import Floats, gain
from autocompress.front.pareto import non_dominated
from autocompress.records import Measurement
from autocompress.search.stopping import Constraints, Rival, broken_bound, points_of
from autocompress.search.surrogate import SUREST

Point = tuple[float, float, float]
_BEYOND = 0.1  # what hypervolume beyond the bounds is worth
_UNSURE = 0.25  # standard deviation of a drop after a training that is foreseen, relative


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What there is already, against which something new is weighed; points are (drop, size ratio, latency ratio).

    Attributes:
        whole: front of everything, [n, 3].
        within: front of what keeps the bounds, [m, 3].
        max_drop: the bound on the drop; size and latency are known before a training, and what breaks theirs is not
            weighed at all.
    """

    whole: Floats
    within: Floats
    max_drop: float | None = None

    def of(self, point: Point) -> float:
        """What a plan is expected to add that keeps the bounds on size and latency; its drop is foreseen."""
        if self.max_drop is None and self.within is self.whole:
            return gain(point, self.whole)
        return _BEYOND * gain(point, self.whole) + (1 - _BEYOND) * self._chance(point[0]) * gain(point, self.within)

    def joined(self, point: Point) -> Worth:
        """With that point in it."""
        whole = np.vstack([self.whole, point])
        if self.within is self.whole:
            return Worth(whole=whole, within=whole, max_drop=self.max_drop)
        kept = self.max_drop is None or point[0] <= self.max_drop
        within = np.vstack([self.within, point]) if kept else self.within
        return Worth(whole=whole, within=within, max_drop=self.max_drop)

    def _chance(self, drop: float) -> float:
        """That a drop which is foreseen stays within the bound."""
        if self.max_drop is None or drop <= 0:
            return 1.0
        return float(chance_below(self.max_drop, np.array(drop), np.array(_UNSURE * drop)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What there is already where one file is asked for; `best`: the value of the best one."""

    max_drop: float
    noise: float
    best: float = 0.0

    def of(self, point: Point) -> float:
        """By how much a plan is expected to be better than what there is; its drop is foreseen."""
        return max(0.0, self._value(point) - self.best)

    def joined(self, point: Point) -> Goal:
        """With that point among what there is."""
        return replace(self, best=max(self.best, self._value(point)))

    def _value(self, point: Point) -> float:
        one = np.array([point])
        return float(goal_values(one[:, 0], one[:, 1:], max_drop=self.max_drop, noise=self.noise)[0])


def goal_values(drop: Floats, cheap: Floats, *, max_drop: float, noise: float, unsure: float = _UNSURE) -> Floats:
    """What files are worth whose size and latency keep the bounds of a goal, [n].

    It is the chance that the drop stays within its bound on data that nothing was chosen on, and half of that again
    for being as small and fast as can be: whoever sets bounds wants them kept first of all.

    Args:
        drop: [n], foreseen or measured; `cheap`: [n, 2] of (size ratio, latency ratio).
        noise: standard deviation of a measured drop.
        unsure: of a drop that is foreseen, relative; 0 for those that were measured.
    """
    spread = np.maximum(np.hypot(unsure * np.maximum(drop, 0.0), noise), SUREST)
    left: Floats = np.prod(1 - np.minimum(cheap, 1.0), axis=1)
    return chance_below(max_drop, drop, spread) * (1 + left) / 2


def chance_below(bound: float, mean: Floats, sd: Floats) -> Floats:
    """Chance that each of the normal variables stays below the bound, by the logistic curve that is nearly its own."""
    chance: Floats = 1 / (1 + np.exp(np.minimum(1.7 * (mean - bound) / sd, 700.0)))
    return chance


def worth_beside(
    rivals: Sequence[Rival], files: Mapping[int, Measurement], bounds: Constraints, *, noise: float = 0.0
) -> Worth | Goal:
    """What is worth anything beside these trials.

    Args:
        files: of the trials as measured; one that is not among them counts as keeping the bounds on its file.
        noise: standard deviation of a measured drop.
    """
    if bounds.is_goal and bounds.max_drop is not None:
        for_file = replace(bounds, max_drop=None)
        points = points_of([r for r in rivals if keeps(r, files.get(r.trial), for_file)])
        values = goal_values(points[:, 0], points[:, 1:], max_drop=bounds.max_drop, noise=noise, unsure=0.0)
        return Goal(max_drop=bounds.max_drop, noise=noise, best=float(values.max(initial=0.0)))
    whole = _front(rivals)
    if bounds == Constraints():
        return Worth(whole=whole, within=whole)
    kept = [r for r in rivals if keeps(r, files.get(r.trial), bounds)]
    return Worth(whole=whole, within=_front(kept), max_drop=bounds.max_drop)


def keeps(rival: Rival, file: Measurement | None, bounds: Constraints) -> bool:
    """Whether a trial is within all bounds."""
    if bounds.max_drop is not None and rival.drop > bounds.max_drop:
        return False
    return file is None or not broken_bound(file.size_bytes, file.latency.latency_ms, bounds)


def _front(rivals: Sequence[Rival]) -> Floats:
    points = points_of(rivals)
    return points[non_dominated(points)]
