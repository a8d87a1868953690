"""One HTML file that tells what a study found: figures, the tables behind them, and where the numbers came from.

Everything is inside the file and its content security policy forbids every request; scripts are allowed by
their hash alone. This module gathers words and numbers; `dashboards/report.html.jinja` is the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from autocompress import figures
from autocompress.errors import AutocompressError, ConstraintError
from autocompress.front.beliefs import belief_facts, belief_lines, why
from autocompress.front.choose import bounds_of, pick
from autocompress.front.explain import (
    ORIGINS,
    format_bytes,
    format_drop,
    format_duration,
    format_ms,
    is_latency_tie,
    is_share,
    made_of,
    metric_name,
    words,
)
from autocompress.front.hypervolume import metric_drop
from autocompress.front.summary import (
    FrontFacts,
    LayerRow,
    front_facts,
    front_hypervolume,
    layer_rows,
    loses_much,
    metric_direction,
)
from autocompress.records import FrontPoint, StudyRecord, TrialRecord, TrialState
from autocompress.resources import resource

_MAX_REASONS = 12
_UNFINISHED = (TrialState.STOPPED, TrialState.INFEASIBLE, TrialState.FAILED)


def render_report(study: StudyRecord, trials: Sequence[TrialRecord]) -> str:
    """The whole report as HTML, which works offline and asks for nothing.

    Args:
        study: as the store gives it; without a baseline or a front the page says so.
        trials: all trials of the study, in any order.
    Raises:
        UsageError: the templates are missing from the installation.
    """
    folder = resource("dashboards")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "duration": format_duration, "ms": format_ms}
    facts = front_facts(study, trials)
    scripts = [
        _script_text(figures.plotly_script()),
        _script_text(_joined(folder, "cloud.js", "plots.js", "report.js")),
    ]
    beliefs = belief_facts(trials, facts.baseline, direction=facts.direction, objectives=facts.objectives)
    rows = _front_rows(study, facts, {trial.trial: trial for trial in trials})
    chosen = _knee(study, facts)
    points = _points_data(study, facts, {trial.trial: trial for trial in trials})
    html: str = environment.get_template("report.html.jinja").render(
        study=study,
        facts=facts,
        headline=_headline(study, facts, chosen),
        unmet=_unmet(study, facts),
        metric=metric_name(facts.metric),
        hypervolume={
            s: front_hypervolume(
                facts.front, facts.baseline, direction=facts.direction, split=s, objectives=facts.objectives
            )
            for s in ("val", "test")
        },
        rows=rows,
        origins={name: text for name, text in ORIGINS.items() if name in {row["origin"] for row in rows}},
        has_intervals=any(row["val"] and row["val"]["interval"] for row in rows),
        chosen=next((row for row in rows if chosen and row["trial"] == chosen.trial), None),
        beyond=figures.beyond_view(facts),
        layers=points["layers"],
        counts=Counter(str(trial.state) for trial in trials),
        unfinished=_reasons(trials),
        beliefs=beliefs,
        belief_lines=belief_lines(beliefs),
        data=Markup(
            _json(
                {
                    "config": figures.FIGURE_CONFIG,
                    "bit_colors": figures.BITS_COLOR,
                    "share_colors": {"kept": figures.GREEN, "gone": figures.GREY},
                    "figures": _figures(study, facts, chosen, trials),
                    **points,
                }
            )
        ),
        policy=_policy(scripts),
        style=Markup("".join((folder / name).read_text(encoding="utf-8") for name in ("base.css", "report.css"))),
        scripts=[Markup(text) for text in scripts],
    )
    return html


def _knee(study: StudyRecord, facts: FrontFacts) -> FrontPoint | None:
    """The point shown first: the knee, the baseline only if there is nothing else."""
    if facts.baseline is None or not facts.front:
        return None
    compressed = [point for point in facts.front if point.origin != "baseline"]
    direction, objectives = metric_direction(study), study.objectives
    try:
        return pick(compressed or facts.front, facts.baseline, direction=direction, objectives=objectives)
    except AutocompressError:
        return None


def _unmet(study: StudyRecord, facts: FrontFacts) -> str:
    """That no point is within the study's bounds, and which is the nearest; empty if one is, or if there are none."""
    if facts.baseline is None or not facts.front:
        return ""
    try:
        pick(facts.front, facts.baseline, direction=facts.direction, objectives=facts.objectives, **bounds_of(study))
    except ConstraintError as error:
        return str(error)
    return ""


def _headline(study: StudyRecord, facts: FrontFacts, chosen: FrontPoint | None) -> str:
    if facts.baseline is None:
        return "No baseline yet: the budget ended, or the study was interrupted, before the dense model was measured."
    if chosen is None:
        return "No front yet: no trial has been trained and measured."
    if chosen.origin == "baseline":
        return "Nothing was found that beats the dense model."
    text = words(chosen, facts.baseline, direction=metric_direction(study))
    return f"{text[0].upper()}{text[1:]}."


def _front_rows(study: StudyRecord, facts: FrontFacts, trials: dict[int, TrialRecord]) -> list[dict[str, Any]]:
    base, rows = facts.baseline, []
    for point in facts.front:
        drops = {
            split: metric_drop(value, reference, direction=facts.direction)
            for split in ("val", "test")
            if base and (value := getattr(point, split)) is not None and (reference := getattr(base, split)) is not None
        }
        rows.append(
            {
                "trial": point.trial,
                "origin": point.origin,
                "point": point,
                "val": _value(point.val, point.val_ci, facts.metric),
                "test": _value(point.test, point.test_ci, facts.metric),
                "drops": {split: _change(drop, facts) for split, drop in drops.items()},
                "lossy": bool(base and loses_much(point, base, direction=facts.direction)),
                "tie": is_latency_tie(point) and point.origin != "baseline",
                "size_factor": base.size_bytes / point.size_bytes if base else None,
                "words": words(point, base, direction=facts.direction) if base else "",
                "plan": made_of(point),
                "why": why(trials[point.trial], direction=facts.direction),
            }
        )
    return rows


def _change(drop: float, facts: FrontFacts) -> str:
    """A drop told with its sign: "0.29 points gained"."""
    return f"{format_drop(abs(drop), direction=facts.direction)} {'gained' if drop < 0 else 'lost'}"


def _value(value: float | None, ci: tuple[float, float] | None, metric: str) -> dict[str, str] | None:
    """A metric as text, with its interval where it has one; percent for shares."""
    if value is None:
        return None
    shown = "{:.1%}" if is_share(metric) else "{:.4g}"
    span = " to ".join(shown.format(end) for end in ci) if ci else ""
    return {"value": shown.format(value), "interval": span}


def _points_data(study: StudyRecord, facts: FrontFacts, trials: dict[int, TrialRecord]) -> dict[str, Any]:
    """What the page needs to switch between front points: layers once, then a few numbers per point."""
    if study.facts is None:
        return {"layers": [], "points": []}
    tables = [(point, layer_rows(study.facts, trials[point.trial])) for point in facts.front]
    layers: Sequence[LayerRow] = tables[0][1] if tables else []
    points = [
        {
            "trial": point.trial,
            "kept": [row.kept for row in rows],
            "bits": [row.bits for row in rows],
            "blocks": [row.block for row in rows],
            "ranks": [row.rank for row in rows],
        }
        for point, rows in tables
    ]
    return {
        "layers": [
            {"name": row.name, "kind": row.kind, "group": row.group or "", "channels": row.channels, "skip": row.skip}
            for row in layers
        ],
        "points": points,
    }


def _figures(
    study: StudyRecord, facts: FrontFacts, chosen: FrontPoint | None, trials: Sequence[TrialRecord]
) -> dict[str, Any]:
    drawn = {"budget": figures.plot_budget(facts)} if facts.study_s or facts.trial_s else {}
    if facts.baseline and facts.points:
        drawn |= {
            "size": figures.plot_trade_off(facts, "size"),
            "latency": figures.plot_trade_off(facts, "latency"),
            "objectives": figures.plot_objectives(facts),
            "hypervolume": figures.plot_hypervolume(facts),
        }
    if chosen and study.facts and study.facts.layers:
        trial = next(t for t in trials if t.trial == chosen.trial)
        drawn["layers"] = figures.plot_layers(layer_rows(study.facts, trial))
    return {name: json.loads(figure.to_json()) for name, figure in drawn.items()}


def _reasons(trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Per way of not finishing: how many, and the commonest reasons with an example each."""
    groups = []
    for state in _UNFINISHED:
        of_state = [trial for trial in trials if trial.state == state]
        counts = Counter(trial.reason or "no reason was recorded" for trial in of_state)
        example = {trial.reason or "no reason was recorded": trial.trial for trial in reversed(of_state)}
        common = [(reason, count, example[reason]) for reason, count in counts.most_common(_MAX_REASONS)]
        if of_state:
            groups.append(
                {"state": str(state), "count": len(of_state), "reasons": common, "more": len(counts) - len(common)}
            )
    return groups


def _joined(folder: Path, *names: str) -> str:
    """Modules of the dashboard as one script: what they say to each other across files is left out."""
    text = "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
    return re.sub(r"^export (?=\w)", "", re.sub(r"^import .*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)


def _script_text(source: str) -> str:
    """Script that can stand in HTML: line ends as the parser will see them, and no end tag inside."""
    return source.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _json(data: Any) -> str:
    """JSON that can stand in a script element; all of its text comes from names and reasons of the user."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing may be requested, only these scripts run; plotly writes style elements, and images to download."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )
