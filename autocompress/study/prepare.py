"""Everything that happens once per study before the first trial: data, teacher, space, baseline.

Runs in the worker process. What it finds out is handed to the driver as plain facts; the heavy
objects stay here, in a `Task`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from torch import nn

from autocompress.compress.compensate import input_grams
from autocompress.compress.prune import prune
from autocompress.config import StudyConfig
from autocompress.export.artifact import emit, make_exporter
from autocompress.measure.device import device_lock
from autocompress.measure.local import LocalDevice
from autocompress.measure.machine import cores
from autocompress.measure.quality import Metric
from autocompress.measure.runtime import open_artifact
from autocompress.measure.saturation import INEXACT, saturates
from autocompress.measure.size import compressed_bytes
from autocompress.plan import CompressionPlan
from autocompress.records import Baseline
from autocompress.recover.data import DataSplits, data_digest, split_data
from autocompress.recover.order import Order
from autocompress.recover.outputs import Answers, TeacherOutputs
from autocompress.recover.trainer import Trainer, prefers_bf16
from autocompress.search.profile import measure_sensitivity
from autocompress.search.sensitivity import Sensitivity
from autocompress.space.attention import open_attention_
from autocompress.space.layers import count_macs
from autocompress.space.search_space import SearchSpace
from autocompress.study.digests import outputs_digest, profile_digest
from autocompress.study.durable import sync_folder
from autocompress.study.load import (
    bake_parametrizations_,
    calibration_samples,
    check_forward,
    load_objects,
    unfreeze_,
)
from autocompress.study.model_facts import find_facts
from autocompress.study.progress import Clock, Report
from autocompress.study.requests import Prepared, Source
from autocompress.study.task import Task
from autocompress.study.teaching import provide_weights, teacher_of

_PROFILE_SHARE = 0.06  # of the budget, at most
_ASKING_SHARE = 0.05  # of the budget goes to the teacher's answers at most, before there is any training
_PROFILED = 256  # samples
_INTERVAL_SDS = 2 * 1.96  # width of a 95 % interval in standard deviations


def prepare(source: Source, known: Baseline | None, report: Report) -> tuple[Task, Prepared]:
    """Load, check, train the teacher if there are no weights, find the space and measure the baseline.

    Args:
        known: the baseline on record when a study is taken up again; it is not measured twice.
        report: told what is going on.
    Raises:
        UsageError: the model or the data cannot be used; nothing of the budget has gone into search yet.
    """
    config, clock = source.config, Clock()
    torch.manual_seed(config.search.seed)
    torch.set_num_threads(cores())
    report("loading data and model")
    model, raw, metric = load_objects(source)
    splits = split_data(
        raw, config=config.data, metric=config.task.metric, seed=config.search.seed, kind=config.task.kind
    )
    check_forward(model, splits)
    unfreeze_(model)
    device = LocalDevice(config.device)
    trainer = _trainer(model, splits, config)
    clock.lap("setup")
    notes = [*splits.notes, *_of_the_processor(config), *provide_weights(model, source, splits, trainer, report)]
    bake_parametrizations_(model.eval())
    clock.lap("teacher")
    report("tracing the model and finding its groups")
    samples = calibration_samples(splits.train)
    kept = open_attention_(model, tuple(t[:2] for t in samples))
    exporter = make_exporter(model, samples)
    facts = find_facts(model, tuple(t[:2] for t in samples), config, notes, kept)
    clock.lap("setup")
    report("measuring the baseline")
    teacher = teacher_of(model, source, tuple(t[:2] for t in samples), classes=splits.task == "classification")
    outputs = TeacherOutputs(teacher, splits.train, kind=config.data.augment, trainer=trainer, seed=config.search.seed)
    task = Task(
        source=source, model=model, splits=splits, metric=metric, trainer=trainer, outputs=outputs, facts=facts,
        device=device, exporter=exporter, baseline=known or _no_baseline(metric),
        grams=None if "compensation" in config.search.without else input_grams(model, samples),
    )  # fmt: skip
    if known is None:
        task.baseline = _measure_baseline(task)
    dense = source.workspace / task.baseline.artifact
    if teacher is model and trainer.device.type == "cpu" and dense.is_file():
        outputs.answers = _answers(dense)
    clock.lap("baseline")
    data = data_digest(splits)
    task.outputs_file = source.workspace / "profiles" / f"{outputs_digest(task, data)}.safetensors"
    if task.outputs_file.exists():
        outputs.load(task.outputs_file)
    report("asking the teacher")
    _ask(task)
    sensitivity = _sensitivity(task, data, report) if config.search.sampler == "front" else None
    clock.lap("profile")
    sizes = {name: len(split) for name, split in splits.items()}
    prepared = Prepared(
        facts=facts, baseline=task.baseline, data_sizes=sizes, durations_s=clock.seconds,
        sensitivity=sensitivity,
        direction=metric.direction, device_description=device.facts.description,
    )  # fmt: skip
    return task, prepared


def _of_the_processor(config: StudyConfig) -> list[str]:
    """What is to be known of files that are measured here and may run elsewhere."""
    integers = 8 in config.space.weight_bits and set(config.space.activations) != {"float"}
    return [INEXACT] if config.device.runtime == "onnxruntime" and integers and saturates() else []


def _trainer(model: nn.Module, splits: DataSplits, config: StudyConfig) -> Trainer:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = min(config.search.batch_size, len(splits.train))
    inputs = tuple(t[:batch] for t in splits.train.inputs)
    bf16 = prefers_bf16(model, inputs, device)
    return Trainer(
        device=device,
        bf16=bf16,
        batch_size=batch,
        guard=lambda: device_lock(config.device.name, timing=False),
    )


def _answers(artifact: Path) -> Answers:
    """What a file says, computed by the runtime, which takes a fraction of the time that torch takes."""
    run = open_artifact(artifact, runtime="onnxruntime", threads=cores())
    return lambda inputs: torch.from_numpy(run([t.contiguous().numpy() for t in inputs]))


def _ask(task: Task) -> None:
    """Have the teacher answer to all samples once, in the order of the trainings as far as there is time."""
    until = time.monotonic() + _ASKING_SHARE * task.source.budget_s
    order = Order(task.outputs, task.trainer.batch_size, seed=task.source.config.search.seed, seen=0)
    task.outputs.ask(order.first_epoch(), until)
    task.keep_outputs()


def _measure_baseline(task: Task) -> Baseline:
    path = task.source.folder / "baseline" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(emit(task.exporter, task.model, CompressionPlan(), {}, trained=True))
    sync_folder(path.parent)
    latency = task.device.measure(path, path, seconds=task.source.first_timing_s)
    val = task.quality(path, task.splits.val)
    return Baseline(
        metric=task.metric.name,
        val=val.value,
        val_ci=val.ci,
        test=None,
        size_bytes=path.stat().st_size,
        compressed_bytes=compressed_bytes(path.read_bytes()),
        latency_ms=latency.latency_ms / latency.ratio,
        params=sum(p.numel() for p in task.model.parameters()),
        macs=count_macs(task.model, task.example),
        artifact=str(path.relative_to(task.source.workspace)),
        latency_sd=max(abs(latency.ratio - 1), (latency.ratio_ci[1] - latency.ratio_ci[0]) / _INTERVAL_SDS),
    )


def _no_baseline(metric: Metric) -> Baseline:
    return Baseline(metric=metric.name, val=0.0, test=None, size_bytes=1, latency_ms=1.0, params=0, macs=0, artifact="")


def _sensitivity(task: Task, data: str, report: Report) -> Sensitivity:
    """Measured once per model and data, and kept in the workspace for every later study.

    One that was cut short is measured again where a study has more time for it.
    """
    config, seconds = task.source.config, _PROFILE_SHARE * task.source.budget_s
    low = sorted(bits for bits in config.space.weight_bits if bits < 8)[:2]
    space = SearchSpace(config=config.space, facts=task.facts)
    ratios = sorted((r for r in space.rank_ratios if r > 0), reverse=True)
    importance = config.space.importance[0]
    path = task.source.workspace / "profiles" / f"{profile_digest(task, data, [low, ratios, importance])}.json"
    if path.exists():
        kept = Sensitivity.from_dict(json.loads(path.read_text()))
        if kept.complete or kept.seconds >= seconds:
            return kept

    def narrow(widths: dict[str, int]) -> nn.Module:
        scores = task.scores(importance)
        return prune(task.model, widths, scores, task.example, grams=task.grams)

    found = measure_sensitivity(
        task.model,
        task.facts,
        task.splits.train.spread(_PROFILED),
        narrow,
        low_bits=low,
        ratios=ratios,
        seconds=seconds,
        report=report,
        task=task.splits.task,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")  # another study may write the same file
    unfinished.write_text(json.dumps(found.to_dict()))
    unfinished.replace(path)
    return found
