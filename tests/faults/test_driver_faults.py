"""The driver among a worker that dies, hangs, fails or lies, without torch: the worker is a stand-in."""

from __future__ import annotations

import errno
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from example_study import FACTS, example_trial

from autocompress.config import StudyConfig, load_config
from autocompress.errors import BudgetError, UsageError
from autocompress.records import Baseline, BlockFacts, Latency, Progress, StudyState, TrialRecord, TrialState
from autocompress.study import driver as driver_module
from autocompress.study.database import explained
from autocompress.study.executors import WorkerBug, WorkerDied
from autocompress.study.ledger import LOST
from autocompress.study.requests import TEACHER_CUT, Examination, Prepared
from autocompress.study.run import resume_study, search_study
from autocompress.study.store import StudyStore

BASELINE = Baseline(
    metric="accuracy", val=0.98, test=None, size_bytes=1000, latency_ms=0.3, params=10, macs=100,
    artifact="artifacts/tiny/baseline/model.onnx",
)  # fmt: skip


class Script:
    """What the stand-in does: `evaluate` may be replaced, everything else works."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.calls: list[str] = []
        self.prepared = 0
        self.evaluate = self.complete
        self.prepare = self.ready

    def ready(self) -> Prepared:
        path = self.workspace / BASELINE.artifact
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"onnx")
        return Prepared(
            facts=FACTS, baseline=BASELINE, data_sizes={"train": 10, "val": 10, "test": 10}, durations_s={"setup": 0.1},
            direction="maximize", device_description="a stand-in", sensitivity=None,
        )  # fmt: skip

    def complete(self, request) -> TrialRecord:
        size = 900 - 10 * request.trial
        return replace(
            example_trial(request.trial, 0.97, size, 0.9 - 0.01 * request.trial),
            plan=request.plan, origin=request.origin, durations_s={"train": 0.01},
        )  # fmt: skip


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script(tmp_path / "runs")

    class Worker:
        def __init__(self, *, on_progress, tick):
            self.alive, self.tick = False, tick

        def call(self, method, *arguments, deadline):
            made.calls.append(method)
            self.tick()
            if method == "prepare":
                made.prepared += 1
                result, self.alive = made.prepare(), True
                return result
            assert self.alive, "a request to a worker that was not prepared"
            if method == "probe":
                return Latency(latency_ms=0.1, ratio=0.3, ratio_ci=(0.3, 0.3), blocks=20)
            if method == "examine":
                latency = Latency(latency_ms=0.1, ratio=0.3, ratio_ci=(0.3, 0.3), blocks=9)
                return Examination(test=0.96, test_ci=(0.9, 0.98), latency=latency)
            try:
                return made.evaluate(arguments[0])
            except (WorkerDied, KeyboardInterrupt):
                self.alive = False
                raise

        def close(self):
            self.alive = False

    monkeypatch.setattr(driver_module, "LocalWorker", Worker)
    return made


def config(**search: object) -> StudyConfig:
    tables = {"model": {"factory": "a:b"}, "search": {"budget": "20s", "train_s": 0.1, "max_trials": 8, **search}}
    return load_config(tables, name="tiny")


def search(script: Script, **options: object):
    return search_study(config(**options), workspace=script.workspace, base=None, listener=lambda event: None)


def resume(script: Script, listener=lambda event: None):
    return resume_study("tiny", workspace=script.workspace, listener=listener)


def trials(script: Script) -> list[TrialRecord]:
    with StudyStore(script.workspace, readonly=True) as store:
        return store.trials("tiny")


def study(script: Script):
    with StudyStore(script.workspace, readonly=True) as store:
        return store.study("tiny")


def names(script: Script) -> list[str]:
    with StudyStore(script.workspace, readonly=True) as store:
        return store.names()


def at(number: int, script: Script, what):
    """Evaluate as usual, but `what` happens at one trial, once."""
    done: list[int] = []

    def evaluate(request):
        if request.trial == number and not done:
            done.append(number)
            return what(request)
        return script.complete(request)

    script.evaluate = evaluate


def raising(error: BaseException):
    def what(_request):
        raise error

    return what


def test_a_worker_that_dies_costs_one_trial_and_is_replaced(script):
    at(3, script, raising(WorkerDied("its process was ended by SIGKILL; the machine may be out of memory")))
    record = search(script)
    assert record.state is StudyState.FINISHED
    found = trials(script)
    assert found[3].state is TrialState.FAILED
    assert found[3].reason == "its process was ended by SIGKILL; the machine may be out of memory"
    assert [t.trial for t in found[:8]] == list(range(8))
    assert all(t.state is TrialState.COMPLETE for t in found if t.trial != 3)
    assert script.prepared == 2


def test_a_bug_in_the_worker_is_a_failed_trial_and_the_study_goes_on(script):
    at(2, script, raising(WorkerBug("Traceback (most recent call last):\n  ...\nKeyError: 'x'\n")))
    assert search(script).state is StudyState.FINISHED
    assert trials(script)[2].reason == "internal error: KeyError: 'x'"
    assert script.prepared == 1


def test_three_identical_failures_in_a_row_end_the_study_with_a_message(script):
    def fail(request):
        return replace(script.complete(request), state=TrialState.FAILED, reason="export failed: no", measurement=None)

    script.evaluate = fail
    record = search(script, max_trials=50)
    assert record.state is StudyState.FINISHED
    assert record.message == "ended after 3 identical failures: export failed: no"
    assert [t.state for t in trials(script)] == [TrialState.COMPLETE, *[TrialState.FAILED] * 3]


def test_failures_that_differ_in_a_number_only_are_identical(script):
    def fail(request):
        reason = f"train failed: training diverged after {10 + request.trial} steps"
        return replace(script.complete(request), state=TrialState.FAILED, reason=reason, measurement=None)

    script.evaluate = fail
    record = search(script, max_trials=50)
    assert record.message.startswith("ended after 3 identical failures: train failed")
    assert len(trials(script)) == 4


def scripted(script: Script, pattern: str, reason: str = "emit failed: no") -> None:
    """Trial n, from 1, ends as its letter says: complete, failed, failed in a way of its own (d), or stopped.

    Trials after the pattern, and those of the final stage, are complete.
    """

    def evaluate(request):
        done = script.complete(request)
        letter = pattern[request.trial - 1] if request.trial <= len(pattern) and request.origin != "final" else "c"
        if letter == "c":
            return done
        if letter == "s":
            return replace(done, state=TrialState.STOPPED, reason="cannot reach the front", artifact=None)
        own = reason if letter == "f" else f"{reason} in {'abcdefghijklmnop'[request.trial]}"
        return replace(done, state=TrialState.FAILED, reason=own, measurement=None, artifact=None)

    script.evaluate = evaluate


LAST_STAGE = ("final", "variant")


@pytest.mark.parametrize(
    ("pattern", "ended_after", "why"),
    [
        ("fff", 3, "3 identical failures"),
        ("fsfsf", 5, "3 identical failures"),  # a stopped trial proves nothing
        ("fcfcfcfcf", 9, "5 identical failures among 10 attempts"),  # the baseline is one of them
        ("ccccccfcfcfcfcf", 15, "5 identical failures among 10 attempts"),
        ("ffcffcf", 7, "5 identical failures among 10 attempts"),
        ("fcdffdfcf", 9, "5 identical failures among 10 attempts"),
        ("fccfccfccfccfccfcc", None, ""),
        ("ddd" * 4, None, ""),
        ("ffcccccccffccccccc", None, ""),
    ],
)
def test_a_failure_that_comes_again_and_again_ends_the_search_and_an_odd_one_does_not(
    script, pattern, ended_after, why
):
    scripted(script, pattern)
    record = search(script, max_trials=20, budget="10m")
    assert record.state is StudyState.FINISHED
    assert record.message == (f"ended after {why}: emit failed: no" if why else "")
    searched = [t for t in trials(script) if t.origin not in LAST_STAGE]
    assert len(searched) == 1 + ended_after if ended_after else len(searched) > len(pattern)


def test_the_final_stage_does_not_hide_why_the_search_ended(script):
    scripted(script, "cccccfff")
    record = search(script, max_trials=20, budget="10m")
    assert next(t.origin for t in trials(script) if t.origin in LAST_STAGE) == "final"
    assert trials(script)[-1].origin == "variant"
    assert record.message == "ended after 3 identical failures: emit failed: no"


def test_the_interval_of_the_test_value_is_kept_for_the_baseline_and_the_trials_that_were_looked_at(script):
    def unseen(request):
        done = script.complete(request)
        return replace(done, measurement=replace(done.measurement, test=None))

    script.evaluate = unseen
    search(script)
    seen = [t.measurement for t in trials(script) if t.measurement and t.measurement.test is not None]
    assert len(seen) > 1
    assert {(m.test, m.test_ci) for m in seen} == {(0.96, (0.9, 0.98))}
    assert study(script).baseline.test_ci == (0.9, 0.98)


@pytest.mark.parametrize("part", ["ladder", "stop", "inherit"])
def test_a_part_that_is_left_out_is_not_asked_of_the_worker(script, part):
    asked = []

    def proposals(**options: object) -> list[tuple[bool, bool, bool]]:
        asked.clear()
        shutil.rmtree(script.workspace, ignore_errors=True)
        search(script, max_trials=16, budget="10m", **options)
        return [(r.rung is None, r.anchor, r.parent is None) for r in asked if r.origin == "search"]

    script.evaluate = lambda request: asked.append(request) or script.complete(request)
    place = ["ladder", "stop", "inherit"].index(part)
    usual, without = proposals(), proposals(without=[part])
    assert not all(request[place] for request in usual)
    assert without
    assert all(request[place] for request in without)


def test_interruptions_are_no_failures_of_the_search(script):
    for number in (4, 5, 6):
        at(number, script, raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            search(script, max_trials=12, budget="10m") if number == 4 else resume(script)
    with StudyStore(script.workspace) as store:
        for lost in (4, 5, 6):
            store.add_trial("tiny", replace(trials(script)[1], trial=lost, state=TrialState.FAILED, reason=LOST))
    assert resume(script).message == ""


@pytest.mark.parametrize("number", [1, 2, 5, 7])
def test_an_interruption_keeps_every_finished_trial_and_resume_goes_on(script, number):
    at(number, script, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        search(script)
    before = trials(script)
    assert study(script).state is StudyState.INTERRUPTED
    assert [t.trial for t in before] == list(range(number))
    assert resume(script).state is StudyState.FINISHED
    after = trials(script)
    assert [t.to_dict() | {"measurement": None} for t in after[:number]] == [
        t.to_dict() | {"measurement": None} for t in before
    ]
    assert [t.trial for t in after] == list(range(len(after)))
    assert len(after) >= 8


def test_a_pause_is_not_counted(script):
    at(4, script, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        search(script)
    spent = study(script).spent_s
    time.sleep(1.5)
    events: list[object] = []
    resume(script, events.append)
    first = events[0]
    assert isinstance(first, Progress)
    assert spent <= first.spent_s < spent + 1.5, "what resuming itself takes comes after it"


def test_a_finished_study_is_not_resumed(script):
    search(script)
    with pytest.raises(UsageError, match="study 'tiny' is finished"):
        resume(script)


def test_a_study_whose_budget_is_used_up_is_finished_by_resume(script):
    at(4, script, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        search(script)
    with StudyStore(script.workspace) as store:
        store.tick("tiny", 20.0)
    script.prepare = raising_now(WorkerDied("it took longer than its time and was ended"))
    record = resume(script)
    assert record.state is StudyState.FINISHED
    assert len(trials(script)) == 4


def raising_now(error: BaseException):
    def what():
        raise error

    return what


def test_a_cancelled_study_ends_and_can_be_resumed(script):
    def cancel(request):
        with StudyStore(script.workspace) as store:
            store.request_cancel("tiny")
        time.sleep(1.1)  # the driver looks once a second
        return script.complete(request)

    at(3, script, cancel)
    record = search(script)
    assert (record.state, record.message) == (StudyState.INTERRUPTED, "cancelled")
    assert resume(script).state is StudyState.FINISHED


def test_a_budget_that_ends_before_the_baseline_leaves_no_study(script):
    def slow():
        time.sleep(0.3)
        raise WorkerDied("it took longer than its time and was ended")

    script.prepare = slow
    with pytest.raises(BudgetError, match=r"the budget of 0 s ended before the baseline was measured; give more"):
        search(script, budget="0.2s")
    assert names(script) == []
    assert not (script.workspace / "artifacts" / "tiny").exists()


def test_a_model_that_cannot_be_used_leaves_no_study_and_its_name_is_free_again(script):
    script.prepare = raising_now(UsageError("the model returns a tuple, one tensor was expected"))
    for _ in range(2):
        with pytest.raises(UsageError, match="returns a tuple"):
            search(script)
    assert names(script) == []
    script.prepare = script.ready
    assert search(script).state is StudyState.FINISHED


def test_a_model_that_crashes_the_worker_leaves_no_study(script):
    script.prepare = raising_now(WorkerDied("its process was ended by SIGSEGV"))
    with pytest.raises(UsageError, match="the worker could not prepare the study: its process was ended by SIGSEGV"):
        search(script)
    assert names(script) == []
    assert script.prepared == 3


def test_a_worker_that_is_killed_while_it_prepares_is_started_again(script):
    def killed_once():
        script.prepare = script.ready
        raise WorkerDied("its process was ended by SIGKILL; the machine may be out of memory")

    script.prepare = killed_once
    assert search(script).state is StudyState.FINISHED
    assert script.prepared == 2


def test_a_teacher_that_was_cut_short_is_said_where_the_study_ends(script):
    note = f"{TEACHER_CUT} after 8 s, at 15 of 460 steps"
    script.prepare = lambda: replace(script.ready(), facts=replace(FACTS, notes=("val: there was none", note)))
    record = search(script)
    assert (record.state, record.message) == (StudyState.FINISHED, note)


def test_a_full_disk_is_one_sentence_and_what_was_stored_stays(script, monkeypatch):
    real = StudyStore.add_trial
    full = [True]

    def add_trial(self, name, record):
        if record.trial == 3 and full[0]:
            with explained(self.path):
                raise OSError(errno.ENOSPC, "No space left on device")
        real(self, name, record)

    monkeypatch.setattr(StudyStore, "add_trial", add_trial)
    with pytest.raises(UsageError, match=r"the disk of .* is full; free some space, then continue"):
        search(script)
    assert study(script).state is StudyState.FAILED
    assert [t.trial for t in trials(script)] == [0, 1, 2]
    full[0] = False
    assert resume(script).state is StudyState.FINISHED
    assert [t.trial for t in trials(script)][:8] == list(range(8))


def test_a_study_is_written_by_one_process_at_a_time(script, tmp_path):
    import subprocess
    import sys

    from tiny_study import environment

    at(4, script, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        search(script)
    code = (
        "import sys, time; from pathlib import Path; from autocompress.study.store import StudyStore\n"
        "s = StudyStore(Path(sys.argv[1])); s.claim('tiny'); print('mine', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(script.workspace)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(UsageError, match=f"study 'tiny' is being written by process {other.pid}"):
        resume(script)
    with pytest.raises(UsageError, match=f"process {other.pid}"):
        search(script)
    other.stdin.close()
    other.wait()
    other.stdout.close()
    assert resume(script).state is StudyState.FINISHED


def test_limits_are_handed_to_every_trial(script):
    seen = []

    def evaluate(request):
        seen.append(request.constraints)
        return script.complete(request)

    script.evaluate = evaluate
    search(script, max_drop=0.02, max_size="1kB", max_latency=3.0)
    assert {(c.max_drop, c.max_size, c.max_latency) for c in seen} == {(0.02, 1000, 3.0)}


@pytest.mark.parametrize("sampler", ["front", "tpe", "random"])
def test_no_plan_leaves_out_a_block_where_blocks_are_left_to_others(script, sampler):
    facts = replace(FACTS, blocks=(BlockFacts(name="block", layers=("conv1",), groups=("conv1",)),))
    ready = script.ready
    script.prepare = lambda: replace(ready(), facts=facts)
    search(script, sampler=sampler, max_trials=20, without=("blocks",))
    proposed = [t for t in trials(script) if t.origin == "search"]
    assert len(proposed) > 5
    assert not any(t.plan.removed_blocks for t in proposed)
    shutil.rmtree(script.workspace)
    search(script, sampler=sampler, max_trials=20)
    assert any(t.plan.removed_blocks for t in trials(script)), "else the test says nothing"
