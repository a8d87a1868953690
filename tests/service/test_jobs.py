"""The queue: one claim per job, one job per device, leases that end, and crashes that are counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.measure import machine
from autocompress.service.jobs import (
    MAX_CRASHES,
    Busy,
    JobState,
    JobStore,
    KeyReused,
    QueueFull,
    server_is_gone,
    server_name,
)
from autocompress.service.processes import Process, descendants, memory_bytes
from autocompress.service.settings import default_memory_bytes, default_parallel
from autocompress.study.executors import own_environment

SPEC = {"config": {"search": {"budget": 60.0}}, "base": None}
HERE = server_name()


@pytest.fixture
def jobs(tmp_path: Path):
    store = JobStore(tmp_path)
    yield store
    store.close()


def submit(jobs: JobStore, study: str, *, device: str = "local", priority: int = 0, **more):
    return jobs.submit(study, SPEC, device=device, actor="ann", priority=priority, **more)[0]


def test_the_highest_priority_goes_first_then_the_oldest(jobs):
    for study, priority in (("a", 0), ("b", 5), ("c", 5), ("d", -1)):
        submit(jobs, study, priority=priority, device=study)
    assert [jobs.claim(HERE, parallel=9).study for _ in range(4)] == ["b", "c", "a", "d"]
    assert jobs.claim(HERE, parallel=9) is None


def test_one_search_runs_per_device_and_devices_run_side_by_side(jobs):
    for study, device in (("a", "local"), ("b", "local"), ("c", "board"), ("d", "phone")):
        submit(jobs, study, device=device)
    first, second = jobs.claim(HERE, parallel=2), jobs.claim(HERE, parallel=2)
    assert (first.study, second.study) == ("a", "c")
    assert jobs.claim(HERE, parallel=2) is None, "two at a time"
    assert jobs.claim(HERE, parallel=3, busy={"phone"}) is None, "somebody else uses it"
    assert jobs.claim(HERE, parallel=3).study == "d"
    jobs.end(first, JobState.FINISHED)
    assert jobs.claim(HERE, parallel=3).study == "b"


def test_a_study_has_one_job_at_a_time(jobs):
    job = submit(jobs, "a")
    with pytest.raises(Busy, match="queued or running already"):
        submit(jobs, "a")
    running = jobs.claim(HERE, parallel=1)
    with pytest.raises(Busy):
        submit(jobs, "a")
    jobs.end(running, JobState.CANCELLED)
    assert submit(jobs, "a").id != job.id


def test_a_request_that_is_sent_again_makes_nothing_new(jobs):
    first = submit(jobs, "a", request_key="k", request_hash="h")
    again, new = jobs.submit("b", SPEC, device="local", actor="ann", request_key="k", request_hash="h")
    assert (again.id, new) == (first.id, False)
    with pytest.raises(KeyReused):
        submit(jobs, "b", request_key="k", request_hash="another")


def test_the_queue_is_full_at_its_limit(jobs):
    submit(jobs, "a", max_queue=1)
    with pytest.raises(QueueFull, match="1 searches are waiting"):
        submit(jobs, "b", max_queue=1)


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_runs_is_asked(jobs):
    submit(jobs, "a")
    assert jobs.cancel("a").state is JobState.CANCELLED
    submit(jobs, "b")
    jobs.claim(HERE, parallel=1)
    asked = jobs.cancel("b")
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert jobs.cancel("nothing") is None


def test_a_server_that_lost_its_lease_changes_nothing_any_more(jobs):
    submit(jobs, "a")
    old = jobs.claim(HERE, parallel=1, lease_s=-1.0)
    assert [job.id for job in jobs.lapsed()] == [old.id]
    jobs.requeue(old, crashed=False, trials=0)
    new = jobs.claim("elsewhere:1:1:x", parallel=1)
    assert new.attempt == 2
    assert jobs.renew(old) is None
    assert jobs.end(old, JobState.FINISHED) is None
    assert jobs.requeue(old, crashed=True, trials=0) is None
    assert jobs.begin(old.id, old.attempt, HERE, trials=0) is None, "its process must not start"
    assert jobs.get(new.id).state is JobState.RUNNING


def test_the_process_of_a_job_begins_once(jobs):
    submit(jobs, "a")
    job = jobs.claim(HERE, parallel=1)
    begun = jobs.begin(job.id, job.attempt, HERE, trials=7)
    assert (begun.process.pid, begun.trials_before) == (os.getpid(), 7)
    assert begun.process.alive
    assert jobs.begin(job.id, job.attempt, HERE, trials=7) is None


def test_a_job_that_crashes_without_a_trial_in_between_fails(jobs):
    submit(jobs, "a")
    for attempt in range(1, MAX_CRASHES + 1):
        job = jobs.claim(HERE, parallel=1)
        assert job.attempt == attempt
        job = jobs.begin(job.id, job.attempt, HERE, trials=4)
        after = jobs.requeue(job, crashed=True, trials=4)
    assert after.state is JobState.FAILED
    assert "3 times in a row" in after.error


def test_a_job_that_gets_on_between_its_crashes_goes_on(jobs):
    submit(jobs, "a")
    for trials in range(2 * MAX_CRASHES):
        job = jobs.claim(HERE, parallel=1)
        job = jobs.begin(job.id, job.attempt, HERE, trials=trials)
        assert jobs.requeue(job, crashed=True, trials=trials + 1).state is JobState.QUEUED


def test_a_failed_job_keeps_its_exit_code_until_it_is_taken_up_again(jobs):
    submit(jobs, "a")
    assert jobs.end(jobs.claim(HERE, parallel=1), JobState.FAILED, "too late", exit_code=6).exit_code == 6
    submit(jobs, "a")
    assert jobs.end(jobs.claim(HERE, parallel=1), JobState.FAILED, "it broke").exit_code == 1
    submit(jobs, "a")
    assert jobs.end(jobs.claim(HERE, parallel=1), JobState.FINISHED).exit_code is None


def test_a_job_that_should_end_is_not_queued_again(jobs):
    submit(jobs, "a")
    job = jobs.claim(HERE, parallel=1)
    jobs.cancel("a")
    assert jobs.requeue(jobs.get(job.id), crashed=True, trials=0).state is JobState.CANCELLED


def test_a_dead_servers_jobs_are_found_before_their_lease_ends(jobs):
    done = subprocess.run(
        [sys.executable, "-c", "from autocompress.service.jobs import server_name; print(server_name())"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    dead = done.stdout.strip()
    assert server_is_gone(dead)
    assert not server_is_gone(HERE)
    assert not server_is_gone("another-machine:1:1:x"), "only its lease can tell"
    submit(jobs, "a")
    jobs.claim(dead, parallel=1)
    assert [job.study for job in jobs.lapsed()] == ["a"]


def test_two_hundred_jobs_are_claimed_once_by_three_processes(tmp_path):
    store = JobStore(tmp_path)
    for number in range(200):
        submit(store, f"study-{number}", device=f"device-{number}", max_queue=1000)
    script = (
        "import sys, pathlib\nfrom autocompress.service.jobs import JobStore, server_name\n"
        "jobs, me = JobStore(pathlib.Path(sys.argv[1])), server_name()\n"
        "while job := jobs.claim(me, parallel=1000): print(job.study)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
        for _ in range(3)
    ]
    claimed = [line for process in started for line in process.communicate()[0].split()]
    store.close()
    assert len(claimed) == len(set(claimed)) == 200


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is not here")
def test_the_memory_of_a_search_is_that_of_all_its_processes():
    child = "held = b'x' * 150_000_000; print(flush=True); input()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    before = memory_bytes(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 150_000_000 < memory_bytes(process.pid) < 190_000_000
        assert memory_bytes(os.getpid()) > before + 140_000_000, "what a child started counts as well"
        process.communicate(b"\n")
    assert memory_bytes(process.pid) == 0


def test_a_search_may_hold_its_share_of_the_memory_by_default(monkeypatch):
    total = machine.memory_bytes()
    assert total is not None
    assert 100e6 < total < 1e15
    monkeypatch.setattr("autocompress.service.settings.memory_bytes", lambda: 10_000_000_000)
    assert [default_memory_bytes(parallel) for parallel in (1, 2)] == [8_000_000_000, 4_000_000_000]
    assert default_memory_bytes(default_parallel()) == 8_000_000_000, "there is one device"
    monkeypatch.setattr("autocompress.service.settings.memory_bytes", lambda: None)
    assert default_memory_bytes(1) is None, "where the machine does not tell, there is no limit"


def test_a_module_of_the_current_folder_can_be_imported_and_is_in_the_place_of_no_other(tmp_path):
    (tmp_path / "queue.py").write_text("raise SystemExit('mine instead of the standard library')")
    (tmp_path / "my_nets.py").write_text("NAME = 'found'")
    done = subprocess.run(
        [sys.executable, "-c", "import queue, my_nets; print(queue.Queue.__name__, my_nets.NAME)"],
        cwd=tmp_path, env=own_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "Queue found\n", done.stderr


def test_a_container_may_give_less_memory_than_the_machine_has(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "less").write_text("123456789\n")
    monkeypatch.setattr(machine, "_CONTAINER_LIMITS", (tmp_path / "max", tmp_path / "less", tmp_path / "none"))
    assert machine.memory_bytes() == 123_456_789


def test_a_process_is_not_mistaken_for_a_later_one_of_its_number():
    me = Process.of(os.getpid())
    assert me.alive
    assert not Process(me.pid, me.started + 1).alive
    assert os.getppid() not in descendants(os.getpid())
