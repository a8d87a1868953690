"""Studies over one another."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from front_factories import BASELINE, make_study, make_trial, make_trials

from autocompress.errors import UsageError
from autocompress.front.compare import compare_document
from autocompress.records import DeviceFacts

FIRST = [make_trial(1, 0.976, 200_000, 0.5), make_trial(2, 0.961, 100_000, 0.3)]
SECOND = [make_trial(4, 0.976, 180_000, 0.45), make_trial(5, 0.966, 60_000, 0.2)]


def compared(**changes: object) -> dict:
    return compare_document([("a", make_study(), FIRST), ("b", make_study(name="other", **changes), SECOND)])


def test_the_difference_is_the_others_hypervolume_less_the_firsts() -> None:
    first, second = compared()["studies"]
    assert first["hypervolume_difference"]["val"] == 0
    expected = second["hypervolume"]["val"] - first["hypervolume"]["val"]
    assert second["hypervolume_difference"]["val"] == pytest.approx(expected)
    assert expected > 0
    assert second["hypervolume_difference"]["test"] is None  # nothing was looked at on test data


def test_each_point_of_the_first_is_matched_with_the_nearest_of_the_other() -> None:
    rows = compared()["matched"]
    assert [row["point"]["trial"] for row in rows] == [2, 1]
    at = {row["point"]["trial"]: row["others"][0] for row in rows}
    assert (at[1]["trial"], at[1]["better"]) == (4, "other")
    assert at[1]["distance"] == pytest.approx(((20 / 1094.138) ** 2 + 0.05**2) ** 0.5)


def test_what_is_no_objective_does_not_decide_which_point_is_nearest_or_better() -> None:
    study = make_study(objectives=("accuracy", "size"))
    twin_but_slow, other_but_as_fast = make_trial(7, 0.976, 200_000, 0.9), make_trial(8, 0.966, 150_000, 0.5)
    found = compare_document([("a", study, FIRST[:1]), ("b", study, [twin_but_slow, other_but_as_fast])])
    nearest = found["matched"][0]["others"][0]
    assert (nearest["trial"], nearest["distance"], nearest["better"]) == (7, 0, "equal")


def test_levels_name_the_smallest_within_a_loss() -> None:
    levels = {row["max_drop"]: row["studies"] for row in compared()["levels"]}
    assert levels[0.0][0]["small"] is None
    assert [s["small"]["trial"] for s in levels[0.01]] == [1, 4]
    assert [s["small"]["trial"] for s in levels[0.05]] == [2, 5]


def test_other_devices_and_other_models_are_named() -> None:
    assert compared()["notes"] == []
    notes = compared(device=DeviceFacts(threads=2), baseline=replace(BASELINE, macs=1), budget_s=60.0)["notes"]
    assert [note.split()[0] for note in notes] == ["Latency", "The", "The"]


def test_one_study_is_no_comparison() -> None:
    with pytest.raises(UsageError, match="two to 6 studies, got 1"):
        compare_document([("a", make_study(), FIRST)])


def test_a_study_without_a_baseline_does_not_end_it() -> None:
    found = compare_document([("a", make_study(), make_trials(30)), ("b", make_study(name="b", baseline=None), [])])
    assert found["notes"] == ["b has no baseline yet."]
    assert found["matched"][0]["others"] == [None]
    assert json.loads(json.dumps(found)) == found
