"""A finished study as the engine leaves it, written to a workspace without any engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.config import load_config
from autocompress.plan import CompressionPlan
from autocompress.records import (
    Baseline,
    DeviceFacts,
    GroupFacts,
    Latency,
    LayerFacts,
    Measurement,
    ModelFacts,
    Skip,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
)
from autocompress.study.store import StudyStore

FACTS = ModelFacts(
    layers=(
        LayerFacts(name="conv1", kind="conv", weights=144, out_channels=16, group="conv1"),
        LayerFacts(name="fc", kind="linear", weights=160, out_channels=10),
    ),
    groups=(GroupFacts(name="conv1", channels=16, granule=4, layers=("conv1", "conv2")),),
    skips=(Skip(name="fc", what="prune", reason="its outputs are the classes"),),
)


def example_record(name: str = "digits", **fields: Any) -> StudyRecord:
    config = load_config({"search": {"budget": "2m", **fields.pop("search", {})}}, name=name)
    artifact = f"artifacts/{name}/trial-0/model.onnx"
    baseline = Baseline(
        metric="accuracy",
        val=0.98,
        test=0.97,
        size_bytes=1_000_000,
        latency_ms=0.3,
        params=250_000,
        macs=31_000_000,
        artifact=artifact,
    )
    record = StudyRecord(
        name=name,
        state=StudyState.FINISHED,
        seed=0,
        config=config.model_dump(mode="json"),
        config_hash=config.digest(),
        budget_s=120.0,
        spent_s=118.0,
        created="2026-11-01T00:00:00+00:00",
        device=DeviceFacts(),
        baseline=baseline,
        facts=FACTS,
        durations_s={"setup": 1.0, "search": 90.0, "final": 27.0},
        data_sizes={"train": 1000, "val": 200, "test": 200},
    )
    return replace(record, **fields)


def example_trial(number: int, val: float | None, size_bytes: int, ratio: float, **fields: Any) -> TrialRecord:
    latency = Latency(latency_ms=0.3 * ratio, ratio=ratio, ratio_ci=(ratio * 0.97, ratio * 1.03), blocks=20)
    measurement = Measurement(
        val=val,
        test=None if val is None else val - 0.01,
        size_bytes=size_bytes,
        compressed_bytes=size_bytes // 2,
        latency=latency,
        params=100_000,
        macs=10_000_000,
    )
    trial = TrialRecord(
        trial=number,
        state=TrialState.COMPLETE,
        plan=CompressionPlan(prune_ratio={"conv1": 0.5}, weight_bits={"conv1": 4}),
        measurement=measurement,
        artifact=f"artifacts/digits/trial-{number}/model.onnx",
        widths={"conv1": 8},
        durations_s={"prune": 0.1, "train": 5.0},
    )
    return replace(trial, **fields)


def example_trials() -> list[TrialRecord]:
    """On the front: 0 (the baseline), 1 (small) and 2 (fast); trial 3 is dominated by trial 1."""
    return [
        example_trial(0, 0.98, 1_000_000, 1.0, origin="baseline", plan=CompressionPlan(), widths={}),
        example_trial(1, 0.975, 140_000, 0.6, origin="anchor"),
        example_trial(2, 0.97, 200_000, 0.4),
        example_trial(3, 0.96, 150_000, 0.7),
        example_trial(4, None, 90_000, 0.3, state=TrialState.STOPPED, reason="cannot reach the front", artifact=None),
        replace(example_trial(5, None, 1, 1.0), state=TrialState.FAILED, measurement=None, reason="export failed: no"),
    ]


def write_example(workspace: Path, record: StudyRecord | None = None) -> StudyRecord:
    """Store the example and an artifact per trial; returns the record."""
    record = record or example_record()
    with StudyStore(workspace) as store:
        store.create(record)
        store.add_trials(record.name, example_trials())
    for trial in example_trials():
        if trial.artifact:
            path = workspace / trial.artifact
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"onnx")
    return record
