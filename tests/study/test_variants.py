"""Which other roundings of trained networks are tried, and in which order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autocompress.config import SpaceConfig
from autocompress.front.hypervolume import gain
from autocompress.plan import CompressionPlan
from autocompress.records import Latency, LayerFacts, Measurement, ModelFacts, TrialRecord, TrialState
from autocompress.search.stopping import Constraints, Rival
from autocompress.space.search_space import SearchSpace
from autocompress.study.variants import best_variant, other_bits

WEIGHTS = {"a": 800, "b": 8_000, "c": 1_600}
SPACE = SearchSpace(
    config=SpaceConfig(weight_bits=(2, 4, 8)),
    facts=ModelFacts(
        layers=tuple(
            LayerFacts(name=n, kind="linear", weights=w, out_channels=8, in_channels=w // 8) for n, w in WEIGHTS.items()
        ),
        groups=(),
    ),
)
DENSE_BYTES = 50_000


def trained(number: int, drop: float, size: int, **bits: int) -> tuple[TrialRecord, Rival]:
    plan = CompressionPlan(weight_bits=bits)
    measured = Measurement(
        val=0.9 - drop, size_bytes=size, compressed_bytes=size, params=1, macs=1,
        latency=Latency(latency_ms=1.0, ratio=0.5, ratio_ci=(0.5, 0.5), blocks=1),
    )  # fmt: skip
    record = TrialRecord(trial=number, state=TrialState.COMPLETE, plan=plan, measurement=measured, trained_s=1.0)
    return record, Rival(trial=number, plan=plan, drop=drop, size_ratio=size / DENSE_BYTES, latency_ratio=0.5)


def test_bits_go_one_step_down_down_where_half_of_the_weights_are_and_up():
    found = other_bits({"a": 8, "b": 4, "c": 2}, (2, 4, 8), WEIGHTS)
    assert found == [
        ({"a": 4, "b": 2, "c": 2}, 1.0),
        ({"a": 8, "b": 2, "c": 2}, 1.0),
        ({"a": 8, "b": 8, "c": 4}, 0.8),
    ]


def test_what_has_the_fewest_bits_only_goes_up():
    assert other_bits({"a": 2, "b": 2}, (2, 4), WEIGHTS) == [({"a": 4, "b": 4}, 0.8)]


def test_nothing_goes_beyond_8_bits_where_rounding_costs_nothing():
    found = other_bits({"a": 8, "b": 4, "c": 4}, (4, 8, 16, 32), WEIGHTS)
    assert found[-1] == ({"a": 8, "b": 8, "c": 8}, 0.8)
    assert [bits for bits, left in other_bits({"a": 8, "b": 8, "c": 8}, (4, 8, 16, 32), WEIGHTS) if left < 1] == []


def test_the_variant_that_would_add_most_is_chosen_at_its_exact_size():
    """8 to 4 bits saves 400 and 4,000 bytes, 4 to 2 bits 400: 10,200 of 15,000 are left."""
    record, rival = trained(3, 0.01, 15_000, a=8, b=8, c=4)
    best = best_variant(SPACE, [record], [rival])
    assert best is not None
    assert (best.parent, best.plan.weight_bits) == (3, {"a": 4, "b": 4, "c": 2})
    assert best.gain == pytest.approx(gain((0.01, 10_200 / DENSE_BYTES, 0.5), [(0.01, 0.3, 0.5)]))
    assert replace(best.plan, weight_bits=rival.plan.weight_bits) == rival.plan


def test_what_breaks_a_bound_is_no_variant_and_what_loses_too_much_counts_for_little():
    record, rival = trained(3, 0.01, 15_000, a=8, b=8, c=4)
    free = best_variant(SPACE, [record], [rival])
    assert free is not None
    assert best_variant(SPACE, [record], [rival], Constraints(max_latency=1e-9)) is None
    assert best_variant(SPACE, [record], [rival], Constraints(max_size=10_199)) is None
    point = (0.01, 10_200 / DENSE_BYTES, 0.5)
    small = best_variant(SPACE, [record], [rival], Constraints(max_size=10_200))
    assert small is not None
    assert small == replace(free, gain=small.gain)
    assert small.gain == pytest.approx(0.1 * free.gain + 0.9 * gain(point, [])), "its parent is too large to count"
    much = best_variant(SPACE, [record], [rival], Constraints(max_drop=0.001))
    assert much is not None
    chance = 1 / (1 + math.exp(1.7 * 0.9 / 0.25))
    assert much.gain == pytest.approx(0.1 * free.gain + 0.9 * chance * gain(point, []))
    assert much.gain < 0.12 * free.gain


def test_nothing_is_tried_twice_and_nothing_from_behind_the_front():
    record, rival = trained(3, 0.01, 15_000, a=8, b=8, c=4)
    behind, behind_rival = trained(4, 0.02, 20_000, a=8, b=4, c=8)
    stopped, _ = trained(5, 0.0, 10_200, a=4, b=4, c=2)
    stopped = replace(stopped, state=TrialState.STOPPED)
    best = best_variant(SPACE, [record, behind, stopped], [rival, behind_rival])
    assert best is not None
    assert (best.parent, best.plan.weight_bits) == (3, {"a": 8, "b": 4, "c": 4})


def test_there_is_none_where_no_variant_would_add_anything():
    record, rival = trained(3, 0.2, 15_000, a=8, b=8, c=4)  # four times the reference's drop
    assert best_variant(SPACE, [record], [rival]) is None
    assert best_variant(SPACE, [], []) is None


@pytest.mark.parametrize("activations", ["float", "uint8"])
def test_with_floats_and_with_integers_no_layer_gets_more_than_8_bits(activations):
    space = replace(SPACE, config=SpaceConfig(weight_bits=(4, 8, 32)))
    records, rivals = zip(trained(3, 0.01, 15_000, a=8, b=4, c=4), trained(4, 0.9, 14_000, a=4, b=4, c=4), strict=True)
    records = [replace(r, plan=replace(r.plan, activations=activations)) for r in records]
    rivals = [replace(r, plan=replace(r.plan, activations=activations)) for r in rivals[:1]]
    best = best_variant(space, records, rivals)
    assert best is not None
    assert best.plan.weight_bits == {"a": 8, "b": 8, "c": 8}
