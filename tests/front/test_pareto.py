"""The mask against a naive oracle, on points with ties, duplicates and infinities."""

from __future__ import annotations

import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.front import pareto
from autocompress.front.pareto import dominates, non_dominated

few_values = st.sampled_from([0.0, 1.0, 2.0, 3.0, float("inf"), -1.5])


def naive(points: np.ndarray) -> list[bool]:
    return [not any((a <= b).all() and (a < b).any() for a in points) for b in points]


def test_equal_points_do_not_dominate_each_other() -> None:
    assert non_dominated([(1, 4), (2, 2), (2, 3), (2, 2)]).tolist() == [True, True, False, True]


def test_a_point_equal_in_two_objectives_loses_on_the_third() -> None:
    assert non_dominated([(1, 1, 2), (1, 1, 1), (1, 1, 1)]).tolist() == [False, True, True]


def test_one_objective_keeps_every_minimum() -> None:
    assert non_dominated([[3.0], [1.0], [1.0]]).tolist() == [False, True, True]


def test_nothing_in_gives_nothing_out() -> None:
    assert non_dominated([]).shape == (0,)


def test_an_infinite_objective_is_still_ordered() -> None:
    inf = float("inf")
    assert non_dominated([(1, inf, inf), (2, inf, inf), (3, 1, inf)]).tolist() == [True, False, True]


@pytest.mark.parametrize("bad", [[[float("nan"), 1.0]], [[1.0, 2.0, 3.0, 4.0]], [1.0, 2.0]])
def test_points_without_an_order_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="points must"):
        non_dominated(bad)


def test_dominates_needs_one_strictly_better_objective() -> None:
    assert dominates((1, 2, 3), (1, 2, 4))
    assert not dominates((1, 2, 3), (1, 2, 3))
    assert not dominates((1, 2, 3), (0, 9, 9))


@given(st.integers(1, 3).flatmap(lambda d: st.lists(st.tuples(*[few_values] * d), min_size=1, max_size=60)))
@settings(max_examples=300, deadline=None)
def test_the_mask_equals_the_naive_one_with_ties(points: list[tuple[float, ...]]) -> None:
    expected = naive(np.array(points))
    assert non_dominated(points).tolist() == expected
    with mock.patch.object(pareto, "_FEW", 0):  # the way that many points take
        assert non_dominated(points).tolist() == expected


@pytest.mark.parametrize("levels", [3, 12, 1_000_000])
def test_the_mask_equals_the_naive_one_where_the_prefilter_works(levels: int) -> None:
    points = np.random.default_rng(levels).integers(0, levels, (900, 3)).astype(float)
    assert non_dominated(points).tolist() == naive(points)


def test_a_cloud_where_every_point_is_on_the_front_is_kept_whole() -> None:
    points = np.random.default_rng(0).random((5000, 3))
    points[:, 0] = -points[:, 1] - points[:, 2]
    assert non_dominated(points).all()


def test_a_hundred_thousand_points_take_well_under_a_second() -> None:
    points = np.random.default_rng(1).random((100_000, 3))
    start = time.perf_counter()
    mask = non_dominated(points)
    assert time.perf_counter() - start < 0.5  # about 0.01 s on an idle core; a quadratic method takes minutes
    assert 20 < mask.sum() < 300
