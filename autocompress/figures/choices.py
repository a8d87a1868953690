"""What was chosen against what came out: parallel coordinates, and how much each choice explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from autocompress.errors import UsageError
from autocompress.figures.style import BLUE, loss_axis, style
from autocompress.front.dials import dials, influence, parameters
from autocompress.front.explain import metric_name
from autocompress.front.summary import FrontFacts, PointFacts
from autocompress.records import ModelFacts, TrialRecord

TARGETS = ("loss", "size", "latency")
_MOST_LINES = 1500  # more are a blur, and slow; the front is always among them
_MOST_BARS = 14
_PERCENT = ("channels removed",)


def plot_parallel(facts: FrontFacts, trials: Sequence[TrialRecord], model: ModelFacts | None) -> go.Figure:
    """One line per measured trial through its dials and what came out, coloured by its loss."""
    records = {trial.trial: trial for trial in trials}
    shown = _thinned([p for p in facts.points if p.point.origin != "baseline"])
    rows = [dials(records[p.point.trial], model) for p in shown]
    names = [name for name in (rows[0] if rows else {}) if len({row[name] for row in rows}) > 1]
    dimensions = [_dimension(name, [row[name] for row in rows]) for name in names]
    dimensions += [
        {"label": "file, kB", "values": [p.point.size_bytes / 1000 for p in shown]},
        {"label": "latency, ms", "values": [p.point.latency_ms for p in shown]},
        {"label": loss_axis(metric_name(facts.metric), facts.direction), "values": [p.drop * 100 for p in shown]},
    ]
    color = [min(max(p.drop, 0.0), 0.05) * 100 for p in shown]
    figure = go.Figure(
        go.Parcoords(
            dimensions=[{**d, "values": [float(f"{v:.5g}") for v in d["values"]]} for d in dimensions],
            line={
                "color": color, "colorscale": "Cividis", "reversescale": True, "cmin": 0, "cmax": 5,
                "showscale": True, "colorbar": {"title": {"text": "lost"}, "thickness": 12, "outlinewidth": 0},
            },
            labelangle=-18,
            labelfont={"size": 12},
            customdata=[p.point.trial for p in shown],
        )
    )  # fmt: skip
    style(figure, height=400)
    figure.update_layout(margin={"l": 56, "r": 24, "t": 96, "b": 24})
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
    shown = [p for p in facts.points if p.point.origin != "baseline"]
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
    figure.update_xaxes(title=f"variance of the {target} explained alone, %", range=[0, 108])
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


def _dimension(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """An axis; words get places in their order."""
    if all(isinstance(v, int | float) for v in values):
        factor, unit = (100, ", %") if name in _PERCENT else (1, "")
        return {"label": f"{name}{unit}", "values": [v * factor for v in values]}
    words = sorted({str(v) for v in values})
    places = list(range(len(words)))
    return {"label": name, "values": [words.index(str(v)) for v in values], "tickvals": places, "ticktext": words}
