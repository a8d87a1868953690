"""What the last stage trains further: the trial that is expected to add most."""

from __future__ import annotations

import pytest

from autocompress.front.hypervolume import gain
from autocompress.plan import CompressionPlan
from autocompress.search.stopping import Rival
from autocompress.study.finalise import candidates, prospect


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
