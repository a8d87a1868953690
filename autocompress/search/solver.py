"""Turns prices of a byte and of a millisecond into the whole plan that is best at those prices.

Minimises damage + price x size + price x latency by coordinate descent: groups that share no layer
are set at once, each to its best width given the others; bits have a closed form. Producer and consumer of a
layer are coupled, because its weights are the product of both widths. Many prices are solved together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress.search.cost import layer_bytes, stored_bytes, work_of
from autocompress.search.options import Candidates, Flags, Floats, Ints, Options, stack

_SWEEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What is minimised, for many plans at once.

    Attributes:
        width, bits, blocks: damage per option, [groups, options], [layers, options] and [blocks].
        rank: damage per option, [layers, options]; not looked at where no layer may be factored.
        size: [n] damage that one byte is worth; `latency`: [n] the same for the whole baseline's latency.
        multiply, move: [n, layers] latency ratio per unit of work, as `LatencyModel.layer_shares` gives it.
        activations: [n] kinds, which are given.
        least_bits: [n] index of the widest allowed bits; integer activations need at most 8.
    """

    width: Floats
    bits: Floats
    blocks: Floats
    rank: Floats
    size: Floats
    latency: Floats
    multiply: Floats
    move: Floats
    activations: Ints
    least_bits: Ints


class Solver:
    """Solves for one space; what does not change between calls is worked out once."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._classes = [_Touched(options, groups) for groups in independent_groups(options)]

    def solve(self, prices: Prices) -> Candidates:
        """The plans that are best at each of the prices, [n].

        Blocks that cost more than their damage are left out, and what stays is then set anew, if that is better.
        """
        whole = self._descend(prices, np.zeros((len(prices.size), len(self._options.blocks)), bool))
        if not self._options.blocks:
            return whole
        damage, price = self._parts(prices, whole)
        saved = (damage[1] + price) @ self._options.layers_of.T + damage[0] @ self._options.groups_of.T
        shorter = self._descend(prices, saved > prices.blocks)
        better = self.cost(prices, shorter) < self.cost(prices, whole)
        rows = np.arange(len(whole))
        return stack([whole, shorter]).take(np.where(better, rows + len(whole), rows))

    def _descend(self, prices: Prices, removed: Flags) -> Candidates:
        options, count, layers = self._options, len(prices.size), len(self._options.taps)
        width = np.zeros((count, len(options.channels)), np.int64)
        rank = np.zeros((count, layers if options.factors else 0), np.int64)
        shapes = options.shapes(width)
        bits = self._best_bits(prices, shapes, rank)
        left = options.layers_left(removed), options.groups_left(removed)
        for _ in range(_SWEEPS):
            before = width.copy(), rank
            for touched in self._classes:
                width[:, touched.groups] = self._best_widths(prices, touched, width, shapes, bits, rank, left)
                shapes = options.shapes(width)
            rank = self._best_ranks(prices, shapes, bits) if options.factors else rank
            bits = self._best_bits(prices, shapes, rank)
            if np.array_equal(before[0], width) and np.array_equal(before[1], rank):
                break
        return Candidates(
            width=width, bits=bits, activations=prices.activations, removed=removed, zeroed=np.zeros(count), rank=rank
        )

    def cost(self, prices: Prices, candidates: Candidates) -> Floats:
        """What is minimised, [n]: damage and price of every plan, without what no choice changes."""
        damage, price = self._parts(prices, candidates)
        total: Floats = (self._options.groups_left(candidates.removed) * damage[0]).sum(1)
        total += (self._options.layers_left(candidates.removed) * (damage[1] + price)).sum(1)
        return total + candidates.removed @ prices.blocks

    def _parts(self, prices: Prices, candidates: Candidates) -> tuple[tuple[Floats, Floats], Floats]:
        """(damage of every group, of every layer) and the price of every layer, if nothing were left out."""
        options = self._options
        groups, layers = np.arange(len(options.channels)), np.arange(len(options.taps))
        per_layer = prices.bits[layers, candidates.bits]
        if options.factors:
            per_layer = per_layer + prices.rank[layers, candidates.rank]
        damage = prices.width[groups, candidates.width], per_layer
        outputs, inputs = options.shapes(candidates.width)
        bits, rank = self._options.bits[candidates.bits], options.kept_ranks(candidates.rank, outputs, inputs)
        size = sum(layer_bytes(options, outputs, inputs, bits, rank))
        multiplied, moved = work_of(options, outputs, inputs, rank)
        time = prices.multiply * multiplied + prices.move * moved
        price: Floats = prices.size[:, None] * size + prices.latency[:, None] * time
        return damage, price

    def _best_ranks(self, prices: Prices, shapes: tuple[Floats, Floats], bits: Ints) -> Ints:
        """The share that is saved of every layer, given outputs, inputs and bits, [n, layers]."""
        options = self._options
        outputs, inputs = (shape[..., None] for shape in shapes)  # [n, layers, 1]
        every = np.arange(len(options.taps))
        rank = options.kept_ranks(np.arange(len(options.ratios)), outputs, inputs, every)
        size = sum(layer_bytes(options, outputs, inputs, self._options.bits[bits][..., None], rank, every))
        multiplied, moved = work_of(options, outputs, inputs, rank, every)
        time = prices.multiply[..., None] * multiplied + prices.move[..., None] * moved
        price = prices.size[:, None, None] * size + prices.latency[:, None, None] * time
        best: Ints = (prices.rank[None] + price).argmin(2)
        return best

    def _best_bits(self, prices: Prices, shapes: tuple[Floats, Floats], rank: Ints) -> Ints:
        outputs, inputs = shapes
        weights = outputs * inputs * self._options.taps
        if (kept := self._options.kept_ranks(rank, outputs, inputs)) is not None:
            first = self._options.first_taps
            weights = np.where(kept > 0, kept * (inputs * first + outputs * self._options.taps / first), weights)
        stored = stored_bytes(weights[..., None], self._options.bits)  # [n, layers, options]
        price = prices.bits[None] + prices.size[:, None, None] * stored
        price = np.where(np.arange(len(self._options.bits)) < prices.least_bits[:, None, None], np.inf, price)
        best: Ints = price.argmin(2)
        return best

    def _best_widths(
        self,
        prices: Prices,
        touched: _Touched,
        width: Ints,
        shapes: tuple[Floats, Floats],
        bits: Ints,
        rank: Ints,
        left: tuple[Floats, Floats],
    ) -> Ints:
        """Options of the groups of `touched`, [n, groups]; arrays in here are [n, pairs] or [n, pairs, options]."""
        options, layer = self._options, touched.layer
        layers_left, groups_left = left[0][:, layer], left[1][:, touched.groups]
        outputs, inputs = (shape[:, layer] for shape in shapes)
        now = options.widths[touched.group, width[:, touched.group]]
        out = (outputs * ~touched.is_output)[..., None] + touched.outputs
        into = np.maximum((inputs - touched.feeds * now)[..., None] + touched.inputs, 1.0)
        widest = options.bits[bits[:, layer]]
        kept = options.kept_ranks(rank[:, layer, None], out, into, layer) if options.factors else None
        worth = prices.size[:, None] * layers_left
        if kept is None:  # bytes without the rounding to whole words: the same choice, in half the time
            per_weight, per_output = worth * options.taps[layer] * widest / 8, worth * 4 * (1 + (widest <= 8))
            price = out * (into * per_weight[..., None] + per_output[..., None])
        else:
            price = worth[..., None] * sum(layer_bytes(options, out, into, widest[..., None], kept, layer))
        multiplied, moved = work_of(options, out, into, kept, layer)
        worth = prices.latency[:, None] * layers_left
        price += (worth * prices.multiply[:, layer])[..., None] * multiplied
        price += (worth * prices.move[:, layer])[..., None] * moved
        total = np.add.reduceat(price, touched.starts, axis=1) + groups_left[..., None] * prices.width[touched.groups]
        best: Ints = np.where(options.allowed[touched.groups], total, np.inf).argmin(2)
        return best


class _Touched:
    """The layers that a set of groups shapes, as (layer, group) pairs sorted by group.

    Attributes:
        outputs, inputs: [pairs, options] what a width of the group brings to the layer's outputs and inputs.
    """

    def __init__(self, options: Options, groups: list[int]) -> None:
        pairs = [(g, n) for g in groups for n in _layers_of(options, g)]
        self.groups = np.array(groups, np.int64)
        self.group = np.array([g for g, _ in pairs], np.int64)
        self.layer = np.array([n for _, n in pairs], np.int64)
        self.starts = np.searchsorted(self.group, self.groups)
        self.is_output = options.out_group[self.layer] == self.group
        self.feeds = options.feeds[self.layer, self.group]
        asked = options.widths[self.group].astype(float)
        self.outputs, self.inputs = self.is_output[:, None] * asked, self.feeds[:, None] * asked


def independent_groups(options: Options) -> list[list[int]]:
    """Groups in sets whose members share no layer, so that each set can be optimised at once."""
    found: list[tuple[list[int], set[int]]] = []
    for group in range(len(options.channels)):
        layers = set(_layers_of(options, group))
        if not layers:
            continue
        place = next((entry for entry in found if not entry[1] & layers), None)
        if place is None:
            found.append(([group], layers))
        else:
            place[0].append(group)
            place[1].update(layers)
    return [groups for groups, _ in found]


def _layers_of(options: Options, group: int) -> list[int]:
    touched = (options.out_group == group) | (options.feeds[:, group] > 0)
    return [int(n) for n in np.flatnonzero(touched)]
