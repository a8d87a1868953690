"""Evaluates one plan. The one place that knows the order of the stages.

    prune -> emit untrained -> size, latency -> worth training? -> recover -> emit -> check -> quality

Size and latency are exact before any training, so a plan that cannot enter the front costs a second.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from autocompress.compress.quantize import float_state, quantize_weights_, settle_weights_
from autocompress.errors import AutocompressError, StageError
from autocompress.export.artifact import emit
from autocompress.export.check import check_artifact
from autocompress.measure.size import compressed_bytes
from autocompress.plan import CompressionPlan
from autocompress.records import Latency, Measurement, TrialRecord, TrialState
from autocompress.recover.finetune import TrainingReport, finetune_
from autocompress.search.stopping import judge
from autocompress.space.layers import count_macs
from autocompress.space.search_space import kept_widths
from autocompress.study.prepare import Report, Task, each_second, load_state
from autocompress.study.requests import Examination, Request

_CONTINUE_ROUNDING_FROM = 0.2
_CHECKED = 64  # samples on which the file is compared with torch


def evaluate(task: Task, request: Request, report: Report) -> TrialRecord:
    """Run one trial to its end, whatever that is; only our own bugs raise."""
    plan, stages = request.plan, _Stages()
    record = TrialRecord(
        trial=request.trial, state=TrialState.FAILED, plan=plan, origin=request.origin, parent=request.continue_from,
        widths=kept_widths(task.facts, plan),
    )  # fmt: skip
    try:
        return replace(_run(task, request, record, stages, report), durations_s=stages.seconds)
    except StageError as error:
        return replace(record, reason=str(error), durations_s=stages.seconds)


def _run(task: Task, request: Request, record: TrialRecord, stages: _Stages, report: Report) -> TrialRecord:
    plan, baseline = request.plan, task.baseline
    folder = task.source.folder / f"trial-{request.trial}"
    path = folder / "model.onnx"
    with stages("prune"):
        network = task.prune(plan)
    with stages("emit"):
        sketch = _sketch(task, network, plan, path)
    with stages("latency"):
        latency = request.latency or _time(task, path)
    measured = Measurement(
        val=None, size_bytes=len(sketch), compressed_bytes=compressed_bytes(sketch), latency=latency,
        params=sum(p.numel() for p in network.parameters()), macs=count_macs(network, task.example),
    )  # fmt: skip
    record = replace(record, measurement=measured)
    verdict = judge(
        plan,
        size_bytes=len(sketch),
        latency_ms=latency.latency_ms,
        size_ratio=len(sketch) / baseline.size_bytes,
        latency_ratio=latency.ratio,
        rivals=request.rivals,
        constraints=request.constraints,
    )
    train_s = min(request.train_s, request.deadline - time.monotonic() - 2 * stages.total()) if plan.trains else 0.0
    if not verdict.train and not request.anchor:
        return _ended(record, path, TrialState.INFEASIBLE if verdict.infeasible else TrialState.STOPPED, verdict.reason)
    if plan.trains and train_s < request.train_s / 2:
        return _ended(record, path, TrialState.STOPPED, "too little time was left to train it")
    with stages("train"):
        training = _recover(task, network, request, train_s, report)
    with stages("emit"):
        weights = float_state(network)
        artifact = emit(task.exporter, network, plan, settle_weights_(network), trained=True)
        path.write_bytes(artifact)
        save_file(weights, folder / "weights.safetensors")
        (folder / "plan.json").write_text(json.dumps(plan.to_dict(), indent=1))
    with stages("check"):
        few = tuple(t[:_CHECKED] for t in task.exporter.samples)
        check_artifact(artifact, network, few, exact=plan.activations == "float")
    with stages("quality"):
        val = task.quality(path, task.splits.val)
    return replace(
        record,
        state=TrialState.COMPLETE,
        measurement=replace(measured, val=val, size_bytes=len(artifact), compressed_bytes=compressed_bytes(artifact)),
        artifact=str(path.relative_to(task.source.workspace)),
        learning_curve=training.curve if training else (),
    )


def probe(task: Task, plan: CompressionPlan) -> Latency:
    """The latency of a plan whose network is not trained; nothing is kept of it."""
    stages, path = _Stages(), task.source.folder / "probe" / "model.onnx"
    with stages("prune"):
        network = task.prune(plan)
    with stages("emit"):
        _sketch(task, network, plan, path)
    with stages("latency"):
        latency = _time(task, path)
    path.unlink()
    path.parent.rmdir()
    return latency


def examine(task: Task, artifact: Path, baseline: Path, *, baseline_ms: float) -> Examination:
    """A fresh latency, and the one look at test data."""
    latency = task.device.measure(artifact, baseline, baseline_ms=baseline_ms)
    return Examination(test=task.quality(artifact, task.splits.test), latency=latency)


def _time(task: Task, path: Path) -> Latency:
    baseline = task.baseline
    return task.device.measure(path, task.source.workspace / baseline.artifact, baseline_ms=baseline.latency_ms)


def _sketch(task: Task, network: nn.Module, plan: CompressionPlan, path: Path) -> bytes:
    """Write and return the untrained artifact: the final one but for the values in it."""
    rounded = quantize_weights_(copy.deepcopy(network), plan.weight_bits)
    sketch = emit(task.exporter, rounded, plan, settle_weights_(rounded), trained=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sketch)
    return sketch


def _recover(task: Task, network: nn.Module, request: Request, seconds: float, report: Report) -> TrainingReport | None:
    plan = request.plan
    if not plan.trains:
        quantize_weights_(network, plan.weight_bits)
        return None
    if request.continue_from is not None:
        network.load_state_dict(
            load_state(task.source.folder / f"trial-{request.continue_from}" / "weights.safetensors")
        )
    outcome = finetune_(
        network,
        task.outputs,
        trainer=task.trainer,
        seconds=seconds,
        learning_rate=plan.learning_rate,
        distill=plan.distill,
        weight_bits=plan.weight_bits,
        quantize_from=0.5 if request.continue_from is None else _CONTINUE_ROUNDING_FROM,
        seed=task.source.config.search.seed + (0 if request.continue_from is None else 1),
        on_step=each_second(report, f"trial {request.trial}: training"),
    )
    if not outcome.finite:
        raise ValueError(f"training diverged after {outcome.steps} steps; a lower learning_rate may help")
    return outcome


def _ended(record: TrialRecord, path: Path, state: TrialState, reason: str) -> TrialRecord:
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    return replace(record, state=state, reason=reason)


@dataclass(slots=True)
class _Stages:
    """Seconds per stage; what is raised inside of one becomes a `StageError` that names it."""

    seconds: dict[str, float] = field(default_factory=dict)

    def total(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        done = tuple(self.seconds)
        start = time.monotonic()
        try:
            yield
        except AutocompressError as error:
            raise StageError(name, done, str(error)) from error
        except Exception as error:
            lines = str(error).strip().splitlines()
            cause = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
            raise StageError(name, done, cause) from error
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
