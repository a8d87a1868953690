"""The SQLite file of a workspace: opening it, its schema, its transactions, and its errors in plain words.

Writers get WAL mode and short `BEGIN IMMEDIATE` transactions; readers open the file read-only and see
a consistent snapshot while a search writes. What is in the tables is the business of `store.py`.

It speaks to SQLite directly: SQLAlchemy, which Optuna's tables go through, takes longer to import than
`autocompress front` may take in all.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from autocompress.errors import AutocompressError, NotFoundError, UsageError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

DATABASE = "autocompress.db"
BUSY_TIMEOUT_S = 30.0
# isolation_level None: `_transaction` begins every transaction. check_same_thread False: threads use it under a lock.
_OPTIONS: dict[str, Any] = {"timeout": BUSY_TIMEOUT_S, "isolation_level": None, "check_same_thread": False}
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
    (
        # What a watcher asks for: what a study is doing, and whether anything was written since it last looked.
        "ALTER TABLE ac_study ADD COLUMN stage TEXT",
        "ALTER TABLE ac_study ADD COLUMN revision INTEGER NOT NULL DEFAULT 0",
        # The service's queue: `service/jobs.py`.
        "CREATE TABLE ac_job (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, study TEXT NOT NULL,"
        " state TEXT NOT NULL, priority INTEGER NOT NULL, device TEXT NOT NULL, spec TEXT NOT NULL,"
        " actor TEXT NOT NULL, created REAL NOT NULL, started REAL, ended REAL, attempt INTEGER NOT NULL DEFAULT 0,"
        " crashes INTEGER NOT NULL DEFAULT 0, trials_before INTEGER NOT NULL DEFAULT 0, server TEXT, lease_until REAL,"
        " pid INTEGER, pid_started INTEGER, cancel_requested INTEGER NOT NULL DEFAULT 0, error TEXT,"
        " request_key TEXT UNIQUE, request_hash TEXT)",
        # Two jobs can never be under way for one study.
        "CREATE UNIQUE INDEX ac_job_active ON ac_job (study) WHERE state IN ('queued', 'running')",
        "CREATE INDEX ac_job_study ON ac_job (study, seq)",
        "CREATE INDEX ac_job_state ON ac_job (state, device)",
        "CREATE TABLE ac_audit (id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, actor TEXT NOT NULL,"
        " address TEXT NOT NULL, action TEXT NOT NULL, study TEXT, detail TEXT NOT NULL)",
        "CREATE TABLE ac_export (id TEXT PRIMARY KEY, study TEXT NOT NULL, state TEXT NOT NULL, spec TEXT NOT NULL,"
        " actor TEXT NOT NULL, created REAL NOT NULL, trial INTEGER, size_bytes INTEGER, error TEXT)",
        "CREATE TABLE ac_model (id TEXT PRIMARY KEY, architecture TEXT NOT NULL, args TEXT NOT NULL,"
        " size_bytes INTEGER NOT NULL, tensors INTEGER NOT NULL, actor TEXT NOT NULL, created REAL NOT NULL)",
    ),
    (
        # Places in the order of writing are never given twice, also when a study is deleted: who watches would miss
        # the trials that come after it. Only AUTOINCREMENT promises that.
        "CREATE TABLE ac_trial_3 (place INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL,"
        " number INTEGER NOT NULL, state TEXT NOT NULL, origin TEXT NOT NULL, val REAL, size_bytes INTEGER,"
        " latency_ms REAL, record TEXT NOT NULL, UNIQUE (study, number))",
        "INSERT INTO ac_trial_3 SELECT rowid, * FROM ac_trial ORDER BY rowid",
        "DROP TABLE ac_trial",
        "ALTER TABLE ac_trial_3 RENAME TO ac_trial",
        "CREATE INDEX ac_trial_front ON ac_trial (study, state, number, val, size_bytes, latency_ms)",
    ),
    (
        # What the command line returns for a failure that a server tells of: the text alone does not say.
        "ALTER TABLE ac_job ADD COLUMN exit_code INTEGER",
        "ALTER TABLE ac_export ADD COLUMN exit_code INTEGER",
    ),
)


class Database:
    """The database of one workspace; threads take turns at it.

    Args:
        workspace: folder of `autocompress.db`; created when writing.
        readonly: open the file read-only; writing is an error.
    Raises:
        NotFoundError: readonly, and there is no database yet.
        UsageError: the folder or file cannot be used; the text says why and what to do.
    """

    def __init__(self, workspace: Path, *, readonly: bool = False) -> None:
        self.workspace, self.path, self.readonly = workspace, workspace / DATABASE, readonly
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        if readonly:
            self._open_for_reading()
        else:
            self._open_for_writing()

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A consistent snapshot."""
        return self._transaction("BEGIN")

    def write(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A transaction that is written when its block ends, and undone when that raises."""
        if self.readonly:
            raise UsageError(f"{self.path} was opened read-only; open the workspace without readonly=True to write")
        # A deferred transaction that reads and then writes fails at once when somebody wrote in between.
        return self._transaction("BEGIN IMMEDIATE")

    def _open_for_reading(self) -> None:
        if not self.path.is_file():
            raise NotFoundError(f"no studies yet in {self.workspace}; start one with `autocompress search`")
        with self.read() as connection:
            if self._step(connection) == 0:
                raise NotFoundError(f"no studies yet in {self.workspace}; start one with `autocompress search`")

    def _open_for_writing(self) -> None:
        if forbidden := set("?{}") & set(str(self.workspace)):
            raise UsageError(
                f"the workspace {self.workspace} has {sorted(forbidden)[0]!r} in its path, which means something else"
                " in a database URL; choose another folder with --workspace"
            )
        with explained(self.path):
            self.workspace.mkdir(parents=True, exist_ok=True)
        if kind := file_system(self.workspace):
            raise UsageError(
                f"the workspace {self.workspace} is on a network file system ({kind}), where SQLite loses data;"
                " choose a local folder with --workspace"
            )
        with self.write() as connection:
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

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with explained(self.path), self._lock:
            if self._connection is None:
                self._connection = _connect(self.path, readonly=self.readonly)
                self._connection.row_factory = sqlite3.Row
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what SQLite (also through Optuna) and the system say into one sentence and the next step.

    Args:
        path: the database.
    """
    try:
        yield
    except AutocompressError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, sqlite3.Error | OSError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise UsageError(_explain(cause, path)) from error


def open_optuna_storage(path: Path) -> RDBStorage:
    """Optuna's storage on the same file, with the same journal, timeout and kind of transaction.

    Optuna itself sets no pragma, and its read-then-write transactions would fail at once, whatever the
    timeout, when another process (say `autocompress cancel`) writes in between.
    """
    import sqlalchemy as sa
    from optuna.storages import RDBStorage

    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}})

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


def remove_optuna_study(path: Path, name: str) -> None:
    """Remove a study from Optuna's tables; nothing happens if it is not there."""
    with Database(path.parent).read() as connection:  # making the tables takes longer than asking
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone()
        known = tables and connection.execute("SELECT 1 FROM studies WHERE study_name = ?", (name,)).fetchone()
    if not known:
        return
    import optuna

    with explained(path):
        storage = open_optuna_storage(path)
        try:
            optuna.delete_study(study_name=name, storage=storage)
        finally:
            storage.engine.dispose()


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


def _connect(path: Path, *, readonly: bool) -> sqlite3.Connection:
    """A connection that never begins a transaction by itself."""
    if not readonly:
        return _checked(sqlite3.connect(path, **_OPTIONS), _set_durable_pragmas)
    url = f"file:{quote(str(path))}?mode=ro"
    try:
        return _checked(sqlite3.connect(url, uri=True, **_OPTIONS), _read_something)
    except sqlite3.OperationalError as error:
        # On a read-only disk the WAL index cannot be made; without a WAL file nobody writes either.
        unopened = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if not unopened or path.with_name(f"{path.name}-wal").exists():
            raise
        frozen: sqlite3.Connection = sqlite3.connect(f"{url}&immutable=1", uri=True, **_OPTIONS)
        return frozen


def _checked(connection: sqlite3.Connection, check: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    try:
        check(connection)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _read_something(connection: sqlite3.Connection) -> None:
    connection.execute("SELECT count(*) FROM sqlite_master")


def _set_durable_pragmas(connection: sqlite3.Connection) -> None:
    """As below, and what was committed is on the disk: a trial that we call finished survives a power cut."""
    _set_pragmas(connection)
    connection.execute("PRAGMA synchronous = FULL")


def _set_pragmas(connection: sqlite3.Connection) -> None:
    """For Optuna, which commits each parameter alone: too often to wait for the disk, and what is lost is put right."""
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
