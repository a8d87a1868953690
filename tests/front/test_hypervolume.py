"""Exact volumes, inclusion-exclusion as the oracle, and what each point contributes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.front.hypervolume import contributions, expected_gain, gain, hypervolume, metric_drop

grid = st.sampled_from([-0.2, 0.0, 0.2, 0.4, 0.6, 1.0, 1.3])
clouds = st.lists(st.tuples(grid, grid, grid), max_size=8).map(
    lambda rows: np.array(rows, dtype=float).reshape(-1, 3) * [0.05, 1, 1]
)


def inclusion_exclusion(points: np.ndarray) -> float:
    corner = np.array([0.05, 1.0, 1.0])
    clipped = np.maximum(points, 0.0)
    total = 0.0
    for size in range(1, len(clipped) + 1):
        for chosen in itertools.combinations(range(len(clipped)), size):
            overlap = np.maximum(corner - clipped[list(chosen)].max(axis=0), 0.0)
            total -= (-1) ** size * float(np.prod(overlap)) / 0.05
    return total


def test_no_drop_at_no_size_in_no_time_is_one() -> None:
    assert hypervolume([(0.0, 0.0, 0.0)]) == 1.0


def test_the_baseline_alone_is_zero() -> None:
    assert hypervolume([(0.0, 1.0, 1.0)]) == 0.0


def test_a_point_spans_the_product_of_its_distances_to_the_reference() -> None:
    assert hypervolume([(0.01, 0.25, 0.5)]) == pytest.approx(0.8 * 0.75 * 0.5)


def test_being_better_than_the_baseline_counts_as_no_drop() -> None:
    assert hypervolume([(-0.03, 0.5, 0.5)]) == hypervolume([(0.0, 0.5, 0.5)]) == 0.25


def test_two_overlapping_boxes_are_counted_once() -> None:
    # 0.6 * 0.5 * 0.5 + 0.2 * 0.9 * 0.9 - 0.2 * 0.5 * 0.5
    assert hypervolume([(0.02, 0.5, 0.5), (0.04, 0.1, 0.1)]) == pytest.approx(0.15 + 0.162 - 0.05)


def test_beyond_the_reference_nothing_is_won() -> None:
    assert hypervolume([(0.06, 0.1, 0.1), (0.0, 1.2, 0.1), (0.0, 0.1, 1.0)]) == 0.0


def test_an_empty_front_has_no_volume() -> None:
    assert hypervolume([]) == 0.0
    assert contributions([]).shape == (0,)


def test_a_twin_takes_all_of_a_points_contribution() -> None:
    points = [(0.0, 0.5, 0.5), (0.0, 0.5, 0.5), (0.025, 0.25, 0.5)]
    assert contributions(points).tolist() == pytest.approx([0.0, 0.0, 0.5 * 0.25 * 0.5])


def test_a_dominated_point_adds_nothing_and_still_stands_in_for_the_one_that_beats_it() -> None:
    front = [(0.0, 0.5, 0.5)]
    assert gain((0.01, 0.5, 0.5), front) == 0.0
    assert contributions([*front, (0.01, 0.5, 0.5)]).tolist() == pytest.approx([0.25 - 0.8 * 0.25, 0.0])


def test_a_shape_that_is_no_front_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[n, 3\]"):
        hypervolume([(0.0, 0.5)])
    with pytest.raises(ValueError, match="NaN"):
        gain((math.nan, 0.5, 0.5), [])


@given(clouds)
@settings(max_examples=200, deadline=None)
def test_the_volume_equals_inclusion_and_exclusion(points: np.ndarray) -> None:
    expected = pytest.approx(inclusion_exclusion(points), abs=1e-9)
    assert hypervolume(points) == expected
    many = np.vstack([points, np.repeat(points, 600 // max(len(points), 1), axis=0)])  # twins take the other way
    assert hypervolume(many) == expected


@given(clouds, st.tuples(grid, grid, grid))
@settings(max_examples=200, deadline=None)
def test_the_gain_is_the_difference_of_two_volumes(front: np.ndarray, extra: tuple[float, float, float]) -> None:
    point = np.array(extra) * [0.05, 1, 1]
    expected = hypervolume(np.vstack([front, point])) - hypervolume(front)
    assert gain(point, front) == pytest.approx(expected, abs=1e-9)


@given(clouds)
@settings(max_examples=200, deadline=None)
def test_a_contribution_is_what_leaving_the_point_out_costs(points: np.ndarray) -> None:
    whole = hypervolume(points)
    left_out = [whole - hypervolume(np.delete(points, i, axis=0)) for i in range(len(points))]
    assert contributions(points).tolist() == pytest.approx(left_out, abs=1e-9)


def test_the_drop_of_a_minimised_metric_is_its_relative_increase() -> None:
    assert metric_drop(0.98, 0.99) == pytest.approx(0.01)
    assert metric_drop(1.1, 1.0, direction="minimize") == pytest.approx(0.1)
    assert metric_drop(0.9, 1.0, direction="minimize") == pytest.approx(-0.1)
    assert metric_drop(0.0, 0.0, direction="minimize") == 0.0
    assert metric_drop(0.1, 0.0, direction="minimize") == pytest.approx(1e11), "huge, and finite"


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="direction"):
        metric_drop(1.0, 1.0, direction="up")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 6])
def test_the_expected_gain_is_that_of_many_draws(count):
    generator = np.random.default_rng(count)
    front = generator.uniform(0, 1, (count, 3)) * [0.06, 1, 1]
    mean, sd = generator.uniform(-0.01, 0.05, 5), generator.uniform(0.001, 0.02, 5)
    cheap = generator.uniform(0, 1, (5, 2))
    exact = expected_gain(mean, sd, cheap, front)
    for index in range(5):
        draws = generator.normal(mean[index], sd[index], 3000)
        gains = np.array([gain((d, *cheap[index]), front) for d in draws])
        assert exact[index] == pytest.approx(gains.mean(), abs=4 * gains.std() / np.sqrt(len(draws)) + 1e-9)


def test_the_expected_gain_of_a_certain_drop_is_the_gain():
    front = [(0.01, 0.5, 0.5), (0.02, 0.2, 0.6)]
    certain = expected_gain([0.015], [1e-9], [(0.3, 0.4)], front)
    assert certain[0] == pytest.approx(gain((0.015, 0.3, 0.4), front))


def test_a_candidate_beyond_the_reference_gains_nothing():
    assert expected_gain([0.0], [0.01], [(1.0, 0.5)], []).tolist() == [0.0]
