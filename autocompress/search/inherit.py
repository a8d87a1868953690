"""Which trained network a new plan starts from: one that it can be cut out of, and that is nearest to it.

Training is what a short budget has least of. A plan that removes more than a trained one inherits what
that one has learned, and every second of training is used by all that come after it.
"""

from __future__ import annotations

from collections.abc import Iterable

from autocompress.plan import CompressionPlan
from autocompress.records import TrialRecord, TrialState

_BLOCK = 1.0  # groups that a removed block counts for
_SAME = 0.02  # mean shares removed that differ by less count as equal; then the longer training decides


def choose_parent(plan: CompressionPlan, trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The trained trial whose network contains the plan's and is nearest to it; None: start from the teacher."""
    found = [t for t in trials if t.state is TrialState.COMPLETE and t.plan.trains and _contains(t.plan, plan)]
    return min(found, key=lambda t: (round(_distance(t.plan, plan) / _SAME), -t.equivalent_s), default=None)


def _contains(parent: CompressionPlan, child: CompressionPlan) -> bool:
    ratios = child.prune_ratio
    gone = 1.0 if child.removed_blocks else 0.0  # a group that is not named went with a block
    narrower = all(ratios.get(group, gone) >= ratio for group, ratio in parent.prune_ratio.items())
    shorter = set(parent.removed_blocks) <= set(child.removed_blocks)
    fewer = all(child.rank_ratio.get(layer, gone) >= ratio for layer, ratio in parent.rank_ratio.items())
    alike = child.sparsity >= parent.sparsity and parent.importance == child.importance
    return narrower and shorter and fewer and alike


def _distance(parent: CompressionPlan, child: CompressionPlan) -> float:
    removed = [ratio - parent.prune_ratio.get(group, 0.0) for group, ratio in child.prune_ratio.items()]
    blocks = len(child.removed_blocks) - len(parent.removed_blocks)
    ranks = [ratio - parent.rank_ratio.get(layer, 0.0) for layer, ratio in child.rank_ratio.items()]
    return (sum(removed) + _BLOCK * blocks) / max(1, len(removed)) + sum(ranks) / max(1, len(ranks))
