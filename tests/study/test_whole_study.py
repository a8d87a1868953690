"""A whole study on the tiny network, with its real worker and timing processes, looked at with other tools' eyes."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import optuna
import pytest
from tiny import make_tiny_data
from tiny_study import NAME, SEARCH, SPACE, budget_s, run_command, trained_model, write_study

import autocompress
from autocompress.api import StudyResult
from autocompress.measure.intervals import wilson_interval
from autocompress.records import Progress, StudyState, TrialRecord, TrialState

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished study and what was seen from outside while it ran."""

    result: StudyResult
    events: list[Progress | TrialRecord]
    took_s: float

    @property
    def workspace(self) -> Path:
        return self.result.workspace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    events: list[Progress | TrialRecord] = []
    model, budget = trained_model(), budget_s()
    start = time.monotonic()
    result = autocompress.search(
        model,
        make_tiny_data(),
        budget=budget,
        name=NAME,
        workspace=tmp_path_factory.mktemp("whole") / "runs",
        seed=3,
        settings={"space": SPACE, "search": SEARCH},
        listener=events.append,
    )
    return Run(result=result, events=events, took_s=time.monotonic() - start)


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def accuracy(path: Path, split: str) -> float:
    inputs, targets = make_tiny_data()[split]
    outputs = session(path).run(["output"], {"input": inputs.numpy()})[0]
    return float(np.mean(outputs.argmax(1) == targets.numpy()))


def medians_ms(*paths: Path) -> list[float]:
    """Of several files, timed in turns: the machine is faster in one second than in the next."""
    sessions, image = [session(path) for path in paths], np.zeros((1, 1, 8, 8), np.float32)
    took = np.zeros((300, len(paths)))
    for row in took:
        for at, loaded in enumerate(sessions):
            start = time.perf_counter()
            loaded.run(None, {"input": image})
            row[at] = time.perf_counter() - start
    found: list[float] = (1e3 * np.median(took, axis=0)).tolist()
    return found


def test_the_study_is_finished_and_kept_its_deadline(run: Run):
    record = run.result.record
    assert (record.state, record.message) == (StudyState.FINISHED, "")
    assert record.spent_s <= budget_s() + 5
    assert run.took_s <= budget_s() + 5
    assert record.seed == 3
    assert record.data_sizes == {"train": 256, "val": 64, "test": 64}
    assert {"setup", "baseline", "search", "final"} <= set(record.durations_s)
    assert sum(record.durations_s.values()) <= record.spent_s + 0.5


def test_the_baseline_is_the_dense_file_as_measured(run: Run):
    baseline = run.result.record.baseline
    assert baseline is not None
    path = run.workspace / baseline.artifact
    assert baseline.size_bytes == path.stat().st_size
    assert baseline.val == accuracy(path, "val")
    assert baseline.test == accuracy(path, "test")
    assert baseline.val > 0.8, "the teacher was trained"
    assert baseline.params == sum(p.numel() for p in trained_model().parameters())
    assert baseline.latency_ms == pytest.approx(medians_ms(path)[0], rel=2)
    assert baseline.latency_sd is not None
    assert 0 < baseline.latency_sd < 1


def test_a_trial_counts_what_it_and_its_parents_were_trained(run: Run):
    by_number = {t.trial: t for t in run.result.trials}
    trained = [t for t in by_number.values() if t.trained_s > 0]
    heirs = [t for t in trained if t.parent is not None]
    assert heirs, "no trial started from another one's weights"
    for trial in trained:
        own, parent = trial.durations_s.get("train", 0.0), by_number.get(trial.parent or -1)
        before, worth = (parent.trained_s, parent.equivalent_s) if parent else (0.0, 0.0)
        assert trial.trained_s == pytest.approx(before + own)
        assert trial.equivalent_s == pytest.approx(max(worth, own + min(worth, own)))


def test_the_plans_everybody_would_try_are_the_first_and_more_uniform_ones_have_their_turn(run: Run):
    trials = run.result.trials
    assert [t.trial for t in trials] == list(range(len(trials)))
    assert trials[0].origin == "baseline"
    anchors = [t for t in trials if t.origin == "anchor"]
    assert [t.trial for t in anchors[:3]] == [1, 2, 3]
    order = "".join(t.origin[0] for t in trials[4:] if t.origin in ("anchor", "search"))
    assert re.fullmatch("(ssa)*s*a*", order), "after every two proposals, or where the search ends"
    layers = {"conv1", "conv2", "fc"}
    assert dict(anchors[0].plan.weight_bits) == dict.fromkeys(layers, 16)
    assert dict(anchors[1].plan.weight_bits) == dict.fromkeys(layers, 8)
    assert anchors[1].plan.activations == "uint8"
    assert anchors[0].state is anchors[1].state is TrialState.COMPLETE
    swept = anchors[2:]
    assert swept, "no uniform plan was tried"
    assert swept[0].plan.prune_ratio == {"conv1": 0.5}
    assert swept[0].plan.weight_bits == {"conv1": 8, "conv2": 4, "fc": 8}


def test_no_trial_failed_and_every_other_end_has_its_reason(run: Run):
    for trial in run.result.trials:
        assert trial.state is not TrialState.FAILED, trial.reason
        assert trial.state is TrialState.COMPLETE or trial.reason
        assert (trial.artifact is None) == (trial.state is not TrialState.COMPLETE)


def test_the_listener_heard_of_every_trial_once_and_of_every_stage_in_order(run: Run):
    heard = [e.trial for e in run.events if isinstance(e, TrialRecord)]
    assert heard == [t.trial for t in run.result.trials]
    stages = list(dict.fromkeys(e.stage for e in run.events if isinstance(e, Progress)))
    assert stages == ["setup", "search", "final"] or stages == ["setup", "search", "final", "finished"]
    spent = [e.spent_s for e in run.events]
    assert spent == sorted(spent)


def test_every_artifact_of_the_front_is_what_was_reported(run: Run):
    complete = [t for t in run.result.trials if t.state is TrialState.COMPLETE]
    assert len(complete) >= 5
    for trial in complete:  # also what is not on the front
        assert trial.measurement is not None
        assert trial.artifact is not None
        path = run.workspace / trial.artifact
        assert path.stat().st_size == trial.measurement.size_bytes
        assert accuracy(path, "val") == trial.measurement.val
    assert run.result.front
    for point in run.result.front:
        path = run.workspace / point.artifact
        assert path.stat().st_size == point.size_bytes
        assert accuracy(path, "val") == point.val
        assert point.val_ci == wilson_interval(point.val, 64)
        if point.test is not None:
            assert accuracy(path, "test") == point.test
        if point.origin != "baseline":
            assert json.loads((path.parent / "plan.json").read_text()) == point.plan.to_dict()
        assert point.latency_ratio_ci[0] <= point.latency_ratio <= point.latency_ratio_ci[1]
    assert all(p.test is not None for p in run.result.front), "the final stage looked at the whole front"


def test_the_latency_ratio_is_what_another_stopwatch_finds(run: Run):
    baseline = run.result.record.baseline
    assert baseline is not None
    for point in run.result.front:
        file_ms, baseline_ms = medians_ms(run.workspace / point.artifact, run.workspace / baseline.artifact)
        ours = file_ms / baseline_ms
        assert 0.5 < ours / point.latency_ratio < 2, (
            f"trial {point.trial}: {ours:.3f} against {point.latency_ratio:.3f}"
        )


def test_artifacts_take_any_batch_and_name_their_input_and_output(run: Run):
    for point in run.result.front:
        loaded = session(run.workspace / point.artifact)
        assert [i.name for i in loaded.get_inputs()] == ["input"]
        assert [o.name for o in loaded.get_outputs()] == ["output"]
        for batch in (1, 2, 7):
            assert loaded.run(None, {"input": np.zeros((batch, 1, 8, 8), np.float32)})[0].shape == (batch, 4)


def test_optuna_opens_the_database_and_finds_parameters_by_their_names(run: Run):
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{run.workspace / 'autocompress.db'}")
    assert study.metric_names == ["accuracy", "size", "latency"]
    trials = run.result.trials
    assert [t.number for t in study.trials] == [t.trial for t in trials]
    by_state = {TrialState.COMPLETE: "COMPLETE", TrialState.STOPPED: "PRUNED", TrialState.INFEASIBLE: "PRUNED"}
    assert [t.state.name for t in study.trials] == [by_state[t.state] for t in trials]
    inside = [t for t in study.trials if t.params]
    assert inside, "no trial has parameters"
    for trial in inside:
        assert {"prune_ratio/conv1", "weight_bits/conv1", "weight_bits/conv2", "weight_bits/fc"} <= set(trial.params)
        plan = trials[trial.number].plan
        assert trial.params["weight_bits/conv2"] == plan.weight_bits["conv2"]
        assert trial.params["prune_ratio/conv1"] == pytest.approx(plan.prune_ratio.get("conv1", 0.0))
    first = study.trials[0]
    measured = trials[0].measurement
    assert measured is not None
    assert first.values[:2] == [measured.val, measured.size_bytes]


def test_nothing_is_left_that_no_trial_owns(run: Run):
    folder = run.workspace / "artifacts" / NAME
    kept = {t.trial for t in run.result.trials if t.artifact and t.origin != "baseline"}
    assert {p.name for p in folder.iterdir()} == {"baseline", "source.pkl", *(f"trial-{n}" for n in kept)}


FRONT_KEYS = {
    *("trial", "val", "test", "size_bytes", "compressed_bytes", "latency_ms", "latency_ratio", "latency_ratio_ci"),
    *("params", "macs", "artifact", "origin", "plan"),
}
DOCUMENT_KEYS = {
    *("study", "state", "seed", "objectives", "budget_s", "spent_s", "device", "trials", "baseline"),
    *("hypervolume", "front"),
}


def test_a_study_file_gives_the_document_of_the_contract(tmp_path: Path):
    path, budget = write_study(tmp_path / "study", search={"max_trials": 3}), budget_s()
    start = time.monotonic()
    done = run_command("search", path, "--workspace", "runs", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < budget, "three plans that need no training do not use it up"
    document = json.loads(done.stdout)
    assert set(document) >= DOCUMENT_KEYS
    assert (document["study"], document["state"], document["objectives"]) == (
        NAME,
        "finished",
        ["accuracy", "size", "latency"],
    )
    assert document["trials"]["total"] == sum(
        document["trials"][s] for s in ("complete", "stopped", "failed", "infeasible")
    )
    assert document["hypervolume"]["reference"] == {"drop": 0.05, "size_ratio": 1.0, "latency_ratio": 1.0}
    assert 0 <= document["hypervolume"]["val"] < 1
    for point in document["front"]:
        assert set(point) >= FRONT_KEYS
        assert (tmp_path / "runs" / point["artifact"]).stat().st_size == point["size_bytes"]
        assert set(point["plan"]) >= {"prune_ratio", "weight_bits", "activations", "distill"}
    again = run_command("front", NAME, "--workspace", "runs", "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == document
    assert run_command("search", path, "--workspace", "runs", cwd=tmp_path).returncode == 2, "the name is taken"
    resumed = run_command("resume", NAME, "--workspace", "runs", cwd=tmp_path)
    assert resumed.returncode == 2
    assert "is finished" in resumed.stderr
