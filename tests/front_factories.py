"""Builders for records and a made-up study: the numbers are plausible, small and always the same."""

from __future__ import annotations

import random
from typing import Any

from autocompress.plan import CompressionPlan
from autocompress.records import (
    Baseline,
    DeviceFacts,
    FrontPoint,
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

BASELINE = Baseline(
    metric="accuracy",
    val=0.981,
    val_ci=(0.952, 0.994),
    test=0.978,
    test_ci=(0.957, 0.989),
    size_bytes=1_094_138,
    latency_ms=0.309,
    params=272_474,
    macs=31_500_000,
    artifact="artifacts/digits/baseline/model.onnx",
)


def make_point(trial: int = 17, **changes: Any) -> FrontPoint:
    values: dict[str, Any] = {
        "trial": trial,
        "val": 0.979,
        "val_ci": (0.946, 0.992),
        "test": 0.976,
        "test_ci": (0.9545, 0.9875),
        "size_bytes": 61_044,
        "compressed_bytes": 40_113,
        "latency_ms": 0.101,
        "latency_ratio": 0.327,
        "latency_ratio_ci": (0.322, 0.331),
        "params": 80_211,
        "macs": 9_400_000,
        "artifact": f"artifacts/digits/trial-{trial}/model.onnx",
        "origin": "search",
        "plan": CompressionPlan(prune_ratio={"conv1": 0.5}, weight_bits={"conv1": 8}, activations="uint8"),
    }
    return FrontPoint(**{**values, **changes})


def make_trial(
    trial: int, val: float | None, size_bytes: int, ratio: float, *, test: float | None = None, **changes: Any
) -> TrialRecord:
    measurement = Measurement(
        val=val,
        val_ci=None if val is None else (val - 0.02, val + 0.01),
        test=test,
        test_ci=None if test is None else (test - 0.02, test + 0.01),
        size_bytes=size_bytes,
        compressed_bytes=int(size_bytes * 0.8),
        latency=Latency(
            latency_ms=BASELINE.latency_ms * ratio, ratio=ratio, ratio_ci=(ratio * 0.98, ratio * 1.02), blocks=40
        ),
        params=100_000,
        macs=10_000_000,
    )
    values: dict[str, Any] = {
        "trial": trial,
        "state": TrialState.COMPLETE,
        "plan": CompressionPlan(),
        "measurement": measurement,
        "artifact": f"artifacts/digits/trial-{trial}/model.onnx",
        "spent_s": 10.0 + trial,
    }
    return TrialRecord(**{**values, **changes})


def make_study(**changes: Any) -> StudyRecord:
    values: dict[str, Any] = {
        "name": "digits",
        "state": StudyState.FINISHED,
        "seed": 0,
        "config": {"task": {"metric": "accuracy", "direction": None}, "data": {"max_val": 5000}},
        "config_hash": "0123456789abcdef",
        "budget_s": 120.0,
        "spent_s": 118.2,
        "created": "2026-01-02T03:04:05+00:00",
        "device": DeviceFacts(description="4 cores, x86-64 with AVX2"),
        "baseline": BASELINE,
        "facts": make_facts(),
        "durations_s": {"setup": 1.2, "teacher": 14.0, "baseline": 3.1, "search": 78.0, "final": 21.0},
        "versions": {"python": "3.12.3", "torch": "2.10.0", "onnxruntime": "1.24.0", "autocompress": "0.1.0"},
        "data_sizes": {"train": 1257, "val": 180, "test": 360},
    }
    return StudyRecord(**{**values, **changes})


def make_facts() -> ModelFacts:
    layers, groups = [], []
    for stage, width in enumerate((16, 32, 64), start=1):
        stem = f"layer{stage}"
        first = "conv1" if stage == 1 else f"{stem}.0.conv2"
        members = [] if stage > 1 else ["conv1"]
        for block in range(3):
            inner, outer = f"{stem}.{block}.conv1", f"{stem}.{block}.conv2"
            groups.append(GroupFacts(name=inner, channels=width, granule=4, layers=(inner,)))
            members.append(outer)
            layers.append(
                LayerFacts(name=inner, kind="conv", weights=9 * width * width, out_channels=width, group=inner)
            )
            layers.append(
                LayerFacts(name=outer, kind="conv", weights=9 * width * width, out_channels=width, group=first)
            )
        groups.append(GroupFacts(name=first, channels=width, granule=4, layers=tuple(members)))
    stem_layer = LayerFacts(name="conv1", kind="conv", weights=144, out_channels=16, group="conv1")
    head = LayerFacts(name="fc", kind="linear", weights=640, out_channels=10)
    skips = (Skip(name="fc", what="prune", reason="its 10 outputs are the classes"),)
    notes = ("validation data was carved from train: 180 of 1437 samples",)
    return ModelFacts(layers=(stem_layer, *layers, head), groups=tuple(groups), skips=skips, notes=notes)


def make_trials(count: int = 40, seed: int = 0) -> list[TrialRecord]:
    """A search as it usually goes: a baseline, anchors, trials in every state, and two trained longer at the end."""
    rng = random.Random(seed)
    trials = [
        make_trial(0, 0.981, 1_094_138, 1.0, test=0.978, origin="baseline", spent_s=18.0, durations_s=_stages(rng, 0))
    ]
    while len(trials) < count:
        trials.append(_random_trial(len(trials), count, rng))
    return trials


def _random_trial(number: int, count: int, rng: random.Random) -> TrialRecord:
    facts, strength = make_facts(), rng.random()
    bits = rng.choice((8, 4, 3)) if number > 3 else 8
    prune = {g.name: round(rng.uniform(0, 0.75) * strength * 4) / 4 for g in facts.groups}
    widths = {g.name: max(4, round(g.channels * (1 - prune[g.name]) / 4) * 4) for g in facts.groups}
    plan = CompressionPlan(
        prune_ratio=prune,
        weight_bits={layer.name: rng.choice((bits, 8)) for layer in facts.layers},
        activations=rng.choice(("uint8", "float")),
        importance="taylor",
    )
    kept = sum(widths.values()) / sum(g.channels for g in facts.groups)
    size = int(1_094_138 * (kept**2 * bits / 32) + 9_000)
    ratio = max(0.08, kept**1.5 * (0.55 if plan.activations == "uint8" else 1.02) * rng.uniform(0.92, 1.08))
    lost = 0.06 * (1 - kept) ** 1.5 + (8 - bits) ** 2 * 0.0007 + rng.expovariate(90)
    state = rng.choices(list(TrialState)[1:], weights=(6, 3, 0.5, 0.5))[0] if number > 4 else TrialState.COMPLETE
    is_final = number >= count - 2
    complete = state == TrialState.COMPLETE or is_final
    reasons = {
        TrialState.STOPPED: "even its optimistic accuracy cannot enter the front",
        TrialState.INFEASIBLE: "max_latency: 0.41 ms is more than 0.35 ms",
        TrialState.FAILED: "emit failed after prune: the exporter met an unknown operator",
    }
    return make_trial(
        number,
        round(0.981 - lost, 4) if complete else None,
        size,
        ratio,
        test=round(0.979 - lost * 1.05, 4) if complete else None,
        plan=plan,
        state=TrialState.COMPLETE if complete else state,
        reason="" if complete else reasons[state],
        origin="anchor" if number <= 4 else "final" if is_final else "search",
        parent=number - 20 if is_final and number >= 20 else None,
        widths=widths,
        durations_s=_stages(rng, 1.6 if complete else 0),
        spent_s=18.0 + number / count * 100,
    )


def _stages(rng: random.Random, train_s: float) -> dict[str, float]:
    stages = {"prune": 0.08, "emit": 0.5, "latency": 0.35, "train": train_s, "check": 0.06, "quality": 0.1}
    return {name: round(seconds * rng.uniform(0.8, 1.2), 3) for name, seconds in stages.items()}
