"""Removing a study for good: its trials here and in Optuna's tables, its jobs and their logs, its files and bundles.

Teachers and profiles that other studies of the workspace may use stay, uploaded weights too, and so does the audit
trail. Whether somebody may ask for it is not decided here.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import NotFoundError, UsageError
from autocompress.service.jobs import Busy
from autocompress.study.database import Database, remove_optuna_study
from autocompress.study.store import StudyStore

_TABLES = (
    ("ac_latency", "study"),
    ("ac_trial", "study"),
    ("ac_export", "study"),
    ("ac_job", "study"),
    ("ac_study", "name"),
)
_one_at_a_time = threading.Lock()  # a claim belongs to the process, not to the thread that made it


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What is gone."""

    trials: int
    files: int
    size_bytes: int


def remove_study(workspace: Path, name: str) -> Removed:
    """Remove everything that is kept of one study.

    What is interrupted on the way leaves no more than files that nobody lists; a study of the same name replaces them.

    Raises:
        NotFoundError: there is no such study.
        Busy: it waits, runs, is written by a process of this machine, or a bundle of it is being made.
    """
    with _one_at_a_time, StudyStore(workspace) as store:
        try:
            store.claim(name)  # nobody can begin to write it from here on
        except UsageError as error:
            raise Busy(f"study {name!r} cannot be deleted while it runs; cancel it first") from error
        database = Database(store.workspace)
        try:
            _check_idle(database, name)
            remove_optuna_study(store.path, name)
            files, trials = _remove_rows(database, name)
        finally:
            database.close()
        # Before the claim is given back: a new study of this name would lose its own files.
        return _remove_files(store.workspace, [Path("artifacts") / name, *files], trials)


def _check_idle(database: Database, name: str) -> None:
    with database.read() as connection:
        active = connection.execute(
            "SELECT state FROM ac_job WHERE study = ? AND state IN ('queued', 'running')", (name,)
        ).fetchone()
        exported = connection.execute(
            "SELECT 1 FROM ac_export WHERE study = ? AND state = 'queued'", (name,)
        ).fetchone()
        known = any(
            connection.execute(f"SELECT 1 FROM {table} WHERE {column} = ?", (name,)).fetchone()
            for table, column in _TABLES[-2:]
        )
    if active:
        raise Busy(f"study {name!r} is {active['state']}; cancel it before it is deleted")
    if exported:
        raise Busy(f"a bundle of study {name!r} is being made; delete the study when that is done")
    if not known:
        raise NotFoundError(f"no study {name!r}")


def _remove_rows(database: Database, name: str) -> tuple[list[Path], int]:
    """Files that the rows named, relative to the workspace, and how many trials there were."""
    with database.write() as connection:
        # Asked again: a job may have come in between.
        if connection.execute(
            "SELECT 1 FROM ac_job WHERE study = ? AND state IN ('queued', 'running')", (name,)
        ).fetchone():
            raise Busy(f"study {name!r} was started again; cancel it before it is deleted")
        jobs = [row["id"] for row in connection.execute("SELECT id FROM ac_job WHERE study = ?", (name,))]
        exports = [row["id"] for row in connection.execute("SELECT id FROM ac_export WHERE study = ?", (name,))]
        trials = connection.execute("SELECT count(*) FROM ac_trial WHERE study = ?", (name,)).fetchone()[0]
        for table, column in _TABLES:
            connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))
    logs = [Path("logs") / f"{job}.log" for job in jobs]
    return [*logs, *(Path("exports") / f"{export}.zip" for export in exports)], int(trials)


def _remove_files(workspace: Path, paths: list[Path], trials: int) -> Removed:
    files = size_bytes = 0
    for path in (workspace / relative for relative in paths):
        found = [p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()]
        files, size_bytes = files + len(found), size_bytes + sum(p.stat().st_size for p in found)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return Removed(trials=trials, files=files, size_bytes=size_bytes)
