"""Whether a plan is worth training, once its size and latency are known and only its accuracy is not.

Two of three objectives are exact before any training. A trial is stopped when even the best accuracy
it could have would not bring it onto the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.front.hypervolume import gain
from autocompress.plan import CompressionPlan

MARGIN = 0.005  # a more compressed plan may be this much better than a less compressed one, by luck of training
MIN_GAIN = 1e-4  # of the hypervolume; less is within the noise of a latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A trained trial: its plan and where it stands. `drop` as in the hypervolume; ratios to the baseline."""

    trial: int
    plan: CompressionPlan
    drop: float
    size_ratio: float
    latency_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Bounds on an artifact; None is no bound."""

    max_drop: float | None = None
    max_size: int | None = None
    max_latency: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether to train. `infeasible`: a constraint rules the plan out whatever its accuracy."""

    train: bool
    infeasible: bool = False
    reason: str = ""


def optimistic_drop(plan: CompressionPlan, rivals: Sequence[Rival]) -> float:
    """The smallest accuracy drop the plan can hope for, from trained plans that compress less everywhere.

    Removing and rounding more does not help, but for `MARGIN`; without such a rival the hope is no drop at all.
    """
    return max([0.0, *(r.drop - MARGIN for r in rivals if plan.compresses_at_least(r.plan))])


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
    if constraints.max_size is not None and size_bytes > constraints.max_size:
        return Verdict(train=False, infeasible=True, reason=f"{size_bytes} bytes exceed {constraints.max_size}")
    if constraints.max_latency is not None and latency_ms > constraints.max_latency:
        return Verdict(
            train=False, infeasible=True, reason=f"{latency_ms:.4g} ms exceed {constraints.max_latency:.4g} ms"
        )
    twin = next((r.trial for r in rivals if plan.same_as(r.plan)), None)
    if twin is not None:
        return Verdict(train=False, reason=f"the same plan as trial {twin}")
    if not plan.trains:
        return Verdict(train=True)
    drop = optimistic_drop(plan, rivals)
    if constraints.max_drop is not None and drop > constraints.max_drop:
        return Verdict(train=False, reason=f"less compressed plans already lose {drop:.4f}, more than allowed")
    front = np.array([(r.drop, r.size_ratio, r.latency_ratio) for r in rivals]).reshape(-1, 3)
    if gain((drop, size_ratio, latency_ratio), front) < MIN_GAIN:
        best = f"even at a drop of {drop:.4f}" if drop > 0 else "even without any loss"
        return Verdict(train=False, reason=f"{best} it would not enter the front")
    return Verdict(train=True)
