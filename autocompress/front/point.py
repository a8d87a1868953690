"""Everything there is to say about one trial, as one JSON document.

The service hands it out and the page of a point shows it; figures of a point are drawn from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from autocompress.errors import NotFoundError
from autocompress.front.beliefs import belief_facts, why
from autocompress.front.explain import ORIGINS, is_latency_tie, is_share, made_of, metric_name, words
from autocompress.front.hypervolume import Direction
from autocompress.front.layer_costs import LayerCost, LayerLatencies, dense, layer_costs
from autocompress.front.summary import FrontFacts, PointFacts, front_facts
from autocompress.records import StudyRecord, TrialRecord


def point_document(study: StudyRecord, trials: Sequence[TrialRecord], number: int) -> dict[str, Any]:
    """One trial: what was measured, its layers beside the dense model's, its training, and why it was tried.

    Returns:
        Plain JSON values. `layers` is empty without a record of the model, and of a cascade, whose networks have pages
        of their own; their `latency_ms` is None where too few files were timed, and `latency_files` says how many there
        were. `command` is None off the front.
    Raises:
        NotFoundError: the study has no such trial.
    """
    trial = next((t for t in trials if t.trial == number), None)
    if trial is None:
        raise NotFoundError(f"study {study.name!r} has no trial {number} among its {len(trials)}")
    facts = front_facts(study, trials)
    fact = next((p for p in facts.points if p.point.trial == number), None)
    layers, files = _layers(study, trials, trial)
    return {
        "study": study.name,
        "study_state": str(study.state),
        "metric": facts.metric,
        "metric_name": metric_name(facts.metric),
        "is_share": is_share(facts.metric),
        "direction": facts.direction,
        "trial": number,
        "state": str(trial.state),
        "origin": trial.origin,
        "origin_words": ORIGINS.get(trial.origin, trial.origin),
        "parent": trial.parent,
        "cascade": trial.cascade.to_dict() if trial.cascade else None,
        "reason": trial.reason,
        "artifact": trial.artifact,
        "why": why(trial, direction=facts.direction),
        "plan": trial.plan.to_dict(),
        "plan_lines": made_of(trial),
        "measurement": trial.measurement.to_dict() if trial.measurement else None,
        "baseline": facts.baseline.to_dict() if facts.baseline else None,
        **_judged(fact, facts),
        "belief": _belief(trial, facts),
        "layers": layers,
        "latency_files": files,
        "curve": [list(step) for step in trial.learning_curve],
        "durations_s": trial.durations_s,
        "trained_s": trial.trained_s,
        "trained_samples": trial.trained_samples,
        "spent_s": trial.spent_s,
        "front": [point.trial for point in facts.front],
        "command": f"autocompress export {study.name} --pick trial:{number} --out {study.name}-trial-{number}"
        if fact and fact.on_front
        else None,
    }


def _judged(fact: PointFacts | None, facts: FrontFacts) -> dict[str, Any]:
    if fact is None or facts.baseline is None:
        return {"drop": None, "test_drop": None, "on_front": False, "tie": False, "words": ""}
    direction: Direction = facts.direction
    return {
        "drop": fact.drop,
        "test_drop": fact.test_drop,
        "on_front": fact.on_front,
        "tie": fact.point.origin != "baseline" and is_latency_tie(fact.point),
        "words": words(fact.point, facts.baseline, direction=direction),
    }


def _belief(trial: TrialRecord, facts: FrontFacts) -> dict[str, Any] | None:
    rows = belief_facts([trial], facts.baseline, direction=facts.direction, objectives=facts.objectives).rows
    return asdict(rows[0]) if rows else None


def _layers(
    study: StudyRecord, trials: Sequence[TrialRecord], trial: TrialRecord
) -> tuple[list[dict[str, Any]], int | None]:
    """Every layer of the trial beside the dense one's, and how many files told their latencies apart."""
    if study.facts is None or not study.facts.layers or trial.origin == "cascade":
        return [], None
    now = before = None
    files = 0
    if study.baseline:
        latencies = LayerLatencies(study.facts, trials, baseline_ms=study.baseline.latency_ms)
        now, before = latencies.of(trial.plan), latencies.of(dense(trial).plan)
        files = latencies.files
    costs = layer_costs(study.facts, trial, now)
    whole = layer_costs(study.facts, dense(trial), before)
    return [_layer(cost, ref) for cost, ref in zip(costs, whole, strict=True)], files


def _layer(cost: LayerCost, whole: LayerCost) -> dict[str, Any]:
    row = cost.row
    return {
        "name": row.name,
        "kind": row.kind,
        "group": row.group,
        "skip": row.skip,
        "block": row.block,
        "channels": row.channels,
        "kept": row.kept,
        "inputs": cost.inputs,
        "inputs_dense": whole.inputs,
        "bits": row.bits,
        "rank": row.rank,
        "size_bytes": cost.size_bytes,
        "size_bytes_dense": whole.size_bytes,
        "macs": cost.macs,
        "macs_dense": whole.macs,
        "latency_ms": cost.latency_ms,
        "latency_ms_dense": whole.latency_ms,
    }
