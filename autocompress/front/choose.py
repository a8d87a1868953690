"""Which point of the front to take: a rule, and limits it has to keep.

Every loss is judged on one split for the whole front: test data if the baseline and every point were
looked at there, else validation data. The two are never compared with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autocompress.errors import ConstraintError, NotFoundError, UsageError
from autocompress.front.explain import format_bytes, format_drop, format_ms, judged_on_test
from autocompress.front.hypervolume import REFERENCE, Direction, metric_drop
from autocompress.records import OBJECTIVES, Baseline, FrontPoint, StudyRecord, cheap_ratios, weighed_bytes

RULES = ("knee", "accurate", "small", "fast", "trial:N")
LIMITS = ("max_drop", "max_size", "max_latency")  # as `pick` and a study file call them
_SLACK = 1e-9  # 0.98 - 0.97 is a little more than 0.01 in binary, and still meets max_drop 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a point has to keep: `max_drop` of the metric (0.01 is one point), bytes, and milliseconds."""

    max_drop: float | None = None
    max_size: int | None = None
    max_latency: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not self.max_drop >= 0:
            raise UsageError(f"max_drop must be 0 or more, got {self.max_drop}; 0.01 is one point of accuracy")
        for name, value in (("max_size", self.max_size), ("max_latency", self.max_latency)):
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A point with its loss on the split the whole front is judged on.

    Attributes:
        weighed_bytes: those that count in the study, of the file or of the zipped file.
        size_ratio, latency_ratio: to the baseline's; 0 for what is no objective of the study.
    """

    point: FrontPoint
    drop: float
    weighed_bytes: int
    size_ratio: float
    latency_ratio: float


def pick(
    front: Sequence[FrontPoint],
    baseline: Baseline,
    rule: str | None = None,
    *,
    direction: Direction = "maximize",
    objectives: Collection[str] = OBJECTIVES,
    max_drop: float | None = None,
    max_size: int | None = None,
    max_latency: float | None = None,
) -> FrontPoint:
    """Take one point of the front.

    Args:
        rule: "knee" (the default: the largest hypervolume alone), "accurate", "small", "fast" or "trial:N".
        direction: whether the metric is better when larger; for "minimize" a drop is a relative increase.
        objectives: of the study; the knee weighs no others, and with "compressed" it is the zipped bytes that count.
        max_drop: largest loss of the metric, 0.01 is one point; max_size: bytes; max_latency: milliseconds.
    Raises:
        UsageError: an unknown rule, or a limit that makes no sense.
        NotFoundError: `trial:N` is not on the front.
        ConstraintError: nothing meets the limits; the text names the nearest point and how far off it is.
    """
    name = _rule(rule)
    limits = Limits(max_drop=max_drop, max_size=max_size, max_latency=max_latency)
    judged = judge(front, baseline, direction=direction, objectives=objectives)
    candidates = _trial(judged, name) if name.startswith("trial:") else judged
    met = [j for j in candidates if not excesses(j, limits)]
    if not met:
        split = judged_split(front, baseline)
        raise ConstraintError(_nothing_meets(candidates, limits, split, direction))
    return min(met, key=_order(name, met)).point


def bounds_of(study: StudyRecord) -> dict[str, Any]:
    """The limits that a study was searched within, as `pick` takes them."""
    table = study.config.get("search", {})
    return {name: table[name] for name in LIMITS if table.get(name) is not None}


def judged_split(front: Sequence[FrontPoint], baseline: Baseline) -> Literal["test", "val"]:
    """The split on which losses are compared: "test" if the baseline and every point have it, else "val"."""
    return "test" if front and all(judged_on_test(point, baseline) for point in front) else "val"


def judge(
    front: Sequence[FrontPoint],
    baseline: Baseline,
    *,
    direction: Direction = "maximize",
    objectives: Collection[str] = OBJECTIVES,
) -> list[Judged]:
    """Every point with its loss on the split of `judged_split`, in the given order."""
    on_test = judged_split(front, baseline) == "test"
    judged = []
    for point in front:
        value, base = (point.test, baseline.test) if on_test else (point.val, baseline.val)
        assert value is not None
        assert base is not None
        drop = metric_drop(value, base, direction=direction)
        size, latency = cheap_ratios(point, baseline, objectives)
        weighed = weighed_bytes(point, objectives)
        judged.append(Judged(point=point, drop=drop, weighed_bytes=weighed, size_ratio=size, latency_ratio=latency))
    return judged


def excesses(judged: Judged, limits: Limits) -> dict[str, float]:
    """How far a point is over each limit it breaks: the metric's drop, bytes, milliseconds; empty if it keeps all."""
    pairs = {
        "max_drop": (judged.drop, limits.max_drop),
        "max_size": (judged.point.size_bytes, limits.max_size),
        "max_latency": (judged.point.latency_ms, limits.max_latency),
    }
    return {
        name: value - limit
        for name, (value, limit) in pairs.items()
        if limit is not None and value > limit + _SLACK * max(1.0, abs(limit))
    }


def _rule(rule: str | None) -> str:
    name = rule or "knee"
    is_trial = name.startswith("trial:") and name.removeprefix("trial:").isdecimal()
    if not is_trial and name not in RULES[:-1]:
        raise UsageError(f"unknown rule {name!r}; known are {', '.join(RULES)}")
    return name


def _trial(judged: Sequence[Judged], rule: str) -> list[Judged]:
    number = int(rule.removeprefix("trial:"))
    found = [j for j in judged if j.point.trial == number]
    if not found:
        known = ", ".join(str(j.point.trial) for j in judged[:20]) or "none"
        raise NotFoundError(
            f"trial {number} is not on the front; on it are: {known}{', ...' if len(judged) > 20 else ''}"
        )
    return found


def _order(rule: str, judged: Sequence[Judged]) -> Callable[[Judged], tuple[float, ...]]:
    """Sort key of a rule; what the rule leaves open is settled by loss, bytes, latency and number."""
    spans = [_span(j) for j in judged]
    nothing_spans = max(spans) <= 0
    low, high = _range(judged)

    def first(j: Judged) -> float:
        if rule == "accurate":
            return j.drop
        if rule == "small":
            return float(j.weighed_bytes)
        if rule == "fast":
            return j.point.latency_ratio
        return _distance(j, low, high) if nothing_spans else -_span(j)

    return lambda j: (first(j), j.drop, j.weighed_bytes, j.point.latency_ratio, j.point.trial)


def _span(j: Judged) -> float:
    """Hypervolume of the point alone: the knee is where the study's objectives are good together."""
    drop = max(j.drop, 0.0) / REFERENCE["drop"]
    return max(0.0, 1 - drop) * max(0.0, 1 - j.size_ratio) * max(0.0, 1 - j.latency_ratio)


def _axes(j: Judged) -> tuple[float, float, float]:
    return min(j.drop, 1e6), j.size_ratio, j.latency_ratio


def _range(judged: Sequence[Judged]) -> tuple[list[float], list[float]]:
    columns = list(zip(*(_axes(j) for j in judged), strict=True))
    return [min(c) for c in columns], [max(c) for c in columns]


def _distance(j: Judged, low: list[float], high: list[float]) -> float:
    """Where no point is inside the reference box: the distance to the best of each objective, each scaled to 1."""
    axes = zip(_axes(j), low, high, strict=True)
    return math.hypot(*((value - a) / (b - a) if b > a else 0.0 for value, a, b in axes))


def _nothing_meets(judged: Sequence[Judged], limits: Limits, split: str, direction: Direction) -> str:
    if not judged:
        return "the front is empty: no trial has an accuracy yet; give the search more time with `autocompress resume`"

    def off(j: Judged) -> tuple[float, int]:
        scale = {"max_drop": max(limits.max_drop or 0.0, 0.01), "max_size": limits.max_size or 1}
        over = excesses(j, limits)
        return sum(v / scale.get(n, limits.max_latency or 1.0) for n, v in over.items()), j.point.trial

    nearest = min(judged, key=off)
    over = excesses(nearest, limits)
    parts = [_excess_text(name, amount, nearest, limits, split, direction) for name, amount in over.items()]
    return (
        f"no artifact meets the constraints; the nearest is trial {nearest.point.trial}: {'; '.join(parts)}. "
        f"Loosen {' or '.join(over)}, or give the search more time"
    )


def _excess_text(name: str, amount: float, j: Judged, limits: Limits, split: str, direction: Direction) -> str:
    if name == "max_drop":
        shown, limit = (format_drop(v, direction=direction) for v in (j.drop, limits.max_drop or 0.0))
        over = format_drop(amount, direction=direction)
        return f"it loses {shown} on {'test' if split == 'test' else 'validation'} data, {over} more than {limit}"
    if name == "max_size":
        limit = format_bytes(limits.max_size or 0)
        return f"it has {format_bytes(j.point.size_bytes)}, {format_bytes(amount)} more than {limit}"
    return f"it takes {format_ms(j.point.latency_ms)}, {format_ms(amount)} more than {limits.max_latency:g} ms"
