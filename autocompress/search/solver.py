"""Turns prices of a byte and of a millisecond into the whole plan that is best at those prices.

Minimises damage + price x size + price x latency by coordinate descent: groups that share no layer
are set at once, each to its best width given the others; bits have a closed form. Producer and consumer of a
layer are coupled, because its weights are the product of both widths. Many prices are solved together.

With its bits given, a layer's price is out x (a x in + b) + out' x (c x in' + d), where ' rounds up to whole vectors:
bytes and milliseconds are both of that form, so what a width costs is four numbers per layer.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autocompress.search.cost import DEPTHWISE, LANES, NODE_BYTES, PER_WEIGHT, in_vectors, weights_of, work_of
from autocompress.search.options import Candidates, Flags, Floats, Ints, Options

_EVERY = slice(None)  # layer
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
        lanes: channels that cost as much as one, one of `LANES`.
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
    lanes: int

    def twice(self) -> Prices:
        """The same for every plan and its twin, which comes behind all others."""
        names = ("size", "latency", "multiply", "move", "activations", "least_bits")
        doubled: dict[str, Any] = {name: np.concatenate([getattr(self, name)] * 2) for name in names}
        return replace(self, **doubled)


class Solver:
    """Solves for one space; what does not change between calls is worked out once."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._classes = [_Touched(options, groups) for groups in independent_groups(options)]

    def solve(self, prices: Prices) -> Candidates:
        """The plans that are best at each of the prices, [n].

        Blocks that cost more than their damage are left out, and what stays is then set anew, if that is better.
        """
        options, count = self._options, len(prices.size)
        dense = np.zeros((count, len(options.channels)), np.int64)
        every_rank = np.zeros((count, len(options.taps) if options.factors else 0), np.int64)
        state = _State(options, dense, every_rank, np.zeros((count, len(options.blocks)), bool))
        self._set_bits_(prices, state)
        self._sweep_(prices, state)
        if options.blocks:
            damage, price = self._parts(prices, state)
            saved = (damage[1] + price) @ options.layers_of.T + damage[0] @ options.groups_of.T
            prices, state = prices.twice(), state.with_and_without(saved > prices.blocks)
        self._sweep_(prices, state)  # a third one saves 0.1 %
        plans = state.plans(prices)
        if not options.blocks:
            return plans
        whole, shorter = self._sum(prices, state, self._parts(prices, state)).reshape(2, count)
        rows = np.arange(count)
        return plans.take(np.where(shorter < whole, rows + count, rows))

    def cost(self, prices: Prices, candidates: Candidates) -> Floats:
        """What is minimised, [n]: damage and price of every plan, without what no choice changes.

        Weights count with the bytes they take in whole words, up to the last word of each layer.
        """
        state = _State(self._options, candidates.width, candidates.rank, candidates.removed, candidates.bits)
        return self._sum(prices, state, self._parts(prices, state))

    def _sweep_(self, prices: Prices, state: _State) -> None:
        """Set all widths, ranks and bits once."""
        options = self._options
        left = options.layers_left(state.removed), options.groups_left(state.removed)
        terms = self._terms(prices, state, left[0])
        for touched in self._classes:
            self._set_widths_(prices, touched, state, terms, left)
        if options.factors:
            self._set_ranks_(prices, state)
        self._set_bits_(prices, state)

    def _sum(self, prices: Prices, state: _State, parts: _Parts) -> Floats:
        damage, price = parts
        total: Floats = (self._options.groups_left(state.removed) * damage[0]).sum(1)
        total += (self._options.layers_left(state.removed) * (damage[1] + price)).sum(1)
        return total + state.removed @ prices.blocks

    def _parts(self, prices: Prices, state: _State) -> _Parts:
        """(damage of every group, of every layer) and the price of every layer, if nothing were left out."""
        groups, layers = np.arange(state.width.shape[1]), np.arange(state.bits.shape[1])
        per_layer = prices.bits[layers, state.bits]
        if self._options.factors:
            per_layer = per_layer + prices.rank[layers, state.rank]
        damage = prices.width[groups, state.width], per_layer
        bits = self._options.bits[state.bits]
        price = self._prices_at(prices, state.outputs[..., None], state.inputs[..., None], bits, _EVERY, state.held)
        return damage, price[..., 0]

    def _terms(self, prices: Prices, state: _State, left: Floats) -> Floats:
        """The numbers a, b, c and d of every layer that stays, if it is whole, [4, n, layers]."""
        options, bits = self._options, self._options.bits[state.bits]
        size, places = left * prices.size[:, None], left * prices.latency[:, None] * options.positions
        multiplied, moved = places * options.taps * prices.multiply, places * prices.move
        alone = options.depthwise
        return np.stack(
            [
                size * options.taps * PER_WEIGHT[bits],
                size * (4 * (1 + (bits <= 8))),
                np.where(alone, 0.0, multiplied),
                moved + np.where(alone, DEPTHWISE * multiplied, 0.0),
            ]
        )

    def _set_widths_(
        self, prices: Prices, touched: _Touched, state: _State, terms: Floats, left: tuple[Floats, Floats]
    ) -> None:
        """Set the groups of `touched`; arrays in here are [n, pairs] or [n, pairs, options]."""
        options, layer = self._options, touched.layer
        fixed = np.where(touched.is_output, 0.0, state.outputs[:, layer])
        others = state.inputs[:, layer] - touched.feeds * options.widths[touched.group, state.width[:, touched.group]]
        out = fixed[..., None] + touched.outputs
        into = np.maximum(others[..., None] + touched.inputs, 1.0)
        a, b, c, d = terms[:, :, layer, None]
        price = out * (a * into + b)
        vectors = in_vectors(fixed, prices.lanes)[..., None] + touched.vectors[prices.lanes]
        price += vectors * (c * in_vectors(into, 4) + d)
        if options.factors and (apart := np.flatnonzero(state.rank[:, layer].any(0))).size:
            some, bits = layer[apart], options.bits[state.bits]
            out, into = out[:, apart], into[:, apart]
            kept = options.kept_ranks(state.rank[:, some, None], out, into, some)
            again = self._prices_at(prices, out, into, bits[:, some], some, kept)
            price[:, apart] = again * left[0][:, some, None]
        damage = prices.width[touched.groups] * left[1][:, touched.groups, None]
        total = np.add.reduceat(price, touched.starts, axis=1) + damage
        best = np.where(options.allowed[touched.groups], total, np.inf).argmin(2)
        state.width[:, touched.groups] = best
        now = options.widths[touched.group, best[:, touched.place]]
        state.outputs[:, layer] = np.where(touched.is_output, now, fixed)  # a layer is in one pair only
        state.inputs[:, layer] = np.maximum(others + touched.feeds * now, 1.0)

    def _set_ranks_(self, prices: Prices, state: _State) -> None:
        """Set the share that is saved of every layer, given outputs, inputs and bits."""
        options = self._options
        out, into = state.outputs[..., None], state.inputs[..., None]  # [n, layers, 1]
        kept = options.kept_ranks(np.arange(len(options.ratios)), out, into, _EVERY)
        assert kept is not None
        price = self._prices_at(prices, out, into, options.bits[state.bits], _EVERY, kept)
        state.rank = (prices.rank + price).argmin(2)
        plans, layers = state.rank.shape
        state.held = kept[np.arange(plans)[:, None], np.arange(layers), state.rank][..., None]

    def _set_bits_(self, prices: Prices, state: _State) -> None:
        """Set the bits of every layer, given all else."""
        options = self._options
        held = weights_of(options, state.outputs[..., None], state.inputs[..., None], state.held, _EVERY)
        price = prices.bits + (prices.size[:, None, None] * held) * PER_WEIGHT[options.bits]
        too_wide = np.arange(len(options.bits)) < prices.least_bits[:, None, None]
        state.bits = np.where(too_wide, np.inf, price).argmin(2)

    def _prices_at(
        self, prices: Prices, out: Floats, into: Floats, bits: Ints, layers: Ints | slice, kept: Floats | None
    ) -> Floats:
        """Price of some layers with `bits` [n, layers], at outputs, inputs and ranks [n, layers, options]."""
        options, few = self._options, (bits <= 8)[..., None]
        size = weights_of(options, out, into, kept, layers) * PER_WEIGHT[bits][..., None] + 4 * (1 + few) * out
        if kept is not None:
            size += 4 * few * kept + NODE_BYTES * (kept > 0)
        multiplied, moved = work_of(options, out, into, kept, layers, lanes=prices.lanes)
        multiply, move = (prices.latency[:, None] * part[:, layers] for part in (prices.multiply, prices.move))
        price: Floats = prices.size[:, None, None] * size
        price += multiply[..., None] * multiplied
        price += move[..., None] * moved
        return price


class _State:
    """Plans that are being set, and what follows from their choices.

    Attributes:
        width, rank, removed, bits: as in `Candidates`.
        outputs, inputs: [n, layers] as `Options.shapes` gives them.
        held: [n, layers, 1] directions that every layer keeps, None where no layer may be factored.
    """

    def __init__(self, options: Options, width: Ints, rank: Ints, removed: Flags, bits: Ints | None = None) -> None:
        self.width, self.rank, self.removed = width, rank, removed
        self.bits = np.zeros((len(width), len(options.taps)), np.int64) if bits is None else bits
        self.outputs, self.inputs = options.shapes(width)
        kept = options.kept_ranks(rank, self.outputs, self.inputs)
        self.held = None if kept is None else kept[..., None]

    def with_and_without(self, removed: Flags) -> _State:
        """The plans twice, to be set further: as they are, then with these blocks left out."""
        both = copy(self)
        for name in ("width", "rank", "bits", "outputs", "inputs", "held"):
            value = getattr(self, name)
            setattr(both, name, None if value is None else np.concatenate([value, value]))
        both.removed = np.concatenate([self.removed, removed])
        return both

    def plans(self, prices: Prices) -> Candidates:
        """What was set."""
        return Candidates(
            width=self.width,
            bits=self.bits,
            activations=prices.activations,
            removed=self.removed,
            zeroed=np.zeros(len(self.width)),
            rank=self.rank,
        )


class _Touched:
    """The layers that a set of groups shapes, as (layer, group) pairs sorted by group.

    Attributes:
        place: [pairs] index of the pair's group in `groups`, which rise.
        outputs, inputs: [pairs, options] what a width of the group brings to the layer's outputs and inputs.
        vectors: the same as `outputs`, rounded up to whole vectors, for each of `LANES`.
    """

    def __init__(self, options: Options, groups: list[int]) -> None:
        pairs = [(g, n) for g in groups for n in _layers_of(options, g)]
        self.groups = np.array(groups, np.int64)
        self.group = np.array([g for g, _ in pairs], np.int64)
        self.layer = np.array([n for _, n in pairs], np.int64)
        self.starts = np.searchsorted(self.group, self.groups)
        self.place = np.searchsorted(self.groups, self.group)
        self.is_output = options.out_group[self.layer] == self.group
        self.feeds = options.feeds[self.layer, self.group]
        asked = options.widths[self.group].astype(float)
        self.outputs, self.inputs = self.is_output[:, None] * asked, self.feeds[:, None] * asked
        self.vectors = {lanes: in_vectors(self.outputs, lanes) for lanes in LANES}


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
