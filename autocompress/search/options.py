"""The space as arrays: widths per group, bits and rank per layer, activations, removed blocks, and the share of zeros.

Costs, solver and surrogate work on many plans at once in this form. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autocompress.plan import ACTIVATIONS, CompressionPlan
from autocompress.records import BlockFacts, ModelFacts
from autocompress.space.ranks import kept_rank
from autocompress.space.search_space import SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Many plans at once.

    Attributes:
        width: [n, groups] option of each group, 0 keeps all channels.
        bits: [n, layers] option of each layer, into `Options.bits`.
        activations: [n] index into `ACTIVATIONS`.
        removed: [n, blocks], True where a block is left out.
        zeroed: [n] share of single weights that are zero.
        rank: [n, layers] option of each layer, into `Options.ratios`; [n, 0] where no layer may be factored.
    """

    width: Ints
    bits: Ints
    activations: Ints
    removed: Flags
    zeroed: Floats
    rank: Ints

    def __len__(self) -> int:
        return len(self.activations)

    def take(self, rows: Ints | slice) -> Candidates:
        """Some of the plans."""
        return Candidates(
            width=self.width[rows],
            bits=self.bits[rows],
            activations=self.activations[rows],
            removed=self.removed[rows],
            zeroed=self.zeroed[rows],
            rank=self.rank[rows],
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """What plans leave of the layers.

    Attributes:
        outputs, inputs: [n, layers] as `Options.shapes` gives them.
        kept: [n, layers] as `Options.kept_ranks` gives them.
        layers_left, groups_left: [n, layers] and [n, groups], 1 for what is still there, 0 for the others.
    """

    outputs: Floats
    inputs: Floats
    kept: Floats | None
    layers_left: Floats
    groups_left: Floats


def stack(parts: Sequence[Candidates]) -> Candidates:
    """All plans of several sets."""
    return Candidates(
        width=np.concatenate([p.width for p in parts]),
        bits=np.concatenate([p.bits for p in parts]),
        activations=np.concatenate([p.activations for p in parts]),
        removed=np.concatenate([p.removed for p in parts]),
        zeroed=np.concatenate([p.zeroed for p in parts]),
        rank=np.concatenate([p.rank for p in parts]),
    )


class Options:
    """What may be chosen, and how layers and groups hang together.

    Attributes:
        widths: [groups, options] channels, falling; short rows repeat their narrowest.
        allowed: [groups, options], False where a row repeats.
        bits: [options] falling, with 32 for layers that stay float.
        zeroed: [options] shares of zeros, as in the study file.
        ratios: [options] shares that factors save, rising; `factors` says whether any layer may be factored at all.
        factored: [layers], True where a layer may be.
        first_taps, places: [layers] of the first factor, as `space/ranks.py` takes them.
        out_group: [layers] index of the group of the outputs, -1 if they are fixed.
        out_dense, in_dense, taps, positions: [layers] of the dense network; taps is kernel height x width.
        feeds: [layers, groups] input channels that go with one channel of a group.
        layers_of, groups_of: [blocks, layers] and [blocks, groups], 1 for what goes with a block.
    """

    def __init__(self, space: SearchSpace) -> None:
        facts: ModelFacts = space.facts
        self.space, self.facts = space, facts
        rows = [_widths(g.channels, g.granule, space.config.max_prune_ratio) for g in facts.groups]
        most = max((len(row) for row in rows), default=1)
        self.widths: Ints = np.array([row + [row[-1]] * (most - len(row)) for row in rows], np.int64).reshape(-1, most)
        self.allowed = np.array([[k < len(row) for k in range(most)] for row in rows], bool).reshape(-1, most)
        self.bits: Ints = np.array(sorted(space.config.weight_bits, reverse=True), np.int64)
        self.activations: Ints = np.array([ACTIVATIONS.index(a) for a in space.activations], np.int64)
        self.zeroed: Floats = np.array(space.config.sparsity, float)
        self.channels = self.widths[:, 0] if len(rows) else np.zeros(0, np.int64)
        index = {g.name: i for i, g in enumerate(facts.groups)}
        layers = facts.layers
        self.out_group: Ints = np.array([index.get(n.group or "", -1) for n in layers], np.int64)
        self._grouped = np.flatnonzero(self.out_group >= 0)
        self._their_groups = self.out_group[self._grouped]
        self.out_dense: Floats = np.array([n.out_channels for n in layers], float)
        self.in_dense: Floats = np.array([n.in_channels for n in layers], float)
        self.taps: Floats = np.array([n.weights / (n.out_channels * n.in_channels) for n in layers], float)
        self.positions: Floats = np.array([n.positions for n in layers], float)
        self.ratios: Floats = np.array(sorted(set(space.rank_ratios)), float)
        self.factored: Flags = np.array([n.factors is not None for n in layers], bool)
        self.factors = bool(self.factored.any() and self.ratios[-1] > 0)
        self.first_taps: Floats = np.array([n.factors.taps if n.factors else 1 for n in layers], float)
        self.places: Floats = np.array([n.factors.places if n.factors else np.inf for n in layers], float)
        self.depthwise = np.array([n.kind == "depthwise" for n in layers], bool)
        self.feeds: Floats = np.zeros((len(layers), len(rows)))
        for row, layer in enumerate(layers):
            for name, channels in layer.sources.items():
                if name in index:
                    self.feeds[row, index[name]] = channels
        blocks = facts.blocks if space.config.remove_blocks else ()
        self.blocks = tuple(b.name for b in blocks)
        self.layers_of: Floats = _members(blocks, [n.name for n in layers], "layers")
        self.groups_of: Floats = _members(blocks, [g.name for g in facts.groups], "groups")
        self._last: tuple[Candidates, Layout] | None = None
        self._ratios = 1 - self.widths / self.channels[:, None]  # as `prune_ratio`
        self._group_params = [f"prune_ratio/{g.name}" for g in facts.groups]
        self._layer_params = [f"weight_bits/{n.name}" for n in layers]
        self._rank_params = [(i, f"rank_ratio/{n.name}") for i, n in enumerate(layers) if self.factored[i]]
        self._block_params = [f"remove_block/{name}" for name in self.blocks]

    def layout(self, candidates: Candidates) -> Layout:
        """What plans leave of the layers; that of the last ones is kept, since every model asks for the same."""
        if self._last is None or self._last[0] is not candidates:
            outputs, inputs = self.shapes(candidates.width)
            kept = self.kept_ranks(candidates.rank, outputs, inputs)
            left = self.layers_left(candidates.removed), self.groups_left(candidates.removed)
            self._last = candidates, Layout(outputs, inputs, kept, *left)
        return self._last[1]

    def searched(self, candidates: Candidates) -> Candidates:
        """The same plans with activations and shares of zeros that are searched: those of a reference may not be."""
        known = np.isin(candidates.activations, self.activations)
        nearest = np.abs(self.zeroed[:, None] - candidates.zeroed).argmin(0)
        activations = np.where(known, candidates.activations, self.activations[0])
        return replace(candidates, activations=activations, zeroed=self.zeroed[nearest])

    def encode(self, plans: Sequence[CompressionPlan]) -> Candidates:
        """Plans as options: the nearest width, and for bits that are not searched the next more."""
        width, bits, rank = [], [], []
        for plan in plans:
            kept = self.channels * (1 - np.array([plan.prune_ratio.get(g.name, 0.0) for g in self.facts.groups], float))
            width.append(np.abs(self.widths - kept[:, None]).argmin(1))
            asked = np.array([plan.weight_bits.get(n.name, 32) for n in self.facts.layers], np.int64)
            bits.append(np.maximum((self.bits >= asked[:, None]).sum(1) - 1, 0))
            if self.factors:
                saved = np.array([plan.rank_ratio.get(n.name, 0.0) for n in self.facts.layers])
                rank.append(np.abs(self.ratios - saved[:, None]).argmin(1))
        count = len(plans)
        return Candidates(
            width=np.array(width, np.int64).reshape(count, len(self.facts.groups)),
            bits=np.array(bits, np.int64).reshape(count, len(self.facts.layers)),
            activations=np.array([ACTIVATIONS.index(p.activations) for p in plans], np.int64),
            removed=np.array([[b in p.removed_blocks for b in self.blocks] for p in plans], bool).reshape(
                count, len(self.blocks)
            ),
            zeroed=np.array([p.sparsity for p in plans], float),
            rank=np.array(rank, np.int64).reshape(count, len(self.facts.layers) if self.factors else 0),
        )

    def params(self, candidates: Candidates, row: int) -> dict[str, object]:
        """Raw parameters of one plan, without the settings of the recovery."""
        pruned = self._ratios[np.arange(len(self.channels)), candidates.width[row]].tolist()
        found: dict[str, object] = dict(zip(self._group_params, pruned, strict=True))
        found.update(zip(self._layer_params, self.bits[candidates.bits[row]].tolist(), strict=True))
        if self.factors:
            saved = self.ratios[candidates.rank[row]].tolist()
            found.update((name, saved[i]) for i, name in self._rank_params)
        found.update(zip(self._block_params, candidates.removed[row].tolist(), strict=True))
        found["activations"] = ACTIVATIONS[int(candidates.activations[row])]
        # a pattern has a share of its own: the nearest one that was asked for leads to it
        found["sparsity"] = float(self.zeroed[np.abs(self.zeroed - candidates.zeroed[row]).argmin()])
        return found

    def layers_left(self, removed: Flags) -> Floats:
        """1 for every layer that is still there, 0 for the others, [n, layers]."""
        left: Floats = 1.0 - np.minimum(removed @ self.layers_of, 1.0)
        return left

    def groups_left(self, removed: Flags) -> Floats:
        """The same for groups, [n, groups]."""
        left: Floats = 1.0 - np.minimum(removed @ self.groups_of, 1.0)
        return left

    def shapes(self, width: Ints) -> tuple[Floats, Floats]:
        """(outputs, inputs per output) of every layer, each [n, layers], for width options [n, groups]."""
        kept = self.widths[np.arange(len(self.channels)), width].astype(float)
        outputs = np.broadcast_to(self.out_dense, (len(width), len(self.out_dense))).copy()
        outputs[:, self._grouped] = kept[:, self._their_groups]
        inputs = self.in_dense - (self.channels - kept) @ self.feeds.T
        return outputs, np.maximum(inputs, 1.0)

    def kept_ranks(
        self, rank: Ints, outputs: Floats, inputs: Floats, layers: Ints | slice | None = None
    ) -> Floats | None:
        """Directions that every layer keeps, 0 for whole ones; None where no layer may be factored.

        Args:
            rank: options, shaped like `outputs` and `inputs` or broadcast to them.
            outputs, inputs: [n, all layers], or [n, len(layers), options].
        """
        if not self.factors:
            return None
        taps, first, places = self.taps, self.first_taps, self.places
        if layers is not None:
            taps, first, places = (values[layers][:, None] for values in (taps, first, places))
        return kept_rank(outputs, inputs, taps=taps, first_taps=first, places=places, ratio=self.ratios[rank])


def _members(blocks: Sequence[BlockFacts], names: Sequence[str], what: str) -> Floats:
    rows = [[name in getattr(block, what) for name in names] for block in blocks]
    return np.array(rows, float).reshape(len(blocks), len(names))


def _widths(channels: int, granule: int, most_pruned: float) -> list[int]:
    """Widths a group may have, falling."""
    lowest = channels * (1 - most_pruned) - 1e-9
    return [w for w in range(channels, 0, -granule) if w == channels or (w >= lowest and w >= granule)]
