"""Other roundings of networks that are trained already: the same widths and blocks with fewer or more bits.

A training is what a trial costs; rounding its network otherwise needs a short one. How large the file becomes is
known beforehand, so those variants are tried that would add most if they lost no more than their parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.front.pareto import non_dominated
from autocompress.plan import CompressionPlan
from autocompress.records import TrialRecord
from autocompress.search.cost import SizeModel
from autocompress.search.options import Options
from autocompress.search.stopping import MIN_GAIN, Constraints, Rival, broken_bound, points_of
from autocompress.search.worth import worth_beside
from autocompress.space.search_space import SearchSpace

_MORE_BITS = 0.8  # of the drop is left, at best, where every layer gets more bits
_ENOUGH = 8  # bits: all that integer activations allow, and floats lose nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A plan that differs from its parent's in bits alone, and what it may add."""

    plan: CompressionPlan
    parent: int
    gain: float


def best_variant(
    space: SearchSpace,
    trials: Sequence[TrialRecord],
    rivals: Sequence[Rival],
    constraints: Constraints | None = None,
    *,
    noise: float = 0.0,
) -> Variant | None:
    """The variant of a network on the front that may add most; None if none would add anything.

    Args:
        trials: all of the study's: their files say how large another one would be, and none is tried twice.
        rivals: every trained trial, with its drop and ratios.
        constraints: what is slower or larger than allowed is left out, what loses more counts for little.
        noise: standard deviation of a measured drop.
    """
    bounds = constraints or Constraints()
    choices = sorted(space.config.weight_bits)
    options, weights = Options(space), {layer.name: layer.weights for layer in space.facts.layers}
    files = {t.trial: t.measurement for t in trials if t.measurement}
    worth = worth_beside(rivals, files, bounds, noise=noise)
    tried = {t.plan.structure_key() for t in trials}
    found: list[Variant] = []
    for rival, on_front in zip(rivals, non_dominated(points_of(rivals)), strict=True):
        if not (on_front and rival.plan.trains):
            continue
        for bits, left in other_bits(rival.plan.weight_bits, choices, weights):
            plan = replace(rival.plan, weight_bits=bits)
            if plan.structure_key() in tried:
                continue
            file = files[rival.trial]
            predicted = _predicted_bytes(options, plan, rival.plan, file.size_bytes)
            if broken_bound(round(predicted), file.latency.latency_ms, bounds):
                continue
            point = (left * max(0.0, rival.drop), rival.size_ratio * predicted / file.size_bytes, rival.latency_ratio)
            found.append(Variant(plan=plan, parent=rival.trial, gain=worth.of(point)))
    best = max(found, key=lambda v: v.gain, default=None)
    return None if best is None or best.gain < MIN_GAIN else best


def other_bits(
    bits: Mapping[str, int], choices: Sequence[int], weights: Mapping[str, int]
) -> list[tuple[dict[str, int], float]]:
    """Bits one step lower in all layers, in those that hold half of the weights, and one step higher in all.

    With each the share of the parent's drop that is left at best. No layer gets more than 8 bits in place of fewer:
    from there on rounding costs nothing, and the file only grows.

    Args:
        bits: of each layer. choices: ascending. weights: number of weights of each layer.
    """
    largest = sorted(bits, key=lambda n: -weights.get(n, 0))
    half = sum(weights.get(n, 0) for n in bits) / 2
    heavy = {n for i, n in enumerate(largest) if sum(weights.get(m, 0) for m in largest[:i]) < half}
    lower = {n: max((c for c in choices if c < b), default=b) for n, b in bits.items()}
    higher = {n: min((c for c in choices if b < c <= _ENOUGH), default=b) for n, b in bits.items()}
    partly = {n: lower[n] if n in heavy else b for n, b in bits.items()}
    options = [(lower, 1.0), (partly, 1.0), (higher, _MORE_BITS)]
    return [(dict(found), left) for found, left in options if found != dict(bits)]


def _predicted_bytes(options: Options, plan: CompressionPlan, parent: CompressionPlan, parent_bytes: int) -> float:
    """Bytes of a variant's file: its weights by arithmetic, the graph as in its parent's."""
    model = SizeModel(options)
    model.observe(options.encode([parent]), np.array([parent_bytes], float))
    return float(model.predict(options.encode([plan]))[0])
