"""Runs the queue: takes jobs, starts a process group for each, keeps their leases, and ends what should end.

One thread per server. It decides nothing about a search: a job's own process does, and records how it
ended. What this records is what a dead process cannot: that it crashed, was cancelled, lost its server, or held
more memory than a search may.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import NotFoundError
from autocompress.front.explain import format_bytes
from autocompress.records import StudyState
from autocompress.service.jobs import LEASE_S, Job, JobState, JobStore, server_name
from autocompress.service.processes import Process, memory_bytes
from autocompress.service.settings import Settings
from autocompress.study.executors import own_environment
from autocompress.study.store import StudyStore

_POLL_S = 0.25
_LOOK_S = 2.0  # between two looks at what other servers left
_MEMORY_S = 3.0  # between two looks at the memory of a search; each takes milliseconds, for all processes are asked
_GRACE_S = 10.0  # from the polite end of a search to the other one
_SECRETS = ("AUTOCOMPRESS_TOKEN",)
_log = logging.getLogger("autocompress.service")

Command = Callable[[Path, Job, str], list[str]]


@dataclass(slots=True)
class _Running:
    job: Job
    popen: subprocess.Popen[bytes]
    process: Process
    renewed: float
    weighed: float = 0.0
    memory_bytes: int = 0
    asked_to_end: float | None = None
    killed: bool = False
    error: str | None = None


def job_command(workspace: Path, job: Job, server: str) -> list[str]:
    """The command line of a job's process."""
    given = {"workspace": workspace, "job": job.id, "attempt": job.attempt, "server": server, "parent": os.getpid()}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "autocompress.service.job", *flags]


class Scheduler:
    """The thread that runs the jobs of a workspace.

    Args:
        command: what a job's process is started with; for tests.
    """

    def __init__(self, settings: Settings, jobs: JobStore, *, command: Command = job_command) -> None:
        self.server = server_name()
        self._settings, self._jobs, self._command = settings, jobs, command
        self._store = StudyStore(settings.workspace)
        self._running: dict[str, _Running] = {}
        self._orphans: dict[str, float] = {}
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._looked = -_LOOK_S
        self._thread = threading.Thread(target=self._loop, name="scheduler")

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Interrupt what runs, put it back in the queue for the next server, and wait for all that."""
        self._stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._store.close()

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    @property
    def alive(self) -> bool:
        """Whether the thread does its work."""
        return self._thread.is_alive()

    def memory_bytes(self) -> dict[str, int]:
        """Memory of every search that runs here, by the id of its job, as it was at the last look."""
        return {job: running.memory_bytes for job, running in list(self._running.items())}

    def _loop(self) -> None:
        while not (self._stopping.is_set() and not self._running):
            try:
                self.step()
            except Exception:  # a full disk or a locked file must not end the queue
                _log.exception("the scheduler goes on after an error")
                time.sleep(1.0)
            self._wake.wait(_POLL_S)
            self._wake.clear()

    def step(self) -> None:
        """One round."""
        for running in list(self._running.values()):
            self._watch(running)
        if self._stopping.is_set():
            return
        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            self._take_over()
        # A look costs a reader's moment; a claim takes the database from everybody who writes.
        while self._jobs.active(JobState.QUEUED) and (job := self._claim()):
            self._launch(job)

    def _claim(self) -> Job | None:
        return self._jobs.claim(self.server, parallel=self._settings.parallel, busy=self._busy())

    # -- our own jobs

    def _launch(self, job: Job) -> None:
        logs = self._settings.workspace / "logs"
        logs.mkdir(exist_ok=True)
        environment = {name: value for name, value in own_environment().items() if name not in _SECRETS}
        with (logs / f"{job.id}.log").open("ab") as log:
            popen = subprocess.Popen(
                self._command(self._settings.workspace, job, self.server),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        running = _Running(job=job, popen=popen, process=Process.of(popen.pid), renewed=time.monotonic())
        self._running[job.id] = running
        _log.info("job started", extra={"job": job.id, "study": job.study, "attempt": job.attempt, "pid": popen.pid})

    def _watch(self, running: _Running) -> None:
        code = running.popen.poll()
        if code is not None:
            del self._running[running.job.id]
            self._record_end(running, code)
            return
        now = time.monotonic()
        if now - running.renewed > LEASE_S / 5:
            running.renewed = now
            if self._jobs.renew(running.job) is None and not self._has_ended(running.job):
                _log.warning("job lost to another server", extra={"job": running.job.id})
                running.process.end(signal.SIGKILL)
                return
        if now - running.weighed > _MEMORY_S and running.asked_to_end is None:
            running.weighed = now
            self._weigh(running)
        wanted = running.error is not None or self._stopping.is_set() or self._cancel_requested(running.job)
        if wanted and running.asked_to_end is None:
            running.asked_to_end = now
            running.process.end(signal.SIGTERM)
        elif running.asked_to_end is not None and now - running.asked_to_end > _GRACE_S and not running.killed:
            running.killed = True
            running.process.end(signal.SIGKILL)

    def _weigh(self, running: _Running) -> None:
        """Decide to end a search that holds more than it may; else the system ends whatever process it likes."""
        running.memory_bytes, limit = memory_bytes(running.process.pid), self._settings.max_memory_bytes
        if limit is None or running.memory_bytes <= limit:
            return
        running.error = (
            f"it held {format_bytes(running.memory_bytes)} of memory, where a search on this server may hold"
            f" {format_bytes(limit)}; what it found is kept: resume it on a server with a larger --max-memory, or"
            " start one with less data"
        )
        _log.warning("job too large", extra={"job": running.job.id, "bytes": running.memory_bytes, "limit": limit})

    def _record_end(self, running: _Running, code: int) -> None:
        job = self._jobs.get(running.job.id)
        if job is None or (job.attempt, job.server) != (running.job.attempt, self.server):
            return
        if job.state is JobState.RUNNING and running.error is not None and not job.cancel_requested:
            job = self._jobs.end(job, JobState.FAILED, running.error) or job
        elif job.state is JobState.RUNNING:  # its process could not say how it ended
            interrupted = running.asked_to_end is not None
            after = self._jobs.requeue(job, crashed=not interrupted, trials=self._trials(job.study))
            job = after or job
        _log.info("job ended", extra={"job": job.id, "study": job.study, "state": str(job.state), "code": code})

    def _has_ended(self, job: Job) -> bool:
        now = self._jobs.get(job.id)
        return now is not None and now.attempt == job.attempt and not now.active

    def _cancel_requested(self, job: Job) -> bool:
        now = self._jobs.get(job.id)
        return now is not None and now.cancel_requested

    # -- what others left, and what others do

    def _take_over(self) -> None:
        """Queue again what a server left that is gone, once nothing of it runs any more."""
        lapsed = self._jobs.lapsed()
        self._orphans = {job.id: self._orphans[job.id] for job in lapsed if job.id in self._orphans}
        for job in lapsed:
            if job.id in self._running:
                continue
            if (job.process is not None and job.process.alive) or self._owner(job.study) is not None:
                since = self._orphans.setdefault(job.id, time.monotonic())
                # It ends itself when its server does. If not, it is helped.
                if job.process is not None and time.monotonic() - since > _GRACE_S:
                    job.process.end(signal.SIGKILL)
                continue
            self._orphans.pop(job.id, None)
            if taken := self._jobs.requeue(job, crashed=False, trials=0):
                _log.warning("job taken over", extra={"job": job.id, "study": job.study, "state": str(taken.state)})

    def _busy(self) -> set[str]:
        """Devices on which a search runs that was not started from the queue."""
        ours = {job.study for job in self._jobs.active(JobState.RUNNING)}
        others = [s.name for s in self._store.statuses() if s.state is StudyState.RUNNING and s.name not in ours]
        return {self._store.study(name).device.name for name in others}

    def _owner(self, study: str) -> int | None:
        try:
            return self._store.owner(study)
        except NotFoundError:
            return None

    def _trials(self, study: str) -> int:
        try:
            return sum(self._store.counts(study).values())
        except NotFoundError:
            return 0
