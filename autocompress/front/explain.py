"""What was won, in words, and how sure we are of it. Text and intervals only, nothing is chosen here."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from autocompress.config import SHARE_METRICS, top_k
from autocompress.front.hypervolume import Direction, metric_drop
from autocompress.plan import CompressionPlan
from autocompress.records import Baseline, Cascade, FrontPoint, TrialRecord

ORIGINS = {
    "baseline": "the dense model, as it was exported",
    "anchor": "one of the plans that everybody would try",
    "search": "proposed by the search",
    "longer": "a trial of the search, trained longer",
    "final": "trained longer by the last stage",
    "variant": "a trained network with other bits, tried by the last stage",
    "soup": "the mean of several trained networks",
    "cascade": "two networks in one file, the second answers where the first is unsure",
}


def words(point: FrontPoint, baseline: Baseline, *, direction: Direction = "maximize") -> str:
    """What the point won and lost against the baseline, for example "7.1x smaller and 2.3x faster for 0.4 points".

    The loss is on test data if both have it, else on validation data. A latency whose interval holds the
    baseline's own is a tie and is called one.
    """
    if point.origin == "baseline":
        return "the baseline itself"
    size, size_won = _compared(point.size_bytes / baseline.size_bytes, "smaller", "larger", "the same size")
    speed, speed_won = _speed(point)
    quality, quality_won = _quality(point, baseline, direction)
    won = [text for text, is_won in ((size, size_won), (speed, speed_won)) if is_won is True]
    tied = [text for text, is_won in ((size, size_won), (speed, speed_won)) if is_won is None]
    lost = [text for text, is_won in ((size, size_won), (speed, speed_won)) if is_won is False]
    if quality_won:
        won.append(quality)
    sentence = " and ".join([", ".join(won[:-1]), won[-1]] if len(won) > 1 else won)
    for joint, texts in ((", ", tied), (" but " if won else ", ", lost)):
        for text in texts:
            sentence = f"{sentence}{joint}{text}" if sentence else text
            joint = " and "
    if quality_won:
        return sentence
    return f"{sentence}{'' if not tied and not lost else ','} {quality}"


def is_latency_tie(point: FrontPoint) -> bool:
    """Whether the 95 % interval of the latency ratio holds 1: as fast as the baseline, as far as was measured."""
    low, high = point.latency_ratio_ci
    return low <= 1 <= high


def judged_on_test(point: FrontPoint, baseline: Baseline) -> bool:
    """Whether the loss of this point can be told on test data: both it and the baseline were looked at."""
    return point.test is not None and baseline.test is not None


def plan_lines(plan: CompressionPlan) -> list[str]:
    """The plan for people, one choice a line; nothing that was left alone is named."""
    lines = []
    if blocks := plan.removed_blocks:
        lines.append(f"removed: {_count(len(blocks), 'block')} ({', '.join(blocks)})")
    if pruned := [(ratio, group) for group, ratio in plan.prune_ratio.items() if ratio > 0]:
        shares = [ratio for ratio, _ in pruned]
        spread = f"{min(shares):.0%} to {max(shares):.0%}" if max(shares) - min(shares) > 0.005 else f"{shares[0]:.0%}"
        lines.append(f"pruned: {spread} of the channels in {_count(len(pruned), 'group')} ({plan.importance})")
    if factored := [ratio for ratio in plan.rank_ratio.values() if ratio > 0]:
        spread = f"{min(factored):.0%} to {max(factored):.0%}" if len(set(factored)) > 1 else f"{factored[0]:.0%}"
        lines.append(f"factored: {_count(len(factored), 'layer')} to low rank, to save {spread} of each")
    counts = Counter(bits for bits in plan.weight_bits.values() if bits < 32)
    if counts:
        parts = ", ".join(f"{bits} bits in {_count(counts[bits], 'layer')}" for bits in sorted(counts))
        kind = "" if plan.levels == "uniform" else f", {plan.levels.replace('_', ' ')} levels"
        fed = ", rounded with feedback" if plan.rounding == "feedback" and min(counts) < 8 else ""
        lines.append(f"weights: {parts}{kind}{fed}")
    if plan.sparsity > 0:
        lines.append(f"zeroed: {plan.sparsity:.0%} of the single weights ({plan.sparsity_kind})")
    if plan.activations != "float":
        lines.append(f"activations: {plan.activations}")
    if not lines:
        lines.append("dense: nothing pruned, float weights")
    if plan.trains:
        distill = plan.distill
        parts = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in distill.to_dict().items())
        lines.append(f"distilled: {parts}")
        lines.append(f"learning rate: {plan.learning_rate:g}")
    return lines


def made_of(point: FrontPoint | TrialRecord) -> list[str]:
    """What is in a point's file, for people: its plan, or the two networks of a cascade with theirs; one a line."""
    cascade = point.cascade
    if cascade is None:  # the record that says why there is no cascade has no plan either
        return [] if point.origin == "cascade" else plan_lines(point.plan)
    return [
        f"two networks: trial {cascade.first} answers, trial {cascade.second} where its largest probability is below "
        f"{cascade.threshold:.4g} ({cascade.passed_on:.1%} of the validation samples)",
        f"latency: the mean over validation samples; one that is passed on takes {_both(cascade)}",
        *(f"trial {cascade.first}: {line}" for line in plan_lines(point.plan)),
        *(f"trial {cascade.second}: {line}" for line in plan_lines(cascade.second_plan)),
    ]


def latency_kind(point: FrontPoint | TrialRecord) -> str:
    """What a point's latency is: "median" of runs, or "mean" over samples where the time depends on the sample."""
    return "median" if point.cascade is None else "mean"


def _both(cascade: Cascade) -> str:
    return f"about {format_ms(cascade.passed_on_ms)}, the time of both" if cascade.passed_on_ms else "longer"


def plan_document(point: FrontPoint | TrialRecord) -> dict[str, Any]:
    """What `plan.json` holds: the plan, or those of the two networks of a cascade and how they were joined."""
    cascade = point.cascade
    if cascade is None:
        return point.plan.to_dict()
    parts = ((cascade.first, point.plan), (cascade.second, cascade.second_plan))
    return {
        "cascade": [{"trial": trial, "plan": plan.to_dict()} for trial, plan in parts],
        "threshold": cascade.threshold,
    }


def format_bytes(size_bytes: float) -> str:
    """Three digits and a decimal unit: 61.0 kB is 61,000 bytes, as in a study file."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor * 0.9995:
            value = size_bytes / factor
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{size_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_ms(latency_ms: float) -> str:
    """Three digits that count, also where the last is a zero."""
    if not (math.isfinite(latency_ms) and latency_ms > 0):
        return f"{latency_ms:g} ms"
    return f"{latency_ms:.{max(0, 2 - math.floor(math.log10(latency_ms)))}f} ms"


def is_share(metric: str) -> bool:
    """Whether the metric is a share, 0 to 1, which people read as percent."""
    return metric in SHARE_METRICS or top_k(metric) is not None


def metric_name(metric: str) -> str:
    """The metric as a word: the function of "module:function", and no underscores."""
    return metric.rpartition(":")[2].replace("_", " ")


def format_drop(drop: float, *, direction: Direction = "maximize") -> str:
    """A drop with its unit: points (hundredths) of a maximised metric, percent of a minimised one."""
    unit = "points" if direction == "maximize" else "%"
    digits = 2 if abs(drop) < 0.0095 else 1
    return f"{drop * 100:.{digits}f} {unit}" if abs(drop) >= 5e-5 else f"0 {unit}"


def _compared(ratio: float, better: str, worse: str, same: str) -> tuple[str, bool | None]:
    """Text for candidate / baseline, and whether it is won, lost (False) or even (None)."""
    if ratio <= 0:
        return f"immeasurably {better}", True
    if abs(ratio - 1) < 0.005:
        return same, None
    factor, word = (1 / ratio, better) if ratio < 1 else (ratio, worse)
    if factor < 1.1:
        return f"{abs(1 - ratio):.0%} {word}", ratio < 1
    return f"{factor:.1f}x {word}" if factor < 9.95 else f"{factor:.0f}x {word}", ratio < 1


def _speed(point: FrontPoint) -> tuple[str, bool | None]:
    if is_latency_tie(point):
        return "as fast within noise", None
    text, won = _compared(point.latency_ratio, "faster", "slower", "as fast")
    return f"{text}{' on average' if point.cascade else ''}", won


def _quality(point: FrontPoint, baseline: Baseline, direction: Direction) -> tuple[str, bool]:
    """Text for the change of the metric, and whether it is a gain."""
    name = metric_name(baseline.metric)
    if point.test is not None and baseline.test is not None:
        drop = metric_drop(point.test, baseline.test, direction=direction)
    else:
        drop = metric_drop(point.val, baseline.val, direction=direction)
    if abs(drop) < 5e-5:
        return f"at the same {name}", False
    amount = format_drop(abs(drop), direction=direction)
    if direction == "maximize":
        return (f"{amount} better in {name}", True) if drop < 0 else (f"for {amount} of {name}", False)
    return (f"{amount} less {name}", True) if drop < 0 else (f"for {amount} more {name}", False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
