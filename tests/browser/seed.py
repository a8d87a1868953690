"""A workspace with studies in every state, made up from the builders of the front's tests: no engine, no torch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from front_factories import BASELINE, make_facts, make_study, make_trial, make_trials

from autocompress.config import load_config
from autocompress.front.hypervolume import metric_drop
from autocompress.plan import CompressionPlan
from autocompress.records import Cascade, FactorFacts, ModelFacts, StudyState, TrialRecord, TrialState
from autocompress.study.store import StudyStore

MANY = 10_000
FACTORED = "layer3.1.conv1"


def seed(workspace: Path, *, many: int = 0) -> None:
    """Write `digits` and `digits-sweep` (finished), `early` (interrupted), `bare` (no dense model), maybe `large`.

    And `joined`, with layers of low rank and a cascade.
    """
    with StudyStore(workspace) as store:
        for name, count, at, fields in (
            ("digits", 90, 0, {}),
            ("digits-sweep", 40, 1, {"spent_s": 117.1, "created": "2026-01-02T05:00:00+00:00"}),
            ("early", 7, 2, {"state": StudyState.INTERRUPTED, "spent_s": 41.0, "created": "2026-01-03T08:00:00+00:00"}),
        ):
            _write(store, name, [_told(t) for t in make_trials(count, at)], **fields)
        _write(store, "bare", [], baseline=None, facts=None, state=StudyState.FAILED, spent_s=12.0,
               created="2026-01-03T09:00:00+00:00", durations_s={},
               message="the budget ended before the dense model was measured; give it more with --budget")  # fmt: skip
        _write(store, "joined", joined_trials(), facts=factored_facts(), created="2026-01-02T06:00:00+00:00")
        if many:
            _write(store, "large", make_trials(many, 3), budget_s=28800.0, spent_s=28700.0,
                   created="2026-01-01T00:00:00+00:00")  # fmt: skip


def _write(store: StudyStore, name: str, trials: list[TrialRecord], **fields: object) -> None:
    tables = {"model": {"factory": "resnet20"}, "data": {"factory": "digits"}, "search": {"budget": "2m"}}
    config = load_config(tables, name=name)
    store.create(make_study(name=name, config=config.model_dump(mode="json"), config_hash=config.digest(), **fields))
    store.add_trials(name, trials)


def factored_facts() -> ModelFacts:
    """The usual network, one layer of which may be factored."""
    facts = make_facts()
    layers = [
        replace(layer, in_channels=layer.out_channels, factors=FactorFacts(taps=3)) if layer.name == FACTORED else layer
        for layer in facts.layers
    ]
    return replace(facts, layers=tuple(layers))


def joined_trials() -> list[TrialRecord]:
    """Some trials, all of which factor that layer; a cascade of 2 and 1; and why there is no other one."""
    trials = [
        trial if trial.origin == "baseline" else replace(trial, plan=replace(trial.plan, rank_ratio={FACTORED: 0.5}))
        for trial in make_trials(30, 4)
    ]
    cascade = Cascade(first=2, second=1, threshold=0.7, passed_on=0.12, second_plan=trials[1].plan, samples=180)
    joined = make_trial(30, 0.975, 150_000, 0.1, test=0.97, origin="cascade", cascade=cascade, plan=trials[2].plan)
    ended = replace(joined, trial=31, state=TrialState.STOPPED, plan=CompressionPlan(), measurement=None, cascade=None,
                    artifact=None, reason="none of 28 ways to join two results keeps the bounds")  # fmt: skip
    return [*trials, joined, ended]


def _told(trial: TrialRecord) -> TrialRecord:
    """With what the search believed, and the curve of its training."""
    measured = trial.measurement
    if trial.origin in ("baseline", "anchor") or measured is None:
        return trial
    lost = 0.0 if measured.val is None else metric_drop(measured.val, BASELINE.val)
    belief = {
        "drop": max(0.0, lost + 0.002 * math.sin(trial.trial)),
        "sd": 0.003,
        "size_ratio": measured.size_bytes / BASELINE.size_bytes * (1 + 0.01 * math.cos(trial.trial)),
        "latency_ratio": measured.latency.ratio * (1 + 0.05 * math.sin(trial.trial)),
        "gain": 0.012 / (1 + trial.trial),
        "source": ("solver", "change of a trained plan")[trial.trial % 2],
    }
    curve = tuple((round(0.1 * i, 1), round(0.08 + 1.9 * math.exp(-i / 5) + 0.01 * math.sin(i), 4)) for i in range(24))
    trained = trial.state is TrialState.COMPLETE
    rung = lost + 0.03 if trial.state is TrialState.STOPPED and trial.trial % 3 == 0 else None
    return replace(
        trial, belief=belief, learning_curve=curve if trained else (), trained_s=2.3 if trained else 0.0,
        trained_samples=11_000 if trained else 0, rung_drop=rung,
    )  # fmt: skip
