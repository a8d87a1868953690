"""One trial as a document."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from front_factories import BASELINE, make_study, make_trial, make_trials

from autocompress.errors import NotFoundError
from autocompress.front.point import point_document
from autocompress.plan import CompressionPlan
from autocompress.records import Cascade, TrialState

BELIEF = {"drop": 0.004, "sd": 0.002, "size_ratio": 0.2, "latency_ratio": 0.5, "gain": 0.01, "source": "solver"}


def test_a_point_of_the_front_has_its_words_and_the_command_that_exports_it() -> None:
    trials = [make_trial(0, 0.981, 1_094_138, 1.0, origin="baseline"), make_trial(7, 0.971, 200_000, 0.5)]
    found = point_document(make_study(), trials, 7)
    assert found["command"] == "autocompress export digits --pick trial:7 --out digits-trial-7"
    assert found["drop"] == pytest.approx(0.01)
    assert found["words"].startswith("5.5x smaller and 2.0x faster")
    assert found["front"] == [7, 0]
    assert json.loads(json.dumps(found)) == found


def test_a_dominated_point_cannot_be_exported() -> None:
    trials = [make_trial(1, 0.97, 100_000, 0.4), make_trial(2, 0.96, 200_000, 0.5)]
    found = point_document(make_study(), trials, 2)
    assert (found["on_front"], found["command"]) == (False, None)


def test_layers_stand_beside_the_dense_ones() -> None:
    trials = make_trials(40)
    found = point_document(make_study(), trials, 5)
    plan = trials[5].plan
    assert [r["name"] for r in found["layers"]][:2] == ["conv1", "layer1.0.conv1"]
    for row in found["layers"]:
        assert row["bits"] == plan.weight_bits[row["name"]]
        assert row["kept"] <= row["channels"]
        assert row["size_bytes"] < row["size_bytes_dense"]
    assert found["latency_files"] > 6
    assert found["layers"][0]["latency_ms"] is not None


def test_a_cascade_names_its_networks_and_has_no_layers_of_its_own() -> None:
    cascade = Cascade(first=1, second=2, threshold=0.9, passed_on=0.2, second_plan=CompressionPlan())
    trials = [*make_trials(40), make_trial(90, 0.97, 100_000, 0.01, origin="cascade", cascade=cascade)]
    found = point_document(make_study(), trials, 90)
    assert (found["cascade"]["first"], found["cascade"]["second"], found["layers"]) == (1, 2, [])
    assert found["plan_lines"][0].startswith("two networks: trial 1 answers, trial 2 where")
    before = point_document(make_study(), trials[:-1], 5)
    after = point_document(make_study(), trials, 5)
    assert after["layers"] == before["layers"], "nobody's layers are believed to be faster for it"
    assert after["latency_files"] == before["latency_files"]


def test_a_cascade_that_was_not_made_is_no_dense_model() -> None:
    ended = replace(make_trial(90, None, 1, 1.0, origin="cascade"), state=TrialState.STOPPED, measurement=None)
    found = point_document(make_study(), [*make_trials(40), ended], 90)
    assert (found["plan_lines"], found["layers"], found["command"]) == ([], [], None)
    assert found["origin_words"] == "two networks in one file, the second answers where the first is unsure"


def test_what_was_believed_stands_beside_what_came_out() -> None:
    trial = make_trial(3, 0.976, 200_000, 0.5, belief=BELIEF, plan=CompressionPlan(weight_bits={"fc": 4}))
    found = point_document(make_study(), [trial], 3)
    assert found["belief"]["believed_drop"] == 0.004
    assert found["belief"]["drop"] == pytest.approx(0.005)
    assert "best at one price" in found["why"]


def test_without_a_baseline_there_is_still_a_page() -> None:
    found = point_document(make_study(baseline=None, facts=None), [make_trial(1, None, 1000, 0.5)], 1)
    assert (found["drop"], found["layers"], found["baseline"]) == (None, [], None)
    assert found["measurement"]["size_bytes"] == 1000


def test_a_trial_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFoundError, match="'digits' has no trial 9 among its 1"):
        point_document(make_study(), [make_trial(1, 0.9, BASELINE.size_bytes, 1.0)], 9)
