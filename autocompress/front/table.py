"""All trials of a study as columns, for pages that filter, sort and dim thousands of them at once.

A column is a list with one entry per trial; what a trial does not have is None. Nothing is chosen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from autocompress.front.choose import LIMITS
from autocompress.front.explain import ORIGINS, is_share, metric_name, words
from autocompress.front.hypervolume import REFERENCE
from autocompress.front.summary import FrontFacts, PointFacts, front_facts, front_hypervolume
from autocompress.records import StudyRecord, TrialRecord


def trial_columns(study: StudyRecord, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """What a page needs to know of every trial, in the order of their numbers.

    Returns:
        `columns`: trial, state, origin, val, val_low, val_high, test, drop, test_drop (shares; to the baseline),
        rung_drop (after a part of the training), size_bytes, latency_ms, ratio, ratio_low, ratio_high (latency to the
        baseline's), spent_s, on_front, and words: what a point of the front won and lost. Beside them what they are
        told against: metric, baseline, limits; and what the origins among them mean.
    """
    facts = front_facts(study, trials)
    ordered = sorted(trials, key=lambda t: t.trial)
    origins = {t.origin for t in ordered}
    drawn = {p.point.trial: p for p in facts.points}
    search = study.config.get("search", {})
    return {
        "study": study.name,
        "state": str(study.state),
        "metric": facts.metric,
        "metric_name": metric_name(facts.metric),
        "is_share": is_share(facts.metric),
        "direction": facts.direction,
        "objectives": list(study.objectives),
        "reference": dict(REFERENCE),
        "limits": {name: search.get(name) for name in LIMITS},
        "baseline": facts.baseline.to_dict() if facts.baseline else None,
        "samples": {"val": facts.val_samples, "test": facts.test_samples},
        "origins": {name: text for name, text in ORIGINS.items() if name in origins},
        "counts": dict(Counter(str(trial.state) for trial in ordered)),
        "hypervolume": {
            split: front_hypervolume(
                facts.front, facts.baseline, direction=facts.direction, split=split, objectives=facts.objectives
            )
            for split in ("val", "test")
        },
        "columns": {
            **{
                name: [_short(value(trial, drawn.get(trial.trial))) for trial in ordered]
                for name, value in _COLUMNS.items()
            },
            "words": [_words(drawn.get(trial.trial), facts) for trial in ordered],
        },
    }


def _words(fact: PointFacts | None, facts: FrontFacts) -> str | None:
    if fact is None or not fact.on_front or facts.baseline is None:
        return None
    return words(fact.point, facts.baseline, direction=facts.direction)


def _short(value: Any) -> Any:
    """Six digits are more than a page shows, and a third of the bytes."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _measured(name: str) -> Callable[[TrialRecord, PointFacts | None], Any]:
    return lambda trial, _fact: getattr(trial.measurement, name) if trial.measurement else None


def _latency(value: Callable[[Any], Any]) -> Callable[[TrialRecord, PointFacts | None], Any]:
    return lambda trial, _fact: value(trial.measurement.latency) if trial.measurement else None


def _end(split: str, end: int) -> Callable[[TrialRecord, PointFacts | None], Any]:
    def value(trial: TrialRecord, _fact: PointFacts | None) -> float | None:
        interval = getattr(trial.measurement, f"{split}_ci") if trial.measurement else None
        return float(interval[end]) if interval else None

    return value


_COLUMNS: dict[str, Callable[[TrialRecord, PointFacts | None], Any]] = {
    "trial": lambda trial, _: trial.trial,
    "state": lambda trial, _: str(trial.state),
    "origin": lambda trial, _: trial.origin,
    "val": _measured("val"),
    "val_low": _end("val", 0),
    "val_high": _end("val", 1),
    "test": _measured("test"),
    "drop": lambda _, fact: fact.drop if fact else None,
    "test_drop": lambda _, fact: fact.test_drop if fact else None,
    "rung_drop": lambda trial, _: trial.rung_drop,
    "size_bytes": _measured("size_bytes"),
    "compressed_bytes": _measured("compressed_bytes"),
    "latency_ms": _latency(lambda latency: latency.latency_ms),
    "ratio": _latency(lambda latency: latency.ratio),
    "ratio_low": _latency(lambda latency: latency.ratio_ci[0]),
    "ratio_high": _latency(lambda latency: latency.ratio_ci[1]),
    "spent_s": lambda trial, _: trial.spent_s,
    "on_front": lambda _, fact: bool(fact and fact.on_front),
}
