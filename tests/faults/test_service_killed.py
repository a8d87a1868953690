"""kill -9 of the server, of searches and of workers: no trial lost, no job run twice, no process left behind."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import ROOT, alive, budget_s, children, environment, processes_with, wait_for, write_study

from autocompress.errors import AutocompressError
from autocompress.records import StudyState, TrialRecord
from autocompress.service.jobs import JobState, JobStore
from autocompress.study.store import StudyStore

PATHS = (ROOT, ROOT / "tests", ROOT / "tests" / "service")
PATIENCE_S = 900  # a machine that others use may stand still for minutes; nothing waits longer than it must
BUSY = ("queued", "running", "finalising")
FAKE = ROOT / "tests" / "service" / "fake_server.py"


class Served:
    """A server in a process of its own that can be killed and started again."""

    def __init__(self, folder: Path, command: Callable[[Path, int], list[str]]) -> None:
        self.folder, self.workspace, self._command = folder, folder / "runs", command
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(self.workspace, self.port),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**environment(), "PYTHONPATH": os.pathsep.join(map(str, PATHS))},
            )
        wait_for(self._answers, seconds=PATIENCE_S, what="the start of the server")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            return self.call("GET", "/health")["status"] == "ok"
        except OSError:
            return False

    def call(self, method: str, path: str, body: Any = None) -> Any:
        token = (self.workspace / ".server-tokens").read_text().split()[1]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            connection.request(method, f"/api/v1{path}", json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            found = json.loads(response.read())
            assert response.status < 400, found
            return found
        finally:
            connection.close()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(60) in (0, -signal.SIGTERM), (self.folder / "server.log").read_text()


def jobs(served: Served) -> JobStore:
    return JobStore(served.workspace)


def job_process(served: Served) -> int | None:
    """Process of the job that runs now."""
    store = jobs(served)
    running = [j.process.pid for j in store.active(JobState.RUNNING) if j.process and j.process.alive]
    store.close()
    return running[0] if running else None


def trials(served: Served, name: str) -> list[TrialRecord]:
    try:
        with StudyStore(served.workspace, readonly=True) as store:
            return store.trials(name)
    except AutocompressError:
        return []


def processes_of_trials(served: Served) -> list[int]:
    """The process that made each trial of a stand-in, in their order."""
    log = served.workspace / "trials.log"
    return [int(line.split()[2]) for line in log.read_text().splitlines()] if log.exists() else []


def nothing_runs(served: Served) -> bool:
    return not [pid for pid in processes_with(str(served.folder)) if pid != os.getpid()]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path, lambda workspace, port: [sys.executable, str(FAKE), str(workspace), str(port)])
    yield served
    served.stop()


@pytest.mark.timeout(300)
def test_what_a_killed_server_left_goes_on_once_and_leaves_nothing_behind(fake):
    fake.start()
    study = fake.call("POST", "/studies", {"builtin": "digits", "budget": "1h"})
    for victim in ("server", "search", "server"):
        search = wait_for(lambda: job_process(fake), seconds=60, what="the process of the search")
        wait_for(lambda pid=search: processes_of_trials(fake).count(pid) >= 2, seconds=60, what="two trials of it")
        family = [search, *children(search)]
        kept = trials(fake, "digits")
        if victim == "server":
            fake.kill()
        else:
            os.kill(search, signal.SIGKILL)
        wait_for(lambda f=family: not any(map(alive, f)), seconds=15, what="the end of the search")
        if victim == "server":
            fake.start()
        assert trials(fake, "digits")[: len(kept)] == kept
    wait_for(lambda: fake.call("GET", f"/studies/{study['id']}")["state"] == "finished", seconds=60, what="the end")
    found = fake.call("GET", f"/studies/{study['id']}")
    assert found["job"]["attempt"] == 4
    assert found["spent_s"] >= 0.1 * len(trials(fake, "digits")) - 0.5, "the budget that was spent is kept"
    assert [t.trial for t in trials(fake, "digits")] == list(range(30))
    runs = [pid for pid, _ in itertools.groupby(processes_of_trials(fake))]
    assert len(runs) == len(set(runs)) == 4, "one process after the other, never two at a time"
    fake.stop()
    wait_for(lambda: nothing_runs(fake), seconds=15, what="the end of every process")


@pytest.mark.timeout(300)
def test_a_server_that_is_asked_to_end_hands_its_searches_to_the_next(fake):
    fake.start()
    study = fake.call("POST", "/studies", {"builtin": "digits", "budget": "1h"})
    wait_for(lambda: len(trials(fake, "digits")) >= 2, seconds=60, what="two trials")
    fake.stop()
    assert nothing_runs(fake)
    store = jobs(fake)
    assert [j.study for j in store.active(JobState.QUEUED)] == ["digits"]
    store.close()
    with StudyStore(fake.workspace, readonly=True) as found:
        assert found.study("digits").state is StudyState.INTERRUPTED
    fake.start()
    wait_for(lambda: fake.call("GET", f"/studies/{study['id']}")["state"] == "finished", seconds=60, what="the end")
    assert [t.trial for t in trials(fake, "digits")] == list(range(30))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_kills_of_server_search_and_worker_lose_nothing(tmp_path):
    serve = ["serve", "--allow-code", "--workspace"]
    served = Served(
        tmp_path,
        lambda workspace, port: [sys.executable, "-m", "autocompress", *serve, str(workspace), "--port", str(port)],
    )
    write_study(tmp_path)
    weights = json.dumps(str(tmp_path / "teacher.safetensors"))
    text = (tmp_path / "tiny.toml").read_text().replace('"teacher.safetensors"', weights)
    dice, killed = random.Random(0), []
    kept: dict[str, list[TrialRecord]] = {}
    served.start()
    for number in range(20):
        if not any(s["state"] in BUSY for s in served.call("GET", "/studies")["items"]):
            asked = {"study_file": text, "budget": f"{12 * budget_s():.0f}s", "name": f"round-{number}"}
            kept[served.call("POST", "/studies", asked)["study"]] = []
        name = list(kept)[-1]
        search = wait_for(lambda: job_process(served), seconds=PATIENCE_S, what="the process of the search")
        if number % 4:  # every fourth round strikes while things are still starting
            enough = len(kept[name]) + 1
            wait_for(
                lambda n=enough, of=name: len(trials(served, of)) >= n or job_process(served) is None,
                seconds=PATIENCE_S, what="another trial",
            )  # fmt: skip
        time.sleep(dice.uniform(0.0, 2.0))
        kept |= {study: trials(served, study) for study in kept}
        worker = next(iter(children(search)), search)
        victim = ("server", "search", "worker")[number % 3]
        family = [search, *children(search)]
        if victim == "server":
            served.kill()
            wait_for(lambda f=family: not any(map(alive, f)), seconds=PATIENCE_S, what="the end of what the server ran")
            served.start()
        elif alive(search):
            os.kill(search if victim == "search" else worker, signal.SIGKILL)
        killed.append(victim)
        print(f"round {number}: {victim}, {[len(trials(served, study)) for study in kept]} trials", flush=True)
        for study, before in kept.items():
            now = trials(served, study)
            assert [(t.trial, t.state, t.plan) for t in now[: len(before)]] == [
                (t.trial, t.state, t.plan) for t in before
            ], f"{study}, after killing {victim} in round {number}"
            assert [t.trial for t in now] == list(range(len(now)))
    print({victim: killed.count(victim) for victim in killed}, {s: len(trials(served, s)) for s in kept})
    for entry in served.call("GET", "/studies")["items"]:
        assert entry["state"] != "failed", entry["error"]
        if entry["state"] in BUSY:
            served.call("POST", f"/studies/{entry['id']}/cancel")
    wait_for(lambda: job_process(served) is None, seconds=PATIENCE_S, what="the end of the search that was cancelled")
    served.stop()
    wait_for(lambda: nothing_runs(served), seconds=PATIENCE_S, what="the end of every process")
    log = (tmp_path / "server.log").read_text()
    assert "Traceback" not in log, log[-3000:]
