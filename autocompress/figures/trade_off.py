"""The trade-off of a study: its loss against size, against latency, and against both in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import plotly.graph_objects as go

from autocompress.figures.style import (
    BLUE,
    GREY,
    INK,
    MANY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    digits,
    loss_title,
    scatter,
    size_ticks,
    style,
)
from autocompress.front.explain import format_bytes, format_drop, format_ms, made_of, metric_name
from autocompress.front.hypervolume import REFERENCE, metric_drop
from autocompress.front.pareto import non_dominated
from autocompress.front.summary import FrontFacts, PointFacts
from autocompress.records import FrontPoint

Against = Literal["size", "latency"]
_RUG = 0.045  # share of the height for trials that have no loss


def plot_trade_off(facts: FrontFacts, against: Against) -> go.Figure:
    """Loss of the metric against the file's size (log axis) or its latency: lower left is better.

    The line is the front of these two objectives alone; a front point off the line is there for the third.
    Whiskers are 95 % intervals: of the latency ratio, and of the metric over samples where it has one. Trials that
    ended early are faint crosses at what they had lost by then, and ticks below the axis where nothing was trained.
    """
    figure = go.Figure()
    front, anchors, others = by_role(facts)
    _add_ended(figure, facts, against)
    size, opacity = (4, 0.2) if len(others) > MANY else (6, 0.4)
    figure.add_trace(_markers(others, facts, against, "dominated", SKY, "circle", size=size, opacity=opacity))
    figure.add_trace(_markers(anchors, facts, against, "anchor, dominated", ORANGE, "square", size=7, opacity=0.6))
    if any(p.test_drop is not None for p in front):
        figure.add_trace(_markers(front, facts, against, "front, test", PURPLE, "diamond-open", size=10, split="test"))
    figure.add_trace(front_line(front, against, BLUE, "front of these two"))
    searched, tried = _split_anchors(front)
    figure.add_trace(_markers(searched, facts, against, "front, validation", BLUE, "circle", size=11, whiskers=True))
    figure.add_trace(_markers(tried, facts, against, "front, anchor", ORANGE, "square", size=10, whiskers=True))
    _add_baseline(figure, facts, against)
    style(figure, height=440)
    figure.update_yaxes(title_text=loss_title(facts), range=loss_range(front))
    _scale_x(figure, facts, against)
    if any(e.drop is None for e in facts.ended):
        _add_rug_axis(figure)
    return figure


def plot_objectives(facts: FrontFacts) -> go.Figure:
    """Loss, size and latency of the measured trials in one picture to turn around."""
    figure = go.Figure()
    front, anchors, others = by_role(facts)
    roles: tuple[tuple[str, Sequence[PointFacts], str, str, int], ...] = (
        ("dominated", others, SKY, "circle", 3),
        ("anchor, dominated", anchors, ORANGE, "square", 4),
        ("front", _split_anchors(front)[0], BLUE, "circle", 6),
        ("front, anchor", _split_anchors(front)[1], ORANGE, "square", 6),
    )
    visible = loss_range(front)[1]
    for name, points, color, symbol, size in roles:
        shown = [p for p in points if p.drop * 100 <= visible]  # a 3-D axis cannot clip what lies outside
        opacity = 1 if name.startswith("front") else 0.5
        figure.add_trace(
            go.Scatter3d(
                x=digits(p.point.size_bytes / 1000 for p in shown),
                y=digits(p.point.latency_ms for p in shown),
                z=digits(p.drop * 100 for p in shown),
                mode="markers",
                name=name,
                showlegend=bool(shown),
                marker={"size": size, "color": color, "symbol": symbol, "opacity": opacity},
                customdata=[p.point.trial for p in shown],
                **_hover(shown, facts),
            )
        )
    if base := facts.baseline:
        marker = {"size": 7, "color": RED, "symbol": "diamond"}
        at: dict[str, Any] = {"x": [base.size_bytes / 1000], "y": [base.latency_ms], "z": [0.0]}
        figure.add_trace(go.Scatter3d(**at, name="baseline", mode="markers", marker=marker))
    style(figure, height=520)
    axis = {"gridcolor": GREY, "color": INK, "showbackground": False, "zerolinecolor": GREY, "showspikes": False}
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 30, "b": 0},
        scene={
            "xaxis": {**axis, "title": "file size", "type": "log", **_size_ticks(facts)},
            "yaxis": {**axis, "title": "latency, ms"},
            "zaxis": {**axis, "title": loss_title(facts)},
            "camera": {"eye": {"x": -1.6, "y": -1.6, "z": 0.75}, "center": {"x": 0, "y": 0, "z": -0.12}},
            "aspectmode": "manual",
            "aspectratio": {"x": 1.25, "y": 1.25, "z": 0.85},
        },
    )
    return figure


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
    return "<br>".join([*measured, *(line.replace("<", "&lt;") for line in made_of(point))])


def by_role(facts: FrontFacts) -> tuple[list[PointFacts], list[PointFacts], list[PointFacts]]:
    """Front, dominated anchors, other dominated trials; the baseline has a marker of its own."""
    drawn = [p for p in facts.points if p.point.origin != "baseline"]
    front = sorted((p for p in drawn if p.on_front), key=lambda p: p.point.size_bytes)
    rest = [p for p in drawn if not p.on_front]
    anchors = [p for p in rest if p.point.origin == "anchor"]
    return front, anchors, [p for p in rest if p.point.origin != "anchor"]


def front_line(front: Sequence[PointFacts], against: Against, color: str, name: str) -> go.Scatter:
    """The staircase of the points that are best in loss and this one objective."""
    corners = [(_x(p.point, against), p.drop * 100) for p in front]
    mask = non_dominated(corners)
    line = sorted(corner for corner, on_line in zip(corners, mask, strict=True) if on_line)
    return go.Scatter(
        x=[x for x, _ in line],
        y=[y for _, y in line],
        mode="lines",
        line={"shape": "hv", "color": color, "width": 2},
        name=name,
        hoverinfo="skip",
    )


def loss_range(front: Sequence[PointFacts]) -> list[float]:
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
    visible = loss_range(front)[1]
    return sum(p.drop * 100 > visible for p in front)


def _split_anchors(points: Sequence[PointFacts]) -> tuple[list[PointFacts], list[PointFacts]]:
    """What the search found, and the plans that everybody would try."""
    found = [p for p in points if p.point.origin != "anchor"]
    return found, [p for p in points if p.point.origin == "anchor"]


def _x(point: FrontPoint, against: Against) -> float:
    return point.size_bytes / 1000 if against == "size" else point.latency_ms


def _hover(points: Sequence[PointFacts], facts: FrontFacts) -> dict[str, Any]:
    """Whole texts, or a template where they would be most of the page; the front always tells its plans."""
    if len(points) <= MANY or all(p.on_front for p in points):
        return {"hovertext": [hover_text(p, facts) for p in points], "hoverinfo": "text"}
    return {"hovertemplate": "<b>trial %{customdata}</b><br>%{x}, %{y}<extra></extra>"}


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
) -> go.Scatter | go.Scattergl:
    shown = [p for p in points if split == "val" or p.test_drop is not None]
    drops = [p.drop if split == "val" else p.test_drop or 0.0 for p in shown]
    line = {"width": 1.5 if split == "test" else 0}
    trace = scatter(
        len(shown) > MANY,
        x=digits(_x(p.point, against) for p in shown),
        y=digits(drop * 100 for drop in drops),
        mode="markers",
        name=name,
        showlegend=bool(shown),
        marker={"color": color, "symbol": symbol, "size": size, "opacity": opacity, "line": line},
        customdata=[p.point.trial for p in shown],
        **_hover(shown, facts),
    )
    if whiskers:
        _add_whiskers(trace, shown, facts, against)
    return trace


def _add_ended(figure: go.Figure, facts: FrontFacts, against: Against) -> None:
    """Trials that ended early: behind everything else, and no part of the front."""
    trained = [e for e in facts.ended if e.drop is not None]
    untrained = [e for e in facts.ended if e.drop is None]
    looks = (
        (trained, "stopped while training", "x-thin", 6, [(e.drop or 0.0) * 100 for e in trained], "y"),
        (untrained, "stopped before training", "line-ns", 9, [0.5] * len(untrained), "y2"),
    )
    for ended, name, symbol, size, heights, axis in looks:
        if not ended:
            continue
        at = [e.size_bytes / 1000 if against == "size" else e.latency_ms for e in ended]
        text = [
            f"<b>trial {e.trial}</b>, {e.state}<br>{format_bytes(e.size_bytes)}, {format_ms(e.latency_ms)}"
            for e in ended
        ]
        many = len(ended) > MANY
        look: dict[str, Any] = {"hovertext": text, "hoverinfo": "text"} if not many else {"hoverinfo": "skip"}
        line = {"width": 1, "color": GREY}
        marker = {"symbol": symbol, "size": size, "color": GREY, "opacity": 0.15 if many else 0.45, "line": line}
        where = {"x": digits(at), "y": heights, "yaxis": axis, "customdata": [e.trial for e in ended]}
        figure.add_trace(scatter(many, mode="markers", name=name, marker=marker, **where, **look))


def _add_rug_axis(figure: go.Figure) -> None:
    """A strip below the figure, for what has a size and a latency and no loss."""
    hidden = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "", "title": ""}
    figure.update_layout(
        yaxis={"domain": [2 * _RUG, 1]},
        yaxis2={**hidden, "domain": [0, _RUG], "range": [0, 1], "fixedrange": True, "linecolor": "rgba(0,0,0,0)"},
        xaxis={"anchor": "free", "position": 0},
    )


def _add_whiskers(trace: Any, points: Sequence[PointFacts], facts: FrontFacts, against: Against) -> None:
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


def _scale_x(figure: go.Figure, facts: FrontFacts, against: Against) -> None:
    if against == "latency":
        figure.update_xaxes(title_text="latency, ms", rangemode="tozero")
        return
    figure.update_xaxes(title_text="file size", type="log", **_size_ticks(facts))


def _size_ticks(facts: FrontFacts) -> dict[str, Any]:
    return size_ticks(p.point.size_bytes / 1000 for p in facts.points)
