"""A plan in a few numbers, and how much each of them explains of what came out.

A plan of forty layers has eighty parameters; these dials are what people ask about. `influence` works on dials and on
raw parameters alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autocompress.records import ModelFacts, TrialRecord

_BINS = 6  # of equal counts, for a parameter with more values than these
_LEAST = 8  # trials


def dials(trial: TrialRecord, facts: ModelFacts | None) -> dict[str, float | str]:
    """The plan of a trial: shares 0 to 1, mean bits per weight, blocks, activations, and the recovery's settings."""
    plan = trial.plan
    channels = {g.name: g.channels for g in facts.groups} if facts else dict.fromkeys(plan.prune_ratio, 1)
    weights = {n.name: n.weights for n in facts.layers} if facts else dict.fromkeys(plan.weight_bits, 1)
    removed = sum(plan.prune_ratio.get(g, 0.0) * c for g, c in channels.items())
    ranks = {"layers factored": sum(r > 0 for r in plan.rank_ratio.values())} if plan.rank_ratio else {}
    return {
        **ranks,
        "channels removed": removed / max(sum(channels.values()), 1),
        "bits per weight": sum(plan.weight_bits.get(n, 32) * w for n, w in weights.items())
        / max(sum(weights.values()), 1),
        "blocks removed": len(plan.removed_blocks),
        "activations": plan.activations,
        "importance": plan.importance,
        "temperature": plan.distill.temperature,
        "distill weight": plan.distill.weight,
        "learning rate": plan.learning_rate,
        "training, s": trial.trained_s,
    }


def parameters(trial: TrialRecord) -> dict[str, Any]:
    """The raw parameters of a plan, under their lasting names."""
    plan = trial.plan
    found: dict[str, Any] = {f"prune_ratio/{g}": r for g, r in plan.prune_ratio.items()}
    found |= {f"weight_bits/{n}": b for n, b in plan.weight_bits.items()}
    found |= {f"rank_ratio/{n}": r for n, r in plan.rank_ratio.items()}
    return found


def influence(rows: Sequence[Mapping[str, Any]], target: Sequence[float]) -> list[tuple[str, float]]:
    """Share of the target's variance that each parameter explains alone, largest first.

    Omega squared of a one-way analysis of variance; a number with many values is cut into bins of equal counts. The
    search chooses where it looks, so parameters go together and the shares do not add up to 1.

    Args:
        rows: parameters per trial; one that a trial does not have counts as a value of its own.
        target: what came out, of the same length.
    Returns:
        Parameters that varied; empty below 8 trials or where the target did not vary.
    Source: Hays 1963; the correction makes 0 the expectation where nothing is explained.
    """
    values = np.asarray(target, float)
    if len(values) < _LEAST or np.ptp(values) == 0:
        return []
    names = sorted({name for row in rows for name in row})
    shares = [(name, _omega_squared(_levels([row.get(name) for row in rows]), values)) for name in names]
    found = [(name, share) for name, share in shares if share is not None]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _levels(values: Sequence[Any]) -> np.ndarray:
    """A whole number per value: its category, or its bin."""
    distinct = set(values)
    numbers = [v for v in values if isinstance(v, int | float)]
    if len(distinct) > _BINS and len(numbers) == len(values):
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, _BINS + 1)[1:-1]))
        return np.searchsorted(edges, np.asarray(numbers, float), side="right")
    order = {value: i for i, value in enumerate(sorted(distinct, key=str))}
    return np.array([order[v] for v in values])


def _omega_squared(levels: np.ndarray, values: np.ndarray) -> float | None:
    kinds, counts = np.unique(levels, return_counts=True)
    if len(kinds) < 2 or len(values) <= len(kinds):
        return None
    means = np.array([values[levels == kind].mean() for kind in kinds])
    total = float(np.square(values - values.mean()).sum())
    between = float((counts * np.square(means - values.mean())).sum())
    within = (total - between) / (len(values) - len(kinds))
    return max(0.0, (between - (len(kinds) - 1) * within) / (total + within))
