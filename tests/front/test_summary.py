"""The front of a study, the facts for drawing, and the document of the contract."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from front_factories import BASELINE, make_facts, make_point, make_study, make_trial, make_trials

from autocompress.front.hypervolume import hypervolume
from autocompress.front.summary import (
    front_document,
    front_facts,
    front_points,
    layer_rows,
    loses_much,
    metric_direction,
    point_of,
    samples_of,
)
from autocompress.plan import CompressionPlan
from autocompress.records import BlockFacts, TrialState

DENSE = make_trial(0, 0.981, 1_094_138, 1.0, test=0.978, origin="baseline")
CONTRACT = {
    "": "study state seed objectives budget_s spent_s device trials baseline hypervolume front",
    "device": "name runtime threads batch",
    "trials": "total complete stopped failed",
    "baseline": "metric val test size_bytes latency_ms params macs artifact",
    "hypervolume": "val test reference",
    "front": "trial val test size_bytes compressed_bytes latency_ms latency_ratio latency_ratio_ci params macs "
    "artifact origin plan",
    "plan": "prune_ratio weight_bits activations distill",
}


def test_only_complete_trials_that_nothing_beats_are_on_the_front() -> None:
    trials = [
        DENSE,
        make_trial(1, 0.97, 200_000, 0.5),
        make_trial(2, 0.97, 200_000, 0.6),  # beaten by 1 in latency alone
        make_trial(3, 0.99, 100_000, 0.1, state=TrialState.INFEASIBLE),
        make_trial(4, None, 90_000, 0.1, state=TrialState.STOPPED),
        make_trial(5, None, 80_000, 0.1),
        make_trial(6, 0.90, 50_000, 0.9, origin="final", parent=1),
    ]
    assert [p.trial for p in front_points(make_study(), trials)] == [6, 1, 0]


def test_the_baseline_leaves_the_front_when_it_is_beaten() -> None:
    assert [p.trial for p in front_points(make_study(), [DENSE, make_trial(1, 0.981, 900_000, 0.9)])] == [1]


def test_equal_trials_are_both_on_the_front() -> None:
    trials = [make_trial(n, 0.97, 200_000, 0.5) for n in (4, 2)]
    assert [p.trial for p in front_points(make_study(), trials)] == [2, 4]


def test_a_minimised_metric_turns_the_front_around() -> None:
    study = make_study(baseline=replace(BASELINE, metric="mse"), config={"task": {"metric": "mse"}})
    trials = [make_trial(1, 0.5, 200_000, 0.5), make_trial(2, 0.4, 200_000, 0.5)]
    assert metric_direction(study) == "minimize"
    assert [p.trial for p in front_points(study, trials)] == [2]


def test_a_metric_of_ones_own_says_its_direction() -> None:
    base = replace(BASELINE, metric="m:f")
    assert metric_direction(make_study(baseline=base, config={"task": {"direction": "minimize"}})) == "minimize"
    assert metric_direction(make_study(baseline=base, config={})) == "maximize"


def test_an_objective_that_the_study_does_not_have_does_not_count() -> None:
    trials = [make_trial(1, 0.97, 200_000, 0.5), make_trial(2, 0.96, 210_000, 0.1)]
    assert [p.trial for p in front_points(make_study(objectives=("accuracy", "size")), trials)] == [1]


def test_a_trial_that_was_not_measured_is_no_point() -> None:
    with pytest.raises(ValueError, match="trial 3 has no measured artifact; it is stopped"):
        point_of(make_trial(3, None, 1000, 0.5, state=TrialState.STOPPED))


def test_the_document_has_every_key_of_the_contract() -> None:
    document = front_document(make_study(), make_trials())
    assert list(document)[: len(CONTRACT[""].split())] == CONTRACT[""].split()
    for name in ("device", "trials", "baseline", "hypervolume"):
        assert set(CONTRACT[name].split()) <= set(document[name])
    for entry in document["front"]:
        assert set(CONTRACT["front"].split()) <= set(entry)
        assert set(CONTRACT["plan"].split()) <= set(entry["plan"])
        assert entry["latency_kind"] == "median"
        assert set(entry["plan"]["distill"]) == {"temperature", "weight"}
    assert document["hypervolume"]["reference"] == {"drop": 0.05, "size_ratio": 1.0, "latency_ratio": 1.0}
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_document_counts_every_state() -> None:
    states = [TrialState.COMPLETE, TrialState.STOPPED, TrialState.STOPPED, TrialState.FAILED, TrialState.INFEASIBLE]
    trials = [make_trial(n, 0.9, 1000, 0.5, state=state) for n, state in enumerate(states)]
    expected = {"total": 5, "complete": 1, "stopped": 2, "failed": 1, "infeasible": 1, "running": 0}
    assert front_document(make_study(), trials)["trials"] == expected


def test_the_hypervolume_is_of_the_front_on_each_split() -> None:
    trials = [DENSE, make_trial(1, 0.971, 547_069, 0.5, test=0.958)]
    assert front_document(make_study(), trials)["hypervolume"]["val"] == pytest.approx(0.8 * 0.25)
    assert front_document(make_study(), trials)["hypervolume"]["test"] == pytest.approx(0.6 * 0.25)


def test_what_was_not_measured_is_null_and_not_zero() -> None:
    no_baseline = front_document(make_study(baseline=None), [])
    assert no_baseline["baseline"] is None
    assert no_baseline["hypervolume"]["val"] is None
    no_test = front_document(make_study(), [make_trial(1, 0.971, 547_069, 0.5)])
    assert no_test["hypervolume"]["test"] is None
    assert no_test["front"][0]["test"] is None
    assert front_document(make_study(), [])["hypervolume"]["val"] == 0.0


def test_the_facts_hold_every_measured_trial_and_mark_the_front() -> None:
    study, trials = make_study(), make_trials()
    facts = front_facts(study, trials)
    assert [p.point.trial for p in facts.points] == [t.trial for t in trials if t.state == TrialState.COMPLETE]
    assert list(facts.front) == front_points(study, trials)
    assert facts.points[0].drop == 0.0
    assert (facts.val_samples, facts.test_samples) == (180, 360)


def test_the_hypervolume_over_time_ends_at_the_front_s_own() -> None:
    study, trials = make_study(), make_trials()
    steps = front_facts(study, trials).hypervolume_s
    front = front_points(study, trials)
    rows = [(BASELINE.val - p.val, p.size_bytes / BASELINE.size_bytes, p.latency_ratio) for p in front]
    assert steps[-1][0] == study.spent_s
    assert steps[-1][1] == pytest.approx(hypervolume(rows))
    assert [v for _, v in steps] == sorted(v for _, v in steps)
    assert [s for s, _ in steps] == sorted(s for s, _ in steps)


def test_time_is_summed_over_the_trials_in_the_order_of_the_chain() -> None:
    trials = [make_trial(n, 0.9, 1000, 0.5, durations_s={"train": 2.0, "prune": 0.5, "wait": 1.0}) for n in (1, 2)]
    assert list(front_facts(make_study(), trials).trial_s.items()) == [("prune", 1.0), ("train", 4.0), ("wait", 2.0)]


def test_a_layer_keeps_the_share_of_channels_of_its_group() -> None:
    plan = CompressionPlan(prune_ratio={"layer1.0.conv1": 0.5, "conv1": 0.25}, weight_bits={"layer1.0.conv1": 4})
    trial = make_trial(1, 0.9, 1000, 0.5, plan=plan, widths={"layer1.0.conv1": 8, "conv1": 12})
    rows = {row.name: row for row in layer_rows(make_facts(), trial)}
    assert (rows["layer1.0.conv1"].kept, rows["layer1.0.conv1"].prune_ratio, rows["layer1.0.conv1"].bits) == (8, 0.5, 4)
    assert rows["layer1.2.conv2"].kept == rows["conv1"].kept == 12  # one group, one width
    assert (rows["layer3.0.conv1"].kept, rows["layer3.0.conv1"].bits) == (64, 32)
    assert (rows["fc"].kept, rows["fc"].skip) == (10, "prune: its 10 outputs are the classes")


def test_a_layer_that_went_with_its_block_has_no_channels_and_no_bits() -> None:
    block = BlockFacts(name="layer1.1", layers=("layer1.1.conv1", "layer1.1.conv2"), groups=("layer1.1.conv1",))
    facts = replace(make_facts(), blocks=(block, replace(block, name="layer1.2", layers=("layer1.2.conv1",))))
    plan = CompressionPlan(prune_ratio={"conv1": 0.5}, removed_blocks=("layer1.1",))
    trial = make_trial(1, 0.9, 1000, 0.5, plan=plan, widths={"layer1.1.conv1": 0, "conv1": 8})
    rows = {row.name: row for row in layer_rows(facts, trial)}
    gone = [(r.kept, r.bits, r.prune_ratio) for r in rows.values() if r.block == "layer1.1"]
    assert gone == [(0, 0, 1.0)] * 2
    assert [(rows[n].kept, rows[n].bits, rows[n].block) for n in ("conv1", "layer1.2.conv1")] == [
        (8, 32, ""), (16, 32, "")
    ]  # fmt: skip


def test_validation_samples_are_those_a_trial_was_judged_on() -> None:
    study = make_study(data_sizes={"val": 9000, "test": 9000})
    assert (samples_of(study, "val"), samples_of(study, "test"), samples_of(study, "train")) == (5000, 9000, None)


def test_losing_much_is_judged_on_test_data_where_it_was_looked_at() -> None:
    assert loses_much(make_point(val=0.98, test=0.92), BASELINE)
    assert not loses_much(make_point(val=0.90, test=0.93), BASELINE)
    assert loses_much(make_point(val=0.93, test=None), BASELINE)
    assert not loses_much(make_point(val=0.99, test=None), BASELINE)
