"""How every figure looks: colours, type, grid, and the settings of plotly.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; every role has its own
symbol as well. Backgrounds are transparent and lines grey, so a figure sits on a light or a dark page.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from autocompress.front.explain import metric_name
from autocompress.front.summary import FrontFacts

FIGURE_CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "showSendToCloud": False,  # plotly.js shows a "Share" button by default
    "plotlyServerURL": "",
    "responsive": True,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
}
BLUE, ORANGE, GREEN, RED, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
YELLOW, WINE = "#F0E442", "#882255"  # the second is Tol's: Okabe and Ito's black would not show on a dark page
GREY = "#7F7F7F"
INK, GRID = "#6E7681", "rgba(128,128,128,0.22)"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
BITS_COLOR = {1: WINE, 2: RED, 3: ORANGE, 4: SKY, 5: GREEN, 6: YELLOW, 8: BLUE, 16: PURPLE, 32: GREY}
MANY = 1000  # points: more are drawn on a canvas, and only the front tells its plans
_SIZE_STEPS = (1, 2, 5)
_ANY_STEP = 5  # round sizes that are too many for an axis


def plotly_script() -> str:
    """The JavaScript that draws the figures, from the installed plotly: nothing is fetched."""
    return str(get_plotlyjs())


def style(figure: go.Figure, *, height: int) -> None:
    """Give a figure the look of all others."""
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": INK},
        margin={"l": 64, "r": 44, "t": 36, "b": 56},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "font": {"size": 12}},
        hoverlabel={"font": {"family": FONT, "size": 12}, "align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE, "orientation": "v"},
        uirevision="keep",  # a live page redraws without losing the reader's zoom
    )
    figure.update_xaxes(
        gridcolor=GRID,
        zeroline=False,
        linecolor=GRID,
        ticks="outside",
        tickcolor=GRID,
        automargin=True,
        title_font_size=13,
    )
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True, title_font_size=13)


def scatter(many: bool, **trace: Any) -> go.Scatter | go.Scattergl:
    """A trace of markers; where there are many, of the kind that the pages draw on a canvas (`dashboards/cloud.js`).

    Plotly's own drawing of that kind compiles code from text, which the pages' security policy forbids.
    """
    return go.Scattergl(**trace) if many else go.Scatter(**trace)


def digits(values: Iterable[float]) -> list[float]:
    """What can be seen of values: six digits, so that 10,000 points are a small answer."""
    return [float(f"{value:.6g}") for value in values]


def loss_title(facts: FrontFacts) -> str:
    """The axis of what the metric lost, with its unit."""
    return loss_axis(facts.metric, facts.direction)


def loss_axis(metric: str, direction: str) -> str:
    """The same from the metric's name."""
    name = metric_name(metric)
    return f"{name} lost, points" if direction == "maximize" else f"{name}, % more"


def size_ticks(sizes_kb: Iterable[float]) -> dict[str, Any]:
    """Round sizes on a log axis in kB, in words."""
    sizes = list(sizes_kb)
    low, high = (min(sizes), max(sizes)) if sizes else (1.0, 10.0)
    ticks = [m * 10.0**e for e in range(-3, 7) for m in _SIZE_STEPS if low / 2 <= m * 10.0**e <= high * 2]
    if len(ticks) > 2 * _ANY_STEP:
        ticks = [t for t in ticks if f"{t:e}"[0] != str(_ANY_STEP)]
    return {"tickvals": ticks, "ticktext": [f"{t / 1000:g} MB" if t >= 1000 else f"{t:g} kB" for t in ticks]}
