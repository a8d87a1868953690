"""Pictures of a study: facts in, plotly figures out. Nothing is computed here that a table could not show.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; every role has its own
symbol as well. Backgrounds are transparent and lines grey, so a figure sits on a light or a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from autocompress.front.explain import format_bytes, format_drop, format_ms, metric_name, plan_lines
from autocompress.front.hypervolume import REFERENCE, metric_drop
from autocompress.front.pareto import non_dominated
from autocompress.front.summary import FrontFacts, LayerRow, PointFacts
from autocompress.records import FrontPoint

FIGURE_CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "showSendToCloud": False,  # plotly.js shows a "Share" button by default
    "plotlyServerURL": "",
    "responsive": True,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
}
BLUE, ORANGE, GREEN, RED, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
GREY = "#7F7F7F"
_INK, _GRID = "#6E7681", "rgba(128,128,128,0.22)"
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
BITS_COLOR = {2: RED, 3: ORANGE, 4: SKY, 8: BLUE, 16: PURPLE, 32: GREY}
_SIZE_STEPS = (1, 2, 5)
_MAX_PLANS_IN_HOVER = 2000  # beyond it only the front tells its plans, or a page of 10,000 points is mostly hover text
Against = Literal["size", "latency"]


def plotly_script() -> str:
    """The JavaScript that draws the figures, from the installed plotly: nothing is fetched."""
    return str(get_plotlyjs())


def plot_trade_off(facts: FrontFacts, against: Against) -> go.Figure:
    """Loss of the metric against the file's size (log axis) or its latency: lower left is better.

    The line is the front of these two objectives alone; a front point off the line is there for the third.
    Whiskers are 95 % intervals: of the latency ratio, and of the metric over samples where it has one.
    """
    figure = go.Figure()
    front, anchors, others = _by_role(facts)
    figure.add_trace(_steps(front, against))
    figure.add_trace(_markers(others, facts, against, "dominated", SKY, "circle", size=6, opacity=0.4))
    figure.add_trace(_markers(anchors, facts, against, "anchor, dominated", ORANGE, "square", size=7, opacity=0.6))
    if any(p.test_drop is not None for p in front):
        figure.add_trace(_markers(front, facts, against, "front, test", PURPLE, "diamond-open", size=10, split="test"))
    searched, tried = _split_anchors(front)
    figure.add_trace(_markers(searched, facts, against, "front, validation", BLUE, "circle", size=11, whiskers=True))
    figure.add_trace(_markers(tried, facts, against, "front, anchor", ORANGE, "square", size=10, whiskers=True))
    _add_baseline(figure, facts, against)
    _style(figure, height=440)
    figure.update_yaxes(title=_loss_title(facts), range=_loss_range(front))
    _scale_x(figure, facts, against)
    return figure


def plot_objectives(facts: FrontFacts) -> go.Figure:
    """Loss, size and latency of the measured trials in one picture to turn around."""
    figure = go.Figure()
    front, anchors, others = _by_role(facts)
    roles: tuple[tuple[str, Sequence[PointFacts], str, str, int], ...] = (
        ("dominated", others, SKY, "circle", 3),
        ("anchor, dominated", anchors, ORANGE, "square", 4),
        ("front", _split_anchors(front)[0], BLUE, "circle", 6),
        ("front, anchor", _split_anchors(front)[1], ORANGE, "square", 6),
    )
    visible = _loss_range(front)[1]
    for name, points, color, symbol, size in roles:
        shown = [p for p in points if p.drop * 100 <= visible]  # a 3-D axis cannot clip what lies outside
        figure.add_trace(
            go.Scatter3d(
                x=[p.point.size_bytes / 1000 for p in shown],
                y=[p.point.latency_ms for p in shown],
                z=[p.drop * 100 for p in shown],
                mode="markers",
                name=name,
                showlegend=bool(shown),
                marker={
                    "size": size,
                    "color": color,
                    "symbol": symbol,
                    "opacity": 1 if name.startswith("front") else 0.5,
                },
                hovertext=[hover_text(p, facts) for p in shown],
                hoverinfo="text",
            )
        )
    if base := facts.baseline:
        marker = {"size": 7, "color": RED, "symbol": "diamond"}
        figure.add_trace(
            go.Scatter3d(
                x=[base.size_bytes / 1000], y=[base.latency_ms], z=[0.0], name="baseline", mode="markers", marker=marker
            )
        )
    _style(figure, height=520)
    axis = {"gridcolor": GREY, "color": _INK, "showbackground": False, "zerolinecolor": GREY, "showspikes": False}
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 30, "b": 0},
        scene={
            "xaxis": {**axis, "title": "file size", "type": "log", **_size_ticks(facts)},
            "yaxis": {**axis, "title": "latency, ms"},
            "zaxis": {**axis, "title": _loss_title(facts)},
            "camera": {"eye": {"x": -1.6, "y": -1.6, "z": 0.75}, "center": {"x": 0, "y": 0, "z": -0.12}},
            "aspectmode": "manual",
            "aspectratio": {"x": 1.25, "y": 1.25, "z": 0.85},
        },
    )
    return figure


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
    _style(figure, height=300)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="budget spent, s", rangemode="tozero")
    figure.update_yaxes(title="hypervolume (1 is perfect)", rangemode="tozero")
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
    _style(figure, height=210)
    figure.update_layout(barmode="stack", showlegend=False, bargap=0.35)
    figure.update_xaxes(title="seconds")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def plot_layers(rows: Sequence[LayerRow]) -> go.Figure:
    """Per layer, top to bottom as in the model: the share of channels removed, and the bits of the weights.

    Layers that went with their block are grey and have no bits.
    """
    names = [row.name for row in rows]
    figure = go.Figure()
    share = [row.prune_ratio * 100 for row in rows]
    common = {
        "y": names,
        "orientation": "h",
        "hovertext": [_layer_text(row) for row in rows],
        "hoverinfo": "text",
        "textposition": "outside",
        "textangle": 0,
    }
    shades = [GREY if row.block else GREEN for row in rows]
    figure.add_trace(
        go.Bar(x=share, text=[f"{s:.0f} %" if s else "" for s in share], marker={"color": shades}, **common)
    )
    colors = [BITS_COLOR.get(row.bits, GREY) for row in rows]
    bits = [row.bits for row in rows]
    texts = [str(row.bits) if row.bits else "" for row in rows]
    figure.add_trace(go.Bar(x=bits, text=texts, marker={"color": colors}, xaxis="x2", yaxis="y", **common))
    figure.update_layout(showlegend=False, bargap=0.3)
    figure.update_layout(
        xaxis={
            "domain": [0, 0.48],
            "title": "removed, %",
            "range": [0, 108],
            "tickvals": [0, 25, 50, 75, 100],
        },
        xaxis2={"domain": [0.54, 1], "title": "bits", "range": [0, 36], "tickvals": [0, 8, 16, 32]},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "automargin": True},
    )
    _style(figure, height=110 + 22 * len(rows))
    return figure


def _layer_text(row: LayerRow) -> str:
    if row.block:
        return f"{row.name}: removed with its block {row.block}"
    text = f"{row.name}: {row.kept} of {row.channels} channels kept, {row.bits} bits"
    return f"{text}<br>left as it is: {row.skip}" if row.skip else text


def hover_text(fact: PointFacts, facts: FrontFacts) -> str:
    """What a trial is, in a few lines: what was measured, then the plan."""
    point = fact.point
    low, high = point.latency_ratio_ci
    measured = [
        f"<b>trial {point.trial}</b> ({point.origin})",
        f"{metric_name(facts.metric)}: {point.val:.4g} validation"
        + (f", {point.test:.4g} test" if point.test is not None else ""),
        f"loss: {format_drop(fact.drop, direction=facts.direction)}",
        f"{format_bytes(point.size_bytes)}, {format_ms(point.latency_ms)} ({low:.2f} to {high:.2f} of the baseline)",
    ]
    if not fact.on_front and len(facts.points) > _MAX_PLANS_IN_HOVER:
        return "<br>".join(measured)
    return "<br>".join([*measured, *(line.replace("<", "&lt;") for line in plan_lines(point.plan))])


def _by_role(facts: FrontFacts) -> tuple[list[PointFacts], list[PointFacts], list[PointFacts]]:
    """Front, dominated anchors, other dominated trials; the baseline has a marker of its own."""
    drawn = [p for p in facts.points if p.point.origin != "baseline"]
    front = sorted((p for p in drawn if p.on_front), key=lambda p: p.point.size_bytes)
    rest = [p for p in drawn if not p.on_front]
    anchors = [p for p in rest if p.point.origin == "anchor"]
    return front, anchors, [p for p in rest if p.point.origin != "anchor"]


def _split_anchors(points: Sequence[PointFacts]) -> tuple[list[PointFacts], list[PointFacts]]:
    """What the search found, and the plans that everybody would try."""
    found = [p for p in points if p.point.origin != "anchor"]
    return found, [p for p in points if p.point.origin == "anchor"]


def _x(point: FrontPoint, against: Against) -> float:
    return point.size_bytes / 1000 if against == "size" else point.latency_ms


def _steps(front: Sequence[PointFacts], against: Against) -> go.Scatter:
    corners = [(_x(p.point, against), p.drop * 100) for p in front]
    mask = non_dominated(corners)
    line = sorted(corner for corner, on_line in zip(corners, mask, strict=True) if on_line)
    return go.Scatter(
        x=[x for x, _ in line],
        y=[y for _, y in line],
        mode="lines",
        line={"shape": "hv", "color": BLUE, "width": 2},
        name="front of these two",
        hoverinfo="skip",
    )


def _markers(
    points: Sequence[PointFacts],
    facts: FrontFacts,
    against: Against,
    name: str,
    color: str,
    symbol: str,
    *,
    size: int,
    opacity: float = 1.0,
    split: Literal["val", "test"] = "val",
    whiskers: bool = False,
) -> go.Scatter:
    shown = [p for p in points if split == "val" or p.test_drop is not None]
    drops = [p.drop if split == "val" else p.test_drop or 0.0 for p in shown]
    trace = go.Scatter(
        x=[_x(p.point, against) for p in shown],
        y=[drop * 100 for drop in drops],
        mode="markers",
        name=name,
        showlegend=bool(shown),
        marker={
            "color": color,
            "symbol": symbol,
            "size": size,
            "opacity": opacity,
            "line": {"width": 1.5 if split == "test" else 0},
        },
        hovertext=[hover_text(p, facts) for p in shown],
        hoverinfo="text",
        customdata=[p.point.trial for p in shown],
    )
    if whiskers:
        _add_whiskers(trace, shown, facts, against)
    return trace


def _add_whiskers(trace: go.Scatter, points: Sequence[PointFacts], facts: FrontFacts, against: Against) -> None:
    look = {"type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": "rgba(0,114,178,0.3)"}
    if against == "latency":
        ms = [
            (p.point.latency_ms, p.point.latency_ms / p.point.latency_ratio, p.point.latency_ratio_ci) for p in points
        ]
        trace.error_x = {
            **look,
            "array": [ci[1] * unit - at for at, unit, ci in ms],
            "arrayminus": [at - ci[0] * unit for at, unit, ci in ms],
        }
    if facts.baseline and all(p.point.val_ci for p in points):
        ends = [_drops(p.point.val_ci, facts.baseline.val, facts) for p in points if p.point.val_ci]
        trace.error_y = {
            **look,
            "array": [(high - p.drop) * 100 for p, (_, high) in zip(points, ends, strict=True)],
            "arrayminus": [(p.drop - low) * 100 for p, (low, _) in zip(points, ends, strict=True)],
        }


def _drops(ci: tuple[float, float], reference: float, facts: FrontFacts) -> tuple[float, float]:
    """The interval of a value as an interval of its drop, the lower end first."""
    first, second = (metric_drop(end, reference, direction=facts.direction) for end in ci)
    return min(first, second), max(first, second)


def _add_baseline(figure: go.Figure, facts: FrontFacts, against: Against) -> None:
    if not (base := facts.baseline):
        return
    at = base.size_bytes / 1000 if against == "size" else base.latency_ms
    text = (
        f"<b>baseline</b><br>{format_bytes(base.size_bytes)}, {format_ms(base.latency_ms)}<br>{base.val:.4g} validation"
    )
    marker = {"color": RED, "symbol": "star", "size": 14}
    figure.add_trace(
        go.Scatter(x=[at], y=[0.0], mode="markers", name="baseline", marker=marker, hovertext=[text], hoverinfo="text")
    )


def _loss_title(facts: FrontFacts) -> str:
    unit = "points" if facts.direction == "maximize" else "% more"
    return f"{metric_name(facts.metric)} lost, {unit}" if facts.direction == "maximize" else f"{facts.metric}, {unit}"


def _loss_range(front: Sequence[PointFacts]) -> list[float]:
    """From the best point to what matters, in points: a file that lost everything would flatten the rest.

    What matters is what the hypervolume counts, a loss up to its reference. Only if all of the front lost more, the
    axis goes as far as the best of them.
    """
    drops = [d for p in front for d in (p.drop, p.test_drop) if d is not None]
    useful = [d for d in drops if d <= REFERENCE["drop"]]
    high = max(*useful, 0.02) * 100 if useful else min(drops, default=0.02) * 100
    low = min([*drops, 0.0]) * 100
    return [low - 0.06 * (high - low) - 0.2, high + 0.10 * (high - low)]


def beyond_view(facts: FrontFacts) -> int:
    """Points of the front that lose so much on validation data that the figures do not show them."""
    front = [p for p in facts.points if p.on_front and p.point.origin != "baseline"]
    visible = _loss_range(front)[1]
    return sum(p.drop * 100 > visible for p in front)


def _scale_x(figure: go.Figure, facts: FrontFacts, against: Against) -> None:
    if against == "latency":
        figure.update_xaxes(title="latency, ms", rangemode="tozero")
        return
    figure.update_xaxes(title="file size", type="log", **_size_ticks(facts))


def _size_ticks(facts: FrontFacts) -> dict[str, Any]:
    """Round sizes on a log axis in kB, in words."""
    sizes = [p.point.size_bytes / 1000 for p in facts.points]
    low, high = (min(sizes), max(sizes)) if sizes else (1.0, 10.0)
    ticks = [m * 10.0**e for e in range(-3, 7) for m in _SIZE_STEPS if low / 2 <= m * 10.0**e <= high * 2]
    return {"tickvals": ticks, "ticktext": [f"{t / 1000:g} MB" if t >= 1000 else f"{t:g} kB" for t in ticks]}


def _style(figure: go.Figure, *, height: int) -> None:
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONT, "size": 13, "color": _INK},
        margin={"l": 64, "r": 44, "t": 36, "b": 56},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "font": {"size": 12}},
        hoverlabel={"font": {"family": _FONT, "size": 12}, "align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE, "orientation": "v"},
        uirevision="keep",  # a live page redraws without losing the reader's zoom
    )
    figure.update_xaxes(
        gridcolor=_GRID, zeroline=False, linecolor=_GRID, ticks="outside", tickcolor=_GRID, automargin=True
    )
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID, linecolor=_GRID, automargin=True)
