"""Plans as arrays and back, and the shapes that follow from them."""

from __future__ import annotations

import numpy as np

from autocompress.plan import CompressionPlan
from autocompress.search.options import Options, stack


def test_widths_fall_in_granules_down_to_what_may_be_pruned(chain_options):
    assert chain_options.widths.tolist() == [[32, 24, 16, 8], [16, 8, 8, 8], [16, 8, 8, 8]]
    assert chain_options.allowed.sum(1).tolist() == [4, 2, 2]
    assert chain_options.bits.tolist() == [8, 4, 2]


def test_a_plan_survives_the_way_into_arrays_and_back(chain, chain_options):
    plan = chain.decode({"prune_ratio/a": 0.5, "prune_ratio/c": 0.5, "weight_bits/b": 2, "activations": "uint8"})
    there = chain_options.encode([plan])
    assert there.width.tolist() == [[2, 0, 1]]
    back = chain.decode(chain_options.params(there, 0))
    assert (back.prune_ratio, back.weight_bits, back.activations) == (
        plan.prune_ratio,
        plan.weight_bits,
        plan.activations,
    )


def test_bits_that_are_not_searched_count_as_the_next_wider_ones(chain_options):
    found = chain_options.encode([CompressionPlan(weight_bits={"a": 3, "b": 16})])
    assert chain_options.bits[found.bits[0]].tolist() == [4, 8, 8, 8]


def test_a_layer_loses_the_inputs_that_the_layer_before_it_does_not_make(chain_options):
    outputs, inputs = chain_options.shapes(np.array([[2, 1, 0]]))
    assert outputs.tolist() == [[16, 8, 16, 10]]
    assert inputs.tolist() == [[3, 16, 8, 16]]


def test_a_residual_pair_shrinks_on_both_sides(residual_options):
    outputs, inputs = residual_options.shapes(np.array([[2, 1]]))  # 8 of 16, 24 of 32
    assert outputs.tolist() == [[8, 24, 8]]
    assert inputs.tolist() == [[1, 8, 24]]


def test_a_model_without_groups_has_only_bits(chain):
    facts = type(chain.facts)(layers=chain.facts.layers, groups=())
    options = Options(type(chain)(config=chain.config, facts=facts))
    found = options.encode([CompressionPlan(weight_bits={"a": 4})] * 2)
    assert len(stack([found, found])) == 4
    assert options.shapes(found.width)[0].shape == (2, 4)


def test_a_removed_block_takes_its_layers_and_groups_with_it(block_options):
    plan = CompressionPlan(removed_blocks=("block",))
    found = block_options.encode([plan, CompressionPlan()])
    assert found.removed.tolist() == [[True], [False]]
    assert block_options.layers_left(found.removed).tolist() == [[1, 0, 0], [1, 1, 1]]
    assert block_options.groups_left(found.removed).tolist() == [[1, 0], [1, 1]]
    assert block_options.params(found, 0)["remove_block/block"] is True


def test_the_layout_is_that_of_the_plans_that_are_asked_for(block_options):
    plan = CompressionPlan(removed_blocks=("block",), prune_ratio={"stem": 0.5})
    some, others = block_options.encode([plan]), block_options.encode([CompressionPlan()] * 2)
    first, second = block_options.layout(some), block_options.layout(others)
    assert first.outputs.tolist() == [[8, 32, 8]]
    assert second.outputs.tolist() == [[16, 32, 16]] * 2
    assert first.layers_left.tolist() == [[1, 0, 0]]
    assert second.layers_left.tolist() == [[1, 1, 1]] * 2
    assert block_options.layout(others) is second, "it is worked out once"
    assert block_options.layout(some).inputs.tolist() == first.inputs.tolist()
