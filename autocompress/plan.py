"""The plan: everything that was chosen for one trial, as plain numbers and strings.

`(model, plan, seed)` is enough to rebuild a trial. A plan says what is asked of a model; what
came of it (widths, bytes, accuracy) is in `records.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

WEIGHT_BITS = (1, 2, 3, 4, 5, 6, 8, 16, 32)
Activations = Literal["float", "uint8", "dynamic"]
Importance = Literal["l1", "l2", "taylor", "fisher", "activation", "bn_scale", "random"]
SparsityKind = Literal["magnitude", "fisher", "2:4", "1:4"]
Levels = Literal["uniform", "codebook", "power_of_two"]
Rounding = Literal["nearest", "feedback"]
ACTIVATIONS: tuple[str, ...] = get_args(Activations)
_LOSSY = (
    "float",
    "dynamic",
    "uint8",
)  # each rounds at least as much as the one before: fixed ranges fit no sample best
IMPORTANCES: tuple[str, ...] = get_args(Importance)
LEVELS: tuple[str, ...] = get_args(Levels)
SPARSITY_KINDS: tuple[str, ...] = get_args(SparsityKind)
ROUNDINGS: tuple[str, ...] = get_args(Rounding)


# What decides the values in a file, but neither its bytes nor its latency.
_RECOVERY = ("importance", "distill", "learning_rate", "sparsity", "sparsity_kind", "rounding")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillPlan:
    """Soft targets: `temperature` above 0, `weight` in [0, 1] of the soft term in the loss.

    Beside them, each 0 for without: `hints` and `attention` weigh what is compared inside of the network,
    `mean_teacher` a running average of the student as a second teacher.
    """

    temperature: float = 4.0
    weight: float = 0.9
    hints: float = 0.0
    attention: float = 0.0
    mean_teacher: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"distill temperature must be above 0, got {self.temperature}; usual values are 1 to 8")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"distill weight must be in [0, 1], got {self.weight}; 0 trains on the labels alone")
        for name in ("hints", "attention", "mean_teacher"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"distill {name} must be 0 or more, got {value}; 0 leaves it out")

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values; what is left out is not named."""
        extra = {name: getattr(self, name) for name in ("hints", "attention", "mean_teacher")}
        return {"temperature": self.temperature, "weight": self.weight} | {n: v for n, v in extra.items() if v}

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> DistillPlan:
        """Inverse of `to_dict`.

        Raises:
            ValueError: an unknown key, or a value out of its range.
        """
        _refuse_unknown(data, cls, "distill")
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionPlan:
    """What to do to a model.

    Attributes:
        prune_ratio: share of channels removed per group, 0 <= ratio < 1; a group not named keeps all.
        weight_bits: bits per layer, one of `WEIGHT_BITS`; a layer not named stays at 32.
        activations: "float", or integers for the layers whose weights have at most 8 bits: "uint8" with ranges that
            were calibrated, or "dynamic" with those of each input, for matrix products and LSTMs alone.
        importance: how the channels to remove are chosen.
        distill: temperature and weight of the teacher's soft targets.
        learning_rate: peak learning rate of the recovery, above 0.
        removed_blocks: names of whole residual blocks that are left out; kept sorted, each once. What is inside of
            one need not be named elsewhere in the plan, and `SearchSpace` never does.
        sparsity: share of single weights that are zero, 0 <= share < 1; it makes the zipped file smaller.
        sparsity_kind: how they are chosen; "2:4" keeps two of every four inputs, whatever a share above 0 says.
        levels: which values the weights of layers with 2 to 6 bits may take; at 1 bit there are only two.
        rank_ratio: share of a layer's weights or multiplications that two factors of low rank save, 0 <= ratio < 1,
            whichever they save less of; a layer that is not named stays whole, and so does one that is too narrow.
        rounding: how weights of fewer than 8 bits are rounded where that sets in: to the nearest value, or with
            feedback from a few samples, so that the layers' outputs stay near.
    """

    prune_ratio: Mapping[str, float] = field(default_factory=dict)
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    activations: Activations = "float"
    importance: Importance = "l2"
    distill: DistillPlan = field(default_factory=DistillPlan)
    learning_rate: float = 2e-3
    removed_blocks: tuple[str, ...] = ()
    levels: Levels = "uniform"
    sparsity: float = 0.0
    sparsity_kind: SparsityKind = "magnitude"
    rank_ratio: Mapping[str, float] = field(default_factory=dict)
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "removed_blocks", _block_names(self.removed_blocks))
        for group, ratio in self.prune_ratio.items():
            if not 0 <= ratio < 1:
                raise ValueError(
                    f"prune_ratio for {group!r} must be in [0, 1), got {ratio}; 1.0 would remove every channel"
                )
        for layer, ratio in self.rank_ratio.items():
            if not 0 <= ratio < 1:
                raise ValueError(f"rank_ratio for {layer!r} must be in [0, 1), got {ratio}; 1.0 would leave no weight")
        for layer, bits in self.weight_bits.items():
            if bits not in WEIGHT_BITS:
                raise ValueError(f"weight_bits for {layer!r} must be one of {WEIGHT_BITS}, got {bits}")
        if self.activations not in ACTIVATIONS:
            raise ValueError(f"activations must be one of {ACTIVATIONS}, got {self.activations!r}")
        if self.importance not in IMPORTANCES:
            raise ValueError(f"importance must be one of {IMPORTANCES}, got {self.importance!r}")
        if self.levels not in LEVELS:
            raise ValueError(f"levels must be one of {LEVELS}, got {self.levels!r}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {ROUNDINGS}, got {self.rounding!r}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}; 1.0 would leave no weight")
        if self.sparsity_kind not in SPARSITY_KINDS:
            raise ValueError(f"sparsity_kind must be one of {SPARSITY_KINDS}, got {self.sparsity_kind!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}; usual values are 1e-4 to 1e-2")

    @property
    def trains(self) -> bool:
        """Whether recovery can help: something was removed or zeroed, or some weights have fewer than 8 bits."""
        ratios = (*self.prune_ratio.values(), *self.rank_ratio.values())
        removed = bool(self.removed_blocks) or any(r > 0 for r in ratios)
        return removed or self.sparsity > 0 or any(b < 8 for b in self.weight_bits.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives back an equal plan."""
        return {
            "prune_ratio": dict(sorted(self.prune_ratio.items())),
            "weight_bits": dict(sorted(self.weight_bits.items())),
            "activations": self.activations,
            "importance": self.importance,
            "distill": self.distill.to_dict(),
            "learning_rate": self.learning_rate,
            "removed_blocks": list(self.removed_blocks),
            "levels": self.levels,
            "sparsity": self.sparsity,
            "sparsity_kind": self.sparsity_kind,
            "rank_ratio": dict(sorted(self.rank_ratio.items())),
            "rounding": self.rounding,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionPlan:
        """Inverse of `to_dict`.

        Raises:
            ValueError: an unknown key, or a value out of its range.
        """
        _refuse_unknown(data, cls, "a plan")
        return cls(**{**data, "distill": DistillPlan.from_dict(data.get("distill", {}))})

    def structure_key(self) -> str:
        """Digest of what decides bytes and latency: equal keys mean the same file but for the values in it."""
        structure: dict[str, Any] = {
            "prune_ratio": {g: r for g, r in sorted(self.prune_ratio.items()) if r > 0},
            "weight_bits": {n: b for n, b in sorted(self.weight_bits.items()) if b != 32},
            "activations": self.activations,
        }
        if self.removed_blocks:  # left out where there are none: keys that were stored before there were blocks hold
            structure["removed_blocks"] = list(self.removed_blocks)
        if self.levels != "uniform":
            structure["levels"] = self.levels
        if factored := {n: r for n, r in sorted(self.rank_ratio.items()) if r > 0}:
            structure["rank_ratio"] = factored
        return hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()[:16]

    def same_as(self, other: CompressionPlan) -> bool:
        """Whether both lead to the same artifact; how to recover does not matter where nothing is trained."""
        if self.structure_key() != other.structure_key():
            return False
        mine, theirs = self.to_dict(), other.to_dict()
        return not self.trains or all(mine[key] == theirs[key] for key in _RECOVERY)

    def compresses_at_least(self, other: CompressionPlan) -> bool:
        """Whether this plan removes and rounds at least as much as `other` in every block, group and layer.

        What is inside of a removed block and not named here any more is gone: nothing compresses it further.
        """
        groups = {g for g in {*self.prune_ratio, *other.prune_ratio} if g in self.prune_ratio or not self._removes(g)}
        layers = {n for n in {*self.weight_bits, *other.weight_bits} if not self._removes(n)}
        factored = {n for n in other.rank_ratio if not self._removes(n)}
        return (
            self.levels == other.levels
            and self.sparsity >= other.sparsity
            and set(self.removed_blocks) >= set(other.removed_blocks)
            and all(self.prune_ratio.get(g, 0.0) >= other.prune_ratio.get(g, 0.0) for g in groups)
            and all(self.weight_bits.get(n, 32) <= other.weight_bits.get(n, 32) for n in layers)
            and all(self.rank_ratio.get(n, 0.0) >= other.rank_ratio[n] for n in factored)
            and _LOSSY.index(self.activations) >= _LOSSY.index(other.activations)
        )

    def _removes(self, name: str) -> bool:
        """Whether a layer of this name is inside of a removed block."""
        return any(_is_inside(name, block) for block in self.removed_blocks)


def kept_of(kind: SparsityKind) -> tuple[int, int]:
    """(2, 4) of "2:4"."""
    kept, _, of = kind.partition(":")
    return int(kept), int(of)


def _refuse_unknown(data: Mapping[str, Any], plan: type[DistillPlan | CompressionPlan], what: str) -> None:
    known = {f.name for f in fields(plan)}
    if unknown := set(data) - known:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r} in {what}; known are {sorted(known)}")


def _block_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"removed_blocks must be names of blocks, got {names!r}; for one block write ('layers.1',)")
    ordered = tuple(sorted(set(names)))
    for name in ordered:
        if outer := next((b for b in ordered if b != name and _is_inside(name, b)), None):
            raise ValueError(f"removed_blocks names {name!r} inside of {outer!r}; the outer one is enough")
    return ordered


def _is_inside(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")
