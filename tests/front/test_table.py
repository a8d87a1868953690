"""All trials as columns."""

from __future__ import annotations

import json

import pytest
from front_factories import make_study, make_trial, make_trials

from autocompress.front.summary import front_points
from autocompress.front.table import trial_columns
from autocompress.records import TrialState


def test_every_trial_has_a_place_in_every_column_also_the_ones_without_a_measurement() -> None:
    bare = make_trial(3, None, 1, 1.0, state=TrialState.FAILED, measurement=None)
    trials = [make_trial(2, 0.971, 200_000, 0.5, test=0.96), bare, make_trial(1, 0.961, 100_000, 0.25)]
    columns = trial_columns(make_study(), trials)["columns"]
    assert columns["trial"] == [1, 2, 3]
    assert columns["size_bytes"] == [100_000, 200_000, None]
    assert columns["drop"][:2] == pytest.approx([0.02, 0.01])
    assert columns["drop"][2] is None
    assert columns["test_drop"] == [None, pytest.approx(0.018), None]
    assert columns["ratio_low"][0] == pytest.approx(0.245)
    assert columns["state"][2] == "failed"
    assert {len(column) for column in columns.values()} == {3}


def test_the_front_is_the_same_as_everywhere() -> None:
    study, trials = make_study(), make_trials(60)
    columns = trial_columns(study, trials)["columns"]
    marked = {n for n, on_front in zip(columns["trial"], columns["on_front"], strict=True) if on_front}
    assert marked == {point.trial for point in front_points(study, trials)}


def test_it_is_json_and_small() -> None:
    document = trial_columns(make_study(), make_trials(200))
    assert list(document["origins"]) == ["baseline", "anchor", "search", "final"], "only what is among them"
    text = json.dumps(document)
    assert len(text) < 200 * 200


def test_the_limits_are_those_of_the_study() -> None:
    study = make_study(config={"task": {"metric": "accuracy"}, "search": {"max_drop": 0.01, "max_size": 50_000}})
    assert trial_columns(study, [])["limits"] == {"max_drop": 0.01, "max_size": 50_000, "max_latency": None}
