"""Pictures of a study: facts in, plotly figures out. Nothing is computed here that a table could not show."""

from __future__ import annotations

from autocompress.figures.catalogue import FIGURES, compare_figure, point_figure, study_figure
from autocompress.figures.choices import plot_importance, plot_parallel
from autocompress.figures.course import plot_budget, plot_hypervolume
from autocompress.figures.layers import plot_curve, plot_layer_costs, plot_layers
from autocompress.figures.style import BITS_COLOR, FIGURE_CONFIG, GREEN, GREY, plotly_script
from autocompress.figures.trade_off import beyond_view, hover_text, plot_objectives, plot_trade_off

__all__ = [
    "BITS_COLOR",
    "FIGURES",
    "FIGURE_CONFIG",
    "GREEN",
    "GREY",
    "beyond_view",
    "compare_figure",
    "hover_text",
    "plot_budget",
    "plot_curve",
    "plot_hypervolume",
    "plot_importance",
    "plot_layer_costs",
    "plot_layers",
    "plot_objectives",
    "plot_parallel",
    "plot_trade_off",
    "plotly_script",
    "point_figure",
    "study_figure",
]
