"""Cascades of a study's results: the file that ships is run and timed, and what cannot be joined is told why."""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from tiny import TinyNet, make_tiny_data

from autocompress.compress.quantize import float_state, quantize_weights_, rounding_state
from autocompress.config import load_config
from autocompress.errors import NotFoundError
from autocompress.measure.quality import metric_for, predict
from autocompress.plan import CompressionPlan
from autocompress.records import (
    Baseline,
    Cascade,
    DeviceFacts,
    Latency,
    Measurement,
    ModelFacts,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
)
from autocompress.recover.data import Split
from autocompress.search.stopping import Constraints, Rival
from autocompress.study import finalise
from autocompress.study.cascade import STREAM, make_cascade, timed_on_stream
from autocompress.study.driver import Driver
from autocompress.study.evaluate import evaluate, examine
from autocompress.study.executors import WorkerDied
from autocompress.study.rebuild import rebuild_artifact, rebuild_cascade, restore
from autocompress.study.requests import MOST_CASCADES, CascadeRequest, Request

N = 200
BASELINE = Baseline(
    metric="accuracy", val=1.0, test=None, size_bytes=10_000, latency_ms=2.0, params=9, macs=9,
    artifact="artifacts/s/baseline/model.onnx",
)  # fmt: skip


STORED = StudyRecord(
    name="s", state=StudyState.FINISHED, seed=0, config={}, config_hash="", budget_s=1.0, spent_s=1.0, created="",
    device=DeviceFacts(), facts=ModelFacts(layers=(), groups=()),
)  # fmt: skip


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """[200, 2]: what tells the class apart, and whether the small network sees it; every fifth it does not.

    The small network's answer to those is 0 by a hair, which is right for every other one of them.
    """
    targets = torch.arange(N) // 5 % 2
    seen = torch.arange(N) % 5 != 4
    return torch.stack([targets * 2.0 - 1.0, seen.float()], 1), targets


def write(path: Path, *, blind: bool) -> int:
    """A network of outputs [-x, x] times 4; a blind one gives [0.1, 0] where it does not see. Its bytes."""
    hidden = [
        helper.make_node("Split", ["input"], ["x", "seen"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["x", "seen"] if blind else ["x", "one"], ["v"]),
        helper.make_node("Mul", ["v", "weight"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["output"]),
    ]
    values = {"one": [1.0], "weight": [[-4.0, 4.0]], "bias": [[0.1 if blind else 0.0, 0.0]]}
    graph = helper.make_graph(
        hidden, "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.array(array, np.float32), name) for name, array in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path.stat().st_size


class StreamDevice:
    """Latency is what its caller says of a sample: 0.2 of the baseline's, and 1.0 more where it is not seen."""

    facts = DeviceFacts()
    extra = 0.0

    def __init__(self) -> None:
        self.streams: list[np.ndarray] = []

    def measure(self, candidate: Path, baseline: Path, *, baseline_ms, seconds=None, stream=None) -> Latency:
        assert stream is not None, "a cascade has no latency on one fixed input"
        assert baseline.name == candidate.name == "model.onnx"
        with np.load(stream) as file:
            (inputs,) = (file[name] for name in file.files)
        self.streams.append(inputs)
        ratio = self.extra + float(np.mean(0.2 + 1.0 * (inputs[:, 1] == 0)))
        return Latency(latency_ms=ratio * baseline_ms, ratio=ratio, ratio_ci=(ratio, ratio), blocks=1)

    def close(self) -> None:
        return None


def measured(val: float, size: int, ratio: float) -> Measurement:
    timed = Latency(latency_ms=2 * ratio, ratio=ratio, ratio_ci=(ratio, ratio), blocks=1)
    return Measurement(val=val, size_bytes=size, compressed_bytes=size, latency=timed, params=10, macs=100)


@pytest.fixture
def study(tmp_path: Path) -> Any:
    """A task, and two results: the small network of trial 1 is wrong on every tenth sample, that of 2 never."""
    folder = tmp_path / "artifacts" / "s"
    inputs, targets = samples()
    val = Split(inputs=(inputs,), targets=targets)
    metric = metric_for("accuracy")

    def quality(artifact: Path, split: Split) -> Any:
        return metric.judge(predict(artifact, [t.numpy() for t in split.inputs], threads=1), split.targets.numpy())

    task: Any = SimpleNamespace(
        source=SimpleNamespace(config=load_config({}, name="s"), workspace=tmp_path, folder=folder),
        splits=SimpleNamespace(val=val, test=val, task="classification"), device=StreamDevice(),
        metric=metric, baseline=BASELINE, quality=quality, answers={}, pairs=None,
    )  # fmt: skip
    write(folder / "baseline" / "model.onnx", blind=False)
    records = []
    for number, blind, accuracy, ratio in ((1, True, 0.9, 0.2), (2, False, 1.0, 1.0)):
        path = folder / f"trial-{number}" / "model.onnx"
        size = write(path, blind=blind)
        plan = CompressionPlan(prune_ratio={"a": 0.5 / number})
        records.append(
            TrialRecord(
                trial=number, state=TrialState.COMPLETE, plan=plan, widths={"a": 4 * number},
                measurement=measured(accuracy, size, ratio), artifact=str(path.relative_to(tmp_path)),
            )
        )  # fmt: skip
    return SimpleNamespace(task=task, records=records, folder=folder)


def request_for(study: Any, **more: Any) -> CascadeRequest:
    rivals = tuple(
        Rival(
            trial=r.trial, plan=r.plan, drop=1.0 - r.measurement.val, size_ratio=r.measurement.size_bytes / 10_000,
            latency_ratio=r.measurement.latency.ratio,
        )
        for r in study.records
    )  # fmt: skip
    return CascadeRequest(
        trial=7, members=tuple(study.records), rivals=rivals,
        **{"constraints": Constraints(), "deadline": time.monotonic() + 60, **more},
    )  # fmt: skip


def configure(its: Any, **tables: Any) -> None:
    its.source.config = load_config(tables, name="s")


def test_two_results_are_joined_and_the_joined_file_is_what_is_measured(study):
    record = make_cascade(study.task, request_for(study), lambda _: None)
    assert (record.trial, record.state, record.origin) == (7, TrialState.COMPLETE, "cascade")
    cascade, first = record.cascade, study.records[0]
    assert cascade is not None
    assert (cascade.first, cascade.second, cascade.passed_on) == (1, 2, 0.2)
    assert 0.525 < cascade.threshold < 0.9995, "the confidence of [0.1, 0], and of [-4, 4]"
    assert (record.plan, record.widths, cascade.second_plan) == (first.plan, first.widths, study.records[1].plan)
    found, path = record.measurement, study.folder / "trial-7" / "model.onnx"
    assert found is not None
    assert (found.val, found.size_bytes) == (1.0, path.stat().st_size)
    assert cascade.passed_on_ms == pytest.approx(2 * (0.2 + 1.0)), "of both networks, one after the other"
    assert (found.params, found.macs) == (20, 120), "of both; the second one's for a fifth of the samples"
    assert found.latency.ratio == pytest.approx(0.2 + 0.2 * 1.0, abs=0.02)
    assert json.loads((path.parent / "plan.json").read_text())["cascade"][1]["trial"] == 2
    outputs = ort.InferenceSession(path).run(None, {"input": samples()[0].numpy()})[0]
    assert np.array_equal(outputs.argmax(1), samples()[1].numpy())
    assert outputs[0] == pytest.approx([4.1, -4.0]), "of the first network"
    assert outputs[4] == pytest.approx([4.0, -4.0]), "of the second"


def test_the_last_look_times_a_cascade_on_its_stream_again(study):
    make_cascade(study.task, request_for(study), lambda _: None)
    path, dense = study.folder / "trial-7" / "model.onnx", study.folder / "baseline" / "model.onnx"
    seen = examine(study.task, path, dense, baseline_ms=2.0)
    assert seen.test == 1.0
    before, again = study.task.device.streams
    assert np.array_equal(before, again)
    assert len(before) == N, "all samples there are, in an order of its own"
    assert sorted(json.loads((path.parent / STREAM).read_text())) == list(range(N))
    assert timed_on_stream(study.task, dense, dense, baseline_ms=2.0) is None, "any other file has one fixed input"
    assert [p.name for p in path.parent.iterdir() if p.is_dir()] == [], "the stream itself is not kept"


def test_what_no_pair_can_win_is_a_stopped_trial_with_its_reason(study):
    record = make_cascade(study.task, request_for(study, constraints=Constraints(max_size=10)), lambda _: None)
    assert (record.state, record.measurement, record.cascade) == (TrialState.STOPPED, None, None)
    assert record.reason.endswith("ways to join two results keeps the bounds of the study")
    assert not (study.folder / "trial-7").exists()


def test_a_file_that_turns_out_slower_than_allowed_is_infeasible_and_not_kept(study):
    study.task.device.extra = 0.1
    record = make_cascade(study.task, request_for(study, constraints=Constraints(max_latency=0.9)), lambda _: None)
    assert record.state is TrialState.INFEASIBLE, "0.42 of 2 ms were expected, 0.5 were measured"
    assert (record.reason, record.artifact) == ("1 ms exceed 0.9 ms", None)
    assert record.cascade is not None
    assert (record.cascade.first, record.cascade.second) == (1, 2), "so it is not tried again"
    assert not (study.folder / "trial-7").exists()


def test_without_time_no_file_is_asked(study, monkeypatch):
    monkeypatch.setattr("autocompress.study.cascade.predict", lambda *_, **__: pytest.fail("asked"))
    record = make_cascade(study.task, request_for(study, deadline=time.monotonic() - 1), lambda _: None)
    assert (record.state, record.reason) == (TrialState.STOPPED, "no time was left to make a cascade")


def test_a_pair_that_was_tried_is_left_out_and_its_files_are_not_asked_again(study, monkeypatch):
    make_cascade(study.task, request_for(study), lambda _: None)
    monkeypatch.setattr("autocompress.study.cascade.predict", lambda *_, **__: pytest.fail("asked"))
    record = make_cascade(study.task, request_for(study, joined=((1, 2),)), lambda _: None)
    assert (record.state, record.cascade) == (TrialState.STOPPED, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: setattr(t.splits, "task", "regression"), "the task is regression"),
        (lambda t: setattr(t.device, "facts", DeviceFacts(batch=8)), "the device runs batches of 8"),
        (lambda t: setattr(t.device, "facts", DeviceFacts(runtime="openvino")), "the device runs openvino"),
        (lambda t: configure(t, search={"objectives": ["accuracy", "size"]}), "latency is no objective"),
        (lambda t: configure(t, task={"metric": "m:f", "direction": "maximize"}), "m:f is not built in"),
    ],
)
def test_where_there_can_be_none_the_reason_is_told(study, change, reason):
    change(study.task)
    record = make_cascade(study.task, request_for(study), lambda _: None)
    assert record.state is TrialState.STOPPED
    assert reason in record.reason


def test_a_file_that_answers_something_else_is_a_failed_trial(study, monkeypatch):
    first = (study.folder / "trial-1" / "model.onnx").read_bytes()
    monkeypatch.setattr("autocompress.study.cascade.join", lambda *_, **__: first)
    record = make_cascade(study.task, request_for(study), lambda _: None)
    assert record.state is TrialState.FAILED
    assert "as neither of its networks does" in record.reason
    assert not (study.folder / "trial-7").exists(), "nothing is left of it"


def test_an_error_without_words_is_a_failed_trial_with_its_kind(study, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError

    monkeypatch.setattr("autocompress.study.cascade.join", refuse)
    record = make_cascade(study.task, request_for(study), lambda _: None)
    assert (record.state, record.reason) == (TrialState.FAILED, "ValueError")


def test_what_a_lost_trial_of_the_same_number_left_is_gone_and_what_is_written_is_on_the_disk(study, monkeypatch):
    folder = study.folder / "trial-7"
    synced: set[int] = set()
    folder.mkdir()
    (folder / "rounding.safetensors").write_bytes(b"of a network")
    monkeypatch.setattr("autocompress.study.durable.os.fsync", lambda file: synced.add(os.fstat(file).st_ino))
    assert make_cascade(study.task, request_for(study), lambda _: None).state is TrialState.COMPLETE
    files = list(folder.iterdir())
    assert {p.name for p in files} == {"model.onnx", "plan.json", STREAM}
    assert synced == {p.stat().st_ino for p in (*files, folder, study.folder)}


def test_of_a_trial_that_failed_nothing_is_left_and_a_cascades_stream_is_gone_before_it_begins(study):
    """Beside the file of a network a stream would have it timed as a cascade."""
    folder = study.folder / "trial-8"
    folder.mkdir()
    (folder / STREAM).write_text("[0]")

    def prune(*_: Any) -> None:
        found = folder.exists()
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(b"untrained")
        raise ValueError(f"found: {found}")

    study.task.facts, study.task.prune = ModelFacts(layers=(), groups=()), prune
    request = Request(
        trial=8, plan=CompressionPlan(), origin="search", train_s=1.0, deadline=time.monotonic() + 60, parent=1,
        parent_plan=CompressionPlan(),
    )  # fmt: skip
    record = evaluate(study.task, request, lambda _: None)
    assert (record.state, record.reason) == (TrialState.FAILED, "prune failed: ValueError: found: False")
    assert not folder.exists()
    assert (study.folder / "trial-1" / "model.onnx").exists(), "what it started from stays"


def test_a_cascade_is_made_again_from_its_parts_byte_for_byte(study):
    record = make_cascade(study.task, request_for(study), lambda _: None)
    path = study.folder / "trial-7" / "model.onnx"
    workspace, size = study.task.source.workspace, path.stat().st_size
    assert rebuild_cascade(STORED, record.cascade, record.plan, workspace, size_bytes=size) == path.read_bytes()
    with pytest.raises(NotFoundError, match=f"{size + 1} bytes were measured, {size} came out"):
        rebuild_cascade(STORED, record.cascade, record.plan, workspace, size_bytes=size + 1)
    (study.folder / "trial-2" / "model.onnx").unlink()
    with pytest.raises(NotFoundError, match=r"trial-2 has no weights\.safetensors"):
        rebuild_cascade(STORED, record.cascade, record.plan, workspace)
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_the_dense_network_is_made_again_from_the_teachers_weights(tmp_path):
    tables = {
        "model": {"factory": "tiny:TinyNet", "args": {"channels": 16}}, "data": {"factory": "tiny:make_tiny_data"},
    }  # fmt: skip
    stored = replace(STORED, config=load_config(tables, name="s").model_dump(mode="json"))
    folder = tmp_path / "artifacts" / "s"
    folder.mkdir(parents=True)
    with pytest.raises(NotFoundError, match=r"s has no teacher\.safetensors"):
        rebuild_artifact(stored, CompressionPlan(), folder / "baseline", tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher = TinyNet(channels=16).eval()
        save_file(teacher.state_dict(), folder / "teacher.safetensors")
        data = rebuild_artifact(stored, CompressionPlan(), folder / "baseline", tmp_path)
    x = make_tiny_data()["test"][0]
    outputs = ort.InferenceSession(data).run(None, {"input": x.numpy()})[0]
    assert outputs == pytest.approx(teacher(x).detach().numpy(), abs=1e-4)


def test_a_restored_table_of_values_is_as_long_as_the_stored_one(tmp_path):
    """k-means finds eight magnitudes for four bits, of which training may have left two."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 4)).eval()
    plan = CompressionPlan(weight_bits={"0": 4}, levels="codebook")
    trained = quantize_weights_(copy.deepcopy(model), plan.weight_bits, plan.levels)
    name = "0.parametrizations.weight.0.magnitudes"
    save_file(float_state(trained), tmp_path / "weights.safetensors")
    save_file({**rounding_state(trained), name: torch.tensor([3.0, 127.0])}, tmp_path / "rounding.safetensors")
    network = restore(model, plan, ModelFacts(layers=(), groups=()), tmp_path, (torch.randn(2, 8),))
    assert network.state_dict()[name].tolist() == [3.0, 127.0]


def driver_of(study: Any, *answers: TrialRecord | WorkerDied) -> tuple[Any, list[CascadeRequest]]:
    """What the last stage needs of a driver to ask for cascades, which gets these answers, and what it asked."""
    asked: list[CascadeRequest] = []

    def call(method: str, request: CascadeRequest, *, deadline: float) -> TrialRecord:
        assert method == "cascade"
        answer = answers[len(asked)]
        asked.append(request)
        if isinstance(answer, WorkerDied):
            raise answer
        return answer

    request = request_for(study)
    config = load_config({"search": {"cascade": True, "max_trials": 2}}, name="s")
    driver = SimpleNamespace(
        source=SimpleNamespace(last_timing_s=0.8),
        trials=list(study.records), rivals=lambda: iter(request.rivals), believed_rivals=lambda: list(request.rivals),
        config=config, constraints=Constraints(),
        at_limit=True, end=time.monotonic() + 60, data_sizes={"val": 100, "test": 100}, say=lambda _: None,
        ledger=SimpleNamespace(next_number=3), worker=SimpleNamespace(call=call), ensure_worker=lambda: None,
    )  # fmt: skip
    driver.finish = driver.trials.append
    return driver, asked


def made(number: int, first: int, second: int) -> TrialRecord:
    cascade = Cascade(first=first, second=second, threshold=0.5, passed_on=0.1, second_plan=CompressionPlan())
    return TrialRecord(
        trial=number, state=TrialState.COMPLETE, plan=CompressionPlan(), origin="cascade", cascade=cascade
    )


def ended(state: TrialState = TrialState.STOPPED) -> TrialRecord:
    return TrialRecord(trial=9, state=state, plan=CompressionPlan(), origin="cascade", reason="none")


def test_each_cascade_is_stored_before_the_next_one_is_asked_for(study):
    driver, asked = driver_of(study, made(3, 1, 2), made(4, 2, 1), made(5, 1, 3))
    before = finalise._reserve_s(driver)
    finalise._make_cascades(driver)
    assert [r.joined for r in asked] == [(), ((1, 2),), ((1, 2), (2, 1))]
    assert all({r.trial for r in request.members} == {1, 2} for request in asked), "a cascade is no part of another"
    assert [t.trial for t in driver.trials] == [1, 2, 3, 4, 5]
    assert len(asked) == MOST_CASCADES
    assert finalise._reserve_s(driver) < before, "its time is not kept any longer"


def test_a_study_that_is_taken_up_again_makes_only_what_is_missing(study):
    driver, asked = driver_of(study, made(5, 1, 3))
    driver.trials += [made(3, 1, 2), made(4, 2, 1)]
    finalise._make_cascades(driver)
    finalise._make_cascades(driver)
    assert [r.joined for r in asked] == [((1, 2), (2, 1))]


def test_a_worker_that_dies_at_the_second_one_loses_only_that(study):
    driver, asked = driver_of(study, made(3, 1, 2), WorkerDied("it took longer than its time and was ended"))
    finalise._make_cascades(driver)
    assert (len(asked), [t.trial for t in driver.trials]) == (2, [1, 2, 3])


@pytest.mark.parametrize("answer", [ended(), WorkerDied("none")])
def test_why_there_is_none_at_all_is_stored_once(study, answer):
    driver, _ = driver_of(study, answer, answer)
    finalise._make_cascades(driver)
    assert [t.reason for t in driver.trials] == ["", "", "none"]
    finalise._make_cascades(driver)
    assert len(driver.trials) == 3


def test_a_failed_pair_does_not_keep_the_others_from_being_tried(study):
    driver, asked = driver_of(study, replace(made(3, 1, 2), state=TrialState.FAILED), made(4, 2, 1), ended())
    finalise._make_cascades(driver)
    assert (len(asked), [t.trial for t in driver.trials]) == (3, [1, 2, 3, 4])


def test_cascades_do_not_count_as_trials(study):
    at_limit: Any = Driver.at_limit
    driver, _ = driver_of(study)
    driver.trials = [study.records[0], ended(), ended(), ended()]
    assert at_limit.fget(driver) is False, "one of two"
    driver.trials.append(study.records[1])
    assert at_limit.fget(driver) is True
