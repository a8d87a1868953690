"""What is worth anything in a study with bounds, and what files that break them take away: nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from autocompress.front.hypervolume import gain
from autocompress.plan import CompressionPlan
from autocompress.records import Latency, Measurement
from autocompress.search.stopping import Constraints, Rival
from autocompress.search.worth import goal_values, keeps, worth_beside


def rival(number: int, drop: float, size: float, latency: float) -> Rival:
    return Rival(trial=number, plan=CompressionPlan(), drop=drop, size_ratio=size, latency_ratio=latency)


def file(trial: Rival) -> Measurement:
    """Of a baseline of 1,000 bytes and 1 ms."""
    size, ratio = round(1000 * trial.size_ratio), trial.latency_ratio
    latency = Latency(latency_ms=ratio, ratio=ratio, ratio_ci=(ratio, ratio), blocks=1)
    return Measurement(val=0.9, size_bytes=size, compressed_bytes=size, latency=latency, params=1, macs=1)


ACCURATE, SMALL, FAST = rival(1, 0.001, 0.2, 0.5), rival(2, 0.06, 0.05, 0.4), rival(3, 0.004, 0.3, 0.2)
RIVALS = [ACCURATE, SMALL, FAST]
FILES = {r.trial: file(r) for r in RIVALS}
POINTS = [(r.drop, r.size_ratio, r.latency_ratio) for r in RIVALS]
NEW = (0.003, 0.1, 0.3)


def worth(**bounds: Any) -> float:
    return worth_beside(RIVALS, FILES, Constraints(**bounds)).of(NEW)


def test_without_bounds_it_is_the_hypervolume_that_is_gained():
    assert worth() == pytest.approx(gain(NEW, POINTS))


@pytest.mark.parametrize(
    ("bounds", "within"),
    [
        ({"max_size": 250}, [0, 1]),
        ({"max_latency": 0.35}, [2]),
        ({"max_size": 250, "max_latency": 0.35}, []),
        ({"max_size": 1000}, [0, 1, 2]),
    ],
)
def test_what_breaks_a_bound_takes_nearly_nothing_away(bounds, within):
    kept = gain(NEW, [POINTS[i] for i in within])
    assert worth(**bounds) == pytest.approx(0.1 * gain(NEW, POINTS) + 0.9 * kept)
    assert kept >= gain(NEW, POINTS)


def test_a_drop_that_is_foreseen_counts_by_its_chance_to_keep_the_bound():
    beyond = 0.1 * gain(NEW, POINTS)
    kept = gain(NEW, [POINTS[0]])  # the others lose more than 0.003
    assert worth(max_drop=0.003) == pytest.approx(beyond + 0.9 * 0.5 * kept), "as likely as not"
    hardly = 1 / (1 + math.exp(1.7 * 0.9 / 0.25))  # nine tenths of it are four standard deviations of 0.25
    assert worth(max_drop=0.0003) == pytest.approx(beyond + 0.9 * hardly * gain(NEW, []))


def test_what_joins_counts_from_then_on():
    for bounds in ({}, {"max_size": 250}, {"max_drop": 0.01}):
        there = worth_beside(RIVALS, FILES, Constraints(**bounds))
        assert there.joined(NEW).of(NEW) == pytest.approx(0, abs=1e-12)
    beyond = (0.02, 0.1, 0.3)
    strict = worth_beside(RIVALS, FILES, Constraints(max_drop=0.01))
    assert strict.joined(beyond).of(NEW) > 0.9 * strict._chance(NEW[0]) * gain(NEW, [POINTS[0], POINTS[2]])


def test_a_bound_is_kept_by_what_just_meets_it():
    assert keeps(ACCURATE, FILES[1], Constraints(max_drop=0.001, max_size=200, max_latency=0.5))
    assert not keeps(ACCURATE, FILES[1], Constraints(max_drop=0.0009))
    assert not keeps(ACCURATE, FILES[1], Constraints(max_size=199))
    assert not keeps(ACCURATE, FILES[1], Constraints(max_latency=0.49))
    assert keeps(ACCURATE, None, Constraints(max_size=1)), "a file that is not known"


GOAL = Constraints(max_drop=0.005, max_size=250)
NOISE = 0.003


def value(drop: float, size: float, latency: float, *, unsure: float = 0.25) -> float:
    found = goal_values(np.array([drop]), np.array([[size, latency]]), max_drop=0.005, noise=NOISE, unsure=unsure)
    return float(found[0])


def test_for_a_goal_the_chance_to_keep_the_bound_comes_first_and_half_of_it_for_size_and_speed():
    """At the bound it is one half; far from it as sure as can be, and a file of no bytes in no time counts double."""
    assert value(0.005, 1.0, 1.0) == pytest.approx(0.5 * 0.5)
    assert value(-0.02, 1.0, 1.0) == pytest.approx(0.5, abs=1e-4)
    assert value(-0.02, 0.0, 0.0) == pytest.approx(1.0, abs=1e-4)
    assert value(0.05, 0.0, 0.0) < 0.005


def test_for_a_goal_a_file_of_half_the_drop_is_worth_more_than_one_three_times_smaller_and_twice_as_fast():
    assert value(0.002, 0.045, 0.25) > value(0.004, 0.015, 0.12)
    assert value(0.002, 0.015, 0.12) > value(0.002, 0.045, 0.25), "with the same drop it is the other way round"


def test_a_drop_that_was_measured_is_surer_than_one_that_is_foreseen():
    assert value(0.003, 0.1, 0.3, unsure=0.0) > value(0.003, 0.1, 0.3)


def test_for_a_goal_only_the_best_file_counts_that_keeps_the_bounds_on_files():
    there = worth_beside(RIVALS, FILES, GOAL, noise=NOISE)  # the third is too large
    best = value(0.001, 0.2, 0.5, unsure=0.0)
    assert value(0.06, 0.05, 0.4, unsure=0.0) < best
    better, worse = (0.0005, 0.1, 0.3), (0.004, 0.2, 0.5)
    assert there.of(better) == pytest.approx(value(*better) - best)
    assert there.of(worse) == 0.0
    assert there.joined(better).of(better) == 0.0
    assert there.joined(worse).of(better) == there.of(better)
    assert worth_beside([], {}, GOAL, noise=NOISE).of(better) == pytest.approx(value(*better))
