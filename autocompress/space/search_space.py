"""The space of plans: names and ranges of every parameter, and the way from parameters to a plan and back.

Two views of the same plans. *Raw*: one prune ratio per group, one bit width per layer, and the
settings of the recovery, under names that never change. *Knobs*: a handful of shared dials that are
decoded to a full plan, for samplers that have few trials to learn from; they remove no blocks.

Plans of one space that make the same network are equal: what is inside of a removed block is not
named, neither its layers in `weight_bits` nor the groups entirely inside in `prune_ratio`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from autocompress.config import SpaceConfig
from autocompress.plan import Activations, CompressionPlan, DistillPlan, Rounding, SparsityKind, kept_of
from autocompress.records import GroupFacts, ModelFacts

_COMPANIONS = ("hints", "attention", "mean_teacher")
# Uniform plans that everybody would try, the most telling first: (share removed, bits).
SWEEP = (
    (0.5, 4), (0.3, 4), (0.7, 4), (0.0, 4), (0.5, 8), (0.3, 3), (0.6, 4),
    (0.4, 4), (0.7, 3), (0.5, 3), (0.15, 4), (0.7, 8), (0.3, 8), (0.2, 3),
)  # fmt: skip


_SAVED = (0.7, 0.9)  # shares of a layer that is factored without being asked for
_MATMUL_SHARE = 0.5  # of the multiply-accumulates, from which on dynamic integers are tried: they do nothing for convs


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One dimension: `choices`, or a float from `low` to `high` in steps of `step` (None: continuous)."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What a study searches: the ranges of the study file over the layers and groups of the model."""

    config: SpaceConfig
    facts: ModelFacts

    @property
    def activations(self) -> tuple[Activations, ...]:
        """The kinds that are searched: dynamic integers only where matrix products do most of the work.

        A study that asks for nothing else gets them.
        """
        fits = matmul_share(self.facts) >= _MATMUL_SHARE
        return tuple(a for a in self.config.activations if a != "dynamic" or fits) or self.config.activations

    @property
    def roundings(self) -> tuple[Rounding, ...]:
        """Those of the study file; without any, feedback where there are no batch norms, which correct as much."""
        return self.config.rounding or (("nearest",) if self.facts.batch_norms else ("feedback",))

    @property
    def rank_ratios(self) -> tuple[float, ...]:
        """Those of the study file; without any, two that save much where a layer may be factored."""
        return self.config.rank_ratio or ((0.0, *_SAVED) if self._factorable() else (0.0,))

    def raw(self) -> dict[str, Parameter]:
        """Every searched parameter by its lasting name; what has a single choice is left out."""
        return _searched(self._every())

    def _every(self) -> dict[str, Parameter]:
        found = {f"prune_ratio/{g.name}": self._ratios(g) for g in self.facts.groups}
        found |= {f"weight_bits/{n.name}": Parameter(choices=self.config.weight_bits) for n in self.facts.layers}
        found |= {f"rank_ratio/{name}": Parameter(choices=self.rank_ratios) for name in self._factorable()}
        if self.config.remove_blocks:
            found |= {f"remove_block/{b.name}": Parameter(choices=(False, True)) for b in self.facts.blocks}
        return found | self._shared()

    def knobs(self) -> dict[str, Parameter]:
        """The dials of `from_knobs`."""
        found = {
            "knob/prune_level": Parameter(high=self.config.max_prune_ratio),
            "knob/prune_slope": Parameter(low=-0.6, high=0.6),
            "knob/prune_coupled": Parameter(low=-0.6, high=0.3),
            "knob/bits": Parameter(choices=self.config.weight_bits),
            "knob/bits_ends": Parameter(choices=(0, 1)),
        }
        if self._factorable():
            found["knob/rank_ratio"] = Parameter(choices=self.rank_ratios)
        return _searched(found | self._shared())

    def decode(self, params: Mapping[str, Any]) -> CompressionPlan:
        """The plan of raw parameters; one that is not given takes its first choice, ratios 0, bits the last.

        Ratios are moved to the nearest width that the group may have, so the plan says exactly what is removed.
        Parameters of what is inside of a removed block change nothing.
        """
        ratios = {g.name: snap(g, params.get(f"prune_ratio/{g.name}", 0.0)) for g in self.facts.groups}
        first = self.config.weight_bits[-1]
        bits = {n.name: params.get(f"weight_bits/{n.name}", first) for n in self.facts.layers}
        whole = self.rank_ratios[0]
        ranks = {n: params.get(f"rank_ratio/{n}", whole) for n in self._factorable()}
        removed = tuple(b.name for b in self.facts.blocks if params.get(f"remove_block/{b.name}", False))
        return self._plan(ratios, bits, params, ranks, removed)

    def encode(self, plan: CompressionPlan) -> dict[str, Any] | None:
        """Raw parameters of a plan, or None where it lies outside of the space.

        What is inside of a removed block gets the values that `decode` takes where none are given.
        """
        every, plan = self._every(), self.canonical(plan)
        if any(f"remove_block/{name}" not in every for name in plan.removed_blocks):
            return None
        ratios = self.rank_ratios
        if any(ratio > 0 and ratio not in ratios for ratio in plan.rank_ratio.values()):
            return None
        gone, default = self.facts.layers_in(plan.removed_blocks), self.config.weight_bits[-1]
        values: dict[str, Any] = {
            "activations": plan.activations,
            "importance": plan.importance,
            "distill/temperature": plan.distill.temperature,
            "distill/weight": plan.distill.weight,
            **{f"distill/{name}": getattr(plan.distill, name) for name in _COMPANIONS},
            "learning_rate": plan.learning_rate,
            "levels": plan.levels,
            "sparsity": next(
                (s for s in self.config.sparsity if _share_of(s, plan.sparsity_kind) == plan.sparsity), None
            ),
            "sparsity_kind": plan.sparsity_kind,
            "rounding": plan.rounding,
        }
        values |= {f"prune_ratio/{g.name}": plan.prune_ratio.get(g.name, 0.0) for g in self.facts.groups}
        values |= {
            f"weight_bits/{n.name}": default if n.name in gone else plan.weight_bits.get(n.name, 32)
            for n in self.facts.layers
        }
        values |= {
            f"rank_ratio/{n}": ratios[0] if n in gone else plan.rank_ratio.get(n, 0.0) for n in self._factorable()
        }
        values |= {f"remove_block/{b.name}": b.name in plan.removed_blocks for b in self.facts.blocks}
        inside = all(values[n] in p.choices if p.choices else values[n] <= p.high + 1e-9 for n, p in every.items())
        return {n: values[n] for n in _searched(every)} if inside else None

    def canonical(self, plan: CompressionPlan) -> CompressionPlan:
        """The plan without what is inside of its removed blocks; every plan of this class is made so."""
        if not plan.removed_blocks:
            return plan
        layers, groups = (inside(plan.removed_blocks) for inside in (self.facts.layers_in, self.facts.groups_in))
        return replace(
            plan,
            prune_ratio={g: r for g, r in plan.prune_ratio.items() if g not in groups},
            weight_bits={n: b for n, b in plan.weight_bits.items() if n not in layers},
            rank_ratio={n: r for n, r in plan.rank_ratio.items() if n not in layers},
        )

    def from_knobs(self, knobs: Mapping[str, Any]) -> CompressionPlan:
        """Decode dials to a plan.

        `prune_level` is the mean share removed; `prune_slope` above 0 takes more from late groups;
        `prune_coupled` below 0 takes less from groups that tie several layers together;
        `bits_ends` 1 keeps the first and the last layer at 8 bits at least, or at the most that the study has;
        `rank_ratio` is that of every layer that can be factored.
        """
        ratios: dict[str, float] = {}
        count = len(self.facts.groups)
        for index, group in enumerate(self.facts.groups):
            depth = 2 * index / max(1, count - 1) - 1
            factor = 1 + knobs.get("knob/prune_slope", 0.0) * depth
            if len(group.layers) > 1:
                factor *= 1 + knobs.get("knob/prune_coupled", 0.0)
            ratio = max(0.0, knobs.get("knob/prune_level", 0.0) * factor)
            ratios[group.name] = snap(group, min(self._ratios(group).high, ratio))
        base = knobs.get("knob/bits", self.config.weight_bits[-1])
        bits = {n.name: base for n in self.facts.layers}
        if bits and knobs.get("knob/bits_ends", 1):
            choices = self.config.weight_bits
            enough = min((b for b in choices if b >= 8), default=max(choices))
            for end in (self.facts.layers[0].name, self.facts.layers[-1].name):
                bits[end] = max(enough, base)
        rank = knobs.get("knob/rank_ratio", self.rank_ratios[0])
        return self._plan(ratios, bits, knobs, dict.fromkeys(self._factorable(), rank))

    def references(self) -> list[tuple[str, CompressionPlan]]:
        """The plans that every study evaluates first, after the dense model: fp16 and post-training int8."""
        names = [n.name for n in self.facts.layers]
        plain = self.decode({})
        fixed: dict[str, Any] = {
            "importance": plain.importance, "distill": plain.distill, "learning_rate": plain.learning_rate,
            "rounding": plain.rounding,
        }  # fmt: skip
        found = [
            ("fp16", CompressionPlan(weight_bits=dict.fromkeys(names, 16), **fixed)),
            ("int8", CompressionPlan(weight_bits=dict.fromkeys(names, 8), activations="uint8", **fixed)),
        ]
        if "dynamic" in self.activations:
            eight = dict.fromkeys(names, 8)
            found.append(("dynamic int8", CompressionPlan(weight_bits=eight, activations="dynamic", **fixed)))
        return found

    def sweep(self, activations: Activations, count: int = len(SWEEP)) -> list[tuple[str, CompressionPlan]]:
        """The uniform sweep of prune ratio and bits, with the given activations, the most telling plan first."""
        found: list[tuple[str, CompressionPlan]] = []
        for ratio, base in SWEEP[:count]:
            plan = self.from_knobs(uniform_knobs(ratio, base, activations))
            if all(plan != other for _, other in found):
                found.append((f"uniform: {ratio:.0%} pruned, {base} bits, {activations} activations", plan))
        return found

    def _factorable(self) -> list[str]:
        """Layers that may be factored."""
        return [n.name for n in self.facts.layers if n.factors is not None]

    def _ratios(self, group: GroupFacts) -> Parameter:
        # Optuna divides in decimals, and lowers a highest value that is no multiple of the step to the last digit:
        # twelve digits multiply without rounding. Rounded up, so that the true ratio is never above the highest.
        step = math.ceil(group.granule / group.channels * 10**12) / 10**12
        steps = 0
        while steps + 1 < group.channels // group.granule and (steps + 1) * step <= self.config.max_prune_ratio + 1e-9:
            steps += 1
        return Parameter(high=float(Decimal(str(step)) * steps), step=step)

    def _shared(self) -> dict[str, Parameter]:
        return {
            "activations": Parameter(choices=self.activations),
            "levels": Parameter(choices=self.config.levels),
            "rounding": Parameter(choices=self.roundings),
            "sparsity": Parameter(choices=self.config.sparsity),
            "sparsity_kind": Parameter(choices=self.config.sparsity_kind),
            "importance": Parameter(choices=self.config.importance),
            "distill/temperature": Parameter(choices=self.config.temperature),
            "distill/weight": Parameter(choices=self.config.distill_weight),
            **{f"distill/{name}": Parameter(choices=getattr(self.config, name)) for name in _COMPANIONS},
            "learning_rate": Parameter(choices=self.config.learning_rate),
        }

    def _plan(
        self,
        ratios: dict[str, float],
        bits: dict[str, int],
        values: Mapping[str, Any],
        ranks: dict[str, float],
        removed: tuple[str, ...] = (),
    ) -> CompressionPlan:
        kind: SparsityKind = values.get("sparsity_kind", self.config.sparsity_kind[0])
        plan = CompressionPlan(
            prune_ratio=ratios,
            weight_bits=bits,
            activations=values.get("activations", self.activations[-1]),
            importance=values.get("importance", self.config.importance[0]),
            distill=DistillPlan(
                temperature=values.get("distill/temperature", self.config.temperature[0]),
                weight=values.get("distill/weight", self.config.distill_weight[0]),
                **{n: values.get(f"distill/{n}", getattr(self.config, n)[0]) for n in _COMPANIONS},
            ),
            learning_rate=values.get("learning_rate", self.config.learning_rate[0]),
            removed_blocks=removed,
            levels=values.get("levels", self.config.levels[0]),
            rounding=values.get("rounding", self.roundings[0]),
            sparsity=_share_of(values.get("sparsity", self.config.sparsity[0]), kind),
            sparsity_kind=kind,
            rank_ratio=ranks,
        )
        return self.canonical(plan)


def _share_of(share: float, kind: SparsityKind) -> float:
    """The share that is really zeroed: a pattern has its own."""
    if share == 0 or ":" not in kind:
        return share
    kept, of = kept_of(kind)
    return 1 - kept / of


def uniform_knobs(ratio: float, bits: int, activations: Activations) -> dict[str, Any]:
    """The dials of a uniform plan: the same ratio in every group, the same bits but for the two ends."""
    return {"knob/prune_level": ratio, "knob/bits": bits, "knob/bits_ends": 1, "activations": activations}


def matmul_share(facts: ModelFacts) -> float:
    """Share of the multiply-accumulates that linear and recurrent layers do, of the dense network."""
    macs = {n.name: n.positions * n.weights for n in facts.layers}
    products = sum(macs[n.name] for n in facts.layers if n.kind in ("linear", "recurrent"))
    return products / max(1, sum(macs.values()))


def width_after(group: GroupFacts, ratio: float) -> int:
    """Channels a group keeps: the multiple of its granule nearest to `channels * (1 - ratio)`, at least one granule.

    A group with 64 channels in steps of 8 keeps 40 at a ratio of 0.4.
    """
    steps = round(group.channels * (1 - ratio) / group.granule)
    return min(group.channels, max(1, steps) * group.granule)


def kept_widths(facts: ModelFacts, plan: CompressionPlan) -> dict[str, int]:
    """Channels that every group keeps: 0 where it goes with a removed block.

    Raises:
        ValueError: the plan names a group that the model does not have.
    """
    known = [g.name for g in facts.groups]
    if unknown := set(plan.prune_ratio) - set(known):
        raise ValueError(f"the plan prunes {sorted(unknown)[0]!r}, which is not a group; known are {', '.join(known)}")
    gone = facts.groups_in(plan.removed_blocks)
    return {g.name: 0 if g.name in gone else width_after(g, plan.prune_ratio.get(g.name, 0.0)) for g in facts.groups}


def snap(group: GroupFacts, ratio: float) -> float:
    """The share that is really removed when `ratio` is asked for."""
    return 1 - width_after(group, ratio) / group.channels


def _searched(parameters: dict[str, Parameter]) -> dict[str, Parameter]:
    return {n: p for n, p in parameters.items() if len(p.choices) > 1 or (not p.choices and p.high > p.low)}
