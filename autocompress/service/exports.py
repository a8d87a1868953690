"""Bundles that clients asked for: made one after the other, zipped, kept for a while.

What is in a bundle is the business of `bundle.py`.
"""

from __future__ import annotations

import json
import logging
import queue
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.api import StudyResult
from autocompress.errors import AutocompressError, NotFoundError
from autocompress.study.database import Database

_log = logging.getLogger("autocompress.service")


class Exports:
    """The bundles of a workspace, and the thread that makes them.

    Args:
        keep: how many there may be; the oldest go.
    """

    def __init__(self, workspace: Path, *, keep: int) -> None:
        self._workspace, self._keep = workspace.absolute(), keep
        self._folder = self._workspace / "exports"
        self._database = Database(self._workspace)
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="exports")

    def start(self) -> None:
        """Begin to work, with what an earlier server left undone first."""
        self._folder.mkdir(exist_ok=True)
        with self._database.read() as connection:
            rows = connection.execute("SELECT id FROM ac_export WHERE state = 'queued' ORDER BY created").fetchall()
        for row in rows:
            self._queue.put(row["id"])
        self._thread.start()

    def stop(self) -> None:
        """Finish the bundle in hand and end; the next server makes what waits."""
        self._stopping.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._database.close()

    def ask(self, study: str, spec: Mapping[str, Any], *, actor: str) -> dict[str, Any]:
        """Have a bundle made.

        Args:
            spec: "pick", and limits as `StudyResult.best` takes them.
        """
        identifier = f"x{secrets.token_hex(8)}"
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO ac_export (id, study, state, spec, actor, created) VALUES (?, ?, 'queued', ?, ?, ?)",
                (identifier, study, json.dumps(dict(spec)), actor, time.time()),
            )
        self._queue.put(identifier)
        return self.get(identifier)

    def get(self, identifier: str) -> dict[str, Any]:
        """How an export stands.

        Raises:
            NotFoundError: there is none of this id.
        """
        row = self._row(identifier)
        return {
            **{key: row[key] for key in ("id", "study", "state", "trial", "size_bytes", "error", "exit_code")},
            **json.loads(row["spec"]),
        }

    def file(self, identifier: str) -> Path | None:
        """The zip file of an export that is done; None before, and when it was removed."""
        path = self._path(self._row(identifier)["id"])
        return path if path.is_file() else None

    def _row(self, identifier: str) -> sqlite3.Row:
        with self._database.read() as connection:
            row: sqlite3.Row | None = connection.execute(
                "SELECT * FROM ac_export WHERE id = ?", (identifier,)
            ).fetchone()
        if row is None:
            raise NotFoundError(f"no export {identifier!r}; POST to a study's exports makes one")
        return row

    def _path(self, identifier: str) -> Path:
        return self._folder / f"{identifier}.zip"

    def _work(self) -> None:
        while (identifier := self._queue.get()) is not None and not self._stopping.is_set():
            try:
                self._make_or_say_why(identifier)
                self._tidy()
            except Exception:  # a full disk, or a study that is deleted just now, must not end the queue
                _log.exception("the exports go on after an error", extra={"export": identifier})

    def _make_or_say_why(self, identifier: str) -> None:
        try:
            self._make(identifier)
        except Exception as error:
            text, code = "internal error; see the server's log", AutocompressError.exit_code
            # What the disk refuses comes with a path, and where files lie on the server is nobody's business.
            if isinstance(error, AutocompressError) and not isinstance(error.__cause__, OSError):
                text, code = str(error), error.exit_code
            else:
                _log.exception("export failed", extra={"export": identifier})
            self._record(identifier, "failed", error=text, exit_code=code)

    def _make(self, identifier: str) -> None:
        row = self._row(identifier)
        spec, study = json.loads(row["spec"]), row["study"]
        choice = StudyResult(study, self._workspace).best(**spec)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".making-") as folder:
            bundle = choice.export(Path(folder) / f"{study}-trial-{choice.point.trial}")
            partial = Path(folder) / "bundle.zip"
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
                    archive.write(path, path.relative_to(bundle.parent))
            size = partial.stat().st_size
            partial.rename(self._path(identifier))
        self._record(identifier, "done", trial=choice.point.trial, size_bytes=size)

    def _record(self, identifier: str, state: str, **values: Any) -> None:
        fields = {"trial": None, "size_bytes": None, "error": None, "exit_code": None, **values}
        with self._database.write() as connection:
            connection.execute(
                "UPDATE ac_export SET state = ?, trial = ?, size_bytes = ?, error = ?, exit_code = ? WHERE id = ?",
                (*(state, fields["trial"], fields["size_bytes"], fields["error"]), fields["exit_code"], identifier),
            )

    def _tidy(self) -> None:
        """Remove the oldest files beyond what is kept, and what a killed server left half done."""
        files = sorted(self._folder.glob("x*.zip"), key=lambda path: path.stat().st_mtime)
        for path in files[: -self._keep]:
            path.unlink(missing_ok=True)
        for folder in self._folder.glob(".making-*"):
            shutil.rmtree(folder, ignore_errors=True)
