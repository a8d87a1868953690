"""What further training is worth, alone and together, and how the time for it is divided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autocompress.front.hypervolume import gain
from autocompress.plan import CompressionPlan
from autocompress.search.stopping import Constraints, Rival
from autocompress.search.worth import Worth, worth_beside
from autocompress.study.last_trainings import Trainable, after, divide, prospect


def trial(number: int, drop: float, size: float, latency: float, *, before_s: float = 1.0) -> Trainable:
    rival = Rival(trial=number, plan=CompressionPlan(), drop=drop, size_ratio=size, latency_ratio=latency)
    return Trainable(rival=rival, before_s=before_s)


def points(trials: list[Trainable]) -> Any:
    return np.array([(t.rival.drop, t.rival.size_ratio, t.rival.latency_ratio) for t in trials])


def worth(trials: list[Trainable], **bounds: Any) -> Worth:
    return worth_beside([t.rival for t in trials], {}, Constraints(**bounds))


FRONT = [trial(1, 0.01, 0.2, 0.5), trial(2, 0.06, 0.1, 0.2), trial(3, 0.02, 0.3, 0.6)]
THERE = worth(FRONT)


def divided(
    trials: list[Trainable], seconds: float, *, max_drop: float | None = None, **more: Any
) -> tuple[float, int]:
    return divide(
        trials,
        worth(trials, max_drop=max_drop),
        seconds=seconds,
        **{"beside_s": 1.0, "at_least_s": 3.0, "at_most_s": 100.0, "most": 12, **more},
    )


def test_four_times_the_training_leaves_half_of_the_drop():
    assert after(FRONT[0], 3.0) == (pytest.approx(0.005), 0.2, 0.5)
    assert prospect(FRONT[0], THERE, seconds=3.0) == pytest.approx(gain((0.005, 0.2, 0.5), points(FRONT)))


def test_a_trial_beyond_the_reference_may_have_the_best_prospect():
    found = {t.rival.trial: prospect(t, THERE, seconds=3.0) for t in FRONT}
    assert max(found, key=lambda n: found[n]) == 2


def test_a_dominated_trial_may_overtake():
    assert prospect(FRONT[2], THERE, seconds=0.0) == 0
    assert prospect(FRONT[2], THERE, seconds=8.0) > 0


def test_what_stays_beyond_the_allowed_drop_counts_for_little():
    """0.06 becomes 0.03; of the others only those within the bound take anything away from what keeps it."""
    free = prospect(FRONT[1], THERE, seconds=3.0)
    point, kept = after(FRONT[1], 3.0), points([FRONT[0], FRONT[2]])
    assert prospect(FRONT[1], worth(FRONT, max_drop=0.01), seconds=3.0) == pytest.approx(0.1 * free, rel=0.15)
    half = 0.1 * free + 0.9 * 0.5 * gain(point, kept)
    assert prospect(FRONT[1], worth(FRONT, max_drop=0.03), seconds=3.0) == pytest.approx(half), "as likely as not"
    assert prospect(FRONT[1], worth(FRONT, max_drop=0.1), seconds=3.0) == pytest.approx(free, rel=1e-4)


def test_one_that_may_keep_a_strict_bound_has_all_the_time_and_others_none():
    """Trained for 8 s alone all four lose too much; the first loses 0.004 of 0.005 after all of it."""
    same = [trial(1, 0.04, 0.05, 0.3), trial(2, 0.06, 0.04, 0.2), trial(3, 0.08, 0.03, 0.1)]
    assert divided(same, 100.0)[1] == 2
    assert divided(same, 100.0, max_drop=0.005)[1] == 1


def test_time_is_divided_so_that_all_trainings_together_add_most():
    apart = [trial(1, 0.03, 0.1, 0.8), trial(2, 0.03, 0.45, 0.45), trial(3, 0.03, 0.8, 0.1)]
    value, count = divided(apart, 30.0)
    assert count == 3
    by_hand = sum(
        gain(after(t, 9.0), np.vstack([points(apart), *(after(o, 9.0) for o in apart[:i])]))
        for i, t in enumerate(apart)
    )
    assert value == pytest.approx(by_hand)


def test_twins_are_not_both_trained():
    """What the second of them would add, the first one has added."""
    assert divided([trial(1, 0.03, 0.2, 0.5), trial(2, 0.03, 0.2, 0.5)], 30.0)[1] == 1


def test_a_trial_that_hardly_loses_anything_leaves_its_time_to_the_others():
    hopeful, done = trial(1, 0.04, 0.1, 0.1), trial(2, 0.0001, 0.6, 0.6)
    assert divided([hopeful, done], 10.0)[1] == 1


def test_there_are_no_more_than_fit_and_none_where_none_fits():
    apart = [trial(1, 0.03, 0.1, 0.8), trial(2, 0.03, 0.45, 0.45), trial(3, 0.03, 0.8, 0.1)]
    assert divided(apart, 3.9) == (0.0, 0)
    assert divided(apart, 4.1)[1] == 1
    assert divided(apart, 100.0, most=2)[1] == 2
    assert divide([], THERE, seconds=100.0, beside_s=1.0, at_least_s=3.0, at_most_s=100.0, most=12) == (0.0, 0)


def test_none_is_trained_for_all_the_time_when_others_wait():
    hopeful, others = trial(1, 0.04, 0.02, 0.05), [trial(2, 0.02, 0.3, 0.4), trial(3, 0.01, 0.5, 0.6)]
    assert divided([hopeful, *others], 100.0)[1] == 1
    assert divided([hopeful, *others], 100.0, at_most_s=20.0)[1] == 3


def test_more_time_is_worth_more():
    values = [divided(FRONT, seconds)[0] for seconds in (5.0, 10.0, 20.0, 40.0)]
    assert values == sorted(set(values))
