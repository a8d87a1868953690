"""Intervals against published values, a normal approximation, and resamples drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.measure.intervals import mean_interval, score_interval, wilson_interval
from autocompress.measure.quality import balanced_accuracy, recall


def test_the_wilson_interval_has_its_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(1.0, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("share", "samples"), [(1.2, 10), (0.5, 0)])
def test_an_interval_of_nothing_is_refused(share: float, samples: int) -> None:
    with pytest.raises(ValueError, match="share"):
        wilson_interval(share, samples)


@pytest.mark.parametrize("score", [recall, balanced_accuracy])
def test_all_right_and_all_wrong_still_have_a_width(score) -> None:
    targets = np.arange(40) % 4
    assert score_interval(score, targets, targets) == wilson_interval(1.0, 40)
    assert score_interval(score, (targets + 1) % 4, targets) == wilson_interval(0.0, 40)


def test_a_bootstrap_of_many_samples_is_the_normal_approximation() -> None:
    values = np.random.default_rng(1).exponential(2.0, 4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    low, high = mean_interval(values)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_a_rare_class_makes_a_macro_average_less_sure_than_the_share_of_all() -> None:
    targets = np.array([0] * 190 + [1] * 10)
    predictions = targets.copy()
    predictions[:5], predictions[-4:] = 1, 0  # recall 185/190 and 6/10
    low, high = score_interval(balanced_accuracy, predictions, targets)
    overall = wilson_interval(191 / 200, 200)
    assert low < (185 / 190 + 6 / 10) / 2 < high
    assert high - low > 2 * (overall[1] - overall[0])


def test_the_same_samples_give_the_same_interval_and_one_sample_has_no_width() -> None:
    values = np.random.default_rng(2).normal(size=50)
    assert mean_interval(values) == mean_interval(values.copy())
    assert mean_interval(np.array([3.0])) == (3.0, 3.0)


def test_the_interval_holds_the_value_and_covers_nine_of_ten_truths() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(40):
        targets = rng.integers(3, size=150)
        predictions = np.where(rng.random(150) < 0.8, targets, (targets + 1) % 3)  # the true recall is 0.8
        low, high = score_interval(recall, predictions, targets)
        assert low <= recall(predictions, targets) <= high
        covered += low <= 0.8 <= high
    assert covered >= 36
