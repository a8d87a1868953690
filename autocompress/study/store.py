"""The facts of every study of a workspace: records in, records out.

It hands out records, never rows, and decides nothing about a search. One process at a time writes a
study: `claim` holds a lock that dies with its owner. How the file is opened and kept sound is the
business of `database.py`.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from autocompress.errors import NotFoundError, UsageError
from autocompress.records import Latency, StudyRecord, StudyState, TrialRecord, TrialState
from autocompress.study import lock
from autocompress.study.database import Database

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

FRONT_QUERY = (
    "SELECT number, val, size_bytes, latency_ms FROM ac_trial"
    " WHERE study = ? AND state = 'complete' AND val IS NOT NULL ORDER BY number"
)


_COMPRESSED_QUERY = FRONT_QUERY.replace("size_bytes", "json_extract(record, '$.measurement.compressed_bytes')")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRows:
    """Complete trials as columns of one length, in the order of the trial numbers; bytes as they were asked for."""

    trial: NDArray[np.int64]
    val: NDArray[np.float64]
    size_bytes: NDArray[np.int64]
    latency_ms: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStatus:
    """What changes while a study runs, read without its record.

    Attributes:
        stage: what the driver is at (setup, search, final); None before its first heartbeat.
        heartbeat: Unix seconds at which `spent_s` was true.
        revision: grows with everything that is written about the study, heartbeats apart.
    """

    name: str
    state: StudyState
    created: str
    spent_s: float
    stage: str | None
    heartbeat: float | None
    revision: int


class StudyStore:
    """The studies of one workspace.

    Args:
        workspace: folder of `autocompress.db`; created when writing.
        readonly: open the file read-only; writing through such a store is an error.
    Raises:
        NotFoundError: readonly, and there is no database yet.
        UsageError: the folder or file cannot be used; the text says why and what to do.
    """

    def __init__(self, workspace: Path, *, readonly: bool = False) -> None:
        self.workspace = Path(workspace).absolute()
        self._database = Database(self.workspace, readonly=readonly)
        self.path = self._database.path
        self._claims: set[str] = set()  # taken by this store: another one of this process may hold others

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the claims of this store and the connection; the next use opens it again."""
        for name in tuple(self._claims):
            self.release(name)
        self._database.close()

    # -- studies

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM ac_study ORDER BY created, name").fetchall()
        return [self._study_record(row) for row in rows]

    def names(self) -> list[str]:
        """Names of all studies, oldest first."""
        with self._database.read() as connection:
            return [row["name"] for row in connection.execute("SELECT name FROM ac_study ORDER BY created, name")]

    def study(self, name: str) -> StudyRecord:
        """One study. A study whose owner died while it ran reads as interrupted.

        Raises:
            NotFoundError: no such study; the text names the nearest one.
        """
        with self._database.read() as connection:
            return self._study_record(self._study_row(connection, name))

    def create(self, record: StudyRecord) -> None:
        """Add a study.

        Raises:
            UsageError: the name is taken, or cannot be the name of a folder.
        """
        check_study_name(record.name)
        with self._database.write() as connection:
            if connection.execute("SELECT 1 FROM ac_study WHERE name = ?", (record.name,)).fetchone():
                raise UsageError(
                    f"study {record.name!r} exists in {self.workspace}; continue it with"
                    f" `autocompress resume {record.name}` or choose another name with --name"
                )
            owner = os.getpid() if lock.is_mine(self._lock_path(record.name)) else None
            connection.execute(
                "INSERT INTO ac_study (name, state, created, spent_s, record, owner_pid, heartbeat)"
                " VALUES (:name, :state, :created, :spent_s, :record, :owner, :now)",
                _study_values(record) | {"owner": owner, "now": time.time()},
            )

    def discard(self, name: str) -> None:
        """Remove a study and its trials from our tables; for one that never got a baseline."""
        with self._database.write() as connection:
            for table, column in (("ac_latency", "study"), ("ac_trial", "study"), ("ac_study", "name")):
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))

    def put(self, record: StudyRecord) -> None:
        """Replace what is stored of a study; time already spent never shrinks."""
        with self._database.write() as connection:
            self._put(connection, record)

    def update(self, name: str, **fields: Any) -> StudyRecord:
        """Replace some fields of a study's record and return the whole."""
        with self._database.write() as connection:
            record = replace(_stored_study(self._study_row(connection, name)), **fields)
            self._put(connection, record)
        return record

    def tick(self, name: str, spent_s: float, stage: str | None = None) -> None:
        """Heartbeat: seconds of the budget spent so far, and what they are spent on."""
        with self._database.write() as connection:
            statement = (
                "UPDATE ac_study SET spent_s = max(spent_s, ?), heartbeat = ?, stage = coalesce(?, stage)"
                " WHERE name = ?"
            )
            if not connection.execute(statement, (spent_s, time.time(), stage, name)).rowcount:
                self._study_row(connection, name)

    def statuses(self) -> list[StudyStatus]:
        """Where all studies stand, newest first, without reading what is stored of them."""
        query = (
            "SELECT name, state, created, spent_s, stage, heartbeat, revision, owner_pid FROM ac_study"
            " ORDER BY created DESC, name DESC"
        )
        with self._database.read() as connection:
            rows = connection.execute(query).fetchall()
        return [
            StudyStatus(
                name=row["name"],
                state=self._state(row),
                created=row["created"],
                spent_s=row["spent_s"],
                stage=row["stage"],
                heartbeat=row["heartbeat"],
                revision=row["revision"],
            )
            for row in rows
        ]

    def data_version(self) -> int:
        """Changes when anybody else has written to the file since; for this connection alone."""
        with self._database.read() as connection:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])

    def request_cancel(self, name: str) -> None:
        """Ask the process that runs the study to end it; it looks between two steps."""
        with self._database.write() as connection:
            self._study_row(connection, name)
            connection.execute("UPDATE ac_study SET cancel_requested = 1 WHERE name = ?", (name,))

    def cancel_requested(self, name: str) -> bool:
        """Whether somebody asked for the end of the study since it was last claimed."""
        with self._database.read() as connection:
            return bool(self._study_row(connection, name)["cancel_requested"])

    # -- the only writer of a study

    def claim(self, name: str) -> None:
        """Make this process the only writer of a study, until `release`, `close` or its end.

        A claim of a process that died is taken over.

        Raises:
            UsageError: another process holds it; the text names its pid.
        """
        path = self._lock_path(name)
        if not lock.is_mine(path):
            self._claims.add(name)
        if (holder := lock.take(path)) is not None:
            self._claims.discard(name)
            raise UsageError(
                f"study {name!r} is being written by process {holder}; wait for it, or end it with"
                f" `autocompress cancel {name}`"
            )
        with self._database.write() as connection:
            connection.execute(
                "UPDATE ac_study SET owner_pid = ?, heartbeat = ?, cancel_requested = 0 WHERE name = ?",
                (os.getpid(), time.time(), name),
            )

    def release(self, name: str) -> None:
        """Give back a claim; nothing happens if there is none."""
        self._claims.discard(name)
        lock.release(self._lock_path(name))

    def owner(self, name: str) -> int | None:
        """Process that writes the study now, or None."""
        with self._database.read() as connection:
            row = self._study_row(connection, name)
        pid = row["owner_pid"]
        return int(pid) if pid is not None and lock.is_held(self._lock_path(name)) else None

    # -- trials

    def trials(self, name: str, numbers: Sequence[int] | None = None) -> list[TrialRecord]:
        """Trials in the order of their numbers: all, or the ones asked for that exist."""
        query = "SELECT record FROM ac_trial WHERE study = ?"
        with self._database.read() as connection:
            self._study_row(connection, name)
            if numbers is None:
                rows = connection.execute(f"{query} ORDER BY number", (name,)).fetchall()
            else:
                wanted = ((name, number) for number in sorted({int(n) for n in numbers}))
                found = (connection.execute(f"{query} AND number = ?", key).fetchone() for key in wanted)
                rows = [row for row in found if row is not None]
        return [TrialRecord.from_dict(json.loads(row["record"])) for row in rows]

    def trial(self, name: str, number: int) -> TrialRecord:
        """One trial.

        Raises:
            NotFoundError: no such study or trial.
        """
        found = self.trials(name, [number])
        if not found:
            total = sum(self.counts(name).values())
            raise NotFoundError(
                f"study {name!r} has no trial {number} among its {total}; `autocompress show {name}` lists them"
            )
        return found[0]

    def add_trial(self, name: str, record: TrialRecord) -> None:
        """Store a trial; a stored one of the same number is replaced."""
        self.add_trials(name, [record])

    def add_trials(self, name: str, records: Sequence[TrialRecord]) -> None:
        """Store many trials in one transaction."""
        rows = [_trial_values(name, record) for record in records]
        with self._database.write() as connection:
            self._study_row(connection, name)
            connection.executemany(
                "INSERT OR REPLACE INTO ac_trial (study, number, state, origin, val, size_bytes, latency_ms, record)"
                " VALUES (:study, :number, :state, :origin, :val, :size_bytes, :latency_ms, :record)",
                rows,
            )
            connection.execute("UPDATE ac_study SET revision = revision + 1 WHERE name = ?", (name,))

    def last_written(self) -> int:
        """Place in the order of writing of the trial that was stored last, of any study; 0 before the first.

        It never falls: a place is given once, also when what was written there is deleted.
        """
        with self._database.read() as connection:
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'ac_trial'").fetchone()
        return int(row["seq"]) if row else 0

    def written_since(
        self, place: int, *, upto: int | None = None, name: str | None = None, limit: int = 1000
    ) -> list[tuple[int, str, TrialRecord]]:
        """Trials in the order in which they were stored: (place, study, trial), after `place`, at most `limit`.

        A trial that is stored again moves to the end.
        """
        query = "SELECT place, study, record FROM ac_trial WHERE place > ? AND place <= ?"
        values: list[object] = [place, 2**62 if upto is None else upto]
        if name is not None:
            query, values = f"{query} AND study = ?", [*values, name]
        with self._database.read() as connection:
            rows = connection.execute(f"{query} ORDER BY place LIMIT ?", (*values, limit)).fetchall()
        return [(row["place"], row["study"], TrialRecord.from_dict(json.loads(row["record"]))) for row in rows]

    def counts(self, name: str) -> dict[TrialState, int]:
        """Trials per state, without reading them."""
        query = "SELECT state, count(*) AS trials FROM ac_trial WHERE study = ? GROUP BY state"
        with self._database.read() as connection:
            self._study_row(connection, name)
            return {TrialState(row["state"]): row["trials"] for row in connection.execute(query, (name,))}

    def front_rows(self, name: str, *, compressed: bool = False) -> FrontRows:
        """What a front is computed from: number, metric, bytes and milliseconds of the complete trials.

        Args:
            compressed: take the bytes of the zipped file; they stand in the records, which takes longer to read.
        """
        import numpy as np

        with self._database.read() as connection:
            self._study_row(connection, name)
            cursor = connection.cursor()
            cursor.row_factory = None  # plain tuples: named rows would take longer than the query
            cursor.execute(_COMPRESSED_QUERY if compressed else FRONT_QUERY, (name,))
            rows = np.fromiter(cursor, dtype="i8,f8,i8,f8")
        return FrontRows(trial=rows["f0"], val=rows["f1"], size_bytes=rows["f2"], latency_ms=rows["f3"])

    # -- what equal structures share

    def latency(self, name: str, structure_key: str) -> Latency | None:
        """The timing of a structure (`CompressionPlan.structure_key`) measured before, or None."""
        row = self._latency_row(name, structure_key)
        return Latency.from_dict(json.loads(row["latency"])) if row else None

    def size_bytes(self, name: str, structure_key: str) -> int | None:
        """Bytes of a structure's artifact emitted before, or None."""
        row = self._latency_row(name, structure_key)
        return row["size_bytes"] if row else None

    def remember_latency(
        self, name: str, structure_key: str, latency: Latency, *, size_bytes: int | None = None
    ) -> None:
        """Keep the timing, and the bytes if known, of a structure for the study's later trials."""
        values = (name, structure_key, json.dumps(latency.to_dict()), size_bytes)
        with self._database.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO ac_latency (study, structure_key, latency, size_bytes) VALUES (?, ?, ?, ?)",
                values,
            )

    # -- rows to records

    def _study_row(self, connection: sqlite3.Connection, name: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute("SELECT * FROM ac_study WHERE name = ?", (name,)).fetchone()
        if row is not None:
            return row
        known = [row["name"] for row in connection.execute("SELECT name FROM ac_study")]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "`autocompress list` shows the studies there are"
        raise NotFoundError(f"no study {name!r} in {self.workspace}; {hint}")

    def _study_record(self, row: sqlite3.Row) -> StudyRecord:
        return replace(_stored_study(row), state=self._state(row))

    def _state(self, row: sqlite3.Row) -> StudyState:
        state = StudyState(row["state"])
        died = state is StudyState.RUNNING and row["owner_pid"] and not lock.is_held(self._lock_path(row["name"]))
        return StudyState.INTERRUPTED if died else state

    def _put(self, connection: sqlite3.Connection, record: StudyRecord) -> None:
        self._study_row(connection, record.name)
        connection.execute(
            "UPDATE ac_study SET state = :state, created = :created, spent_s = max(spent_s, :spent_s),"
            " record = :record, revision = revision + 1 WHERE name = :name",
            _study_values(record),
        )

    def _latency_row(self, name: str, structure_key: str) -> sqlite3.Row | None:
        query = "SELECT * FROM ac_latency WHERE study = ? AND structure_key = ?"
        with self._database.read() as connection:
            row: sqlite3.Row | None = connection.execute(query, (name, structure_key)).fetchone()
        return row

    def _lock_path(self, name: str) -> Path:
        return self.workspace / f".lock-{name}"


def check_study_name(name: str) -> None:
    """Refuse what cannot be the name of a folder.

    Raises:
        UsageError: what a name is.
    """
    if not STUDY_NAME.fullmatch(name):
        raise UsageError(
            f"a study's name is letters, digits, '.', '_' and '-', at most 100, got {name!r}; choose one with --name"
        )


def _study_values(record: StudyRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "state": record.state.value,
        "created": record.created,
        "spent_s": record.spent_s,
        "record": json.dumps(record.to_dict()),
    }


def _stored_study(row: sqlite3.Row) -> StudyRecord:
    return replace(StudyRecord.from_dict(json.loads(row["record"])), spent_s=row["spent_s"])


def _trial_values(name: str, record: TrialRecord) -> dict[str, Any]:
    measured = record.measurement
    return {
        "study": name,
        "number": record.trial,
        "state": record.state.value,
        "origin": record.origin,
        "val": measured.val if measured else None,
        "size_bytes": measured.size_bytes if measured else None,
        "latency_ms": measured.latency.latency_ms if measured else None,
        "record": json.dumps(record.to_dict()),
    }
