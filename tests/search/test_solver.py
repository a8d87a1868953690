"""The solver against trying everything, on a chain and on a residual pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autocompress.search.cost import LANES
from autocompress.search.options import Candidates
from autocompress.search.solver import Prices, Solver, independent_groups


def prices(options, *, size: float, latency: float, seed: int, lanes: int = LANES[0]) -> Prices:
    generator = np.random.default_rng(seed)
    groups, layers = len(options.channels), len(options.taps)
    removed = 1 - options.widths / options.channels[:, None]
    width = removed**2 * generator.uniform(0.2, 2.0, (groups, 1))
    bits = 4.0 ** (2 - options.bits) * generator.uniform(0.1, 1.0, (layers, 1))
    work = options.positions * options.taps * options.out_dense * options.in_dense
    written = options.positions * options.out_dense
    return Prices(
        width=width,
        bits=bits,
        blocks=np.full(len(options.blocks), 0.3),
        rank=options.ratios**2 * generator.uniform(0.2, 2.0, (layers, 1)) * options.factored[:, None],
        size=np.array([size]),
        latency=np.array([latency]),
        multiply=np.broadcast_to(0.7 / work.sum(), (1, layers)),
        move=np.broadcast_to(0.3 / written.sum(), (1, layers)),
        activations=np.zeros(1, np.int64),
        least_bits=np.zeros(1, np.int64),
        lanes=lanes,
    )


def everything(options, asked: Prices) -> tuple[float, Candidates]:
    width = np.array(list(itertools.product(*[range(int(n)) for n in options.allowed.sum(1)])))
    bits = np.array(list(itertools.product(range(len(options.bits)), repeat=len(options.taps))))
    both = list(itertools.product((False, True), repeat=len(options.blocks)))
    removed = np.array(both, bool).reshape(len(both), len(options.blocks))
    none = np.zeros(len(bits), np.int64)
    each = [range(len(options.ratios) if f else 1) for f in options.factored] if options.factors else []
    ranks = np.array(list(itertools.product(*each)), np.int64)
    rows = [
        Candidates(
            width=np.repeat(w[None], len(bits), 0),
            bits=bits,
            activations=none,
            removed=np.repeat(r[None], len(bits), 0),
            zeroed=np.zeros(len(bits)),
            rank=np.repeat(k[None], len(bits), 0),
        )
        for w in width
        for r in removed
        for k in ranks
    ]
    costs = [Solver(options).cost(asked, row) for row in rows]
    best = min(range(len(rows)), key=lambda i: costs[i].min())
    return float(costs[best].min()), rows[best].take(np.array([costs[best].argmin()]))


SPACES = ["chain_options", "residual_options", "depthwise_options", "block_options", "factored_options"]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_within_two_percent_of_the_best_of_all(space, seed, request):
    options = request.getfixturevalue(space)
    lanes = LANES[seed // 4]
    asked = prices(options, size=2e-4 * (1 + seed), latency=0.3 * (seed % 4), seed=seed, lanes=lanes)
    solver = Solver(options)
    found = solver.solve(asked)
    best, _ = everything(options, asked)
    assert solver.cost(asked, found)[0] <= best * 1.02


def test_what_costs_nothing_is_left_alone(chain_options):
    found = Solver(chain_options).solve(prices(chain_options, size=0.0, latency=0.0, seed=0))
    assert found.width.tolist() == [[0, 0, 0]]
    assert found.bits.tolist() == [[0, 0, 0, 0]]


def test_a_high_price_takes_everything(chain_options):
    found = Solver(chain_options).solve(prices(chain_options, size=10.0, latency=0.0, seed=0))
    assert found.width.tolist() == [[3, 1, 1]]
    assert found.bits.tolist() == [[2, 2, 2, 2]]


def test_integer_activations_keep_bits_at_most_eight(chain):
    from dataclasses import replace

    from autocompress.config import SpaceConfig
    from autocompress.search.options import Options

    options = Options(type(chain)(config=SpaceConfig(weight_bits=(4, 8, 32)), facts=chain.facts))
    free = prices(options, size=0.0, latency=0.0, seed=0)
    assert Solver(options).solve(free).bits.tolist() == [[0, 0, 0, 0]]
    integers = replace(free, least_bits=np.ones(1, np.int64))
    assert Solver(options).solve(integers).bits.tolist() == [[1, 1, 1, 1]]


def test_groups_that_share_a_layer_are_never_set_at_once(chain_options, residual_options):
    assert independent_groups(chain_options) == [[0, 2], [1]]  # a feeds b, b feeds c
    assert independent_groups(residual_options) == [[0], [1]]
