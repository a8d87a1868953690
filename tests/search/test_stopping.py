"""Which plans are worth training: the monotone rule, twins, constraints and the gain, with exact values."""

from __future__ import annotations

import pytest

from autocompress.plan import CompressionPlan, DistillPlan
from autocompress.search.stopping import (
    LONGER,
    MARGIN,
    MIN_GAIN,
    Constraints,
    Rival,
    Rung,
    Verdict,
    foreseen,
    hopeless,
    judge,
    learn_rung,
    optimistic_drop,
)


def plan(ratio: float = 0.5, bits: int = 8, **fields: object) -> CompressionPlan:
    return CompressionPlan(prune_ratio={"a": ratio}, weight_bits={"a": bits}, **fields)


def rival(trial: int, at: CompressionPlan, drop: float, size: float = 0.5, latency: float = 0.5) -> Rival:
    return Rival(trial=trial, plan=at, drop=drop, size_ratio=size, latency_ratio=latency)


def verdict(
    at: CompressionPlan, rivals: list[Rival], *, size: float = 0.25, latency: float = 0.25, **limits
) -> Verdict:
    return judge(
        at, size_bytes=int(1000 * size), latency_ms=2 * latency, size_ratio=size, latency_ratio=latency,
        rivals=rivals, constraints=Constraints(**limits),
    )  # fmt: skip


def test_without_a_rival_no_loss_is_hoped_for():
    assert optimistic_drop(plan(), []) == 0.0


def test_a_plan_cannot_hope_for_more_than_a_less_compressed_one_but_for_the_margin():
    assert optimistic_drop(plan(0.5), [rival(1, plan(0.25), 0.03)]) == pytest.approx(LONGER * 0.03 - MARGIN)
    assert optimistic_drop(plan(0.5), [rival(1, plan(0.5, 32), 0.03)]) == pytest.approx(LONGER * 0.03 - MARGIN)


def test_the_worst_of_several_less_compressed_plans_bounds_the_hope():
    rivals = [rival(1, plan(0.25), 0.01), rival(2, plan(0.375), 0.04), rival(3, plan(0.0), 0.02)]
    assert optimistic_drop(plan(0.5), rivals) == pytest.approx(LONGER * 0.04 - MARGIN)


@pytest.mark.parametrize(
    "other",
    [plan(0.75), plan(0.25, 4), CompressionPlan(prune_ratio={"b": 0.1}), plan(0.25, activations="uint8")],
    ids=["more pruned", "fewer bits", "another group", "rounded activations"],
)
def test_a_plan_that_compresses_more_somewhere_says_nothing(other):
    assert optimistic_drop(plan(0.5), [rival(1, other, 0.04)]) == 0.0


def test_luck_within_the_margin_is_no_drop():
    assert optimistic_drop(plan(0.5), [rival(1, plan(0.25), MARGIN)]) == 0.0


def test_a_plan_that_was_not_trained_says_nothing_of_what_training_repairs():
    """Eight bits and integer activations are not trained; on a processor whose sums saturate they lose points."""
    untrained = CompressionPlan(weight_bits={"a": 8}, activations="uint8")
    assert optimistic_drop(plan(0.5, activations="uint8"), [rival(1, untrained, 0.09)]) == 0.0
    assert verdict(plan(0.5, activations="uint8"), [rival(1, untrained, 0.09)], max_drop=0.005).train


def test_the_longest_training_of_a_structure_tells_what_it_can_reach():
    once, longer = rival(3, plan(0.25), 0.08), rival(9, plan(0.25), 0.03)
    for rivals in ([once, longer], [longer, once]):
        assert optimistic_drop(plan(0.5), rivals) == pytest.approx(LONGER * 0.03 - MARGIN)


def test_a_file_above_the_limit_is_infeasible_whatever_its_accuracy():
    too_big = verdict(plan(), [], size=0.25, max_size=249)
    assert too_big == Verdict(train=False, infeasible=True, reason="250 bytes exceed 249")
    assert verdict(plan(), [], size=0.25, max_size=250).train
    too_slow = verdict(plan(), [], latency=0.25, max_latency=0.49)
    assert too_slow == Verdict(train=False, infeasible=True, reason="0.5 ms exceed 0.49 ms")
    assert verdict(plan(), [], latency=0.25, max_latency=0.5).train


def test_a_twin_is_not_trained_again():
    assert verdict(plan(), [rival(7, plan(), 0.0)]) == Verdict(train=False, reason="the same plan as trial 7")


def test_another_way_of_recovering_makes_no_twin_where_something_is_trained():
    assert verdict(plan(), [rival(7, plan(distill=DistillPlan(temperature=2.0)), 0.0)]).train
    dense = CompressionPlan(weight_bits={"a": 8})
    again = CompressionPlan(weight_bits={"a": 8}, learning_rate=0.1)
    assert "trial 7" in verdict(again, [rival(7, dense, 0.0)]).reason, "nothing is trained in either"


def test_a_plan_that_needs_no_training_is_always_looked_at():
    better = rival(1, plan(0.25), 0.0, size=0.1, latency=0.1)
    assert verdict(CompressionPlan(weight_bits={"a": 16}), [better], size=0.9, latency=0.9).train


def test_a_drop_that_less_compressed_plans_have_already_is_more_than_allowed():
    rivals = [rival(1, plan(0.25), 0.12)]
    refused = verdict(plan(0.5), rivals, max_drop=0.02)
    assert refused == Verdict(train=False, reason="less compressed plans already lose 0.0250, more than allowed")
    assert verdict(plan(0.5), rivals, max_drop=0.03).train


def test_a_plan_whose_best_case_is_dominated_is_stopped():
    rivals = [rival(1, plan(0.75), 0.0, size=0.2, latency=0.2)]
    assert verdict(plan(0.5), rivals) == Verdict(
        train=False, reason="even without any loss it would not enter the front"
    )


def test_the_reason_names_the_drop_that_was_hoped_for():
    rivals = [rival(1, plan(0.25), 0.12), rival(2, plan(0.75), 0.01, size=0.2, latency=0.2)]
    assert verdict(plan(0.5), rivals).reason == "even at a drop of 0.0250 it would not enter the front"


def test_a_gain_below_the_noise_of_a_latency_is_no_gain():
    # At no drop the box that only this plan dominates is 1 x its step in size x (1 - its latency).
    others = [rival(1, plan(0.75), 0.0, size=0.25, latency=0.25)]
    step = MIN_GAIN / 0.75
    assert not verdict(plan(0.5), others, size=0.25 - 0.9 * step).train
    assert verdict(plan(0.5), others, size=0.25 - 1.1 * step).train


def test_a_rung_stops_nothing_before_a_few_trials_were_trained_to_their_end():
    assert learn_rung([(0.1, 0.05)] * 3).hope == 0
    assert hopeless(0.9, Rung(), cheap=(0.5, 0.5), rivals=[rival(1, plan(), 0.0)]) == ""


def test_the_hope_at_a_rung_is_what_an_optimist_makes_of_earlier_trials():
    """Shares left: 0.4, 0.6, 0.4, 0.6; mean 0.5, standard deviation 0.11547."""
    seen = [(0.1, 0.04), (0.1, 0.06), (0.2, 0.08), (0.05, 0.03)]
    assert learn_rung(seen).hope == pytest.approx(0.5 - 1.64 * 0.11547, abs=1e-4)


def test_the_end_of_a_training_is_foreseen_at_its_rung_from_those_that_had_one():
    """The shares of before: a drop of 0.2 would have come to 0.1, give or take 0.023."""
    seen = [(0.1, 0.04), (0.1, 0.06), (0.2, 0.08), (0.05, 0.03)]
    assert foreseen(0.2, seen) == pytest.approx((0.1, 0.2 * 0.11547), abs=1e-4)
    assert foreseen(0.2, seen[:3]) is None


def test_drops_within_the_margin_say_nothing_at_a_rung():
    assert learn_rung([(MARGIN / 2, 0.0)] * 9).hope == 0


@pytest.mark.parametrize(("tried", "stopped", "looks"), [(9, 0, True), (10, 0, False), (10, 1, True), (21, 2, False)])
def test_a_rung_that_stops_less_than_one_in_ten_is_not_looked_at_any_more(tried, stopped, looks):
    assert (learn_rung([(0.1, 0.05)] * 4, tried=tried, stopped=stopped) is not None) == looks


def test_a_training_that_cannot_reach_the_front_ends_at_its_rung():
    front = [rival(1, plan(), 0.01, size=0.2, latency=0.2)]
    rung = Rung(hope=0.5)
    assert "would not enter the front" in hopeless(0.1, rung, cheap=(0.3, 0.3), rivals=front)
    assert hopeless(0.02, rung, cheap=(0.3, 0.3), rivals=front) == "", "half of it less the margin is better than 0.01"
    assert hopeless(0.1, rung, cheap=(0.1, 0.3), rivals=front) == "", "it is smaller than all of the front"


@pytest.mark.parametrize(
    ("bounds", "of_file", "goal"),
    [
        ({}, False, False),
        ({"max_drop": 0.01}, False, False),
        ({"max_size": 900}, True, False),
        ({"max_latency": 1.0, "max_drop": 0.0}, True, True),
    ],
)
def test_a_goal_is_a_bound_on_the_drop_beside_one_on_the_file(bounds, of_file, goal):
    assert (Constraints(**bounds).bounds_file, Constraints(**bounds).is_goal) == (of_file, goal)
