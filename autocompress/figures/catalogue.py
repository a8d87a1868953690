"""Every figure by its name, as the service hands them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from autocompress.errors import NotFoundError
from autocompress.figures.choices import plot_importance, plot_parallel
from autocompress.figures.comparison import plot_fronts, plot_hypervolumes
from autocompress.figures.course import plot_budget, plot_hypervolume
from autocompress.figures.layers import plot_curve, plot_layer_costs
from autocompress.figures.trade_off import plot_objectives, plot_trade_off
from autocompress.front.summary import FrontFacts, front_facts
from autocompress.records import StudyRecord, TrialRecord

_OF_FACTS: dict[str, Callable[[FrontFacts], go.Figure]] = {
    "accuracy_size": lambda facts: plot_trade_off(facts, "size"),
    "accuracy_latency": lambda facts: plot_trade_off(facts, "latency"),
    "accuracy_3d": plot_objectives,
    "hypervolume": plot_hypervolume,
    "time": plot_budget,
}
FIGURES = (*_OF_FACTS, "parallel", "importance")
POINT_FIGURES: dict[str, Callable[[Mapping[str, Any]], go.Figure]] = {"layers": plot_layer_costs, "curve": plot_curve}
COMPARE_FIGURES: dict[str, Callable[[Mapping[str, Any]], go.Figure]] = {
    "accuracy_size": lambda document: plot_fronts(document, "size"),
    "accuracy_latency": lambda document: plot_fronts(document, "latency"),
    "hypervolume": plot_hypervolumes,
}


def study_figure(name: str, study: StudyRecord, trials: Sequence[TrialRecord], *, target: str = "loss") -> go.Figure:
    """A figure of a study.

    Args:
        name: one of `FIGURES`.
        target: of "importance": "loss", "size" or "latency".
    Raises:
        NotFoundError: no figure of this name.
        UsageError: an unknown target.
    """
    facts = front_facts(study, trials)
    if name in _OF_FACTS:
        return _OF_FACTS[name](facts)
    if name == "parallel":
        return plot_parallel(facts, trials, study.facts)
    if name == "importance":
        return plot_importance(facts, trials, study.facts, target=target)
    raise NotFoundError(f"no figure {name!r} of a study; there are {', '.join(FIGURES)}")


def point_figure(name: str, document: Mapping[str, Any]) -> go.Figure:
    """A figure of one trial, from `front.point.point_document`.

    Raises:
        NotFoundError: no figure of this name.
    """
    if name not in POINT_FIGURES:
        raise NotFoundError(f"no figure {name!r} of a trial; there are {', '.join(POINT_FIGURES)}")
    return POINT_FIGURES[name](document)


def compare_figure(name: str, document: Mapping[str, Any]) -> go.Figure:
    """A figure of several studies, from `front.compare.compare_document`.

    Raises:
        NotFoundError: no figure of this name.
    """
    if name not in COMPARE_FIGURES:
        raise NotFoundError(f"no figure {name!r} of a comparison; there are {', '.join(COMPARE_FIGURES)}")
    return COMPARE_FIGURES[name](document)
