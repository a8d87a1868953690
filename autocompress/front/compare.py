"""Two or more studies over one another: what differs, and which points match.

Losses and ratios are each study's own, against its own dense model. Where those models or their devices differ,
the document says so; a hypervolume then compares savings and not milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autocompress.errors import UsageError
from autocompress.front.choose import judge, judged_split, pick
from autocompress.front.explain import metric_name, words
from autocompress.front.hypervolume import metric_drop
from autocompress.front.summary import FrontFacts, front_facts, front_hypervolume
from autocompress.records import Baseline, FrontPoint, StudyRecord, TrialRecord, cheap_ratios, weighed_bytes

LEVELS = (0.0, 0.005, 0.01, 0.02, 0.05)
_MOST = 6
Entry = tuple[str, StudyRecord, Sequence[TrialRecord]]


def compare_document(entries: Sequence[Entry]) -> dict[str, Any]:
    """Compare studies; each is given as (id, study, its trials), and the first is what the others are told against.

    Returns:
        Plain JSON values: `studies`, `levels` (the smallest and the fastest point of each study within a loss),
        `matched` (points of the first, each with the nearest of the others), `curves` for the figures and `notes`.
    Raises:
        UsageError: fewer than two studies, or more than six.
    """
    if not 2 <= len(entries) <= _MOST:
        raise UsageError(f"compare two to {_MOST} studies, got {len(entries)}")
    facts = [front_facts(study, trials) for _, study, trials in entries]
    rows = [_study(entry, fact) for entry, fact in zip(entries, facts, strict=True)]
    for row in rows:
        row["hypervolume_difference"] = {
            split: _difference(row["hypervolume"][split], rows[0]["hypervolume"][split]) for split in ("val", "test")
        }
    return {
        "metric": facts[0].metric,
        "metric_name": metric_name(facts[0].metric),
        "direction": facts[0].direction,
        "studies": rows,
        "levels": [_level(level, facts) for level in LEVELS],
        "matched": _matched(facts),
        "curves": [_curve(fact) for fact in facts],
        "notes": _notes([study for _, study, _ in entries], facts),
    }


def _study(entry: Entry, facts: FrontFacts) -> dict[str, Any]:
    identity, study, trials = entry
    base, direction = facts.baseline, facts.direction
    compressed = [p for p in facts.front if p.origin != "baseline"]
    objectives = facts.objectives
    knee = pick(compressed, base, direction=direction, objectives=objectives) if base and compressed else None
    return {
        "id": identity,
        "study": study.name,
        "state": str(study.state),
        "device": study.device.to_dict(),
        "seed": study.seed,
        "sampler": study.config.get("search", {}).get("sampler"),
        "budget_s": study.budget_s,
        "spent_s": study.spent_s,
        "trials": len(trials),
        "front": len(facts.front),
        "baseline": base.to_dict() if base else None,
        "hypervolume": {
            split: front_hypervolume(facts.front, base, direction=direction, split=split, objectives=objectives)
            for split in ("val", "test")
        },
        "knee": _point(knee, facts) if knee else None,
        "words": words(knee, base, direction=direction) if knee and base else "",
    }


def _point(point: FrontPoint, facts: FrontFacts) -> dict[str, Any]:
    fact = next(p for p in facts.points if p.point.trial == point.trial)
    return {
        "trial": point.trial,
        "origin": point.origin,
        "drop": fact.drop,
        "test_drop": fact.test_drop,
        "size_bytes": point.size_bytes,
        "latency_ms": point.latency_ms,
        "ratio": point.latency_ratio,
    }


def _level(level: float, facts: Sequence[FrontFacts]) -> dict[str, Any]:
    """Per study the smallest and the fastest file that loses at most so much, judged as `export` does."""
    return {"max_drop": level, "studies": [_best_within(level, fact) for fact in facts]}


def _best_within(level: float, facts: FrontFacts) -> dict[str, Any]:
    if facts.baseline is None or not facts.front:
        return {"small": None, "fast": None, "split": None}
    judged = judge(facts.front, facts.baseline, direction=facts.direction)
    kept = [j.point for j in judged if j.drop <= level + 1e-9]
    split = judged_split(facts.front, facts.baseline)
    if not kept:
        return {"small": None, "fast": None, "split": split}
    small = min(kept, key=lambda p: (weighed_bytes(p, facts.objectives), p.latency_ratio, p.trial))
    fast = min(kept, key=lambda p: (p.latency_ratio, weighed_bytes(p, facts.objectives), p.trial))
    return {"small": _point(small, facts), "fast": _point(fast, facts), "split": split}


def _matched(facts: Sequence[FrontFacts]) -> list[dict[str, Any]]:
    """Points of the first front, each with the nearest of every other front.

    Near in the box of the hypervolume: 5 points of loss count as much as the whole size and the whole latency. What is
    no objective of the first study does not count.
    """
    rows = []
    for point in (p for p in facts[0].front if p.origin != "baseline"):
        others = [_nearest(point, facts[0], other) for other in facts[1:]]
        rows.append({"point": _point(point, facts[0]), "others": others})
    return rows


def _nearest(point: FrontPoint, facts: FrontFacts, other: FrontFacts) -> dict[str, Any] | None:
    candidates = [p for p in other.front if p.origin != "baseline"]
    if not candidates or facts.baseline is None or other.baseline is None:
        return None
    at = _place(point, facts.baseline, facts)
    places = [_place(candidate, other.baseline, facts) for candidate in candidates]
    distances = [math.dist(at, place) for place in places]
    best = distances.index(min(distances))
    return {
        **_point(candidates[best], other),
        "distance": distances[best],
        "better": _verdict(at, places[best]),
    }


def _place(point: FrontPoint, baseline: Baseline, facts: FrontFacts) -> tuple[float, float, float]:
    drop = metric_drop(point.val, baseline.val, direction=facts.direction)
    return max(drop, 0.0) / 0.05, *cheap_ratios(point, baseline, facts.objectives)


def _verdict(mine: tuple[float, ...], theirs: tuple[float, ...]) -> str:
    """Who is at least as good in all that counts: "first", "other", "equal", or "neither"."""
    first = all(a <= b for a, b in zip(mine, theirs, strict=True))
    second = all(b <= a for a, b in zip(mine, theirs, strict=True))
    return "equal" if first and second else "first" if first else "other" if second else "neither"


def _curve(facts: FrontFacts) -> dict[str, Any]:
    """What the figures of a comparison draw of one study."""
    return {
        "study": facts.study,
        "points": [_point(p.point, facts) for p in facts.points if p.on_front],
        "hypervolume_s": [list(step) for step in facts.hypervolume_s],
        "baseline": facts.baseline.to_dict() if facts.baseline else None,
    }


def _difference(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def _notes(studies: Sequence[StudyRecord], facts: Sequence[FrontFacts]) -> list[str]:
    """What makes the studies less comparable than they look."""
    notes = []
    if len({(s.device.name, s.device.runtime, s.device.threads, s.device.batch) for s in studies}) > 1:
        notes.append("Latency was measured on different devices: compare the ratios, not the milliseconds.")
    bases = {(f.baseline.size_bytes, f.baseline.macs, f.baseline.params) for f in facts if f.baseline}
    if len(bases) > 1:
        notes.append("The dense models differ: hypervolumes are each told against their own, and are not comparable.")
    if len({f.metric for f in facts}) > 1:
        notes.append(f"The metrics differ: {', '.join(sorted({metric_name(f.metric) for f in facts}))}.")
    if len({s.budget_s for s in studies}) > 1:
        notes.append("The budgets differ.")
    notes += [f"{f.study} has no baseline yet." for f in facts if f.baseline is None]
    return notes
