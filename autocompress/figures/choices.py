"""What was chosen against what came out: parallel coordinates, and how much each choice explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from autocompress.errors import UsageError
from autocompress.figures.style import BLUE, GREY, INK, ORANGE, SKY, loss_axis, style
from autocompress.front.dials import dials, influence, parameters
from autocompress.front.summary import FrontFacts, PointFacts
from autocompress.records import ModelFacts, TrialRecord

TARGETS = ("loss", "size", "latency")
_MOST_LINES = 1500  # more are a blur, and slow; the front is always among them
_MOST_BARS = 14
_PERCENT = ("channels removed",)
_LOSSES = ((0.0, 0.01, BLUE), (0.01, 0.02, SKY), (0.02, 0.05, ORANGE), (0.05, math.inf, GREY))  # from, to, colour


def plot_parallel(facts: FrontFacts, trials: Sequence[TrialRecord], model: ModelFacts | None) -> go.Figure:
    """One line per measured trial through its dials and what came out, coloured by its loss.

    Cascades are left out: they are two plans. Trials of about the same loss are one trace, each line ending in a gap;
    `customdata` names the trial of each line.
    """
    records = {trial.trial: trial for trial in trials}
    shown = _thinned([p for p in facts.points if p.point.origin not in ("baseline", "cascade")])
    rows = [dials(records[p.point.trial], model) for p in shown]
    names = [name for name in (rows[0] if rows else {}) if len({row[name] for row in rows}) > 1]
    axes = [_axis(name, [row[name] for row in rows]) for name in names]
    axes += [
        _axis("file, kB", [p.point.size_bytes / 1000 for p in shown]),
        _axis("latency, ms", [p.point.latency_ms for p in shown]),
        _axis(loss_axis(facts.metric, facts.direction), [p.drop * 100 for p in shown]),
    ]
    figure, unit = go.Figure(), "points lost" if facts.direction == "maximize" else "% more"
    for low, high, color in reversed(_LOSSES):  # the best lie on top
        members = [i for i, p in enumerate(shown) if low <= max(p.drop, 0.0) < high]
        if not members:
            continue
        label = f"{low * 100:g} to {high * 100:g} {unit}" if high < math.inf else f"{low * 100:g} {unit} or worse"
        figure.add_trace(
            go.Scatter(
                x=[x for _ in members for x in (*range(len(axes)), None)],
                y=[y for i in members for y in (*(axis.heights[i] for axis in axes), None)],
                mode="lines",
                line={"color": color, "width": 1},
                opacity=0.65,
                name=label,
                hoverinfo="skip",
                customdata=[shown[i].point.trial for i in members],
            )
        )
    style(figure, height=420)
    figure.update_xaxes(
        tickvals=list(range(len(axes))), ticktext=[axis.label for axis in axes], range=[-0.35, len(axes) - 0.55],
        tickangle=-20, ticks="",
    )  # fmt: skip
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    figure.update_layout(annotations=[note for x, axis in enumerate(axes) for note in axis.notes(x)])
    return figure


def plot_importance(
    facts: FrontFacts, trials: Sequence[TrialRecord], model: ModelFacts | None, *, target: str = "loss"
) -> go.Figure:
    """Share of the variance of the loss, the size or the latency that each choice explains alone.

    Raises:
        UsageError: an unknown target.
    """
    if target not in TARGETS:
        raise UsageError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    records = {trial.trial: trial for trial in trials}
    shown = [p for p in facts.points if p.point.origin not in ("baseline", "cascade")]
    rows = [{**dials(records[p.point.trial], model), **parameters(records[p.point.trial])} for p in shown]
    found = influence(rows, [_target(p, target) for p in shown])[:_MOST_BARS]
    figure = go.Figure(
        go.Bar(
            y=[name for name, _ in found],
            x=[share * 100 for _, share in found],
            orientation="h",
            marker={"color": BLUE},
            text=[f"{share:.0%}" for _, share in found],
            textposition="outside",
            hovertemplate="%{y}: %{x:.1f} % of the variance<extra></extra>",
        )
    )
    style(figure, height=110 + 24 * max(len(found), 2))
    most = max((share for _, share in found), default=1.0)
    figure.update_xaxes(title_text=f"% of the variance of the {target}", range=[0, 120 * most])
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    if not found:
        figure.add_annotation(text="needs 8 measured trials that differ", showarrow=False, x=0.5, y=0.5, xref="paper",
                              yref="paper")  # fmt: skip
    return figure


def _target(fact: PointFacts, target: str) -> float:
    values = {"loss": fact.drop, "size": float(fact.point.size_bytes), "latency": fact.point.latency_ms}
    return values[target]


def _thinned(points: Sequence[PointFacts]) -> list[PointFacts]:
    """The front, and of the rest every so many: always the same ones."""
    front, rest = [p for p in points if p.on_front], [p for p in points if not p.on_front]
    step = max(1, -(-len(rest) // max(_MOST_LINES - len(front), 1)))
    return rest[::step] + front


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: where each trial crosses it, 0 to 1, and what stands beside it."""

    label: str
    heights: list[float]
    ticks: list[tuple[float, str]]

    def notes(self, x: int) -> list[dict[str, Any]]:
        look = {"showarrow": False, "xanchor": "left", "xshift": 3, "font": {"size": 11, "color": INK}}
        return [{"x": x, "y": height, "text": text.replace("<", "&lt;"), **look} for height, text in self.ticks]


def _axis(name: str, values: Sequence[Any]) -> _Axis:
    """An axis from the smallest to the largest value; words get places in their order."""
    if not all(isinstance(v, int | float) for v in values):
        words = sorted({str(v) for v in values})
        places = {word: i / max(len(words) - 1, 1) for i, word in enumerate(words)}
        return _Axis(name, [places[str(v)] for v in values], [(places[word], word) for word in words])
    factor, unit = (100, ", %") if name in _PERCENT else (1, "")
    numbers = [float(v) * factor for v in values]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    span = (high - low) or 1.0
    ticks = [(share, f"{low + share * span:.3g}") for share in (0.0, 0.5, 1.0)]
    return _Axis(f"{name}{unit}", [round((v - low) / span, 4) for v in numbers], ticks)
