"""What the search believed of its plans against what came out, and why each plan was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.front.explain import format_drop
from autocompress.front.hypervolume import Direction, metric_drop
from autocompress.records import Baseline, TrialRecord, TrialState, weighed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BeliefRow:
    """One proposed trial. Ratios are to the baseline; `drop` is None where it was not trained to its end."""

    trial: int
    source: str
    believed_drop: float
    believed_sd: float
    drop: float | None
    believed_size: float
    size: float | None
    believed_latency: float
    latency: float | None
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BeliefFacts:
    """How good the beliefs of a study were.

    Attributes:
        rows: proposed trials in their order.
        rank_correlation: Spearman's, of believed and measured drops; None below three trained trials.
        within: share of trained trials whose drop came within two believed standard deviations.
        size_error, latency_error: median of |believed / measured - 1|; None where nothing was measured.
    """

    rows: tuple[BeliefRow, ...]
    rank_correlation: float | None
    within: float | None
    size_error: float | None
    latency_error: float | None


def belief_facts(
    trials: Iterable[TrialRecord],
    baseline: Baseline | None,
    *,
    direction: Direction,
    objectives: Sequence[str] = (),
) -> BeliefFacts:
    """Compare what was believed with what was measured, for every trial whose sampler said what it believed.

    Args:
        objectives: of the study; "compressed" among them says which bytes were believed.
    """
    ordered = sorted((t for t in trials if t.belief), key=lambda t: t.trial)
    rows = tuple(_row(t, baseline, direction, objectives) for t in ordered) if baseline else ()
    trained = [r for r in rows if r.drop is not None]
    inside = [abs(r.drop - r.believed_drop) <= 2 * r.believed_sd for r in trained if r.drop is not None]
    return BeliefFacts(
        rows=rows,
        rank_correlation=rank_correlation(
            [r.believed_drop for r in trained], [r.drop for r in trained if r.drop is not None]
        ),
        within=sum(inside) / len(inside) if inside else None,
        size_error=_error([(r.believed_size, r.size) for r in rows]),
        latency_error=_error([(r.believed_latency, r.latency) for r in rows]),
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None below three pairs or without any spread."""
    if len(first) < 3:
        return None
    a, b = _ranks(first), _ranks(second)
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def why(trial: TrialRecord, *, direction: Direction = "maximize") -> str:
    """Why a plan was tried, in a sentence; empty for a plan that no sampler of ours proposed."""
    believed = trial.belief
    if not believed:
        return ""
    drop, spread = (format_drop(max(0.0, float(believed[n])), direction=direction) for n in ("drop", "sd"))
    times = (("size_ratio", "smaller"), ("latency_ratio", "faster"))
    won = [f"{1 / ratio:.1f}x {word}" for n, word in times if (ratio := float(believed[n])) > 0]  # 0: no objective
    return (
        f"{_SOURCES.get(str(believed['source']), believed['source'])}: believed to lose "
        f"{drop} (give or take {spread}) at {' and '.join(won)}, "
        f"so worth {believed['gain']:.4f} of hypervolume, more than every other new plan considered"
    )


def belief_lines(facts: BeliefFacts) -> list[str]:
    """The comparison in words, a line each; empty where nothing was believed."""
    if not facts.rows:
        return []
    trained = sum(row.drop is not None for row in facts.rows)
    lines = [f"proposals: {len(facts.rows)}, trained to their end: {trained}"]
    if facts.rank_correlation is not None:
        lines.append(f"believed and measured drops: rank correlation {facts.rank_correlation:+.2f}")
    if facts.within is not None:
        lines.append(f"drops within two believed standard deviations: {facts.within:.0%}")
    errors = [(n, e) for n, e in (("size", facts.size_error), ("latency", facts.latency_error)) if e is not None]
    if errors:
        lines.append("typical error of a prediction: " + ", ".join(f"{name} {error:.1%}" for name, error in errors))
    return lines


_SOURCES = {
    "solver": "best at one price of bytes and time",
    "change of a trained plan": "a trained plan of the front with a few changes",
    "random dials": "drawn at random",
}


def _row(trial: TrialRecord, baseline: Baseline, direction: Direction, objectives: Sequence[str]) -> BeliefRow:
    measured, believed = trial.measurement, trial.belief
    done = trial.state is TrialState.COMPLETE and measured is not None and measured.val is not None
    return BeliefRow(
        trial=trial.trial,
        source=str(believed["source"]),
        believed_drop=float(believed["drop"]),
        believed_sd=float(believed["sd"]),
        drop=metric_drop(measured.val, baseline.val, direction=direction)
        if done and measured is not None and measured.val is not None
        else None,
        believed_size=float(believed["size_ratio"]),
        size=weighed_bytes(measured, objectives) / weighed_bytes(baseline, objectives) if measured else None,
        believed_latency=float(believed["latency_ratio"]),
        latency=measured.latency.ratio if measured else None,
        gain=float(believed["gain"]),
    )


def _error(pairs: Iterable[tuple[float, float | None]]) -> float | None:
    errors = [abs(believed / measured - 1) for believed, measured in pairs if measured and believed]
    return float(np.median(errors)) if errors else None


def _ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    _, place, same = np.unique(array, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(same) - same + (same - 1) / 2)[place]
    return ranks
