"""The queue of searches: a table beside the studies, from which one server at a time takes one job.

A job is running under a lease of the server that took it. Every change of a running job names server and
attempt, so a server that lost its lease changes nothing any more. The study is the checkpoint: a job that
is taken up again goes on with what the study has, and with the budget that is left of it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from autocompress.errors import AutocompressError
from autocompress.service.processes import Process
from autocompress.study.database import Database

LEASE_S = 15.0
MAX_CRASHES = 3  # in a row, without a trial in between


class JobState(StrEnum):
    """How a job stands. `cancelled`: somebody ended it, the study can be resumed."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Busy(AutocompressError):
    """The study has a job already that is queued or running."""


class QueueFull(AutocompressError):
    """Too many jobs are waiting."""


class KeyReused(AutocompressError):
    """An idempotency key came with another request than the first time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One search to run or that ran; times are Unix seconds.

    Attributes:
        spec: "config": the resolved study file; "base": folder that its paths are relative to, or None.
        crashes: times in a row that its process died without having finished a trial.
        server: who runs it, as `server_name` gives it.
        exit_code: of the command line for the error of a job that failed.
    """

    seq: int
    id: str
    study: str
    state: JobState
    priority: int
    device: str
    spec: dict[str, Any]
    actor: str
    created: float
    started: float | None
    ended: float | None
    attempt: int
    crashes: int
    trials_before: int
    server: str | None
    lease_until: float | None
    process: Process | None
    cancel_requested: bool
    error: str | None
    exit_code: int | None

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (JobState.QUEUED, JobState.RUNNING)


def server_name() -> str:
    """A name for this process that no other server, here or elsewhere, before or after, has."""
    me = Process.of(os.getpid())
    return f"{socket.gethostname()}:{me.pid}:{me.started}:{secrets.token_hex(4)}"


def server_is_gone(name: str) -> bool:
    """Whether the server of this name ran on this machine and has ended; False where that cannot be told."""
    host, pid, started, _ = name.rsplit(":", 3)
    return host == socket.gethostname() and not Process(int(pid), int(started)).alive


class JobStore:
    """The jobs of one workspace; several servers and their searches use it at the same time."""

    def __init__(self, workspace: Path) -> None:
        self._database = Database(workspace.absolute())

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    # -- putting in

    def submit(
        self,
        study: str,
        spec: Mapping[str, Any],
        *,
        device: str,
        actor: str,
        priority: int = 0,
        max_queue: int = 100,
        request_key: str | None = None,
        request_hash: str | None = None,
    ) -> tuple[Job, bool]:
        """Queue a search, unless the same request was made before.

        Returns:
            The job, and whether it is new.
        Raises:
            Busy: a job of this study is under way.
            QueueFull: `max_queue` jobs are waiting.
            KeyReused: the key came with another request before.
        """
        with self._database.write() as connection:
            if request_key and (row := self._row(connection, "request_key = ?", request_key)):
                if row["request_hash"] != request_hash:
                    raise KeyReused("this Idempotency-Key was used for another request; send a new key")
                return _job(row), False
            waiting = connection.execute("SELECT count(*) FROM ac_job WHERE state = 'queued'").fetchone()[0]
            if waiting >= max_queue:
                raise QueueFull(f"{waiting} searches are waiting already; cancel one or try again later")
            try:
                row = connection.execute(
                    "INSERT INTO ac_job (id, study, state, priority, device, spec, actor, created, request_key,"
                    " request_hash) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?) RETURNING *",
                    (
                        *(f"j{secrets.token_hex(8)}", study, priority, device, json.dumps(dict(spec)), actor),
                        *(time.time(), request_key, request_hash),
                    ),
                ).fetchone()
            except sqlite3.IntegrityError as error:
                raise Busy(f"study {study!r} is queued or running already") from error
        return _job(row), True

    # -- taking out

    def claim(self, server: str, *, parallel: int, busy: Collection[str] = (), lease_s: float = LEASE_S) -> Job | None:
        """Take the first job whose device is free: highest priority first, then the oldest.

        Args:
            busy: devices on which a search runs that is no job of ours.
        """
        now, marks = time.time(), ", ".join("?" * len(busy))
        with self._database.write() as connection:
            row = connection.execute(
                "UPDATE ac_job SET state = 'running', server = ?, lease_until = ?, attempt = attempt + 1, started = ?,"
                " pid = NULL, pid_started = NULL, error = NULL, exit_code = NULL WHERE seq = ("
                f"SELECT q.seq FROM ac_job q WHERE q.state = 'queued' AND q.device NOT IN ({marks})"
                " AND NOT EXISTS (SELECT 1 FROM ac_job r WHERE r.state = 'running' AND r.device = q.device)"
                " AND (SELECT count(*) FROM ac_job r WHERE r.state = 'running') < ?"
                " ORDER BY q.priority DESC, q.seq LIMIT 1) RETURNING *",
                (server, now + lease_s, now, *busy, parallel),
            ).fetchone()
        return _job(row) if row else None

    def renew(self, job: Job, *, lease_s: float = LEASE_S) -> Job | None:
        """Keep a running job for longer; None if it is not ours any more."""
        return self._change(job, "lease_until = ?", time.time() + lease_s)

    def begin(self, job_id: str, attempt: int, server: str, *, trials: int) -> Job | None:
        """Called by the process of the job itself, before it does anything; None if it should not.

        Args:
            trials: that the study has now.
        """
        me = Process.of(os.getpid())
        with self._database.write() as connection:
            row = connection.execute(
                "UPDATE ac_job SET pid = ?, pid_started = ?, trials_before = ? WHERE id = ? AND attempt = ?"
                " AND server = ? AND state = 'running' AND pid IS NULL RETURNING *",
                (me.pid, me.started, trials, job_id, attempt, server),
            ).fetchone()
        return _job(row) if row else None

    def end(
        self, job: Job, state: JobState, error: str | None = None, *, exit_code: int = AutocompressError.exit_code
    ) -> Job | None:
        """Record how a running job ended; None if it is not ours any more.

        Args:
            exit_code: of the command line for the error of a job that failed.
        """
        code = exit_code if state is JobState.FAILED else None
        assignments = "state = ?, error = ?, exit_code = ?, ended = ?, lease_until = NULL"
        return self._change(job, assignments, state.value, error, code, time.time())

    def requeue(self, job: Job, *, crashed: bool, trials: int) -> Job | None:
        """Put a running job back in its place in the queue; None if it is not ours any more.

        A job that crashes `MAX_CRASHES` times in a row without finishing a trial fails instead, and one that
        somebody wanted to end is ended.
        """
        if job.cancel_requested:
            return self.end(job, JobState.CANCELLED)
        crashes = 0 if not crashed else (1 if trials > job.trials_before else job.crashes + 1)
        if crashes >= MAX_CRASHES:
            return self.end(
                job, JobState.FAILED, f"its process died {crashes} times in a row without finishing a trial"
            )
        return self._change(job, "state = 'queued', crashes = ?, lease_until = NULL, server = NULL", crashes)

    def lapsed(self) -> list[Job]:
        """Running jobs whose server is gone, or has not renewed its lease."""
        now = time.time()
        running = self.active(JobState.RUNNING)
        return [j for j in running if j.server and (server_is_gone(j.server) or (j.lease_until or 0.0) < now)]

    # -- cancelling

    def cancel(self, study: str) -> Job | None:
        """End a queued job at once, and ask for the end of a running one; None if there is none."""
        with self._database.write() as connection:
            row = connection.execute(
                "UPDATE ac_job SET cancel_requested = 1, state = iif(state = 'queued', 'cancelled', state),"
                " ended = iif(state = 'queued', ?, ended)"
                " WHERE study = ? AND state IN ('queued', 'running') RETURNING *",
                (time.time(), study),
            ).fetchone()
        return _job(row) if row else None

    # -- looking

    def get(self, job_id: str) -> Job | None:
        """One job."""
        with self._database.read() as connection:
            row = self._row(connection, "id = ?", job_id)
        return _job(row) if row else None

    def by_request(self, request_key: str) -> Job | None:
        """The job that a request with this idempotency key made."""
        with self._database.read() as connection:
            row = self._row(connection, "request_key = ?", request_key)
        return _job(row) if row else None

    def was_asked_by(self, job: Job, request_hash: str) -> bool:
        """Whether this is the request that made the job."""
        with self._database.read() as connection:
            row = self._row(connection, "id = ?", job.id)
        return row is not None and row["request_hash"] == request_hash

    def active(self, state: JobState) -> list[Job]:
        """Jobs of a state, in the order of the queue."""
        query = "SELECT * FROM ac_job WHERE state = ? ORDER BY priority DESC, seq"
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query, (state.value,))]

    def latest(self) -> dict[str, Job]:
        """The latest job of every study that has one."""
        query = "SELECT * FROM ac_job WHERE seq IN (SELECT max(seq) FROM ac_job GROUP BY study)"
        with self._database.read() as connection:
            return {row["study"]: _job(row) for row in connection.execute(query)}

    def counts(self) -> dict[str, int]:
        """Jobs per state."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT state, count(*) AS jobs FROM ac_job GROUP BY state").fetchall()
        return {state.value: 0 for state in JobState} | {row["state"]: row["jobs"] for row in rows}

    # -- rows

    def _change(self, job: Job, assignments: str, *values: object) -> Job | None:
        with self._database.write() as connection:
            row = connection.execute(
                f"UPDATE ac_job SET {assignments} WHERE id = ? AND attempt = ? AND server = ? AND state = 'running'"
                " RETURNING *",
                (*values, job.id, job.attempt, job.server),
            ).fetchone()
        return _job(row) if row else None

    def _row(self, connection: sqlite3.Connection, where: str, value: object) -> sqlite3.Row | None:
        row: sqlite3.Row | None = connection.execute(f"SELECT * FROM ac_job WHERE {where}", (value,)).fetchone()
        return row


_PLAIN = (
    *("seq", "id", "study", "priority", "device", "actor", "created", "started", "ended", "attempt", "crashes"),
    *("trials_before", "server", "lease_until", "error", "exit_code"),
)


def _job(row: sqlite3.Row) -> Job:
    process = Process(row["pid"], row["pid_started"]) if row["pid"] is not None else None
    return Job(
        **{name: row[name] for name in _PLAIN},
        state=JobState(row["state"]),
        spec=json.loads(row["spec"]),
        process=process,
        cancel_requested=bool(row["cancel_requested"]),
    )
