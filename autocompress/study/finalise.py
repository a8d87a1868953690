"""The final stage: train the most promising artifacts longer, time the front afresh, look at test data once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from autocompress.front.hypervolume import contributions
from autocompress.front.pareto import non_dominated
from autocompress.plan import CompressionPlan
from autocompress.records import TrialRecord, TrialState
from autocompress.search.stopping import MIN_GAIN, Rival, points_of
from autocompress.search.worth import Goal, Worth, keeps, worth_beside
from autocompress.study.executors import WorkerBug, WorkerDied
from autocompress.study.last_trainings import Trainable, divide, prospect
from autocompress.study.requests import MOST_CASCADES, CascadeRequest, Examination
from autocompress.study.variants import best_variant

if TYPE_CHECKING:
    from autocompress.study.driver import Driver

_AT_LEAST = 3.0  # a final training is this much longer than a trial's, or it is not worth its overhead
_AT_MOST = 8.0  # so much longer, and another plan is trained as well: a front is of several
_MOST = 12
_RECENT = 3  # proposals, of which the mean of what was expected of them says what the next one will bring
_FRUITLESS = 10  # proposals in a row that were not trained: what was expected of them says nothing
_VARIANTS = 0.2  # of the last stage's time is for other roundings of what was trained
_VARIANT_TRAINING = 0.5  # of a trial's
_MARGIN_S = 1.0
_AS_LONG = 1.1  # of a trial's training: one that is asked for so long takes a moment more
_TEACHERS, _IN_SOUP = 2, 4
_ALIKE = 0.01  # a network that is worse by more spoils a soup
_TIMING = (1.25, 0.5)  # seconds to time one artifact: per second asked for, and to load it
_NOT_TEACHING = ("final", "cascade")
_IN_CASCADES = 12  # results of the front that cascades are made of
_CASCADE_S = 4.0  # for choosing, joining and timing one, beside what its parts and it are asked


def finalise(driver: Driver) -> None:
    """Spend what is left of the budget on the front, then measure it once more."""
    while not driver.at_limit and (chosen := _next_to_train(driver)) is not None:
        parent, seconds = chosen
        deadline = driver.end - _reserve_s(driver) - _variants_s(driver)
        driver.say(f"training trial {parent.trial} for another {seconds:.0f} s")
        driver.evaluate(
            parent.plan,
            origin="final",
            anchor=True,
            train_s=seconds,
            deadline=deadline,
            parent=parent,
            teachers=_teachers(driver) if driver.config.search.front_teacher else (),
        )
    if driver.config.search.soup:
        _make_soups(driver)
    _round_otherwise(driver)
    while driver.propose(driver.end - _reserve_s(driver)):  # time that is left when nothing is worth more training
        _round_otherwise(driver)
    _make_cascades(driver)
    _examine(driver)


def candidates(rivals: list[Rival]) -> list[int]:
    """Trials on the front by the hypervolume that only they contribute, most first."""
    if not rivals:
        return []
    points = points_of(rivals)
    order = np.argsort(-contributions(points), kind="stable")
    on_front = non_dominated(points)
    return [rivals[i].trial for i in order if on_front[i]]


def is_time(driver: Driver) -> bool:
    """Whether the time of one more proposal is expected to bring more in the last stage than the proposal would."""
    proposed = _proposed(driver)
    if len(proposed) < _RECENT:
        return False
    if len(proposed) >= _FRUITLESS and not any(t.state is TrialState.COMPLETE for t in proposed[-_FRUITLESS:]):
        return True
    (trainable, worth), left = _trainable(driver), _training_s(driver)
    shorter = left - driver.trial_s - driver.overhead_s()
    lost = _divide(driver, trainable, worth, left)[0] - _divide(driver, trainable, worth, shorter)[0]
    return lost > _promise(proposed)


def to_train_longer(driver: Driver) -> TrialRecord | None:
    """The trial that promises more than the next proposal does when it is trained for as long once more; None if none.

    Only while trials grow, and only those that had no more than new ones have: so there is early what a shorter search
    would end with. The rest is left to the last stage.
    """
    proposed, seconds = _proposed(driver), driver.trial_s
    grows = seconds < driver.schedule.train_s and "ladder" not in driver.config.search.without
    if not grows or len(proposed) < _RECENT:
        return None
    trainable, worth = _trainable(driver)
    done = {t.parent for t in driver.trials if t.origin == "longer"}
    found = {
        t.rival.trial: prospect(t, worth, seconds=seconds)
        for t in trainable
        if t.before_s <= _AS_LONG * seconds and t.rival.trial not in done
    }
    best = max(found, key=lambda number: found[number], default=None)
    if best is None or found[best] < max(MIN_GAIN, _promise(proposed)):
        return None
    return next(t for t in driver.trials if t.trial == best)


def _proposed(driver: Driver) -> list[TrialRecord]:
    """Trials of which the sampler believed something."""
    return [t for t in driver.trials if t.origin == "search" and t.belief]


def _promise(proposed: Sequence[TrialRecord]) -> float:
    """What the next proposal is expected to bring: as much as was expected of the last ones."""
    return fmean(float(t.belief["gain"]) for t in proposed[-_RECENT:])


def _next_to_train(driver: Driver) -> tuple[TrialRecord, float] | None:
    """The trial that is trained further next, and for how many seconds: its share of the time that is left."""
    (trainable, worth), left = _trainable(driver), _training_s(driver)
    _, count = _divide(driver, trainable, worth, left)
    if not count:
        return None
    seconds = min(_at_most_s(driver), left / count - driver.overhead_s())
    prospects = [prospect(trial, worth, seconds=seconds) for trial in trainable]
    best = int(np.argmax(prospects))
    if prospects[best] < MIN_GAIN:
        return None
    return next(t for t in driver.trials if t.trial == trainable[best].rival.trial), seconds


def _training_s(driver: Driver) -> float:
    """Seconds that the last trainings have, if they begin now."""
    return driver.end - _reserve_s(driver) - _variants_s(driver) - time.monotonic()


def _at_most_s(driver: Driver) -> float:
    """The longest last training: one of several for a front, or all there is for a goal."""
    return math.inf if driver.constraints.is_goal else _AT_MOST * driver.schedule.train_s


def _divide(driver: Driver, trainable: Sequence[Trainable], worth: Worth | Goal, seconds: float) -> tuple[float, int]:
    return divide(
        trainable,
        worth,
        seconds=seconds,
        beside_s=driver.overhead_s(),
        at_least_s=_AT_LEAST * driver.schedule.train_s,
        at_most_s=_at_most_s(driver),
        most=_MOST - sum(t.origin == "final" for t in driver.trials),
    )


def _trainable(driver: Driver) -> tuple[list[Trainable], Worth | Goal]:
    """Trials that are worth a look, and what there is as it is believed to be."""
    by_number = {t.trial: t for t in driver.trials}
    for_file = replace(driver.constraints, max_drop=None)  # no training makes a file smaller or faster
    rivals, finals = driver.believed_rivals(), [t for t in driver.trials if t.origin == "final"]
    files = {t.trial: t.measurement for t in driver.trials if t.measurement is not None}
    found = [
        Trainable(rival=r, before_s=before)
        for r in rivals
        if r.plan.trains
        and (before := by_number[r.trial].equivalent_s) > 0
        and not any(t.plan.same_as(r.plan) for t in finals)  # once more gains little, and others wait
        and keeps(r, files.get(r.trial), for_file)
    ]
    return found, worth_beside(rivals, files, driver.constraints, noise=driver.drop_noise)


def _teachers(driver: Driver) -> list[TrialRecord]:
    """The most accurate trained networks of the front before the last trainings: those teach along."""
    by_number = {t.trial: t for t in driver.trials}
    trained = [r for r in driver.believed_rivals() if by_number[r.trial].origin not in _NOT_TEACHING and r.plan.trains]
    return [by_number[r.trial] for r in sorted(trained, key=lambda r: (r.drop, r.trial))[:_TEACHERS]]


def _make_soups(driver: Driver) -> None:
    """Average the weights of trained networks of one shape, for each shape that the front has, as far as time goes."""
    for members in soups(_networks(driver)):
        needed = _reserve_s(driver) + driver.overhead_s()
        if driver.at_limit or time.monotonic() + needed > driver.end:
            return
        by_number = {t.trial: t for t in driver.trials}
        trials = [by_number[r.trial] for r in members]
        driver.say(f"averaging trials {', '.join(str(t.trial) for t in trials)}")
        driver.evaluate(trials[0].plan, origin="soup", anchor=True, deadline=driver.end, parent=trials[0], soup=trials)


def soups(rivals: list[Rival]) -> list[list[Rival]]:
    """Trained trials of one shape, the best first, that are about as good: what is worth averaging.

    Their plans may differ in how weights are rounded, which the float weights know nothing of. One on the front
    must be among them. Networks with factors are left out: two trainings factor one layer along different directions.
    """
    on_front = set(candidates(rivals))
    shapes: dict[str, list[Rival]] = {}
    for rival in rivals:
        plan = rival.plan
        if plan.trains and not any(ratio > 0 for ratio in plan.rank_ratio.values()):
            key = (sorted((g, r) for g, r in plan.prune_ratio.items() if r > 0), plan.removed_blocks, plan.importance)
            shapes.setdefault(repr(key), []).append(rival)
    found = []
    for alike in shapes.values():
        best = min(alike, key=lambda r: (r.drop, r.trial))
        near = sorted((r for r in alike if r.drop <= best.drop + _ALIKE), key=lambda r: (r.drop, r.trial))
        if len(near) > 1 and any(r.trial in on_front for r in near):
            found.append(near[:_IN_SOUP])
    return found


def _round_otherwise(driver: Driver) -> None:
    """Try other roundings of the front's networks, the most promising first, as far as time goes."""
    if driver.config.search.sampler == "sweep":
        return
    seconds = _VARIANT_TRAINING * driver.schedule.train_s
    while not driver.at_limit:
        deadline = driver.end - _reserve_s(driver)
        if time.monotonic() + seconds + driver.overhead_s() > deadline:
            return
        variant = best_variant(
            driver.space, driver.trials, _networks(driver), driver.constraints, noise=driver.drop_noise
        )
        if variant is None:
            return
        driver.say(f"rounding trial {variant.parent} otherwise")
        parent = next(t for t in driver.trials if t.trial == variant.parent)
        driver.evaluate(variant.plan, origin="variant", train_s=seconds, deadline=deadline, parent=parent)


def _variants_s(driver: Driver) -> float:
    """Seconds that are kept for other roundings: they lengthen a front, and seldom meet a goal."""
    needless = driver.config.search.sampler == "sweep" or driver.constraints.is_goal
    return 0.0 if needless else _VARIANTS * driver.schedule.final_s


def _make_cascades(driver: Driver) -> None:
    """Join results of the front in pairs, each stored as soon as it is made; they come on top of the allowed trials."""
    members = _parts(driver)
    deadline = driver.end - _examination_s(driver)
    while _cascades_left(driver):
        driver.say("joining results in cascades")
        record = _cascade(driver, members, deadline - _CASCADE_S - _look_s(driver))
        if record.cascade is not None:
            driver.finish(record)
            continue
        if not _tried(driver):  # else it says no more than that the others were the last
            driver.finish(record)
        return


def _cascade(driver: Driver, members: list[int], deadline: float) -> TrialRecord:
    """The next cascade of these trials, or a record that says why there is none."""
    by_number = {t.trial: t for t in driver.trials}
    request = CascadeRequest(
        trial=driver.ledger.next_number,
        members=tuple(by_number[number] for number in members),
        rivals=tuple(driver.rivals()),
        constraints=driver.constraints,
        joined=tuple((c.first, c.second) for t in _tried(driver) if (c := t.cascade) is not None),
        deadline=deadline,
    )
    try:
        driver.ensure_worker()
        record: TrialRecord = driver.worker.call("cascade", request, deadline=driver.end)
    except (WorkerDied, WorkerBug) as error:
        reason = str(error).strip().splitlines()[-1]
        return TrialRecord(
            trial=request.trial, state=TrialState.FAILED, plan=CompressionPlan(), origin="cascade", reason=reason
        )
    return record


def _parts(driver: Driver) -> list[int]:
    """Trials that cascades are made of."""
    return candidates(_networks(driver))[:_IN_CASCADES]


def _tried(driver: Driver) -> list[TrialRecord]:
    return [t for t in driver.trials if t.origin == "cascade"]


def _cascades_left(driver: Driver) -> int:
    """How many the study may still make; in a study that is resumed some are there already."""
    if not driver.config.search.cascade:
        return 0
    return max(0, MOST_CASCADES - sum(t.cascade is not None for t in _tried(driver)))


def _networks(driver: Driver) -> list[Rival]:
    """Every trained trial that is a network of its own."""
    joined = {t.trial for t in driver.trials if t.cascade is not None}
    return [r for r in driver.believed_rivals() if r.trial not in joined]


def _reserve_s(driver: Driver) -> float:
    """Seconds for what comes after the last trainings."""
    count = _cascades_left(driver)
    if not count:
        return _examination_s(driver)
    look_s = _look_s(driver)
    return _examination_s(driver) + count * (_CASCADE_S + look_s) + len(_parts(driver)) * look_s


def _examination_s(driver: Driver) -> float:
    """Seconds to examine the front: a timing and an evaluation for each of its artifacts, cascades to come too."""
    count = len(candidates(list(driver.rivals()))) + _cascades_left(driver) + 1
    return count * (_test_s(driver) + _timing_s(driver)) + _MARGIN_S


def _timing_s(driver: Driver) -> float:
    """Seconds to time one artifact at the end."""
    per_s, loading_s = _TIMING
    return per_s * driver.source.last_timing_s + loading_s


def _test_s(driver: Driver) -> float:
    """Seconds to run a file on the test data."""
    ratio = driver.data_sizes["test"] / max(1, min(driver.data_sizes["val"], driver.config.data.max_val))
    return _look_s(driver) * ratio


def _look_s(driver: Driver) -> float:
    """Seconds to run a file on the validation data."""
    looks = [t.durations_s.get("quality", 0.0) for t in driver.trials if t.state is TrialState.COMPLETE]
    return sum(looks) / len(looks) if looks else 0.5


def _examine(driver: Driver) -> None:
    """Fresh latency and test value for the baseline and the front, largest contribution first.

    Where the timings take longer than foreseen, as beside other programs, the last ones keep the latency they have.
    """
    name, stored = driver.config.name, driver.store.study(driver.config.name).baseline
    assert stored is not None
    dense = next(t for t in driver.trials if t.origin == "baseline")
    alike: dict[str, list[int]] = {}
    for index, trial in enumerate(driver.trials):
        alike.setdefault(trial.structure_key(), []).append(index)
    if stored.test is None and (seen := _look(driver, stored.artifact)) is not None:
        driver.store.update(name, baseline=replace(stored, test=seen.test, test_ci=seen.test_ci))
        _note(driver, dense, seen, alike[dense.structure_key()])
    while unseen := _unseen(driver):
        record = unseen[0]
        assert record.artifact is not None
        driver.say(f"measuring trial {record.trial} afresh")
        timed = time.monotonic() + _timing_s(driver) + len(unseen) * _test_s(driver) < driver.end
        seen = _look(driver, record.artifact, timed=timed)
        if seen is None:
            return
        _note(driver, record, seen, alike[record.structure_key()])


def _unseen(driver: Driver) -> list[TrialRecord]:
    """What of the front was not looked at, largest contribution first; new latencies may change the front."""
    by_number = {t.trial: t for t in driver.trials}
    front = (by_number[number] for number in candidates(list(driver.rivals())))
    return [t for t in front if t.measurement is not None and t.measurement.test is None]


def _note(driver: Driver, record: TrialRecord, seen: Examination, alike: list[int]) -> None:
    """Store the test value of one trial, and the fresh latency for every trial of the same structure.

    Args:
        alike: places of those among the driver's trials.
    """
    for index in alike:
        other = driver.trials[index]
        measured = other.measurement
        if measured is None:
            continue
        if seen.latency is not None and other.origin != "baseline":
            measured = replace(measured, latency=seen.latency)
        if other.trial == record.trial:
            measured = replace(measured, test=seen.test, test_ci=seen.test_ci)
        driver.trials[index] = replace(other, measurement=measured)
        driver.store.add_trial(driver.config.name, driver.trials[index])


def _look(driver: Driver, artifact: str, *, timed: bool = True) -> Examination | None:
    """None if the time is over or the worker is gone: what was not looked at stays without a test value."""
    if time.monotonic() > driver.end:
        return None
    try:
        driver.ensure_worker()
        seen: Examination = driver.worker.call(
            "examine", artifact, driver.baseline.latency_ms, timed, deadline=driver.end + _MARGIN_S
        )
    except (WorkerDied, WorkerBug):
        return None
    return seen
