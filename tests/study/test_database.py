"""The file itself: its schema and journal, what is said when it cannot be used, and Optuna beside us in it."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from autocompress.errors import NotFoundError, UsageError
from autocompress.study import database as database_module
from autocompress.study.database import DATABASE, MIGRATIONS, Database, open_optuna_storage


@pytest.fixture
def database(tmp_path):
    opened = Database(tmp_path)
    yield opened
    opened.close()


def write(database: Database, *names: str) -> None:
    """One row per name, each of about 1 kB, in one transaction."""
    with database.write() as connection:
        rows = [(name, "x" * 1000) for name in names]
        connection.executemany("INSERT INTO ac_study (name, state, created, record) VALUES (?, '', '', ?)", rows)


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return [row["name"] for row in connection.execute("SELECT name FROM ac_study ORDER BY name")]


def written(folder: Path, *rows: str) -> None:
    """A database with these rows, closed again."""
    database = Database(folder)
    write(database, *rows)
    database.close()


def refused(folder: Path, *, readonly: bool = False) -> None:
    """Opens and reads a file, expected to raise; a connection that was made is closed."""
    database = Database(folder, readonly=readonly)
    try:
        names(database)
    finally:
        database.close()


# -- schema and journal


def test_steps_are_applied_once_and_recorded(tmp_path):
    for _ in range(2):
        Database(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as raw:
        assert [row[0] for row in raw.execute("SELECT step FROM ac_schema")] == list(range(1, len(MIGRATIONS) + 1))
    raw.close()


def test_a_new_step_is_applied_to_an_older_database(tmp_path, monkeypatch):
    written(tmp_path, "digits")
    step = ("ALTER TABLE ac_study ADD COLUMN note TEXT",)
    monkeypatch.setattr(database_module, "MIGRATIONS", (*MIGRATIONS, step))
    newer = Database(tmp_path)
    assert names(newer) == ["digits"]
    newer.close()
    monkeypatch.undo()
    for readonly in (True, False):
        with pytest.raises(UsageError, match="newer autocompress"):
            refused(tmp_path, readonly=readonly)


def test_trials_of_an_older_database_keep_their_places_and_no_place_is_given_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "MIGRATIONS", MIGRATIONS[:2])
    older = Database(tmp_path)
    insert = "INSERT OR REPLACE INTO ac_trial (study, number, state, origin, record) VALUES ('digits', ?, 's', 'o', ?)"
    with older.write() as connection:
        for number in (0, 1, 2, 1):  # the second trial was stored again: it moved to the end
            connection.execute(insert, (number, "{}"))
    older.close()
    monkeypatch.undo()
    newer = Database(tmp_path)
    with newer.write() as connection:
        places = [tuple(row) for row in connection.execute("SELECT place, number FROM ac_trial ORDER BY place")]
        connection.execute("DELETE FROM ac_trial")
        connection.execute(insert, (7, "{}"))
        (later,) = connection.execute("SELECT place FROM ac_trial").fetchone()
    newer.close()
    assert places == [(1, 0), (3, 2), (4, 1)]
    assert later == 5


def test_the_database_is_in_wal_mode(database):
    with sqlite3.connect(database.path) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw.close()


def test_a_transaction_that_raises_leaves_nothing_and_the_next_one_works(database):
    with pytest.raises(KeyError), database.write() as connection:  # noqa: PT012
        connection.execute("INSERT INTO ac_study (name, state, created, record) VALUES ('half', '', '', '')")
        raise KeyError("ours")
    assert names(database) == []
    write(database, "whole")
    assert names(database) == ["whole"]


# -- files that cannot be used


def test_reading_a_workspace_without_studies_says_how_to_start(tmp_path):
    with pytest.raises(NotFoundError, match="autocompress search"):
        refused(tmp_path / "nowhere", readonly=True)
    assert not (tmp_path / "nowhere").exists(), "reading creates nothing"
    (tmp_path / DATABASE).touch()
    with pytest.raises(NotFoundError, match="autocompress search"):
        refused(tmp_path, readonly=True)


def test_a_readonly_database_refuses_to_write_and_cannot_even_past_its_own_check(database):
    reader = Database(database.workspace, readonly=True)
    with pytest.raises(UsageError, match="opened read-only"):
        write(reader, "digits")
    reader.readonly = False
    with pytest.raises(UsageError, match="readonly database"):
        write(reader, "digits")
    reader.close()


def test_a_workspace_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="--workspace"):
        refused(tmp_path / "file" / "runs")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / DATABASE).mkdir()
    with pytest.raises(UsageError, match="--workspace"):
        refused(tmp_path / "runs")


@pytest.fixture
def ordinary_user():
    """Root may write everywhere: act as nobody where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_readonly_folder_can_be_read_and_is_refused_for_writing(request):
    with tempfile.TemporaryDirectory() as folder:
        written(Path(folder), "digits")
        Path(folder).chmod(0o555)
        request.getfixturevalue("ordinary_user")
        reader = Database(Path(folder), readonly=True)
        assert names(reader) == ["digits"]
        reader.close()
        with pytest.raises(UsageError, match="permissions"):
            refused(Path(folder))
        if os.getuid() == 0:
            os.seteuid(0)
        Path(folder).chmod(0o755)


@pytest.mark.parametrize("readonly", [True, False])
def test_a_file_that_is_no_database_is_named(tmp_path, readonly):
    (tmp_path / DATABASE).write_bytes(b"this is text, not a database " * 200)
    with pytest.raises(UsageError, match=f"{DATABASE} is not an autocompress database"):
        refused(tmp_path, readonly=readonly)


def test_a_damaged_database_is_a_usage_error_and_not_a_traceback(tmp_path):
    written(tmp_path, *(f"study-{n}" for n in range(500)))
    with (tmp_path / DATABASE).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(UsageError, match=r"damaged|not an autocompress database"):
        refused(tmp_path, readonly=True)


def test_a_full_disk_is_named_with_the_way_to_continue(database):
    assert database._connection is not None
    (pages,) = database._connection.execute("PRAGMA page_count").fetchone()
    database._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UsageError, match=r"disk of .* is full"):
        write(database, *(f"study-{n}" for n in range(500)))
    assert names(database) == []


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "file_system", lambda _folder: "nfs4")
    with pytest.raises(UsageError, match=r"network file system \(nfs4\)"):
        refused(tmp_path)


def test_a_path_with_spaces_and_signs_works_and_a_question_mark_is_refused(tmp_path):
    written(tmp_path / "a b#%41", "digits")
    reader = Database(tmp_path / "a b#%41", readonly=True)
    assert names(reader) == ["digits"]
    reader.close()
    with pytest.raises(UsageError, match="--workspace"):
        refused(tmp_path / "what?")


# -- beside Optuna


def test_what_we_commit_is_on_the_disk(database):
    with database.write() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2, "FULL"


def test_optuna_shares_the_file_in_wal_mode_while_others_write(database):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_optuna_storage(database.path)
    study = optuna.create_study(storage=storage, study_name="digits", directions=["minimize"] * 3)
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for number in range(3):
        trial = study.ask(space)
        write(database, f"before-{number}")
        study.tell(trial, [0.1, 2.0, 3.0])
        write(database, f"after-{number}")
    with storage.engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous")]
        assert [*pragmas, connection.exec_driver_sql("PRAGMA busy_timeout").scalar()] == ["wal", 1, 30_000]
    assert (len(study.trials), len(names(database))) == (3, 6)
    storage.remove_session()
    storage.engine.dispose()
