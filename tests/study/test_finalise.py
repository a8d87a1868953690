"""What the last stage trains further: the trial that is expected to add most."""

from __future__ import annotations

import pytest

from autocompress.front.hypervolume import gain
from autocompress.plan import CompressionPlan
from autocompress.search.stopping import Rival
from autocompress.study.finalise import candidates, prospect, soups


def rival(number: int, drop: float, size: float, latency: float) -> Rival:
    return Rival(trial=number, plan=CompressionPlan(), drop=drop, size_ratio=size, latency_ratio=latency)


FRONT = [rival(1, 0.01, 0.2, 0.5), rival(2, 0.06, 0.1, 0.2), rival(3, 0.02, 0.3, 0.6)]


def test_four_times_the_training_leaves_half_of_the_drop():
    points = [(r.drop, r.size_ratio, r.latency_ratio) for r in FRONT]
    assert prospect(FRONT[0], FRONT, longer=4.0) == pytest.approx(gain((0.005, 0.2, 0.5), points))


def test_a_trial_beyond_the_reference_may_have_the_best_prospect():
    found = {r.trial: prospect(r, FRONT, longer=4.0) for r in FRONT}
    assert max(found, key=lambda n: found[n]) == 2


def test_a_dominated_trial_may_overtake():
    assert prospect(FRONT[2], FRONT, longer=1.0) == 0
    assert prospect(FRONT[2], FRONT, longer=9.0) > 0


def test_what_stays_beyond_the_allowed_drop_counts_for_little():
    free = prospect(FRONT[1], FRONT, longer=4.0)
    assert prospect(FRONT[1], FRONT, longer=4.0, max_drop=0.01) == pytest.approx(0.1 * free)
    assert prospect(FRONT[1], FRONT, longer=4.0, max_drop=0.03) == free


def test_the_front_is_looked_at_in_the_order_of_what_each_contributes():
    assert candidates(FRONT) == [1, 2]


def test_what_is_better_than_the_dense_network_is_looked_at_though_it_adds_no_hypervolume():
    front = [rival(1, 0.0, 0.2, 0.5), rival(2, -0.01, 0.3, 0.6), rival(3, 0.0, 0.3, 0.6)]
    assert candidates(front) == [1, 2]


def shaped(number: int, drop: float, ratio: float, bits: int = 4, size: float = 0.2) -> Rival:
    plan = CompressionPlan(prune_ratio={"a": ratio}, weight_bits={"a": bits})
    return Rival(trial=number, plan=plan, drop=drop, size_ratio=size, latency_ratio=0.5)


def test_networks_of_one_shape_that_are_about_as_good_make_a_soup_the_best_first():
    """Trial 3 is worse by 2 points, trial 4 has another width, and how weights are rounded does not matter."""
    alike = [
        shaped(1, 0.012, 0.5),
        shaped(2, 0.010, 0.5, bits=3),
        shaped(3, 0.030, 0.5),
        shaped(4, 0.001, 0.25, size=0.3),
    ]
    assert [[r.trial for r in members] for members in soups(alike)] == [[2, 1]]


def test_nothing_is_averaged_without_a_point_of_the_front():
    behind = [shaped(1, 0.02, 0.5), shaped(2, 0.02, 0.5)]
    ahead = Rival(trial=9, plan=CompressionPlan(), drop=0.0, size_ratio=0.1, latency_ratio=0.1)
    assert soups([*behind, ahead]) == []
