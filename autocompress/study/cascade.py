"""Makes a cascade of a study's results: two files in one, a small network and one for what it is unsure of.

What is reported was measured on the joined file: its bytes, its metric, its mean latency over validation samples.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from autocompress.config import is_builtin_metric
from autocompress.errors import DeviceError, first_line
from autocompress.export.cascade import confidences, join
from autocompress.front.explain import plan_document
from autocompress.measure.machine import cores
from autocompress.measure.quality import drop, predict
from autocompress.measure.size import compressed_bytes
from autocompress.plan import CompressionPlan
from autocompress.records import Cascade, Latency, Measurement, TrialRecord, TrialState
from autocompress.search.cascades import Pair, Stage, choose_pair, pairs, stream_rows
from autocompress.search.stopping import broken_bound
from autocompress.study.durable import sync_folder
from autocompress.study.progress import Clock, Report
from autocompress.study.requests import CascadeRequest
from autocompress.study.task import Task

STREAM = "stream.json"  # beside the file: the validation samples that its mean latency is measured on
_TIMED, _STREAM_BYTES = 500, 64e6  # samples, at most
_TIMING_S = 1.5
_CHECKED = 32  # samples on which the file is compared with its two networks, one at a time
_TOLERANCE = 1e-4  # of the largest output


def make_cascade(task: Task, request: CascadeRequest, report: Report) -> TrialRecord:
    """The one that is expected to add most to the front; a stopped trial that says why where there is none."""
    if reason := _impossible(task):
        return _ended(request.trial, reason)
    stages = _stages(task, request, report)
    if stages is None:
        return _ended(request.trial, "no time was left to make a cascade")
    pair, reason = choose_pair(
        [p for p in _pairs(task, stages) if (p.first, p.second) not in request.joined],
        front=np.array([(r.drop, r.size_ratio, r.latency_ratio) for r in request.rivals]),
        constraints=request.constraints,
        baseline_ms=task.baseline.latency_ms,
    )
    if pair is None:
        return _ended(request.trial, reason)
    report(f"joining trials {pair.first} and {pair.second}")
    return _made(task, request, pair, stages)


def timed_on_stream(task: Task, artifact: Path, baseline: Path, *, baseline_ms: float) -> Latency | None:
    """Mean latency of a cascade over its stream of validation samples; None for any other file."""
    listed = artifact.with_name(STREAM)
    if not listed.is_file():
        return None
    rows = json.loads(listed.read_text())
    with tempfile.TemporaryDirectory(dir=artifact.parent) as folder:
        stream = Path(folder) / "stream.npz"
        np.savez(stream, *(t[rows].numpy() for t in task.splits.val.inputs))
        return task.device.measure(artifact, baseline, baseline_ms=baseline_ms, seconds=_TIMING_S, stream=stream)


def _impossible(task: Task) -> str:
    """Why there can be no cascade in this study; empty if there can."""
    config = task.source.config
    if task.splits.task != "classification":
        return f"a cascade needs the probability of one class; the task is {task.splits.task}"
    if not is_builtin_metric(config.task.metric):
        return f"a cascade is chosen by computing the metric hundreds of times; {config.task.metric} is not built in"
    if "latency" not in config.search.objectives:
        return "a cascade saves time and nothing else; latency is no objective of the study"
    if task.device.facts.batch > 1:
        return f"a cascade saves time on single samples; the device runs batches of {task.device.facts.batch}"
    if task.device.facts.runtime != "onnxruntime":
        return f"cascades are made for onnxruntime alone; the device runs {task.device.facts.runtime}"
    return ""


def _stages(task: Task, request: CascadeRequest, report: Report) -> list[Stage] | None:
    """What each member says of the validation data; None if the time ends before all were asked."""
    report("asking the front's files about the validation data")
    stages = []
    for record in request.members:
        if time.monotonic() > request.deadline:
            return None
        stages.append(_stage(task, request, record))
    return stages


def _pairs(task: Task, stages: list[Stage]) -> list[Pair]:
    """Every way to join two of them; computed once for all cascades of the same parts."""
    key = tuple(stage.trial for stage in stages)
    if task.pairs is None or task.pairs[0] != key:
        task.pairs = key, list(pairs(stages, lambda outputs: _drop(task, outputs)))
    return task.pairs[1]


def _stage(task: Task, request: CascadeRequest, record: TrialRecord) -> Stage:
    assert record.measurement is not None
    if record.trial not in task.answers:
        inputs = [t.numpy() for t in task.splits.val.inputs]
        task.answers[record.trial] = predict(
            _path(task, record), inputs, threads=cores(), device_batch=task.device.facts.batch
        )
    outputs = task.answers[record.trial]
    rival = next(r for r in request.rivals if r.trial == record.trial)
    return Stage(
        trial=record.trial,
        size_bytes=record.measurement.size_bytes,
        size_ratio=rival.size_ratio,
        latency_ratio=rival.latency_ratio,
        outputs=outputs,
        confidence=confidences(outputs),
    )


def _drop(task: Task, outputs: np.ndarray) -> float:
    return drop(task.metric, task.baseline.val, task.metric(outputs, task.splits.val.targets.numpy()))


def _made(task: Task, request: CascadeRequest, pair: Pair, stages: list[Stage]) -> TrialRecord:
    """The record of one pair's file: infeasible if it breaks a bound, failed if it is not what its networks say."""
    members = {record.trial: record for record in request.members}
    by_number = {stage.trial: stage for stage in stages}
    first, second = members[pair.first], members[pair.second]
    rows = stream_rows(by_number[pair.first].confidence, _stream_length(task))
    cascade = Cascade(
        first=pair.first, second=pair.second, threshold=pair.threshold, passed_on=pair.passed_on,
        second_plan=second.plan, samples=len(rows), passed_on_ms=sum(_latency_ms(r) for r in (first, second)),
    )  # fmt: skip
    record = TrialRecord(
        trial=request.trial, state=TrialState.COMPLETE, plan=first.plan, origin="cascade", widths=first.widths,
        cascade=cascade,
    )  # fmt: skip
    folder = task.source.folder / f"trial-{record.trial}"
    try:
        record = _measured(task, record, (first, second), rows, folder)
    except (ValueError, DeviceError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return replace(record, state=TrialState.FAILED, reason=first_line(error))
    found = record.measurement
    assert found is not None
    if reason := broken_bound(found.size_bytes, found.latency.latency_ms, request.constraints):
        shutil.rmtree(folder, ignore_errors=True)
        return replace(record, state=TrialState.INFEASIBLE, reason=reason, artifact=None)
    sync_folder(folder)
    return record


def _measured(
    task: Task, record: TrialRecord, members: tuple[TrialRecord, TrialRecord], rows: list[int], folder: Path
) -> TrialRecord:
    """Write the file and measure everything that is reported of it; `rows`: validation samples to time it on."""
    cascade, clock = record.cascade, Clock()
    assert cascade is not None
    path = folder / "model.onnx"
    shutil.rmtree(folder, ignore_errors=True)  # of a trial that had this number and was lost
    folder.mkdir(parents=True, exist_ok=True)
    artifact = join(*(_path(task, member).read_bytes() for member in members), threshold=cascade.threshold)
    path.write_bytes(artifact)
    path.with_name(STREAM).write_text(json.dumps(rows))
    path.with_name("plan.json").write_text(json.dumps(plan_document(record), indent=1))
    clock.lap("emit")
    _check(task, path, members, rows[:_CHECKED], cascade.threshold)
    clock.lap("check")
    dense = task.source.workspace / task.baseline.artifact
    latency = timed_on_stream(task, path, dense, baseline_ms=task.baseline.latency_ms)
    assert latency is not None
    clock.lap("latency")
    val = task.quality(path, task.splits.val)
    clock.lap("quality")
    first, second = (member.measurement for member in members)
    assert first is not None
    assert second is not None
    return replace(
        record,
        measurement=Measurement(
            val=val.value,
            val_ci=val.ci,
            size_bytes=len(artifact),
            compressed_bytes=compressed_bytes(artifact),
            latency=latency,
            params=first.params + second.params,
            macs=first.macs + round(cascade.passed_on * second.macs),
        ),
        artifact=str(path.relative_to(task.source.workspace)),
        durations_s=clock.seconds,
    )


def _check(task: Task, path: Path, members: tuple[TrialRecord, TrialRecord], rows: list[int], threshold: float) -> None:
    """Refuse a file that does not answer what its two networks answer, one sample at a time.

    Raises:
        ValueError: it does not.
    """
    files = (path, *(_path(task, member) for member in members))
    inputs = [t[rows].numpy() for t in task.splits.val.inputs]
    threads = task.device.facts.threads
    got, first, second = (predict(file, inputs, threads=threads, batch=1) for file in files)
    wanted = np.where((confidences(first) < np.float32(threshold))[:, None], second, first)
    wrong = int((np.abs(got - wanted).max(axis=1) > _TOLERANCE * max(1.0, float(np.abs(wanted).max()))).sum())
    if wrong > 1:  # one may lie at the threshold, where the last bit of its confidence decides
        raise ValueError(f"the joined file answers {wrong} of {len(rows)} samples as neither of its networks does")


def _latency_ms(member: TrialRecord) -> float:
    assert member.measurement is not None
    return member.measurement.latency.latency_ms


def _path(task: Task, member: TrialRecord) -> Path:
    assert member.artifact is not None
    return task.source.workspace / member.artifact


def _stream_length(task: Task) -> int:
    each = sum(t[0].numel() * t.element_size() for t in task.splits.val.inputs)
    return max(1, min(_TIMED, int(_STREAM_BYTES // each)))


def _ended(number: int, reason: str) -> TrialRecord:
    return TrialRecord(trial=number, state=TrialState.STOPPED, plan=CompressionPlan(), origin="cascade", reason=reason)
