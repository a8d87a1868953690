"""How a study went: its hypervolume over time, and what its time went to."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from autocompress.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, style
from autocompress.front.summary import FrontFacts


def plot_hypervolume(facts: FrontFacts) -> go.Figure:
    """Hypervolume of the front so far over the budget spent, with a line where the budget ends."""
    steps = facts.hypervolume_s
    line = {"shape": "hv", "color": BLUE, "width": 2.5}
    hover = "%{x:.1f} s: %{y:.4f}<extra></extra>"
    trace = go.Scatter(
        x=[0.0, *(s for s, _ in steps)], y=[0.0, *(v for _, v in steps)], mode="lines", line=line, hovertemplate=hover
    )
    figure = go.Figure(trace)
    if math.isfinite(facts.budget_s):
        figure.add_vline(
            x=facts.budget_s,
            line={"color": GREY, "dash": "dot"},
            annotation_text="budget",
            annotation_position="bottom left",
        )
    style(figure, height=300)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text="budget spent, s", rangemode="tozero")
    figure.update_yaxes(title_text="hypervolume (1 is perfect)", rangemode="tozero")
    return figure


def plot_budget(facts: FrontFacts) -> go.Figure:
    """Where the time went: two stacked bars, the study's stages and the stages inside its trials."""
    figure = go.Figure()
    colors = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY)
    for row, durations in (("study", facts.study_s), ("its trials", facts.trial_s)):
        total = sum(durations.values()) or 1.0
        for index, (stage, seconds) in enumerate(durations.items()):
            figure.add_trace(
                go.Bar(
                    y=[row],
                    x=[seconds],
                    name=stage,
                    orientation="h",
                    marker={"color": colors[index % len(colors)], "line": {"width": 0}},
                    text=stage if seconds > 0.07 * total else "",
                    textposition="inside",
                    insidetextanchor="middle",
                    hovertemplate=f"{stage}: {seconds:.1f} s, {seconds / total:.0%}<extra></extra>",
                )
            )
    style(figure, height=210)
    figure.update_layout(barmode="stack", showlegend=False, bargap=0.35)
    figure.update_xaxes(title_text="seconds")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure
