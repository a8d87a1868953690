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

_SWEEPS, _MORE = 2, 1  # six cost 0.1 % less
_Parts = tuple[tuple[Floats, Floats], Floats]  # (damage of every group, of every layer), price of every layer


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
        parts = self._parts(prices, whole)
        damage, price = parts
        saved = (damage[1] + price) @ self._options.layers_of.T + damage[0] @ self._options.groups_of.T
        shorter = self._descend(prices, saved > prices.blocks, whole)
        better = self.cost(prices, shorter) < self._sum(prices, whole, parts)
        rows = np.arange(len(whole))
        return stack([whole, shorter]).take(np.where(better, rows + len(whole), rows))

    def _descend(self, prices: Prices, removed: Flags, start: Candidates | None = None) -> Candidates:
        """Sweeps over widths, ranks and bits until nothing changes, from the dense network or from given plans."""
        options, count, layers = self._options, len(prices.size), len(self._options.taps)
        if start:
            width, rank = start.width.copy(), start.rank
        else:
            width = np.zeros((count, len(options.channels)), np.int64)
            rank = np.zeros((count, layers if options.factors else 0), np.int64)
        shapes = options.shapes(width)
        bits = start.bits if start else self._best_bits(prices, shapes, rank)
        left = options.layers_left(removed), options.groups_left(removed)
        for _ in range(_MORE if start else _SWEEPS):
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
        return self._sum(prices, candidates, self._parts(prices, candidates))

    def _sum(self, prices: Prices, candidates: Candidates, parts: _Parts) -> Floats:
        damage, price = parts
        total: Floats = (self._options.groups_left(candidates.removed) * damage[0]).sum(1)
        total += (self._options.layers_left(candidates.removed) * (damage[1] + price)).sum(1)
        return total + candidates.removed @ prices.blocks

    def _parts(self, prices: Prices, candidates: Candidates) -> _Parts:
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
        outputs, inputs = (shape[:, layer] for shape in shapes)
        now = options.widths[touched.group, width[:, touched.group]]
        out = (outputs * ~touched.is_output)[..., None] + touched.outputs
        into = np.maximum((inputs - touched.feeds * now)[..., None] + touched.inputs, 1.0)
        held = options.bits[bits[:, layer]]
        price = self._prices_at(prices, layer, out, into, held)
        if options.factors and (apart := np.flatnonzero(rank[:, layer].any(0))).size:
            some = layer[apart]
            price[:, apart] = self._prices_at(
                prices, some, out[:, apart], into[:, apart], held[:, apart], rank=rank[:, some]
            )
        price *= left[0][:, layer, None]
        damage = prices.width[touched.groups] * left[1][:, touched.groups, None]
        total = np.add.reduceat(price, touched.starts, axis=1) + damage
        best: Ints = np.where(options.allowed[touched.groups], total, np.inf).argmin(2)
        return best

    def _prices_at(
        self, prices: Prices, layer: Ints, out: Floats, into: Floats, bits: Ints, rank: Ints | None = None
    ) -> Floats:
        """Price of some layers, whole ones without `rank`, at outputs and inputs [n, layers, options]."""
        options, kept = self._options, None
        if rank is None:  # without the rounding to whole words: the same choice, in half the time
            per_weight, per_output = options.taps[layer] * bits / 8, 4 * (1 + (bits <= 8))
            size: Floats = out * (into * per_weight[..., None] + per_output[..., None])
        else:
            kept = options.kept_ranks(rank[..., None], out, into, layer)
            weights, rest = layer_bytes(options, out, into, bits[..., None], kept, layer)
            size = weights + rest
        multiplied, moved = work_of(options, out, into, kept, layer)
        multiply, move = (prices.latency[:, None] * part[:, layer] for part in (prices.multiply, prices.move))
        price: Floats = prices.size[:, None, None] * size
        price += multiply[..., None] * multiplied
        price += move[..., None] * moved
        return price


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
