"""The facts of every study of a workspace, in one SQLite file beside Optuna's tables.

Writers get WAL mode and short `BEGIN IMMEDIATE` transactions; readers open the file read-only and see
a consistent snapshot while a search writes. It hands out records, never rows, and decides nothing
about a search. One process at a time writes a study: `claim` holds a lock that dies with its owner.

It speaks to SQLite directly: SQLAlchemy, which Optuna's tables go through, takes longer to import than
`autocompress front` may take in all.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from autocompress.errors import NotFoundError, UsageError
from autocompress.records import Latency, StudyRecord, StudyState, TrialRecord, TrialState

try:
    import fcntl
except ImportError:  # Windows has no such lock: there, every owner is taken to be alive
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from optuna.storages import RDBStorage

DATABASE = "autocompress.db"
BUSY_TIMEOUT_S = 30.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# WAL keeps its index in shared memory, which these cannot share between machines.
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs"}

# Numbered from 1 and never edited after a release: a change is a new step.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE ac_study (name TEXT PRIMARY KEY, state TEXT NOT NULL, created TEXT NOT NULL,"
        " spent_s REAL NOT NULL DEFAULT 0, cancel_requested INTEGER NOT NULL DEFAULT 0,"
        " owner_pid INTEGER, heartbeat REAL, record TEXT NOT NULL)",
        "CREATE TABLE ac_trial (study TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL,"
        " origin TEXT NOT NULL, val REAL, size_bytes INTEGER, latency_ms REAL, record TEXT NOT NULL,"
        " PRIMARY KEY (study, number))",
        # Covers `front_rows` and `counts`: neither touches the records, which are a hundred times larger.
        "CREATE INDEX ac_trial_front ON ac_trial (study, state, number, val, size_bytes, latency_ms)",
        "CREATE TABLE ac_latency (study TEXT NOT NULL, structure_key TEXT NOT NULL, latency TEXT NOT NULL,"
        " size_bytes INTEGER, PRIMARY KEY (study, structure_key)) WITHOUT ROWID",
    ),
)

FRONT_QUERY = (
    "SELECT number, val, size_bytes, latency_ms FROM ac_trial"
    " WHERE study = ? AND state = 'complete' AND val IS NOT NULL ORDER BY number"
)

# POSIX locks belong to the process and end when *any* descriptor of the file is closed, so each
# process remembers which lock files it holds: (pid, path) -> descriptor. The pid tells a fork's copy apart.
_held: dict[tuple[int, Path], int] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRows:
    """Complete trials as columns of one length, in the order of the trial numbers."""

    trial: NDArray[np.int64]
    val: NDArray[np.float64]
    size_bytes: NDArray[np.int64]
    latency_ms: NDArray[np.float64]


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
        self.path = self.workspace / DATABASE
        self.readonly = readonly
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        if readonly:
            self._open_for_reading()
        else:
            self._open_for_writing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the claims of this process on this workspace, and the connection; the next use opens it again."""
        for pid, path in list(_held):
            if pid == os.getpid() and path.parent == self.workspace:
                _release(path)
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    # -- studies

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""
        with self._read() as connection:
            rows = connection.execute("SELECT * FROM ac_study ORDER BY created, name").fetchall()
        return [self._study_record(row) for row in rows]

    def names(self) -> list[str]:
        """Names of all studies, oldest first."""
        with self._read() as connection:
            return [row["name"] for row in connection.execute("SELECT name FROM ac_study ORDER BY created, name")]

    def study(self, name: str) -> StudyRecord:
        """One study. A study whose owner died while it ran reads as interrupted.

        Raises:
            NotFoundError: no such study; the text names the nearest one.
        """
        with self._read() as connection:
            return self._study_record(self._study_row(connection, name))

    def create(self, record: StudyRecord) -> None:
        """Add a study.

        Raises:
            UsageError: the name is taken, or cannot be the name of a folder.
        """
        if not _NAME.fullmatch(record.name):
            raise UsageError(
                f"a study's name is letters, digits, '.', '_' and '-', at most 100, got {record.name!r};"
                " choose one with --name"
            )
        with self._write() as connection:
            if connection.execute("SELECT 1 FROM ac_study WHERE name = ?", (record.name,)).fetchone():
                raise UsageError(
                    f"study {record.name!r} exists in {self.workspace}; continue it with"
                    f" `autocompress resume {record.name}` or choose another name with --name"
                )
            owner = os.getpid() if self._claimed(record.name) else None
            connection.execute(
                "INSERT INTO ac_study (name, state, created, spent_s, record, owner_pid, heartbeat)"
                " VALUES (:name, :state, :created, :spent_s, :record, :owner, :now)",
                _study_values(record) | {"owner": owner, "now": time.time()},
            )

    def discard(self, name: str) -> None:
        """Remove a study and its trials from our tables; for one that never got a baseline."""
        with self._write() as connection:
            for table, column in (("ac_latency", "study"), ("ac_trial", "study"), ("ac_study", "name")):
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))

    def put(self, record: StudyRecord) -> None:
        """Replace what is stored of a study; time already spent never shrinks."""
        with self._write() as connection:
            self._put(connection, record)

    def update(self, name: str, **fields: Any) -> StudyRecord:
        """Replace some fields of a study's record and return the whole."""
        with self._write() as connection:
            record = replace(_stored_study(self._study_row(connection, name)), **fields)
            self._put(connection, record)
        return record

    def tick(self, name: str, spent_s: float) -> None:
        """Heartbeat: seconds of the budget spent so far."""
        with self._write() as connection:
            statement = "UPDATE ac_study SET spent_s = max(spent_s, ?), heartbeat = ? WHERE name = ?"
            if not connection.execute(statement, (spent_s, time.time(), name)).rowcount:
                self._study_row(connection, name)

    def request_cancel(self, name: str) -> None:
        """Ask the process that runs the study to end it; it looks between two steps."""
        with self._write() as connection:
            self._study_row(connection, name)
            connection.execute("UPDATE ac_study SET cancel_requested = 1 WHERE name = ?", (name,))

    def cancel_requested(self, name: str) -> bool:
        """Whether somebody asked for the end of the study since it was last claimed."""
        with self._read() as connection:
            return bool(self._study_row(connection, name)["cancel_requested"])

    # -- the only writer of a study

    def claim(self, name: str) -> None:
        """Make this process the only writer of a study, until `release`, `close` or its end.

        A claim of a process that died is taken over.

        Raises:
            UsageError: another process holds it; the text names its pid.
        """
        path = self._lock_path(name)
        if not self._claimed(name) and (holder := _take(path)) is not None:
            raise UsageError(
                f"study {name!r} is being written by process {holder}; wait for it, or end it with"
                f" `autocompress cancel {name}`"
            )
        with self._write() as connection:
            connection.execute(
                "UPDATE ac_study SET owner_pid = ?, heartbeat = ?, cancel_requested = 0 WHERE name = ?",
                (os.getpid(), time.time(), name),
            )

    def release(self, name: str) -> None:
        """Give back a claim; nothing happens if there is none."""
        if self._claimed(name):
            _release(self._lock_path(name))

    def owner(self, name: str) -> int | None:
        """Process that writes the study now, or None."""
        with self._read() as connection:
            row = self._study_row(connection, name)
        pid = row["owner_pid"]
        return int(pid) if pid is not None and _locked(self._lock_path(name)) else None

    # -- trials

    def trials(self, name: str, numbers: Sequence[int] | None = None) -> list[TrialRecord]:
        """Trials in the order of their numbers: all, or the ones asked for that exist."""
        query = "SELECT record FROM ac_trial WHERE study = ?"
        with self._read() as connection:
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
        with self._write() as connection:
            self._study_row(connection, name)
            connection.executemany(
                "INSERT OR REPLACE INTO ac_trial (study, number, state, origin, val, size_bytes, latency_ms, record)"
                " VALUES (:study, :number, :state, :origin, :val, :size_bytes, :latency_ms, :record)",
                rows,
            )

    def counts(self, name: str) -> dict[TrialState, int]:
        """Trials per state, without reading them."""
        query = "SELECT state, count(*) AS trials FROM ac_trial WHERE study = ? GROUP BY state"
        with self._read() as connection:
            self._study_row(connection, name)
            return {TrialState(row["state"]): row["trials"] for row in connection.execute(query, (name,))}

    def front_rows(self, name: str) -> FrontRows:
        """What a front is computed from: number, metric, bytes and milliseconds of the complete trials."""
        import numpy as np

        with self._read() as connection:
            self._study_row(connection, name)
            cursor = connection.cursor()
            cursor.row_factory = None  # plain tuples: named rows would take longer than the query
            cursor.execute(FRONT_QUERY, (name,))
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
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO ac_latency (study, structure_key, latency, size_bytes) VALUES (?, ?, ?, ?)",
                values,
            )

    def storage_url(self) -> str:
        """URL of the same file for Optuna's RDBStorage."""
        return f"sqlite:///{self.path}"

    # -- connections

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: sqlite3 itself never begins a transaction, `_transaction` does. Between threads
        # the connection is used under a lock.
        options: dict[str, Any] = {"timeout": BUSY_TIMEOUT_S, "isolation_level": None, "check_same_thread": False}
        if not self.readonly:
            connection: sqlite3.Connection = sqlite3.connect(self.path, **options)
            try:
                _set_pragmas(connection)
            except sqlite3.Error:
                connection.close()
                raise
            return connection
        url = f"file:{quote(str(self.path))}?mode=ro"
        try:
            connection = sqlite3.connect(url, uri=True, **options)
            try:
                connection.execute("SELECT count(*) FROM sqlite_master")
            except sqlite3.Error:
                connection.close()
                raise
        except sqlite3.OperationalError as error:
            # On a read-only disk the WAL index cannot be made; without a WAL file nobody writes either.
            unopened = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
            if not unopened or self.path.with_name(f"{DATABASE}-wal").exists():
                raise
            connection = sqlite3.connect(f"{url}&immutable=1", uri=True, **options)
        return connection

    def _open_for_reading(self) -> None:
        if not self.path.is_file():
            raise NotFoundError(f"no studies yet in {self.workspace}; start one with `autocompress search`")
        with self._read() as connection:
            if self._step(connection) == 0:
                raise NotFoundError(f"no studies yet in {self.workspace}; start one with `autocompress search`")

    def _open_for_writing(self) -> None:
        if forbidden := set("?{}") & set(str(self.workspace)):
            raise UsageError(
                f"the workspace {self.workspace} has {sorted(forbidden)[0]!r} in its path, which means something else"
                " in a database URL; choose another folder with --workspace"
            )
        with self._explained():
            self.workspace.mkdir(parents=True, exist_ok=True)
        if kind := file_system(self.workspace):
            raise UsageError(
                f"the workspace {self.workspace} is on a network file system ({kind}), where SQLite loses data;"
                " choose a local folder with --workspace"
            )
        with self._write() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS ac_schema (step INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)"
            )
            for step, statements in list(enumerate(MIGRATIONS, start=1))[self._step(connection) :]:
                for statement in statements:
                    connection.execute(statement)
                applied = datetime.now(UTC).isoformat(timespec="seconds")
                connection.execute("INSERT INTO ac_schema VALUES (?, ?)", (step, applied))

    def _step(self, connection: sqlite3.Connection) -> int:
        """Schema step of the file, 0 for a file that is not ours yet."""
        known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'ac_schema'").fetchone()
        step = connection.execute("SELECT max(step) FROM ac_schema").fetchone()[0] or 0 if known else 0
        if step > len(MIGRATIONS):
            raise UsageError(
                f"{self.path} was written by a newer autocompress (schema {step}, this one knows"
                f" {len(MIGRATIONS)}); upgrade with `pip install -U autocompress` or choose another --workspace"
            )
        return int(step)

    def _read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN")

    def _write(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        if self.readonly:
            raise UsageError(f"{self.path} was opened read-only; open the workspace without readonly=True to write")
        # A deferred transaction that reads and then writes fails at once when somebody wrote in between.
        return self._transaction("BEGIN IMMEDIATE")

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._explained(), self._lock:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.row_factory = sqlite3.Row
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what SQLite and the operating system say into one sentence and the next step."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UsageError(_explain(error, self.path)) from error

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
        record = _stored_study(row)
        died = record.state is StudyState.RUNNING and row["owner_pid"] and not _locked(self._lock_path(record.name))
        return replace(record, state=StudyState.INTERRUPTED) if died else record

    def _put(self, connection: sqlite3.Connection, record: StudyRecord) -> None:
        self._study_row(connection, record.name)
        connection.execute(
            "UPDATE ac_study SET state = :state, created = :created, spent_s = max(spent_s, :spent_s),"
            " record = :record WHERE name = :name",
            _study_values(record),
        )

    def _latency_row(self, name: str, structure_key: str) -> sqlite3.Row | None:
        query = "SELECT * FROM ac_latency WHERE study = ? AND structure_key = ?"
        with self._read() as connection:
            row: sqlite3.Row | None = connection.execute(query, (name, structure_key)).fetchone()
        return row

    def _lock_path(self, name: str) -> Path:
        return self.workspace / f".lock-{name}"

    def _claimed(self, name: str) -> bool:
        return (os.getpid(), self._lock_path(name)) in _held


def open_optuna_storage(store: StudyStore) -> RDBStorage:
    """Optuna's storage on the store's file, with the same journal, timeout and kind of transaction.

    Optuna itself sets no pragma, and its read-then-write transactions would fail at once, whatever the
    timeout, when another process (say `autocompress cancel`) writes in between.
    """
    import sqlalchemy as sa
    from optuna.storages import RDBStorage

    storage = RDBStorage(store.storage_url(), engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}})

    @sa.event.listens_for(storage.engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        _set_pragmas(connection)

    @sa.event.listens_for(storage.engine, "begin")
    def _immediate(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Connections made before the listeners were there would keep SQLite's defaults.
    storage.engine.dispose()
    return storage


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what SQLite said through Optuna into one sentence and the next step; `path` is the database."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, sqlite3.Error):
            cause = cause.__cause__
        if cause is None:
            raise
        raise UsageError(_explain(cause, path)) from error


def file_system(folder: Path) -> str | None:
    """Kind of the network file system that holds a folder, or None for a local or unknown one."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return None
    real = folder.resolve()
    holding = [(len(point), kind) for point, kind in mounts if real.is_relative_to(point.replace("\\040", " "))]
    kind = max(holding)[1] if holding else ""
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


def _set_pragmas(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    connection.execute("PRAGMA synchronous = NORMAL")
    end = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        # Switching needs the file alone and does not wait by itself: two first openers would collide.
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.02)


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


def _take(path: Path) -> int | str | None:
    """None when this process now holds the lock file, else the pid of the process that does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    # A reader that looks whether the owner lives (`_locked`) holds the lock for an instant: try again.
    for pause_s in (0.02, 0.1, 0.3, 0.0):
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                raise
            time.sleep(pause_s)
    else:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        return int(holder) if holder.isdigit() else "unknown"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _held[(os.getpid(), path)] = descriptor
    return None


def _release(path: Path) -> None:
    # The file stays: removing it would let two processes lock two files of the same name.
    os.close(_held.pop((os.getpid(), path)))


def _locked(path: Path) -> bool:
    """Whether a living process holds the lock file."""
    if (os.getpid(), path) in _held or fcntl is None:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _explain(error: BaseException | None, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    folder = path.parent
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
        return f"the disk of {folder} is full; free some space, then continue with `autocompress resume`"
    if code == sqlite3.SQLITE_NOTADB:
        return f"{path} is not an autocompress database; move it away or choose another --workspace"
    if code == sqlite3.SQLITE_CORRUPT:
        return f"{path} is damaged ({error}); restore a copy, or try `sqlite3 {path.name} .recover` on it"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path} was locked by another process for {BUSY_TIMEOUT_S:.0f} s; end that process and try again"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or isinstance(error, OSError):
        return f"cannot use the workspace {folder} ({error}); check its permissions or choose another --workspace"
    return f"the database {path} could not be used ({error}); `autocompress doctor` checks the workspace"
