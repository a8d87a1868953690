"""From what a study stored to what its readers see: the front, facts for drawing, and the contract's JSON.

The command line, the service, the figures and the report all start here, so they cannot disagree.
Only complete trials with a measured validation value take part; nothing is estimated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.config import is_minimized
from autocompress.front.explain import judged_on_test, latency_kind, words
from autocompress.front.hypervolume import REFERENCE, Direction, gain, hypervolume, metric_drop
from autocompress.front.pareto import non_dominated
from autocompress.records import (
    OBJECTIVES,
    Baseline,
    FrontPoint,
    Measurement,
    ModelFacts,
    StudyRecord,
    TrialRecord,
    TrialState,
    cheap_ratios,
)
from autocompress.space.ranks import inputs_left, rank_of

_STAGES = ("setup", "teacher", "baseline", "profile", "resumed", "search", "final")
_TRIAL_STAGES = ("prune", "emit", "latency", "train", "check", "quality")


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFacts:
    """A measured trial as it is drawn. Drops are against the baseline, on validation and on test data."""

    point: FrontPoint
    drop: float
    test_drop: float | None
    on_front: bool
    spent_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedFacts:
    """A trial that ended early, with what was known of it: its file's size and latency.

    `drop` is what a part of its training had left of the loss, on a part of the validation data; None where it
    was not trained at all.
    """

    trial: int
    state: TrialState
    size_bytes: int
    latency_ms: float
    drop: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """What became of one layer. `kept` of `channels` outputs; `bits` of its weights; `skip`: why it was left alone.

    `block` is the removed block that it went with: then it has no channels and no bits. `rank` is that of the two
    factors that it became, 0 if it is whole.
    """

    name: str
    kind: str
    group: str | None
    channels: int
    kept: int
    bits: int
    skip: str = ""
    block: str = ""
    rank: int = 0

    @property
    def prune_ratio(self) -> float:
        """Share of the layer's output channels that is gone."""
        return 1 - self.kept / self.channels if self.channels else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontFacts:
    """Everything a picture of a study needs.

    Attributes:
        points: all measured trials in the order of their numbers, the front among them.
        hypervolume_s: (seconds of the budget, hypervolume on validation data), one entry per improvement.
        study_s: seconds of the budget per stage of the study; trial_s: summed over the trials' own stages.
        ended: trials that ended early after they were weighed and timed.
    """

    study: str
    metric: str
    direction: Direction
    baseline: Baseline | None
    points: tuple[PointFacts, ...]
    hypervolume_s: tuple[tuple[float, float], ...]
    budget_s: float
    spent_s: float
    study_s: dict[str, float]
    trial_s: dict[str, float]
    val_samples: int | None
    test_samples: int | None
    ended: tuple[EndedFacts, ...] = ()
    objectives: tuple[str, ...] = OBJECTIVES

    @property
    def front(self) -> tuple[FrontPoint, ...]:
        """The non-dominated points, smallest file first."""
        return tuple(sorted((p.point for p in self.points if p.on_front), key=lambda p: (p.size_bytes, p.trial)))


def metric_direction(study: StudyRecord) -> Direction:
    """Whether the study's metric is better when larger; built-in metrics know theirs."""
    task = study.config.get("task", {})
    metric = study.baseline.metric if study.baseline else task.get("metric", "accuracy")
    return "minimize" if is_minimized(metric, task.get("direction")) else "maximize"


def front_points(study: StudyRecord, trials: Iterable[TrialRecord]) -> list[FrontPoint]:
    """The non-dominated complete trials on validation value, size and latency, smallest file first.

    The baseline takes part like any trial. Objectives that the study does not have do not count.
    """
    measured = [point_of(trial) for trial in trials if _is_measured(trial)]
    mask = _front_mask(study, measured)
    chosen = [point for point, on_front in zip(measured, mask, strict=True) if on_front]
    return sorted(chosen, key=lambda p: (p.size_bytes, p.trial))


def point_of(trial: TrialRecord) -> FrontPoint:
    """A measured trial in the words of the contract.

    Raises:
        ValueError: the trial has no artifact with a validation value.
    """
    measured = trial.measurement
    if measured is None or measured.val is None or trial.artifact is None:
        raise ValueError(f"trial {trial.trial} has no measured artifact; it is {trial.state}")
    return FrontPoint(
        trial=trial.trial,
        val=measured.val,
        val_ci=measured.val_ci,
        test=measured.test,
        test_ci=measured.test_ci,
        size_bytes=measured.size_bytes,
        compressed_bytes=measured.compressed_bytes,
        latency_ms=measured.latency.latency_ms,
        latency_ratio=measured.latency.ratio,
        latency_ratio_ci=measured.latency.ratio_ci,
        params=measured.params,
        macs=measured.macs,
        artifact=trial.artifact,
        origin=trial.origin,
        plan=trial.plan,
        cascade=trial.cascade,
    )


def front_facts(study: StudyRecord, trials: Sequence[TrialRecord]) -> FrontFacts:
    """Collect what the figures draw."""
    direction, base = metric_direction(study), study.baseline
    measured = sorted((trial for trial in trials if _is_measured(trial)), key=lambda t: t.trial)
    points = [point_of(trial) for trial in measured]
    mask = _front_mask(study, points)
    drawn = tuple(
        PointFacts(
            point=point,
            drop=_drop(point.val, base.val if base else None, direction) or 0.0,
            test_drop=_drop(point.test, base.test if base else None, direction),
            on_front=bool(on_front),
            spent_s=trial.spent_s,
        )
        for trial, point, on_front in zip(measured, points, mask, strict=True)
    )
    samples = {split: samples_of(study, split) for split in ("val", "test")}
    return FrontFacts(
        study=study.name,
        metric=base.metric if base else str(study.config.get("task", {}).get("metric", "accuracy")),
        direction=direction,
        baseline=base,
        points=drawn,
        hypervolume_s=_hypervolume_s(drawn, base, study.spent_s, study.objectives),
        budget_s=study.budget_s,
        spent_s=study.spent_s,
        study_s=_in_order(study.durations_s, _STAGES),
        trial_s=_in_order(_summed(trial.durations_s for trial in trials), _TRIAL_STAGES),
        val_samples=samples["val"],
        test_samples=samples["test"],
        ended=_ended(trials),
        objectives=study.objectives,
    )


def _ended(trials: Sequence[TrialRecord]) -> tuple[EndedFacts, ...]:
    early = (TrialState.STOPPED, TrialState.INFEASIBLE, TrialState.FAILED)
    return tuple(
        EndedFacts(
            trial=trial.trial,
            state=trial.state,
            size_bytes=measured.size_bytes,
            latency_ms=measured.latency.latency_ms,
            drop=trial.rung_drop,
        )
        for trial in sorted(trials, key=lambda t: t.trial)
        if trial.state in early and (measured := trial.measurement) is not None
    )


def layer_rows(facts: ModelFacts, trial: TrialRecord) -> list[LayerRow]:
    """What became of every layer with weights, in the order of the model: channels kept, and bits."""
    channels = {group.name: group.channels for group in facts.groups}
    skips: dict[str, str] = {}
    for skip in facts.skips:
        text = f"{skip.what}: {skip.reason}"
        skips[skip.name] = f"{skips[skip.name]}; {text}" if skip.name in skips else text
    blocks = {name: b.name for b in facts.blocks if b.name in trial.plan.removed_blocks for name in b.layers}
    rows = []
    for layer in facts.layers:
        if block := blocks.get(layer.name):
            rows.append(
                LayerRow(
                    name=layer.name,
                    kind=layer.kind,
                    group=layer.group,
                    channels=layer.out_channels,
                    kept=0,
                    bits=0,
                    block=block,
                )
            )
            continue
        whole = channels.get(layer.group or "", 0)
        width = trial.widths.get(layer.group or "", whole)
        kept = round(layer.out_channels * width / whole) if whole else layer.out_channels
        ratio = trial.plan.rank_ratio.get(layer.name, 0.0)
        rows.append(
            LayerRow(
                name=layer.name,
                kind=layer.kind,
                group=layer.group,
                channels=layer.out_channels,
                kept=kept,
                bits=trial.plan.weight_bits.get(layer.name, 32),
                skip=skips.get(layer.name, ""),
                rank=rank_of(layer, kept, inputs_left(layer, facts, trial.widths), ratio) if ratio else 0,
            )
        )
    return rows


def front_document(study: StudyRecord, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """The JSON document of `front STUDY --json`, as the contract in the design says."""
    direction, base = metric_direction(study), study.baseline
    front = front_points(study, trials)
    counts = Counter(trial.state for trial in trials)
    device = study.device
    return {
        "study": study.name,
        "state": str(study.state),
        "seed": study.seed,
        "objectives": list(study.objectives),
        "budget_s": study.budget_s,
        "spent_s": study.spent_s,
        "device": {
            "name": device.name,
            "runtime": device.runtime,
            "threads": device.threads,
            "batch": device.batch,
            "description": device.description,
        },
        "trials": {
            "total": len(trials),
            **{s.value: counts[s] for s in (TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED)},
            **{s.value: counts[s] for s in (TrialState.INFEASIBLE, TrialState.RUNNING)},
        },
        "baseline": base.to_dict() if base else None,
        "hypervolume": {
            "val": front_hypervolume(front, base, direction=direction, split="val", objectives=study.objectives),
            "test": front_hypervolume(front, base, direction=direction, split="test", objectives=study.objectives),
            "reference": dict(REFERENCE),
        },
        "front": [_entry(point, base, direction) for point in front],
        "direction": direction,
        "data_sizes": dict(study.data_sizes),
        "skips": [skip.to_dict() for skip in study.facts.skips] if study.facts else [],
        "notes": list(study.facts.notes) if study.facts else [],
        "message": study.message,
    }


def front_hypervolume(
    front: Sequence[FrontPoint],
    baseline: Baseline | None,
    *,
    direction: Direction = "maximize",
    split: str = "val",
    objectives: Sequence[str] = OBJECTIVES,
) -> float | None:
    """Hypervolume of a front against the baseline on one split; None where nothing was measured there.

    On "test" it is the front that was chosen on validation data, judged on test data. What is not among `objectives`
    counts as 0 for all, and "compressed" says that the bytes of the zipped file count.
    """
    if baseline is None or (base := getattr(baseline, split)) is None:
        return None
    rows = [
        (metric_drop(value, base, direction=direction), *cheap_ratios(point, baseline, objectives))
        for point in front
        if (value := getattr(point, split)) is not None
    ]
    return hypervolume(rows) if rows or split == "val" else None


def loses_much(point: FrontPoint, baseline: Baseline, *, direction: Direction = "maximize") -> bool:
    """Whether a point loses more than the hypervolume's reference, 5 points: it counts for nothing there.

    Judged like the words: on test data if both were looked at, else on validation data.
    """
    split = "test" if judged_on_test(point, baseline) else "val"
    drop = _drop(getattr(point, split), getattr(baseline, split), direction)
    return drop is not None and drop > REFERENCE["drop"]


def _entry(point: FrontPoint, baseline: Baseline | None, direction: Direction) -> dict[str, Any]:
    entry = {**point.to_dict(), "latency_kind": latency_kind(point)}
    return {**entry, "words": words(point, baseline, direction=direction) if baseline else ""}


def _is_measured(trial: TrialRecord) -> bool:
    done: Measurement | None = trial.measurement if trial.state == TrialState.COMPLETE else None
    return done is not None and done.val is not None and trial.artifact is not None


def _front_mask(study: StudyRecord, points: Sequence[FrontPoint]) -> NDArray[np.bool_]:
    if not points:
        return np.zeros(0, dtype=bool)
    sign = 1.0 if metric_direction(study) == "minimize" else -1.0
    columns = {
        "accuracy": [sign * point.val for point in points],
        "size": [float(point.size_bytes) for point in points],
        "compressed": [float(point.compressed_bytes) for point in points],
        "latency": [point.latency_ms for point in points],
    }
    used = [column for name, column in columns.items() if name in study.objectives]
    return non_dominated(np.array(used).T)


def _drop(value: float | None, baseline: float | None, direction: Direction) -> float | None:
    return None if value is None or baseline is None else metric_drop(value, baseline, direction=direction)


def _hypervolume_s(
    points: Sequence[PointFacts], baseline: Baseline | None, spent_s: float, objectives: Sequence[str]
) -> tuple[tuple[float, float], ...]:
    if baseline is None or not points:
        return ()
    total, steps = 0.0, []
    front = np.zeros((0, 3))
    for fact in sorted(points, key=lambda f: f.spent_s):
        row = np.array([max(fact.drop, 0.0), *cheap_ratios(fact.point, baseline, objectives)])
        covered = (front <= row).all(axis=1).any()
        if covered or (added := gain(row, front)) <= 0:
            continue
        total += added
        front = np.vstack([front[(front < row).any(axis=1)], row])
        steps.append((fact.spent_s, total))
    return (*steps, (spent_s, total)) if steps and spent_s > steps[-1][0] else tuple(steps)


def samples_of(study: StudyRecord, split: str) -> int | None:
    """Samples that a value of this split was computed on; trials are judged on at most `max_val` of them."""
    count = study.data_sizes.get(split)
    limit = study.config.get("data", {}).get("max_val") if split == "val" else None
    return min(count, int(limit)) if count and limit else count


def _summed(durations: Iterable[dict[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in durations:
        for stage, seconds in part.items():
            total[stage] += seconds  # type: ignore[assignment]
    return dict(total)


def _in_order(durations: dict[str, float], order: Sequence[str]) -> dict[str, float]:
    known = [name for name in order if name in durations]
    return {name: float(durations[name]) for name in (*known, *sorted(set(durations) - set(known)))}
