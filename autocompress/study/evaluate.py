"""Evaluates one plan. The one place that knows the order of the stages.

    prune -> emit untrained -> size, latency -> worth training? -> recover -> emit -> check -> quality

Size and latency are exact before any training, so a plan that cannot enter the front costs a second.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from autocompress.compress.feedback import round_with_feedback_
from autocompress.compress.fold import unfold_
from autocompress.compress.quantize import float_state, quantize_weights_, rounding_state, settle_weights_
from autocompress.compress.sparsify import sparsify_
from autocompress.errors import AutocompressError, StageError
from autocompress.export.artifact import emit
from autocompress.export.check import check_artifact
from autocompress.measure.size import compressed_bytes
from autocompress.plan import CompressionPlan
from autocompress.records import Latency, Measurement, TrialRecord, TrialState, cheap_ratios
from autocompress.recover.damage import reestimate_
from autocompress.recover.finetune import TrainingReport, finetune_
from autocompress.recover.teacher import average_
from autocompress.search.stopping import hopeless, judge
from autocompress.space.layers import count_macs
from autocompress.space.search_space import kept_widths
from autocompress.study.cascade import timed_on_stream
from autocompress.study.durable import sync_folder
from autocompress.study.progress import Report, each_second
from autocompress.study.requests import Examination, Member, Request
from autocompress.study.task import Ancestor, Task

_ROUNDING_FROM, _CONTINUE_ROUNDING_FROM = 0.5, 0.2  # share of the training
_CHECKED = 64  # samples on which the file is compared with torch


def evaluate(task: Task, request: Request, report: Report) -> TrialRecord:
    """Run one trial to its end, whatever that is; only our own bugs raise.

    Its folder holds the files of a complete trial, or is not there.
    """
    plan, stages = request.plan, _Stages()
    folder = _folder(task, request.trial)
    shutil.rmtree(folder, ignore_errors=True)  # of a trial that had this number and was lost
    record = TrialRecord(
        trial=request.trial, state=TrialState.FAILED, plan=plan, origin=request.origin, parent=request.parent,
        widths=kept_widths(task.facts, plan),
    )  # fmt: skip
    try:
        record = _run(task, request, record, stages, report)
    except StageError as error:
        record = replace(record, reason=str(error))
    if record.state is not TrialState.COMPLETE:
        shutil.rmtree(folder, ignore_errors=True)
    return replace(record, durations_s=stages.seconds)


def _run(task: Task, request: Request, record: TrialRecord, stages: _Stages, report: Report) -> TrialRecord:
    plan, baseline = request.plan, task.baseline
    folder = _folder(task, request.trial)
    path = folder / "model.onnx"
    with stages("prune"):
        network = task.prune(plan, _ancestor(task, request)) if not request.soup else _soup(task, request)
    with stages("emit"):
        sketch = _sketch(task, network, plan, path)
    with stages("latency"):
        latency = request.latency or _time(task, path)
    measured = Measurement(
        val=None, size_bytes=len(sketch), compressed_bytes=compressed_bytes(sketch), latency=latency,
        params=sum(p.numel() for p in network.parameters()), macs=count_macs(network, task.example),
    )  # fmt: skip
    record = replace(record, measurement=measured)
    cheap = cheap_ratios(measured, baseline, task.source.config.search.objectives)
    verdict = judge(
        plan,
        size_bytes=len(sketch),
        latency_ms=latency.latency_ms,
        size_ratio=cheap[0],
        latency_ratio=cheap[1],
        rivals=request.rivals,
        constraints=request.constraints,
    )
    trains = plan.trains and not request.soup
    to_come = max(0.0, request.beside_s - stages.total())
    train_s = min(request.train_s, request.deadline - time.monotonic() - to_come) if trains else 0.0
    if not verdict.train and not request.anchor:
        state = TrialState.INFEASIBLE if verdict.infeasible else TrialState.STOPPED
        return replace(record, state=state, reason=verdict.reason)
    if trains and train_s < request.train_s / 2:
        return replace(record, state=TrialState.STOPPED, reason="too little time was left to train it")
    watch = _Watch(task, network, request, cheap, each_second(report, f"trial {request.trial}: training"))
    try:
        with stages("train"):
            training = _recover(task, network, request, train_s, watch)
    except Hopeless as end:
        return replace(record, state=TrialState.STOPPED, reason=str(end), rung_drop=watch.drop, rung_s=watch.seconds)
    record = replace(record, rung_drop=watch.drop, rung_s=watch.seconds)
    with stages("emit"):
        weights, rounding = float_state(network), rounding_state(network)
        artifact = emit(task.exporter, network, plan, settle_weights_(network), trained=True)
        path.write_bytes(artifact)
        save_file(weights, folder / "weights.safetensors")
        if rounding:
            save_file(rounding, folder / "rounding.safetensors")
        (folder / "plan.json").write_text(json.dumps(plan.to_dict(), indent=1))
        sync_folder(folder)
    with stages("check"):
        few = tuple(t[:_CHECKED] for t in task.exporter.samples)
        check_artifact(artifact, network, few, exact=plan.activations == "float")
    with stages("quality"):
        val = task.quality(path, task.splits.val)
    return replace(
        record,
        state=TrialState.COMPLETE,
        measurement=replace(
            measured,
            val=val.value,
            val_ci=val.ci,
            size_bytes=len(artifact),
            compressed_bytes=compressed_bytes(artifact),
        ),
        artifact=str(path.relative_to(task.source.workspace)),
        learning_curve=training.curve if training else (),
        trained_samples=request.seen + (training.samples if training else 0),
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


def examine(task: Task, artifact: Path, baseline: Path, *, baseline_ms: float, timed: bool = True) -> Examination:
    """A fresh latency unless it is not to be timed, and the one look at test data."""
    latency = timed_on_stream(task, artifact, baseline, baseline_ms=baseline_ms) if timed else None
    if timed and latency is None:
        latency = task.device.measure(artifact, baseline, baseline_ms=baseline_ms, seconds=task.source.last_timing_s)
    test = task.quality(artifact, task.splits.test)
    return Examination(test=test.value, test_ci=test.ci, latency=latency)


def _time(task: Task, path: Path) -> Latency:
    baseline = task.baseline
    return task.device.measure(path, task.source.workspace / baseline.artifact, baseline_ms=baseline.latency_ms)


def _sketch(task: Task, network: nn.Module, plan: CompressionPlan, path: Path) -> bytes:
    """Write and return the untrained artifact, the final one but for the values in it."""
    rounded = sparsify_(copy.deepcopy(network), task.sparsity(plan))
    quantize_weights_(rounded, plan.weight_bits, plan.levels)
    sketch = emit(task.exporter, rounded, plan, settle_weights_(rounded), trained=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sketch)
    return sketch


class Hopeless(Exception):
    """A training that cannot bring its plan onto the front any more."""


class _Watch:
    """Looks on at each step of a training, and once, at the rung, whether it is worth its end."""

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        request: Request,
        cheap: tuple[float, float],
        tell: Callable[[float], None],
    ) -> None:
        self._task, self._network, self._request, self._cheap, self._tell = task, network, request, cheap, tell
        self._start = time.monotonic()
        self.drop: float | None = None
        self.seconds: float | None = None

    def __call__(self, share: float) -> None:
        self._tell(share)
        rung = self._request.rung
        if rung is None or self.drop is not None or share < rung.share:
            return
        self.drop = self._task.glance(self._network)
        self.seconds = time.monotonic() - self._start
        if self._request.anchor:
            return
        if reason := hopeless(self.drop, rung, cheap=self._cheap, rivals=self._request.rivals):
            raise Hopeless(reason)


def _recover(
    task: Task, network: nn.Module, request: Request, seconds: float, on_step: Callable[[float], None]
) -> TrainingReport | None:
    """Train `network` in place, without its batch norms as far as they fold; None if nothing is trained."""
    plan = request.plan
    feedback = task.exporter.samples if plan.rounding == "feedback" else ()
    if request.soup or not plan.trains:
        sparsify_(network, task.sparsity(plan))
        dense = copy.deepcopy(network) if feedback and any(bits < 8 for bits in plan.weight_bits.values()) else None
        quantize_weights_(network, plan.weight_bits, plan.levels)
        if dense is not None:
            round_with_feedback_(network, dense, feedback)
        return None
    gone = task.fold_norms_(network)
    companions = task.companions(network, plan.distill)
    try:
        outcome = finetune_(
            network,
            task.outputs_with([_as_ancestor(task, m) for m in request.teachers]),
            trainer=task.trainer,
            seconds=seconds,
            learning_rate=plan.learning_rate,
            distill=plan.distill,
            weight_bits=plan.weight_bits,
            levels=plan.levels,
            feedback=feedback,
            sparsity=task.sparsity(plan),
            quantize_from=_ROUNDING_FROM if request.parent is None else _CONTINUE_ROUNDING_FROM,
            seed=task.source.config.search.seed,
            seen=request.seen,
            companions=companions,
            on_step=on_step,
        )
    finally:
        for companion in companions:
            companion.close()
    if not outcome.finite:
        raise ValueError(f"training diverged after {outcome.steps} steps; a lower learning_rate may help")
    unfold_(network, gone, task.exporter.samples)
    return outcome


def _ancestor(task: Task, request: Request) -> Ancestor | None:
    if request.parent is None or request.parent_plan is None:
        return None
    found = _as_ancestor(task, Member(trial=request.parent, plan=request.parent_plan))
    return found if found.weights.exists() else None


def _as_ancestor(task: Task, member: Member) -> Ancestor:
    return Ancestor(plan=member.plan, weights=_folder(task, member.trial) / "weights.safetensors")


def _folder(task: Task, trial: int) -> Path:
    return task.source.folder / f"trial-{trial}"


def _soup(task: Task, request: Request) -> nn.Module:
    """One network with the mean of several networks' float weights; its batch norms are re-estimated."""
    networks = [task.prune(request.plan, _as_ancestor(task, member)) for member in request.soup]
    return reestimate_(average_(networks), task.exporter.samples)


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
        except Hopeless:
            raise
        except AutocompressError as error:
            raise StageError(name, done, str(error)) from error
        except Exception as error:
            lines = str(error).strip().splitlines()
            cause = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
            raise StageError(name, done, cause) from error
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
