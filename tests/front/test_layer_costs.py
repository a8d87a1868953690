"""What a layer costs: the shapes, the stored bytes and the inferred milliseconds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from front_factories import make_trial

from autocompress.front.layer_costs import LayerLatencies, dense, layer_costs
from autocompress.plan import CompressionPlan
from autocompress.records import BlockFacts, FactorFacts, GroupFacts, LayerFacts, ModelFacts

LAYERS = (
    LayerFacts(name="a", kind="conv", weights=16 * 3 * 9, out_channels=16, in_channels=3, group="a", positions=64),
    LayerFacts(
        name="b", kind="conv", weights=32 * 16 * 9, out_channels=32, in_channels=16, group="b", positions=16,
        sources={"a": 1.0},
    ),
    LayerFacts(name="fc", kind="linear", weights=32 * 10, out_channels=10, in_channels=32, sources={"b": 1.0}),
)  # fmt: skip
FACTS = ModelFacts(
    layers=LAYERS,
    groups=(
        GroupFacts(name="a", channels=16, granule=4, layers=("a",)),
        GroupFacts(name="b", channels=32, granule=4, layers=("b",)),
    ),
    blocks=(BlockFacts(name="b", layers=("b",)),),
)
PLAN = CompressionPlan(prune_ratio={"a": 0.5, "b": 0.25}, weight_bits={"a": 8, "b": 4})
TRIAL = make_trial(1, 0.97, 10_000, 0.5, plan=PLAN, widths={"a": 8, "b": 24})


def test_a_pruned_group_narrows_the_layers_that_read_it() -> None:
    a, b, fc = layer_costs(FACTS, TRIAL)
    assert (a.row.kept, a.inputs) == (8, 3)
    assert (b.row.kept, b.inputs) == (24, 8)
    assert (fc.row.kept, fc.inputs) == (10, 24)


def test_bytes_are_packed_weights_a_bias_and_a_scale() -> None:
    a, b, fc = layer_costs(FACTS, TRIAL)
    assert a.size_bytes == 8 * 3 * 9 + 8 * 8
    assert b.size_bytes == 24 * 8 * 9 // 2 + 24 * 8
    assert fc.size_bytes == 10 * 24 * 4 + 10 * 4  # float: no scale


def test_multiply_accumulates_are_those_of_the_remaining_network() -> None:
    assert [cost.macs for cost in layer_costs(FACTS, TRIAL)] == [8 * 3 * 9 * 64, 24 * 8 * 9 * 16, 24 * 10]
    assert [c.macs for c in layer_costs(FACTS, dense(TRIAL))] == [n.weights * n.positions for n in LAYERS]


def test_a_factored_layer_holds_and_multiplies_what_both_factors_do() -> None:
    """b keeps 24 of 32 outputs and 8 of 16 inputs: 8 x 3 + 24 x 3 weights per direction, even at rank 18."""
    factors = FactorFacts(taps=3, places=2.0)
    facts = replace(FACTS, layers=(LAYERS[0], replace(LAYERS[1], factors=factors), LAYERS[2]))
    trial = replace(TRIAL, plan=replace(PLAN, rank_ratio={"b": 0.25}))
    b = layer_costs(facts, trial)[1]
    assert b.row.rank == 12  # a stride of 2: even at 24 * 8 * 9 / (8 * 3 * 2 + 24 * 3) = 14.4; three quarters are 10.8
    assert b.size_bytes == (8 * 3 * 12 + 12 * 24 * 3) // 2 + 4 * 24 + 4 * (24 + 12)
    assert b.macs == 16 * (8 * 3 * 12 * 2 + 12 * 24 * 3)


def test_a_layer_that_went_with_its_block_costs_nothing() -> None:
    trial = make_trial(1, 0.9, 1000, 0.5, plan=CompressionPlan(removed_blocks=("b",)), widths={"b": 0})
    _, b, fc = layer_costs(FACTS, trial)
    assert (b.size_bytes, b.macs, b.inputs) == (0, 0, 0)
    assert fc.inputs == 32


def timed(count: int) -> list:
    """Files whose time is a fifth for the graph and the rest for the products of the layer `b`."""
    trials = []
    for number in range(count):
        a, b = number // 4 % 4 / 4, number % 4 / 4
        plan = CompressionPlan(prune_ratio={"a": a, "b": b})
        trials.append(make_trial(number, 0.9, 1000, 0.2 + 0.8 * (1 - a) * (1 - b), plan=plan))
    return trials


def test_latency_per_layer_is_unknown_until_enough_files_were_timed() -> None:
    latencies = LayerLatencies(FACTS, timed(3), baseline_ms=2.0)
    assert not latencies.known
    assert latencies.of(PLAN) is None


def test_latency_goes_to_the_layer_that_takes_it() -> None:
    latencies = LayerLatencies(FACTS, timed(16), baseline_ms=2.0)
    whole = latencies.of(CompressionPlan())
    assert whole is not None
    assert whole[1] == max(whole)
    narrow = latencies.of(CompressionPlan(prune_ratio={"b": 0.5}))
    assert narrow is not None
    assert narrow[1] < whole[1]
    assert narrow[0] == pytest.approx(whole[0])
    assert sum(whole) <= 2.0
