"""Plans as data: JSON both ways, keys that stay what they were, and what compresses more than what."""

from __future__ import annotations

import json

import pytest

from autocompress.plan import CompressionPlan, DistillPlan

PLAN = CompressionPlan(
    prune_ratio={"conv1": 0.5, "layers.1.conv1": 0.25},
    weight_bits={"conv1": 8, "layers.1.conv1": 4},
    activations="uint8",
    importance="taylor",
    distill=DistillPlan(temperature=2.0, weight=0.5),
    learning_rate=1e-3,
)


def _without(*blocks: str, **fields: object) -> CompressionPlan:
    return CompressionPlan.from_dict({"removed_blocks": list(blocks), **fields})


@pytest.mark.parametrize("plan", [CompressionPlan(), PLAN, CompressionPlan(removed_blocks=("b", "a.1"))])
def test_a_plan_survives_json(plan):
    assert CompressionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_that_was_stored_before_there_were_blocks_removes_none():
    stored = PLAN.to_dict()
    del stored["removed_blocks"]
    assert CompressionPlan.from_dict(stored) == PLAN


def test_how_weights_are_rounded_matters_where_something_is_trained_and_not_for_the_bytes():
    stored = PLAN.to_dict()
    del stored["rounding"]
    assert CompressionPlan.from_dict(stored).rounding == "nearest"
    fed = CompressionPlan.from_dict({**stored, "rounding": "feedback"})
    assert fed.structure_key() == PLAN.structure_key()
    assert not fed.same_as(PLAN)
    eight = {"weight_bits": {"conv1": 8}}
    assert _without(**eight, rounding="feedback").same_as(_without(**eight))
    with pytest.raises(ValueError, match="rounding must be one of"):
        CompressionPlan(rounding="up")  # type: ignore[arg-type]


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="unknown key 'prune_ratios' in a plan"):
        CompressionPlan.from_dict({"prune_ratios": {}})


def test_structure_keys_are_what_they_were_before_there_were_blocks():
    assert CompressionPlan().structure_key() == "83f301c0d3a92aa9"
    assert PLAN.structure_key() == "306c5f384f07fb01"


def test_factors_are_another_structure_only_where_there_are_any():
    assert CompressionPlan(rank_ratio={"fc": 0.0}).structure_key() == CompressionPlan().structure_key()
    half, most = (CompressionPlan(rank_ratio={"fc": ratio}) for ratio in (0.5, 0.8))
    assert len({plan.structure_key() for plan in (CompressionPlan(), half, most)}) == 3
    assert CompressionPlan.from_dict(json.loads(json.dumps(half.to_dict()))) == half
    assert half.trains
    assert most.compresses_at_least(half)
    assert not half.compresses_at_least(most)
    assert _without("fc").compresses_at_least(most), "what is gone is compressed enough"


def test_a_ratio_that_would_leave_nothing_of_the_factors_is_refused():
    with pytest.raises(ValueError, match=r"rank_ratio for 'fc' must be in \[0, 1\), got 1"):
        CompressionPlan(rank_ratio={"fc": 1})


def test_other_blocks_are_another_structure():
    assert len({_without(*b).structure_key() for b in ((), ("a",), ("b",), ("a", "b"))}) == 4
    assert _without("b", "a", "b") == _without("a", "b")
    assert _without("b", "a").removed_blocks == ("a", "b")
    assert not _without("a").same_as(CompressionPlan())


@pytest.mark.parametrize(
    ("names", "message"),
    [("layers.1", "names of blocks"), (("",), "names of blocks"), ((1,), "names of blocks"),
     (("a", "a.b", "ab"), r"'a\.b' inside of 'a'")],
)  # fmt: skip
def test_names_that_cannot_be_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        CompressionPlan(removed_blocks=names)


def test_what_lost_a_block_can_be_trained():
    assert _without("a").trains
    assert not CompressionPlan().trains


def test_removing_more_compresses_more_whatever_was_done_inside():
    light = _without(prune_ratio={"a.conv1": 0.75, "conv1": 0.5}, weight_bits={"a.conv1": 2, "conv1": 8})
    gone = _without("a", prune_ratio={"conv1": 0.5}, weight_bits={"conv1": 8})
    assert gone.compresses_at_least(light)
    assert not light.compresses_at_least(gone)
    assert _without("a", "b").compresses_at_least(_without("a"))
    assert not _without("a").compresses_at_least(_without("b"))


def test_a_removed_block_says_nothing_of_what_is_outside():
    gone = _without("a", prune_ratio={"conv1": 0.5})
    assert not gone.compresses_at_least(_without(prune_ratio={"conv1": 0.75}))
    assert not gone.compresses_at_least(_without(prune_ratio={"ab": 0.25}))  # only begins like the block
    assert not gone.compresses_at_least(_without(weight_bits={"ab": 4}))
