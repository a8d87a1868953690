"""What became of every layer of one trial, and how its training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from autocompress.figures.style import BITS_COLOR, BLUE, GREEN, GREY, ORANGE, PURPLE, style
from autocompress.front.summary import LayerRow

PANEL_COLORS = (GREEN, GREY, PURPLE, ORANGE)


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
        "textposition": "auto",  # inside of a long bar, or its end would be cut on a narrow page
        "insidetextanchor": "end",
        "constraintext": "none",
        "textfont": {"size": 11},
        "textangle": 0,
        "cliponaxis": False,
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
            "tickvals": [0, 50, 100],
        },
        xaxis2={"domain": [0.54, 1], "title": "bits", "range": [0, 36], "tickvals": [0, 8, 16, 32]},
        yaxis={"autorange": "reversed", "type": "category", "tickvals": names, "showgrid": False, "automargin": True},
    )
    style(figure, height=110 + 22 * len(rows))
    return figure


def _layer_text(row: LayerRow) -> str:
    if row.block:
        return f"{row.name}: removed with its block {row.block}"
    text = f"{row.name}: {row.kept} of {row.channels} channels kept, {row.bits} bits"
    text += f", two factors of rank {row.rank}" if row.rank else ""
    return f"{text}<br>left as it is: {row.skip}" if row.skip else text


def plot_layer_costs(document: Mapping[str, Any]) -> go.Figure:
    """Per layer of one trial, over the dense layer in grey: channels, bits, bytes, and milliseconds or their stand-in.

    Args:
        document: of `front.point.point_document`.
    """
    layers = document["layers"]
    timed = bool(layers) and layers[0]["latency_ms"] is not None
    panels = [
        ("channels", [r["kept"] for r in layers], [r["channels"] for r in layers]),
        ("bits", [r["bits"] for r in layers], [32] * len(layers)),
        ("kB", *_column(layers, "size_bytes", 1e3)),
        ("ms, inferred", *_column(layers, "latency_ms", 1))
        if timed
        else ("million MACs", *_column(layers, "macs", 1e6)),
    ]
    figure = go.Figure()
    gap, width = 0.035, (1 - 3 * 0.035) / 4
    names = [r["name"] for r in layers]
    for k, (title, now, dense) in enumerate(panels):
        number = "" if k == 0 else str(k + 1)
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        common = {"y": names, "orientation": "h", **axes}
        figure.add_trace(
            go.Bar(x=dense, marker={"color": "rgba(128,128,128,0.30)"}, hoverinfo="skip", name="dense", **common)
        )
        colors: Any = [BITS_COLOR.get(v, GREY) for v in now] if title == "bits" else PANEL_COLORS[k]
        hover = [_cost_text(r, title, a, b) for r, a, b in zip(layers, now, dense, strict=True)]
        look = {"hovertext": hover, "hoverinfo": "text", "marker": {"color": colors}, "name": title}
        figure.add_trace(go.Bar(x=now, width=0.5, **look, **common))
        start = k * (width + gap)
        figure.update_layout(
            {
                f"xaxis{number}": {"domain": [start, start + width], "title": title, "rangemode": "tozero"},
                f"yaxis{number}": {
                    "anchor": f"x{number}", "autorange": "reversed", "type": "category", "tickvals": names,
                    "showgrid": False,
                    "automargin": k == 0, "showticklabels": k == 0, "matches": None if k == 0 else "y",
                },
            }
        )  # fmt: skip
    style(figure, height=96 + 20 * len(layers))
    figure.update_layout(barmode="overlay", showlegend=False, bargap=0.25)
    figure.update_yaxes(automargin=False, selector=lambda axis: axis.showticklabels is False)
    figure.update_layout(xaxis2={"tickvals": [0, 8, 16, 32], "range": [0, 33]}, margin={"t": 12, "r": 24})
    return figure


def plot_curve(document: Mapping[str, Any]) -> go.Figure:
    """Loss over the seconds of training of one trial; logarithmic, for what is left of it at the end matters."""
    curve = document["curve"]
    figure = go.Figure(
        go.Scatter(
            x=[s for s, _ in curve],
            y=[v for _, v in curve],
            mode="lines+markers",
            marker={"size": 4, "color": BLUE},
            line={"color": BLUE, "width": 2},
            hovertemplate="%{x:.1f} s: %{y:.4g}<extra></extra>",
        )
    )
    style(figure, height=280)
    figure.update_xaxes(title_text="training, s", rangemode="tozero")
    figure.update_yaxes(title_text="training loss")
    if curve and all(v > 0 for _, v in curve):
        figure.update_yaxes(type="log", dtick="D2", tickformat="~g")
    return figure


def _column(layers: Sequence[Mapping[str, Any]], key: str, unit: float) -> tuple[list[float], list[float]]:
    return [r[key] / unit for r in layers], [r[f"{key}_dense"] / unit for r in layers]


def _cost_text(row: Mapping[str, Any], title: str, now: float, dense: float) -> str:
    name = str(row["name"]).replace("<", "&lt;")
    if row["block"]:
        return f"{name}: removed with its block {row['block']}".replace("<", "&lt;")
    rank = f"<br>two factors of rank {row['rank']}" if row.get("rank") else ""
    return f"<b>{name}</b><br>{now:.4g} of {dense:.4g} {title}{rank}"
