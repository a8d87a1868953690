"""Our records and Optuna's tables after a crash at every point between them."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
from example_study import FACTS, example_record, example_trial
from optuna.trial import TrialState as OptunaState

from autocompress.config import StudyConfig, load_config
from autocompress.plan import CompressionPlan
from autocompress.records import Cascade, TrialRecord, TrialState
from autocompress.search.knob_sampler import KnobSampler
from autocompress.space.search_space import SearchSpace
from autocompress.study.ledger import Ledger
from autocompress.study.store import StudyStore


@pytest.fixture
def config() -> StudyConfig:
    return load_config({}, name="digits")


@pytest.fixture
def space(config: StudyConfig) -> SearchSpace:
    return SearchSpace(config=config.space, facts=FACTS)


@pytest.fixture
def store(tmp_path):
    with StudyStore(tmp_path) as opened:
        opened.create(example_record())
        yield opened


@pytest.fixture
def reopen(store, config, space):
    """The ledger as a new process finds it, given what our tables hold."""

    def open_ledger() -> Ledger:
        known = store.trials("digits")
        sampler = KnobSampler(space, inner=optuna.samplers.TPESampler(seed=len(known)), seed=len(known))
        return Ledger(store, config, space, known, direction="maximize", sampler=sampler)

    return open_ledger


def finish(store: StudyStore, ledger: Ledger, record: TrialRecord, asked: optuna.Trial | None = None) -> None:
    store.add_trial("digits", record)
    ledger.tell(record, asked)


def searched(ledger: Ledger, space: SearchSpace, val: float = 0.9) -> tuple[optuna.Trial, TrialRecord]:
    asked = ledger.ask()
    return asked, replace(example_trial(asked.number, val, 500, 0.5), plan=space.decode(asked.params))


def optuna_trials(store: StudyStore) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="digits", storage=f"sqlite:///{store.path}").trials


@pytest.fixture
def started(store, reopen):
    """A study with its baseline and one anchor."""
    ledger = reopen()
    finish(store, ledger, example_trial(0, 0.98, 1000, 1.0, origin="baseline", plan=CompressionPlan()))
    anchor = ledger._space.sweep("uint8")[0][1]
    finish(store, ledger, example_trial(1, 0.97, 300, 0.6, origin="anchor", plan=anchor))
    return ledger


def agrees(store: StudyStore) -> None:
    ours, theirs = store.trials("digits"), optuna_trials(store)
    assert [t.trial for t in ours] == [t.number for t in theirs]
    assert all(t.state.is_finished() for t in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.user_attrs["state"] == str(mine.state)
        assert other.user_attrs["origin"] == mine.origin
        if mine.state is TrialState.COMPLETE:
            assert other.values == [
                mine.measurement.val,
                mine.measurement.size_bytes,
                mine.measurement.latency.latency_ms,
            ]


def test_what_was_told_is_what_optuna_holds(store, started, space):
    finish(store, started, *reversed(searched(started, space)))
    agrees(store)
    baseline, anchor, search = optuna_trials(store)
    assert baseline.params == {}
    assert set(anchor.params) == set(search.params) == set(space.raw())
    assert "plan" in baseline.user_attrs
    assert "plan" not in search.user_attrs, "its parameters say it"
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{store.path}")
    assert study.metric_names == ["accuracy", "size", "latency"]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]


def test_a_cascade_is_a_result_without_a_plan_that_a_sampler_could_learn_from(store, started, reopen, space):
    cascade = Cascade(first=0, second=1, threshold=0.9, passed_on=0.2, second_plan=CompressionPlan())
    record = example_trial(2, 0.975, 200, 0.3, origin="cascade", cascade=cascade, plan=space.sweep("uint8")[0][1])
    finish(store, started, record)
    agrees(store)
    assert store.trials("digits")[2] == record
    told = optuna_trials(store)[2]
    assert (told.params, "plan" in told.user_attrs, told.values[1]) == ({}, False, 200)
    assert reopen().ask().number == 3


@pytest.mark.parametrize(
    ("state", "theirs"),
    [
        (TrialState.STOPPED, OptunaState.PRUNED),
        (TrialState.INFEASIBLE, OptunaState.PRUNED),
        (TrialState.FAILED, OptunaState.FAIL),
    ],
)
def test_every_other_end_has_its_state_and_reason(store, started, space, state, theirs):
    asked, record = searched(started, space)
    measured = replace(record.measurement, val=None)
    finish(store, started, replace(record, state=state, reason="because", measurement=measured, artifact=None), asked)
    last = optuna_trials(store)[-1]
    assert last.state is theirs
    assert last.user_attrs["reason"] == "because"
    assert last.user_attrs["size_and_latency"] == [500.0, pytest.approx(0.15)]


def test_nothing_to_do_when_nothing_happened(store, started, reopen):
    assert reopen().reconcile(store.trials("digits")) == []
    agrees(store)


def test_a_crash_while_a_trial_ran_is_a_failed_trial_with_its_plan(store, started, reopen, space):
    asked = started.ask()
    ledger = reopen()
    (lost,) = ledger.reconcile(store.trials("digits"))
    assert (lost.trial, lost.state) == (2, TrialState.FAILED)
    assert lost.reason == "the search was interrupted while it ran"
    assert lost.plan == space.decode(asked.params)
    store.add_trial("digits", lost)
    agrees(store)
    assert ledger.next_number == 3
    assert ledger.reconcile(store.trials("digits")) == []


def test_a_crash_between_our_record_and_optuna_s_keeps_the_result_of_a_search_trial(store, started, reopen, space):
    asked, record = searched(started, space, val=0.91)
    store.add_trial("digits", record)
    assert reopen().reconcile(store.trials("digits")) == []
    agrees(store)
    assert optuna_trials(store)[2].values[0] == 0.91
    assert set(asked.params) == set(optuna_trials(store)[2].params)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED])
def test_a_crash_between_our_record_and_optuna_s_keeps_a_trial_of_our_own_making(store, started, reopen, state):
    plan = started._space.sweep("float")[1][1]
    store.add_trial("digits", example_trial(2, 0.9, 200, 0.5, origin="anchor", plan=plan, state=state))
    ledger = reopen()
    assert ledger.reconcile(store.trials("digits")) == []
    agrees(store)
    assert ledger.next_number == 3


def test_a_crash_before_optuna_knew_the_baseline_brings_it_in(store, reopen):
    store.add_trial("digits", example_trial(0, 0.98, 1000, 1.0, origin="baseline", plan=CompressionPlan()))
    ledger = reopen()
    assert ledger.next_number == 0
    assert ledger.reconcile(store.trials("digits")) == []
    agrees(store)


def test_a_resumed_study_proposes_something_else(store, started, reopen):
    first = started.ask().params
    second = reopen().ask().params
    assert first != second


def test_two_objectives_leave_the_third_out(tmp_path):
    config = load_config({"search": {"objectives": ["accuracy", "latency"]}}, name="digits")
    with StudyStore(tmp_path) as store:
        store.create(example_record(objectives=("accuracy", "latency")))
        space = SearchSpace(config=config.space, facts=FACTS)
        ledger = Ledger(store, config, space, [], direction="minimize", sampler=optuna.samplers.RandomSampler())
        finish(store, ledger, example_trial(0, 0.98, 1000, 1.0, origin="baseline", plan=CompressionPlan()))
        (trial,) = optuna_trials(store)
        assert trial.values == [0.98, pytest.approx(0.3)]
        study = optuna.load_study(study_name="digits", storage=f"sqlite:///{store.path}")
        assert [d.name for d in study.directions] == ["MINIMIZE", "MINIMIZE"]


def test_a_full_disk_under_optuna_is_one_sentence_too(store, started, reopen, monkeypatch):
    import sqlite3

    from autocompress.errors import UsageError

    def full(*_arguments, **_options):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        try:
            raise error
        except sqlite3.Error as cause:
            raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from cause

    monkeypatch.setattr(started._study, "ask", full)
    with pytest.raises(UsageError, match=r"the disk of .* is full; free some space"):
        started.ask()


def test_a_sweep_counts_as_the_first_generation_of_nsga2(store, config, space):
    sampler = optuna.samplers.NSGAIISampler(population_size=4, seed=0)
    ledger = Ledger(store, config, space, [], direction="maximize", sampler=sampler)
    finish(store, ledger, example_trial(0, 0.98, 1000, 1.0, origin="baseline", plan=CompressionPlan()))
    for number, (_, plan) in enumerate(space.sweep("uint8")[:4], start=1):
        finish(store, ledger, example_trial(number, 0.97, 300, 0.6, origin="anchor", plan=plan))
    asked = ledger.ask()
    generations = [t.system_attrs.get("NSGAIISampler:generation") for t in optuna_trials(store)]
    assert generations[:5] == [None, 0, 0, 0, 0]
    assert generations[asked.number] == 1, "the sweep's plans are its parents"
