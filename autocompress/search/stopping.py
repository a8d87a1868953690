"""Whether a plan is worth training, once its size and latency are known and only its accuracy is not.

Two of three objectives are exact before any training. A trial is stopped when even the best accuracy
it could have would not bring it onto the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.front.hypervolume import Floats, gain
from autocompress.plan import CompressionPlan

LONGER = 0.25  # of a drop is left at best, if the last stage trains on for eight times as long
MARGIN = 0.005  # a more compressed plan may be this much better than a less compressed one, by luck of training
RUNG_SHARE = 0.4  # of a training
_FEW = 4  # trained trials before a rung can stop anything
_TRIED, _WORTH = 10, 0.1  # looks until it is asked whether they stop enough; a look costs about 5 % of a training
_OPTIMISM = 1.64  # standard deviations
MIN_GAIN = 1e-4  # of the hypervolume; less is within the noise of a latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A trained trial: its plan and where it stands. `drop` is negative when it is better; ratios to the baseline."""

    trial: int
    plan: CompressionPlan
    drop: float
    size_ratio: float
    latency_ratio: float


def points_of(rivals: Sequence[Rival]) -> Floats:
    """(drop, size ratio, latency ratio) of each, [n, 3]."""
    return np.array([(r.drop, r.size_ratio, r.latency_ratio) for r in rivals]).reshape(-1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Bounds on an artifact; None is no bound."""

    max_drop: float | None = None
    max_size: int | None = None
    max_latency: float | None = None

    @property
    def bounds_file(self) -> bool:
        """Whether size or latency is bounded, both of which are known before a training."""
        return self.max_size is not None or self.max_latency is not None

    @property
    def is_goal(self) -> bool:
        """Whether one good file is asked for, small or fast and accurate at once, rather than a front of several."""
        return self.max_drop is not None and self.bounds_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """What a drop seen part of the way through a training says of the drop at its end.

    Attributes:
        share: of the training after which it is looked at.
        hope: the share of the drop that an optimist expects to be left at the end.
    """

    share: float = RUNG_SHARE
    hope: float = 0.0


def learn_rung(seen: Sequence[tuple[float, float]], *, tried: int = 0, stopped: int = 0) -> Rung | None:
    """The rung after trials that were trained to their end; None: it stops too few to be looked at any more.

    A sampler that knows sizes and latencies proposes hardly anything hopeless; one that does not often does.

    Args:
        seen: (drop at the rung, drop at the end) of each; until there are `_FEW` of them nothing is stopped.
        tried: number of proposals that were looked at; `stopped`: how many of them ended there.
    """
    if tried >= _TRIED and stopped < _WORTH * tried:
        return None
    left = _left(seen)
    if len(left) < _FEW:
        return Rung()
    return Rung(hope=max(0.0, float(np.mean(left)) - _OPTIMISM * float(np.std(left, ddof=1))))


def foreseen(at_rung: float, seen: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Drop that a training ended at its rung would have come to, and its standard deviation; None: too few tell.

    Args:
        seen: as `learn_rung` takes it.
    """
    left = _left(seen)
    if len(left) < _FEW:
        return None
    return at_rung * float(np.mean(left)), at_rung * float(np.std(left, ddof=1))


def _left(seen: Sequence[tuple[float, float]]) -> list[float]:
    """Share of the drop at the rung that was left at the end, of each training that tells."""
    return [min(max(end, 0.0) / at_rung, 2.0) for at_rung, end in seen if at_rung > MARGIN]


def hopeless(at_rung: float, rung: Rung, *, cheap: tuple[float, float], rivals: Sequence[Rival]) -> str:
    """Why a training should end at its rung; empty if it should go on.

    Args:
        at_rung: drop seen there.
        cheap: (size ratio, latency ratio) of the file.
    """
    drop = max(0.0, at_rung * rung.hope - MARGIN)
    if drop == 0 or gain((drop, *cheap), points_of(rivals)) >= MIN_GAIN:
        return ""
    return f"after {rung.share:.0%} of its training it lost {at_rung:.4f}; {drop:.4f} at best would not enter the front"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether to train. `infeasible`: a constraint rules the plan out whatever its accuracy."""

    train: bool
    infeasible: bool = False
    reason: str = ""


def optimistic_drop(plan: CompressionPlan, rivals: Sequence[Rival]) -> float:
    """The smallest accuracy drop the plan can hope for, from trained plans that compress less everywhere.

    Removing and rounding more does not help, but a longer training does (`LONGER`), and so does luck (`MARGIN`);
    without such a rival the hope is no drop at all. Of plans of one structure the best tells what it can reach, and one
    that was not trained tells nothing of what training repairs.
    """
    reached: dict[str, Rival] = {}
    for rival in sorted((r for r in rivals if r.plan.trains), key=lambda r: -r.drop):
        reached[rival.plan.structure_key()] = rival
    return max([0.0, *(LONGER * r.drop - MARGIN for r in reached.values() if plan.compresses_at_least(r.plan))])


def broken_bound(size_bytes: float, latency_ms: float, constraints: Constraints) -> str:
    """Which bound a file of these bytes and this latency breaks; empty if none."""
    if constraints.max_size is not None and size_bytes > constraints.max_size:
        return f"{size_bytes} bytes exceed {constraints.max_size}"
    if constraints.max_latency is not None and latency_ms > constraints.max_latency:
        return f"{latency_ms:.4g} ms exceed {constraints.max_latency:.4g} ms"
    return ""


def judge(
    plan: CompressionPlan,
    *,
    size_bytes: int,
    latency_ms: float,
    size_ratio: float,
    latency_ratio: float,
    rivals: Sequence[Rival],
    constraints: Constraints,
) -> Verdict:
    """Train, stop or rule out a plan whose file was weighed and timed.

    Args:
        size_ratio, latency_ratio: to the baseline.
        rivals: every trained trial of the study.
    """
    if reason := broken_bound(size_bytes, latency_ms, constraints):
        return Verdict(train=False, infeasible=True, reason=reason)
    twin = next((r.trial for r in rivals if plan.same_as(r.plan)), None)
    if twin is not None:
        return Verdict(train=False, reason=f"the same plan as trial {twin}")
    if not plan.trains:
        return Verdict(train=True)
    drop = optimistic_drop(plan, rivals)
    if constraints.max_drop is not None and drop > constraints.max_drop:
        return Verdict(train=False, reason=f"less compressed plans already lose {drop:.4f}, more than allowed")
    if gain((drop, size_ratio, latency_ratio), points_of(rivals)) < MIN_GAIN:
        best = f"even at a drop of {drop:.4f}" if drop > 0 else "even without any loss"
        return Verdict(train=False, reason=f"{best} it would not enter the front")
    return Verdict(train=True)
