"""Which plans are considered: the solver's at prices drawn for the purpose, changes of trained plans, random dials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from autocompress.search.files import Files, Reference
from autocompress.search.options import Candidates, Floats, Ints, Options, stack
from autocompress.search.solver import Prices, Solver
from autocompress.search.stopping import Constraints
from autocompress.search.surrogate import DamageModel
from autocompress.space.search_space import Parameter, SearchSpace

_SOLVED, _MUTATED = 24, 12  # plans per proposal
_PAIRS = 12_000  # solver's arrays: fewer prices at once for larger networks
_STEEPEST, _STEPS = 2.8, 4  # towards the bounds: the first step of the logarithm of prices, and how many there are
_FEWEST = 8  # plans, of which half are brought near the bounds
_SIZE_PRICES, _LATENCY_PRICES = (1e-3, 0.3), (1e-3, 0.5)  # drop for the whole file, for the whole latency
_ZEROS = 0.25  # chance of a change of the share of zeros, where that is searched
_RANKS = 0.25  # of a change of one layer's rank, where those are


class Pool:
    """Draws the plans among which the sampler chooses.

    Args:
        files, damage: what is believed of plans so far; both learn while the search goes on.
        random: what everything is drawn from.
        solves: False draws random dials in the place of the solver's plans.
    """

    def __init__(
        self,
        space: SearchSpace,
        options: Options,
        files: Files,
        damage: DamageModel,
        *,
        reference: Reference,
        constraints: Constraints,
        random: np.random.Generator,
        solves: bool,
    ) -> None:
        self._space, self._options, self._files, self._damage = space, options, files, damage
        self._reference, self._constraints, self._random, self._solves = reference, constraints, random, solves
        self._narrowest = (options.allowed.sum(1) - 1).tolist()
        self._factored = np.flatnonzero(options.factored).tolist()
        self._solver = Solver(options)
        shaped = int((options.feeds > 0).sum()) + len(options.channels)
        self._pairs = max(1, shaped) * options.widths.shape[-1] * (2 if options.factors else 1)

    def draw(self, parents: Candidates, turn: int) -> tuple[Candidates, list[str]]:
        """Plans and where each comes from.

        Args:
            parents: the trained plans of the front.
            turn: a number that rises from proposal to proposal.
        """
        parts = [self.solved(turn) if self._solves else self._drawn()]
        sources = ["solver" if self._solves else "random dials"] * len(parts[0])
        if len(parents):
            parts.append(self.mutated(parents))
            sources += ["change of a trained plan"] * len(parts[1])
        return stack(parts), sources

    def solved(self, turn: int) -> Candidates:
        """The solver's plans at prices drawn over their whole ranges, or at those where plans just keep the bounds."""
        options, draw = self._options, self._random
        count = max(2, min(_PAIRS // self._pairs, _SOLVED))
        stepwise = self._constraints.bounds_file and count >= _FEWEST  # several times takes too long in large networks
        count //= 2 if stepwise else 1
        turn = turn if count < len(options.activations) else 0  # of few plans each kind has its turn
        prices = self._prices(options.activations[(turn + np.arange(count)) % len(options.activations)])
        solved = self._within_bounds(prices) if stepwise else self._solver.solve(prices)
        return replace(solved, zeroed=draw.choice(options.zeroed, len(solved))) if len(options.zeroed) > 1 else solved

    def _within_bounds(self, prices: Prices) -> Candidates:
        """Plans near the bounds on size and latency, two from each of these prices.

        The price of each rises where its bound is broken and falls half as far where it is kept, by steps that are
        halved; the plans of the last two are taken.
        """
        limits, found = self._constraints, [self._solver.solve(prices)]
        for step in _STEEPEST / 2.0 ** np.arange(_STEPS):
            small, fast = self._files.small(found[-1]), self._files.fast(found[-1])
            size = prices.size * np.exp(np.where(small, -step / 2, step) * (limits.max_size is not None))
            latency = prices.latency * np.exp(np.where(fast, -step / 2, step) * (limits.max_latency is not None))
            prices = replace(prices, size=size, latency=latency)
            found.append(self._solver.solve(prices))
        return stack(found[-2:])

    def _prices(self, kinds: Ints) -> Prices:
        """Prices for a plan of each of these kinds of activations, with damages as they may well be."""
        options, draw, limits = self._options, self._random, self._constraints
        known = {kind: self._files.latency.layer_shares(kind) for kind in set(kinds.tolist())}
        shares = [known[kind] for kind in kinds.tolist()]
        width, bits, blocks, rank = self._damage.tables(draw)
        weighed = self._files.weighs or limits.max_size is not None
        timed = self._files.times or limits.max_latency is not None
        narrow = int(np.argmax(options.bits <= 8)) if (options.bits <= 8).any() else 0
        return Prices(
            width=width,
            bits=bits,
            rank=rank,
            blocks=blocks,
            size=_log_uniform(draw, _SIZE_PRICES, len(kinds)) * weighed / self._reference.size_bytes,
            latency=_log_uniform(draw, _LATENCY_PRICES, len(kinds)) * timed,
            multiply=np.array([s[0] for s in shares]),
            move=np.array([s[1] for s in shares]),
            activations=kinds,
            least_bits=np.where(kinds > 0, narrow, 0),
            lanes=self._files.latency.lanes,
        )

    def _drawn(self) -> Candidates:
        plans = []
        for _ in range(_SOLVED):
            dials = {name: self._draw(parameter) for name, parameter in self._space.knobs().items()}
            plans.append(self._space.from_knobs(dials))
        return self._options.encode(plans)

    def _draw(self, parameter: Parameter) -> Any:
        if parameter.choices:
            return parameter.choices[self._random.integers(len(parameter.choices))]
        return self._random.uniform(parameter.low, parameter.high)

    def mutated(self, parents: Candidates) -> Candidates:
        """Plans of the front with one width, the bits or rank of one layer, or the activations changed."""
        parents = parents.take(self._random.integers(len(parents), size=_MUTATED))
        changed = self._options.searched(parents)  # references may have what is not searched
        chances = self._random.random((_MUTATED, 1 + 3 * 4)).tolist()  # drawn at once: a call each takes longer
        for row, (count, *drawn) in enumerate(chances):
            for k in range(1 + int(3 * count)):
                self._change_(changed.take(slice(row, row + 1)), *drawn[4 * k : 4 * k + 4])  # a view
        return changed

    def _change_(self, one: Candidates, zeros: float, ranks: float, what: float, which: float) -> None:
        """Change one thing of one plan.

        Args:
            zeros, ranks, what: numbers drawn from [0, 1) that choose the kind of the change.
            which: the same for the group, layer, block or share, and for wider or narrower.
        """
        options = self._options
        if len(options.zeroed) > 1 and zeros < _ZEROS:
            one.zeroed[:] = options.zeroed[int(which * len(options.zeroed))]
        elif options.factors and ranks < _RANKS:
            place, step = _step(which, len(self._factored))
            layer = self._factored[place]
            one.rank[0, layer] = min(max(one.rank[0, layer] + step, 0), len(options.ratios) - 1)
        elif what < 2 / 6 and one.width.size:
            group, step = _step(which, one.width.shape[1])
            one.width[0, group] = min(max(one.width[0, group] + step, 0), self._narrowest[group])
        elif what < 4 / 6 and one.bits.size:
            layer, step = _step(which, one.bits.shape[1])
            one.bits[0, layer] = min(max(one.bits[0, layer] + step, 0), len(options.bits) - 1)
        elif what < 5 / 6 and one.removed.size:
            block = int(which * one.removed.shape[1])
            one.removed[0, block] = not one.removed[0, block]
        else:
            one.activations[:] = options.activations[int(which * len(options.activations))]


def _step(which: float, count: int) -> tuple[int, int]:
    """(one of `count` places, -1 or 1) for a number in [0, 1), all as likely."""
    place, up = divmod(int(2 * count * which), 2)
    return place, 2 * up - 1


def _log_uniform(draw: np.random.Generator, bounds: tuple[float, float], count: int) -> Floats:
    low, high = np.log(bounds)
    drawn: Floats = np.exp(draw.uniform(low, high, count))
    return drawn
