"""Which trained network a plan is cut from."""

from __future__ import annotations

from autocompress.plan import CompressionPlan
from autocompress.records import TrialRecord, TrialState
from autocompress.search.inherit import choose_parent


def trained(number: int, a: float, b: float, *, seconds: float = 1.0, **plan) -> TrialRecord:
    return TrialRecord(
        trial=number, state=TrialState.COMPLETE, equivalent_s=seconds,
        plan=CompressionPlan(prune_ratio={"a": a, "b": b}, **plan),
    )  # fmt: skip


def parent_of(plan: CompressionPlan, *trials: TrialRecord) -> int | None:
    found = choose_parent(plan, trials)
    return found.trial if found else None


PLAN = CompressionPlan(prune_ratio={"a": 0.5, "b": 0.5})


def test_the_nearest_network_that_contains_the_plan():
    assert parent_of(PLAN, trained(1, 0.25, 0.25), trained(2, 0.5, 0.25), trained(3, 0.75, 0.5)) == 2


def test_a_network_that_lacks_a_channel_is_no_parent():
    assert parent_of(PLAN, trained(1, 0.75, 0.0)) is None


def test_a_network_with_fewer_directions_is_no_parent():
    whole, half, most = (trained(n, 0.5, 0.5, rank_ratio={"fc": r}) for n, r in ((1, 0.0), (2, 0.5), (3, 0.75)))
    child = CompressionPlan(prune_ratio={"a": 0.5, "b": 0.5}, rank_ratio={"fc": 0.5})
    assert parent_of(child, most) is None
    assert parent_of(child, whole, half, most) == 2


def test_of_equal_ones_that_whose_training_is_worth_most():
    assert parent_of(PLAN, trained(1, 0.5, 0.5), trained(2, 0.5, 0.5, seconds=9.0)) == 2


def test_channels_chosen_by_another_criterion_are_other_channels():
    assert parent_of(PLAN, trained(1, 0.5, 0.5, importance="taylor")) is None


def test_what_was_not_trained_is_no_parent():
    stopped = TrialRecord(trial=1, state=TrialState.STOPPED, plan=PLAN)
    untrained = TrialRecord(trial=0, state=TrialState.COMPLETE, plan=CompressionPlan())
    assert parent_of(PLAN, stopped, untrained) is None


def test_a_plan_without_a_block_may_come_from_one_that_has_it_and_not_the_other_way():
    shorter = CompressionPlan(prune_ratio={"a": 0.5}, removed_blocks=("x",))  # group b was inside
    whole = trained(1, 0.25, 0.75)
    assert parent_of(shorter, whole) == 1
    short = TrialRecord(trial=2, state=TrialState.COMPLETE, plan=shorter, equivalent_s=1.0)
    assert parent_of(PLAN, short) is None
