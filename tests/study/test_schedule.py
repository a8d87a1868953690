"""How the budget is divided, and how long a trial is trained when."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.config import StudyConfig
from autocompress.study.schedule import schedule


def config(**search: Any) -> StudyConfig:
    return StudyConfig.model_validate({"search": search})


def test_a_long_search_begins_with_trials_as_short_as_those_of_a_short_one_and_ends_with_its_own():
    long, short = schedule(config(budget=600), preparing_s=15), schedule(config(budget=120), preparing_s=15)
    assert long.train_s == pytest.approx(12)
    assert [long.trial_s(at) for at in (15, 60)] == pytest.approx([2.4, 2.4])
    assert [short.trial_s(at) for at in (15, 60)] == pytest.approx([2.4, 2.4])
    assert [long.trial_s(at) for at in (150, 300, 600)] == pytest.approx([6, 12, 12])


def test_what_is_slow_to_prepare_is_trained_longer_from_the_start():
    assert schedule(config(budget=600), preparing_s=48).trial_s(50) == pytest.approx(6)
    assert schedule(config(budget=600), preparing_s=300).trial_s(300) == pytest.approx(12)


@pytest.mark.parametrize(
    ("search", "is_goal"),
    [({"train_s": 12.0}, False), ({"sampler": "tpe"}, False), ({"sampler": "sweep"}, False), ({}, True)],
)
def test_all_trials_are_alike_where_the_study_says_how_long_or_the_sampler_cannot_tell_or_one_file_counts(
    search, is_goal
):
    found = schedule(config(budget=600, **search), preparing_s=15, is_goal=is_goal)
    assert {found.trial_s(at) for at in (15.0, 60.0, 300.0, 590.0)} == {found.train_s}


@pytest.mark.parametrize(("budget", "seconds"), [(10, 1.5), (120, 2.4), (36_000, 300)])
def test_a_fiftieth_of_the_budget_trains_one_trial_from_a_second_and_a_half_to_five_minutes(budget, seconds):
    assert schedule(config(budget=budget)).train_s == pytest.approx(seconds)
    assert schedule(config(budget=budget)).trial_s(budget) == pytest.approx(seconds)


def test_the_last_stage_has_its_share_of_what_preparing_has_left():
    assert schedule(config(budget=100, final_share=0.45), preparing_s=20).final_s == pytest.approx(36)
