"""What the last stage trains further: the trial that is expected to add most."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress.plan import CompressionPlan
from autocompress.records import Latency, Measurement, TrialRecord, TrialState
from autocompress.search.stopping import Constraints, Rival
from autocompress.study import finalise
from autocompress.study.finalise import candidates, soups
from autocompress.study.requests import Examination
from autocompress.study.variants import Variant


def rival(number: int, drop: float, size: float, latency: float) -> Rival:
    return Rival(trial=number, plan=CompressionPlan(), drop=drop, size_ratio=size, latency_ratio=latency)


FRONT = [rival(1, 0.01, 0.2, 0.5), rival(2, 0.06, 0.1, 0.2), rival(3, 0.02, 0.3, 0.6)]


def test_a_file_beyond_a_bound_is_not_trained_further(monkeypatch):
    """Trial 1 has the best prospect and 900 bytes; no training makes it smaller."""
    plans = [CompressionPlan(prune_ratio={"a": ratio}, weight_bits={"a": 4}) for ratio in (0.5, 0.25)]
    rivals = [replace(rival(1, 0.02, 0.2, 0.3), plan=plans[0]), replace(rival(2, 0.03, 0.3, 0.5), plan=plans[1])]
    monkeypatch.setattr(finalise, "_variants_s", lambda _: 0.0)
    driver, _ = driver_of(rivals, seconds=60.0, monkeypatch=monkeypatch)
    driver.schedule = SimpleNamespace(train_s=2.0, final_s=30.0)
    timed = Latency(latency_ms=1.0, ratio=0.5, ratio_ci=(0.5, 0.5), blocks=1)
    driver.trials = [
        replace(
            trial,
            equivalent_s=2.0,
            measurement=Measurement(val=0.9, size_bytes=size, compressed_bytes=size, latency=timed, params=1, macs=1),
        )
        for trial, size in zip(driver.trials, (900, 500), strict=True)
    ]
    assert finalise._next_to_train(driver)[0].trial == 1
    driver.constraints = Constraints(max_size=600)
    assert finalise._next_to_train(driver)[0].trial == 2
    driver.constraints = Constraints(max_latency=0.5)
    assert finalise._next_to_train(driver) is None


def test_a_goal_is_met_by_one_training_that_has_all_the_time(monkeypatch):
    """For a front no training is longer than eight of a trial's, and some of the time is for other roundings."""
    plans = [CompressionPlan(prune_ratio={"a": ratio}, weight_bits={"a": 4}) for ratio in (0.5, 0.25)]
    rivals = [replace(rival(1, 0.04, 0.05, 0.3), plan=plans[0]), replace(rival(2, 0.06, 0.04, 0.2), plan=plans[1])]
    driver, _ = driver_of(rivals, seconds=101.0, monkeypatch=monkeypatch)
    driver.schedule = SimpleNamespace(train_s=2.0, final_s=50.0)
    driver.config = SimpleNamespace(search=SimpleNamespace(sampler="front"))
    driver.trials = [replace(trial, equivalent_s=2.0) for trial in driver.trials]
    longest = {}
    for name, bounds in (
        ("front", Constraints()),
        ("drop alone", Constraints(max_drop=0.008)),
        ("size alone", Constraints(max_size=900)),
        ("goal", Constraints(max_drop=0.008, max_size=900)),
    ):
        driver.constraints = bounds
        parent, longest[name] = finalise._next_to_train(driver)
        assert parent.trial == 1 if name == "goal" else parent.trial in (1, 2)
    assert max(longest["front"], longest["drop alone"], longest["size alone"]) <= 16.0
    assert longest["goal"] == pytest.approx(99.0, abs=1.0)


@pytest.mark.parametrize(
    ("gains", "over"), [((0.2, 0.1, 0.1), False), ((0.2, 1e-5, 1e-5, 1e-5), True), ((1e-5,), False)]
)
def test_the_search_is_over_when_its_time_is_worth_more_in_the_last_stage(monkeypatch, gains, over):
    plans = [CompressionPlan(prune_ratio={"a": ratio}, weight_bits={"a": 4}) for ratio in (0.5, 0.25)]
    rivals = [replace(rival(1, 0.02, 0.2, 0.3), plan=plans[0]), replace(rival(2, 0.03, 0.1, 0.5), plan=plans[1])]
    monkeypatch.setattr(finalise, "_variants_s", lambda _: 0.0)
    driver, _ = driver_of(rivals, seconds=20.0, monkeypatch=monkeypatch)
    driver.schedule = SimpleNamespace(train_s=2.0, final_s=30.0)
    driver.trial_s = 2.0
    trained = [replace(t, equivalent_s=2.0) for t in driver.trials]
    proposed = [
        replace(trained[0], trial=3 + i, origin="search", belief={"gain": gain}) for i, gain in enumerate(gains)
    ]
    driver.trials = [*trained, *proposed]
    assert finalise.is_time(driver) is over
    driver.trials = trained
    assert not finalise.is_time(driver), "a sampler that believes nothing has its time"


def test_the_search_is_over_when_none_of_its_last_proposals_was_trained(monkeypatch):
    """Whatever is expected of the next one: the rule that stopped ten in a row will stop it as well."""
    driver, _ = driver_of([], seconds=60.0, monkeypatch=monkeypatch)
    driver.schedule = SimpleNamespace(train_s=2.0, final_s=30.0)
    driver.trial_s = 2.0
    monkeypatch.setattr(finalise, "_variants_s", lambda _: 0.0)
    ended = [TrialState.COMPLETE, *[TrialState.STOPPED] * 9, TrialState.INFEASIBLE]
    driver.trials = [
        TrialRecord(trial=i, state=state, plan=CompressionPlan(), origin="search", belief={"gain": 0.5})
        for i, state in enumerate(ended)
    ]
    assert finalise.is_time(driver)
    driver.trials = driver.trials[:-1]
    assert not finalise.is_time(driver)


def growing(monkeypatch, *, trial_s: float = 2.4, gain: float = 1e-4, without: tuple[str, ...] = ()) -> Any:
    """A driver whose trials will be trained for 12 s; trial 1 adds more than trial 2 when it is trained longer."""
    plans = [CompressionPlan(prune_ratio={"a": ratio}, weight_bits={"a": 4}) for ratio in (0.5, 0.25)]
    rivals = [replace(rival(1, 0.04, 0.1, 0.3), plan=plans[0]), replace(rival(2, 0.02, 0.3, 0.5), plan=plans[1])]
    driver, _ = driver_of(rivals, seconds=500.0, monkeypatch=monkeypatch)
    driver.schedule, driver.trial_s = SimpleNamespace(train_s=12.0, final_s=100.0), trial_s
    driver.config = SimpleNamespace(search=SimpleNamespace(without=without))
    trained = [replace(t, equivalent_s=2.45) for t in driver.trials]
    driver.trials = [*trained, *(replace(t, trial=3 + i, belief={"gain": gain}) for i, t in enumerate(3 * trained[:1]))]
    return driver


def test_a_trial_is_trained_longer_when_that_promises_more_than_the_next_proposal(monkeypatch):
    assert finalise.to_train_longer(growing(monkeypatch)).trial == 1
    assert finalise.to_train_longer(growing(monkeypatch, gain=0.5)) is None
    unsure = growing(monkeypatch)
    unsure.trials = unsure.trials[:4]
    assert finalise.to_train_longer(unsure) is None, "two proposals say little of the next one"


def test_no_trial_is_trained_longer_twice_whatever_came_of_it(monkeypatch):
    driver = growing(monkeypatch)
    failed = TrialRecord(trial=9, state=TrialState.FAILED, plan=driver.trials[0].plan, origin="longer", parent=1)
    driver.trials = [*driver.trials, failed]
    assert finalise.to_train_longer(driver).trial == 2


@pytest.mark.parametrize("case", [{"trial_s": 12.0}, {"trial_s": 2.0}, {"without": ("ladder",)}])
def test_none_is_where_trials_have_their_full_length_or_have_had_more_than_new_ones(monkeypatch, case):
    assert finalise.to_train_longer(growing(monkeypatch, **case)) is None


def test_the_front_is_looked_at_in_the_order_of_what_each_contributes():
    assert candidates(FRONT) == [1, 2]


def test_what_is_better_than_the_dense_network_is_looked_at_though_it_adds_no_hypervolume():
    front = [rival(1, 0.0, 0.2, 0.5), rival(2, -0.01, 0.3, 0.6), rival(3, 0.0, 0.3, 0.6)]
    assert candidates(front) == [1, 2]


def shaped(number: int, drop: float, ratio: float, bits: int = 4, size: float = 0.2) -> Rival:
    plan = CompressionPlan(prune_ratio={"a": ratio}, weight_bits={"a": bits})
    return Rival(trial=number, plan=plan, drop=drop, size_ratio=size, latency_ratio=0.5)


def test_networks_of_one_shape_that_are_about_as_good_make_a_soup_the_best_first():
    """Trial 3 is worse by 2 points, trial 4 has another width, and how weights are rounded does not matter."""
    alike = [
        shaped(1, 0.012, 0.5),
        shaped(2, 0.010, 0.5, bits=3),
        shaped(3, 0.030, 0.5),
        shaped(4, 0.001, 0.25, size=0.3),
    ]
    assert [[r.trial for r in members] for members in soups(alike)] == [[2, 1]]


def test_networks_with_factors_are_not_averaged():
    """Each training factors a layer along directions of its own."""
    alike = [shaped(1, 0.012, 0.5), shaped(2, 0.010, 0.5)]
    factored = [replace(r, plan=replace(r.plan, rank_ratio={"a": 0.5})) for r in alike]
    assert soups(alike) != []
    assert soups(factored) == []


def test_nothing_is_averaged_without_a_point_of_the_front():
    behind = [shaped(1, 0.02, 0.5), shaped(2, 0.02, 0.5)]
    ahead = Rival(trial=9, plan=CompressionPlan(), drop=0.0, size_ratio=0.1, latency_ratio=0.1)
    assert soups([*behind, ahead]) == []


def driver_of(rivals: list[Rival], *, seconds: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """What the two functions below need of a driver, and the trials that it is asked to evaluate."""
    asked: list[Any] = []
    monkeypatch.setattr(finalise, "_reserve_s", lambda _: 1.0)
    driver = SimpleNamespace(
        trials=[TrialRecord(trial=r.trial, state=TrialState.COMPLETE, plan=r.plan) for r in rivals],
        rivals=lambda: iter(rivals), believed_rivals=lambda: list(rivals), overhead_s=lambda: 1.0, drop_noise=0.001,
        at_limit=False, constraints=Constraints(), end=time.monotonic() + seconds,
        say=lambda _: None, evaluate=lambda plan, **more: asked.append((plan, more)),
    )  # fmt: skip
    return driver, asked


def test_a_soup_is_asked_for_with_all_its_members_and_only_while_there_is_time(monkeypatch):
    alike = [shaped(1, 0.012, 0.5), shaped(2, 0.010, 0.5, bits=3)]
    driver, asked = driver_of(alike, seconds=60.0, monkeypatch=monkeypatch)
    finalise._make_soups(driver)
    ((plan, more),) = asked
    assert (plan, more["origin"], more["parent"].trial) == (alike[1].plan, "soup", 2)
    assert [t.trial for t in more["soup"]] == [2, 1]
    driver, asked = driver_of(alike, seconds=1.5, monkeypatch=monkeypatch)
    finalise._make_soups(driver)
    assert asked == []


@pytest.mark.parametrize(("seconds", "fresh"), [(60.0, 3), (5.5, 1), (3.4, 0)])
def test_where_time_runs_out_the_front_gets_its_test_values_and_keeps_its_latencies(monkeypatch, seconds, fresh):
    """Looking takes a second each, timing a promised 1.75 s that turn out to be 3 s."""
    now, asked = [100.0], []
    monkeypatch.setattr(finalise, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(finalise, "_test_s", lambda _: 1.0)
    old = Latency(latency_ms=1.0, ratio=0.5, ratio_ci=(0.5, 0.5), blocks=1)
    front = [
        TrialRecord(
            trial=i, state=TrialState.COMPLETE, plan=CompressionPlan(prune_ratio={"a": 0.1 * i}), artifact=f"{i}.onnx",
            measurement=Measurement(val=0.9, size_bytes=9, compressed_bytes=9, latency=old, params=1, macs=1),
        )
        for i in (1, 2, 3)
    ]  # fmt: skip
    dense = replace(front[0], trial=0, plan=CompressionPlan(), origin="baseline")

    def look(_, artifact, *, timed=True):
        now[0] += 4.0 if timed else 1.0
        asked.append((artifact, timed))
        return Examination(test=0.8, latency=replace(old, latency_ms=0.7) if timed else None)

    monkeypatch.setattr(finalise, "_look", look)
    baseline = SimpleNamespace(test=0.9, artifact="dense.onnx")
    store = SimpleNamespace(study=lambda _: SimpleNamespace(baseline=baseline), add_trial=lambda *_: None)
    driver: Any = SimpleNamespace(
        trials=[dense, *front], store=store, config=SimpleNamespace(name="s"), end=now[0] + seconds, say=lambda _: None,
        source=SimpleNamespace(last_timing_s=1.0),
        rivals=lambda: [rival(0, 0.0, 1.0, 1.0), *(rival(i, 0.01 * i, 0.5 - 0.1 * i, 0.5) for i in (1, 2, 3))],
    )  # fmt: skip
    driver.trials[0] = replace(dense, measurement=replace(dense.measurement, test=0.9))
    finalise._examine(driver)
    seen = [t.measurement for t in driver.trials[1:]]
    assert [m.test for m in seen] == [0.8] * 3
    assert sum(m.latency.latency_ms == 0.7 for m in seen) == fresh
    assert [timed for _, timed in asked] == [True] * fresh + [False] * (3 - fresh)


def test_the_two_most_accurate_trained_networks_teach_along(monkeypatch):
    dense = Rival(trial=0, plan=CompressionPlan(), drop=0.0, size_ratio=1.0, latency_ratio=1.0)
    trained = [shaped(1, 0.03, 0.7), shaped(2, 0.01, 0.5), shaped(3, 0.02, 0.6)]
    driver, _ = driver_of([dense, *trained], seconds=60.0, monkeypatch=monkeypatch)
    assert [t.trial for t in finalise._teachers(driver)] == [2, 3]


def test_other_roundings_are_tried_from_their_parents_weights_while_there_is_time(monkeypatch):
    plan = CompressionPlan(prune_ratio={"a": 0.5}, weight_bits={"a": 2})
    found = iter([Variant(plan=plan, parent=1, gain=0.1), None])
    monkeypatch.setattr(finalise, "best_variant", lambda *_, **__: next(found))
    driver, asked = driver_of([shaped(1, 0.01, 0.5)], seconds=60.0, monkeypatch=monkeypatch)
    driver.config, driver.schedule, driver.space = config("front"), SimpleNamespace(train_s=4.0, final_s=30.0), None
    finalise._round_otherwise(driver)
    ((tried, more),) = asked
    assert (tried, more["origin"], more["parent"].trial, more["train_s"]) == (plan, "variant", 1, 2.0)
    assert next(found, "asked until there was none") == "asked until there was none"


@pytest.mark.parametrize(("sampler", "seconds"), [("sweep", 60.0), ("front", 3.5)])
def test_a_sweep_has_no_other_roundings_and_neither_has_a_study_without_time(monkeypatch, sampler, seconds):
    driver, asked = driver_of([shaped(1, 0.01, 0.5)], seconds=seconds, monkeypatch=monkeypatch)
    driver.config, driver.schedule, driver.space = config(sampler), SimpleNamespace(train_s=4.0, final_s=30.0), None
    monkeypatch.setattr(finalise, "best_variant", lambda *_, **__: pytest.fail("nothing is to be proposed"))
    finalise._round_otherwise(driver)
    assert asked == []


def config(sampler: str) -> Any:
    return SimpleNamespace(search=SimpleNamespace(sampler=sampler))
