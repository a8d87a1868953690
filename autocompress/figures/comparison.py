"""Several studies over one another, each with a colour and a symbol of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from autocompress.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, loss_axis, size_ticks, style
from autocompress.front.explain import format_bytes, format_drop, format_ms
from autocompress.front.hypervolume import Direction
from autocompress.front.pareto import non_dominated

STUDY_LOOKS = (
    (BLUE, "circle", "solid"), (RED, "square", "dash"), (GREEN, "diamond", "dot"),
    (PURPLE, "triangle-up", "dashdot"), (ORANGE, "x", "longdash"), (GREY, "star", "longdashdot"),
)  # fmt: skip
_KEYS = {"size": "size_bytes", "latency": "latency_ms"}


def plot_fronts(document: Mapping[str, Any], against: str) -> go.Figure:
    """Loss of every study's front against size or latency, on validation data.

    Args:
        document: of `front.compare.compare_document`.
        against: "size" or "latency".
    """
    figure, key = go.Figure(), _KEYS[against]
    unit = 1000 if against == "size" else 1
    for curve, (color, symbol, dash) in zip(document["curves"], STUDY_LOOKS, strict=False):
        points = [p for p in curve["points"] if p["origin"] != "baseline"]
        corners = [(p[key] / unit, p["drop"] * 100) for p in points]
        best = sorted(c for c, on_line in zip(corners, non_dominated(corners), strict=True) if on_line)
        line = {"shape": "hv", "color": color, "width": 2, "dash": dash}
        figure.add_trace(
            go.Scatter(x=[x for x, _ in best], y=[y for _, y in best], mode="lines", line=line, hoverinfo="skip",
                       legendgroup=curve["study"], showlegend=False)
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in corners],
                y=[y for _, y in corners],
                mode="markers",
                name=curve["study"],
                legendgroup=curve["study"],
                marker={"color": color, "symbol": symbol, "size": 10},
                hovertext=[_text(curve["study"], p, document["direction"]) for p in points],
                hoverinfo="text",
                customdata=[p["trial"] for p in points],
            )
        )
        if base := curve["baseline"]:
            marker = {"symbol": "star-open", "size": 13, "color": color, "line": {"width": 1.5}}
            figure.add_trace(
                go.Scatter(x=[base[key] / unit], y=[0.0], mode="markers", marker=marker, hoverinfo="text",
                           hovertext=[f"{curve['study']}: the dense model"], legendgroup=curve["study"],
                           showlegend=False)
            )  # fmt: skip
    style(figure, height=420)
    drops = [p["drop"] for curve in document["curves"] for p in curve["points"]]
    useful = [d for d in drops if d <= 0.05] or [0.02]
    low, high = min([*drops, 0.0]) * 100, max(*useful, 0.02) * 100
    title = loss_axis(document["metric"], document["direction"])
    figure.update_yaxes(title_text=title, range=[low - 0.06 * (high - low) - 0.2, high + 0.1 * (high - low)])
    if against == "size":
        sizes = [p["size_bytes"] / 1000 for curve in document["curves"] for p in curve["points"]]
        figure.update_xaxes(title_text="file size", type="log", **size_ticks(sizes))
    else:
        figure.update_xaxes(title_text="latency, ms", rangemode="tozero")
    return figure


def plot_hypervolumes(document: Mapping[str, Any]) -> go.Figure:
    """Hypervolume over the budget spent, a line per study."""
    figure = go.Figure()
    for curve, (color, _, dash) in zip(document["curves"], STUDY_LOOKS, strict=False):
        steps = curve["hypervolume_s"]
        figure.add_trace(
            go.Scatter(
                x=[0.0, *(s for s, _ in steps)],
                y=[0.0, *(v for _, v in steps)],
                mode="lines",
                name=curve["study"],
                line={"shape": "hv", "color": color, "width": 2.5, "dash": dash},
                hovertemplate="%{x:.1f} s: %{y:.4f}",
            )
        )
    style(figure, height=320)
    figure.update_xaxes(title_text="budget spent, s", rangemode="tozero")
    figure.update_yaxes(title_text="hypervolume (1 is perfect)", rangemode="tozero")
    return figure


def _text(study: str, point: Mapping[str, Any], direction: Direction) -> str:
    name = study.replace("<", "&lt;")
    return (
        f"<b>{name}, trial {point['trial']}</b><br>{format_bytes(point['size_bytes'])}, "
        f"{format_ms(point['latency_ms'])}<br>{format_drop(point['drop'], direction=direction)} lost on validation data"
    )
