"""Real processes and real signals: Ctrl-C, kill -9 of the driver and of the worker, a budget that is too short."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_study import NAME, alive, budget_s, children, environment, run_command, start_command, wait_for, write_study

from autocompress.errors import AutocompressError
from autocompress.records import StudyState, TrialRecord, TrialState
from autocompress.study.store import StudyStore

pytestmark = pytest.mark.timeout(300)


def trials(folder: Path) -> list[TrialRecord]:
    try:
        with StudyStore(folder / "runs", readonly=True) as store:
            return store.trials(NAME)
    except AutocompressError:
        return []


def study(folder: Path):
    with StudyStore(folder / "runs", readonly=True) as store:
        return store.study(NAME)


def test_ctrl_c_gives_130_and_the_command_to_continue_and_leaves_no_process(tmp_path):
    driver = start_command("search", write_study(tmp_path), "--workspace", "runs", cwd=tmp_path)
    wait_for(lambda: children(driver.pid), seconds=30, what="the start of the worker")
    workers = children(driver.pid)
    os.killpg(driver.pid, signal.SIGINT)  # what a terminal does
    assert driver.wait(timeout=30) == 130
    assert f"autocompress resume {NAME}" in (tmp_path / "stderr.txt").read_text()
    wait_for(lambda: not any(map(alive, workers)), seconds=10, what="the end of the worker")
    assert study(tmp_path).state is StudyState.INTERRUPTED


def test_a_worker_whose_driver_is_gone_says_nothing():
    data = pickle.dumps(("evaluate", ()))
    worker = subprocess.Popen(
        [sys.executable, "-m", "autocompress.study.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    with worker:
        assert worker.stdout is not None
        worker.stdout.close()  # nobody reads its answers any more
        _, errors = worker.communicate(struct.pack("<Q", len(data)) + data, timeout=120)
    assert (worker.returncode, errors) == (1, b"")


@pytest.mark.parametrize("budget", ["1s", "3s"])
def test_a_budget_too_short_for_the_baseline_gives_6_and_frees_the_name(tmp_path, budget):
    path = write_study(tmp_path)
    done = run_command("search", path, "--workspace", "runs", "--budget", budget, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert f"the budget of {budget[0]} s ended before the baseline was measured" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_command("list", "--workspace", "runs", cwd=tmp_path).stdout == ""
    assert list((tmp_path / "runs" / "artifacts").iterdir()) == []


@pytest.mark.slow
def test_a_search_survives_kill_9_of_its_worker_and_then_of_itself(tmp_path):
    budget = 2.5 * budget_s()
    path = write_study(tmp_path, search={"budget": f"{budget:.0f}s", "train_s": 1.0})
    driver = start_command("search", path, "--workspace", "runs", cwd=tmp_path)
    wait_for(lambda: len(trials(tmp_path)) >= 4, seconds=budget, what="the fourth trial")
    worker = children(driver.pid)[0]
    family = children(worker)
    os.kill(worker, signal.SIGKILL)
    before = len(trials(tmp_path))
    wait_for(lambda: len(trials(tmp_path)) >= before + 2, seconds=budget, what="the trial after the crash")
    failed = [t for t in trials(tmp_path) if t.state is TrialState.FAILED]
    assert [t.reason for t in failed] == ["its process was ended by SIGKILL; the machine may be out of memory"]
    assert not any(map(alive, family))

    second = run_command("resume", NAME, "--workspace", "runs", cwd=tmp_path)
    assert second.returncode == 2
    assert f"is being written by process {driver.pid}" in second.stderr
    assert driver.poll() is None

    family = children(driver.pid)
    assert family
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(map(alive, family)), seconds=10, what="the end of the worker and the timing process")
    kept, record = trials(tmp_path), study(tmp_path)
    assert record.state is StudyState.INTERRUPTED
    assert [t.trial for t in kept] == list(range(len(kept)))

    done = run_command("resume", NAME, "--workspace", "runs", "--json", cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    after = trials(tmp_path)
    assert [t.trial for t in after] == list(range(len(after)))
    assert [(t.state, t.plan) for t in after[: len(kept)]] == [(t.state, t.plan) for t in kept]
    ended = study(tmp_path)
    assert ended.state is StudyState.FINISHED
    assert record.spent_s < ended.spent_s <= budget + max(5, 0.05 * budget)


@pytest.mark.slow
def test_trials_that_diverge_fail_with_a_reason_and_the_study_is_finished(tmp_path):
    path = write_study(tmp_path, space={"learning_rate": [1e9]}, search={"train_s": 1.0})
    done = run_command("search", path, "--workspace", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = trials(tmp_path)
    diverged = [t for t in found if t.state is TrialState.FAILED]
    assert diverged
    assert all(t.reason.startswith("train failed after prune, emit, latency: ") for t in diverged)
    assert all("training diverged after" in t.reason for t in diverged)
    assert [t.state for t in found[:3]] == [TrialState.COMPLETE] * 3, "dense, fp16 and int8 need no training"
    assert study(tmp_path).state is StudyState.FINISHED


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@needs_root
def test_a_full_disk_is_one_sentence(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not possible here")
    try:
        done = run_command("search", write_study(tmp_path), "--workspace", "disk/runs", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        errors = [line for line in done.stderr.splitlines() if not line.startswith("setup:")]
        assert len(errors) == 1, done.stderr
        assert "the disk of" in errors[0]
        assert "is full; free some space" in errors[0]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
