"""Which point each rule takes, what the limits let through, and what is said when nothing is left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from front_factories import BASELINE, make_point

from autocompress.errors import ConstraintError, NotFoundError, UsageError
from autocompress.front.choose import judge, judged_split, pick

ACCURATE = make_point(
    1, val=0.981, test=0.978, size_bytes=400_000, latency_ms=0.250, latency_ratio=0.81, latency_ratio_ci=(0.80, 0.82)
)
KNEE = make_point(2)
SMALL = make_point(
    3, val=0.95, test=0.94, size_bytes=20_000, latency_ms=0.098, latency_ratio=0.317, latency_ratio_ci=(0.31, 0.32)
)
FAST = make_point(
    4, val=0.96, test=0.955, size_bytes=50_000, latency_ms=0.050, latency_ratio=0.162, latency_ratio_ci=(0.16, 0.17)
)
FRONT = [ACCURATE, KNEE, SMALL, FAST]


@pytest.mark.parametrize(
    ("rule", "trial"), [("knee", 2), (None, 2), ("accurate", 1), ("small", 3), ("fast", 4), ("trial:3", 3)]
)
def test_each_rule_takes_its_point(rule: str | None, trial: int) -> None:
    assert pick(FRONT, BASELINE, rule).trial == trial


def test_limits_come_before_the_rule() -> None:
    assert pick(FRONT, BASELINE, "fast", max_drop=0.01).trial == 2
    assert pick(FRONT, BASELINE, "accurate", max_size=100_000).trial == 2
    assert pick(FRONT, BASELINE, "accurate", max_latency=0.06).trial == 4


def test_a_drop_of_exactly_one_point_meets_a_limit_of_one_point() -> None:
    base = replace(BASELINE, val=0.98, test=None)
    assert pick([make_point(9, val=0.97, test=None)], base, max_drop=0.01).trial == 9  # 0.98 - 0.97 > 0.01 in binary


def test_the_front_is_judged_on_test_only_if_all_of_it_was_looked_at() -> None:
    assert judged_split(FRONT, BASELINE) == "test"
    assert judged_split([*FRONT, make_point(5, test=None)], BASELINE) == "val"
    assert judged_split(FRONT, replace(BASELINE, test=None)) == "val"
    assert judge([KNEE], BASELINE)[0].drop == pytest.approx(0.002)


def test_a_lucky_validation_value_does_not_meet_a_limit_on_test() -> None:
    lucky = make_point(6, val=0.981, test=0.94)
    with pytest.raises(ConstraintError, match="on test data"):
        pick([lucky], BASELINE, max_drop=0.01)
    assert pick([replace(lucky, test=None)], BASELINE, max_drop=0.01).trial == 6


def test_the_error_names_the_nearest_artifact_and_every_excess() -> None:
    with pytest.raises(ConstraintError) as caught:
        pick(FRONT, BASELINE, max_drop=0.001, max_size=50_000)
    text = str(caught.value)
    assert "the nearest is trial 2" in text
    assert "0.20 points on test data, 0.10 points more than 0.10 points" in text
    assert "61.0 kB, 11.0 kB more than 50.0 kB" in text
    assert "Loosen max_drop or max_size" in text
    assert caught.value.exit_code == 3


def test_the_nearest_in_latency_is_told_in_milliseconds() -> None:
    with pytest.raises(ConstraintError, match=r"trial 4: it takes 0.0500 ms, 0.0100 ms more than 0.04 ms"):
        pick(FRONT, BASELINE, max_latency=0.04)


def test_an_empty_front_says_so() -> None:
    with pytest.raises(ConstraintError, match="front is empty"):
        pick([], BASELINE)


def test_an_unknown_trial_is_named_with_those_on_the_front() -> None:
    with pytest.raises(NotFoundError, match=r"trial 77 is not on the front; on it are: 1, 2, 3, 4"):
        pick(FRONT, BASELINE, "trial:77")


def test_a_named_trial_still_has_to_keep_the_limits() -> None:
    with pytest.raises(ConstraintError, match="nearest is trial 1"):
        pick(FRONT, BASELINE, "trial:1", max_size=1000)


@pytest.mark.parametrize("rule", ["best", "trial:", "trial:x", "trial:-1", "Knee"])
def test_an_unknown_rule_names_the_known_ones(rule: str) -> None:
    with pytest.raises(UsageError, match="knee, accurate, small, fast, trial:N"):
        pick(FRONT, BASELINE, rule)


@pytest.mark.parametrize("limits", [{"max_drop": -0.1}, {"max_size": 0}, {"max_latency": float("nan")}])
def test_a_limit_that_makes_no_sense_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(limits))):
        pick(FRONT, BASELINE, **limits)  # type: ignore[arg-type]


def test_the_knee_weighs_the_objectives_of_the_study_alone() -> None:
    slow = make_point(1, val=0.981, test=None, size_bytes=50_000, latency_ratio=1.3)
    fast = make_point(2, val=0.976, test=None, size_bytes=400_000, latency_ratio=0.3)
    assert pick([slow, fast], BASELINE).trial == 2
    assert pick([slow, fast], BASELINE, objectives=("accuracy", "size")).trial == 1, "its latency is no objective"
    larger = replace(slow, size_bytes=2_000_000, latency_ratio=0.2)
    assert pick([larger, fast], BASELINE).trial == 2
    assert pick([larger, fast], BASELINE, objectives=("accuracy", "latency")).trial == 1, "its size is no objective"


@pytest.mark.parametrize("rule", ["knee", "small"])
def test_where_the_zipped_file_counts_its_bytes_are_the_small_ones(rule: str) -> None:
    base = replace(BASELINE, compressed_bytes=1_000_000)
    packed = make_point(1, size_bytes=60_000, compressed_bytes=58_000)
    sparse = make_point(2, size_bytes=80_000, compressed_bytes=20_000)
    assert pick([packed, sparse], base, rule).trial == 1
    assert pick([packed, sparse], base, rule, objectives=("accuracy", "compressed", "latency")).trial == 2


def test_a_minimised_metric_drops_when_it_grows() -> None:
    base = replace(BASELINE, metric="mse", val=1.0, test=None)
    worse, better = make_point(1, val=1.5, test=None), make_point(2, val=0.9, test=None)
    assert pick([worse, better], base, "accurate", direction="minimize").trial == 2
    assert pick([worse, better], base, "accurate", direction="maximize").trial == 1
    with pytest.raises(ConstraintError, match=r"50\.0 % on validation data, 40\.0 % more than 10\.0 %"):
        pick([worse], base, direction="minimize", max_drop=0.1)


def test_where_every_point_lost_too_much_the_knee_is_the_most_balanced() -> None:
    points = [
        make_point(1, val=0.90, size_bytes=500_000, latency_ratio=0.9, test=None),
        make_point(2, val=0.85, size_bytes=60_000, latency_ratio=0.3, test=None),
        make_point(3, val=0.30, size_bytes=50_000, latency_ratio=0.2, test=None),
    ]
    assert pick(points, BASELINE).trial == 2
