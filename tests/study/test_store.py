"""What the store keeps, who may write it, and what it says when the file cannot be used."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import NotFoundError, UsageError
from autocompress.plan import CompressionPlan
from autocompress.records import (
    DeviceFacts,
    Latency,
    Measurement,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
)
from autocompress.study import store as store_module
from autocompress.study.store import DATABASE, FRONT_QUERY, MIGRATIONS, StudyStore, open_optuna_storage

ROOT = Path(__file__).resolve().parents[2]
LATENCY = Latency(latency_ms=0.1, ratio=0.5, ratio_ci=(0.4, 0.6), blocks=9)


def make_study(name: str = "digits", **fields: object) -> StudyRecord:
    record = StudyRecord(
        name=name,
        state=StudyState.RUNNING,
        seed=0,
        config={"search": {"budget": 60.0}},
        config_hash="abc",
        budget_s=60.0,
        spent_s=0.0,
        created="2026-11-01T00:00:00+00:00",
        device=DeviceFacts(),
    )
    return replace(record, **fields)  # type: ignore[arg-type]


def make_trial(number: int, *, val: float | None = 0.9, state: TrialState = TrialState.COMPLETE) -> TrialRecord:
    measurement = Measurement(
        val=val, size_bytes=1000 + number, compressed_bytes=900, latency=LATENCY, params=10, macs=20
    )
    plan = CompressionPlan(prune_ratio={"conv1": 0.5}, weight_bits={"conv1": 4})
    return TrialRecord(
        trial=number,
        state=state,
        plan=plan,
        measurement=measurement,
        artifact=f"artifacts/digits/trial-{number}/model.onnx",
        learning_curve=((1.0, 0.5), (2.0, 0.25)),
    )


@pytest.fixture
def store(tmp_path):
    with StudyStore(tmp_path) as opened:
        yield opened


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


CLAIM = """
import sys, time
from autocompress.study.store import StudyStore
store = StudyStore(sys.argv[1])
store.claim("digits")
print("claimed", flush=True)
time.sleep(60)
"""

WRITE_FOREVER = """
import sys
from dataclasses import replace
from autocompress.study.store import StudyStore
store = StudyStore(sys.argv[1])
store.claim("digits")
template = store.trials("digits")[0]
number = max(t.trial for t in store.trials("digits"))
print("writing", flush=True)
while True:
    number += 1
    store.add_trial("digits", replace(template, trial=number))
    store.tick("digits", float(number))
"""


def test_what_was_written_is_read_back_equal_after_reopening(tmp_path):
    with StudyStore(tmp_path) as first:
        first.create(make_study())
        first.add_trial("digits", make_trial(0))
        first.add_trial("digits", make_trial(1, val=None, state=TrialState.STOPPED))
    with StudyStore(tmp_path, readonly=True) as reader:
        assert reader.study("digits") == make_study()
        assert reader.trials("digits") == [make_trial(0), make_trial(1, val=None, state=TrialState.STOPPED)]
        assert reader.counts("digits") == {TrialState.COMPLETE: 1, TrialState.STOPPED: 1}


def test_a_trial_stored_twice_is_replaced(store):
    store.create(make_study())
    store.add_trial("digits", make_trial(3, val=0.5, state=TrialState.RUNNING))
    store.add_trial("digits", make_trial(3, val=0.7))
    assert [t.measurement.val for t in store.trials("digits")] == [0.7]


def test_only_the_numbers_asked_for_are_loaded(store):
    store.create(make_study())
    store.add_trials("digits", [make_trial(n) for n in range(1200)])
    numbers = [1199, 5, 700, 5, 99_999]
    assert [t.trial for t in store.trials("digits", numbers)] == [5, 700, 1199]
    with pytest.raises(NotFoundError, match="no trial 99999 among its 1200"):
        store.trial("digits", 99_999)


def test_update_replaces_only_the_fields_given(store):
    store.create(make_study())
    store.update("digits", state=StudyState.FINISHED, message="done")
    assert store.study("digits") == make_study(state=StudyState.FINISHED, message="done")


def test_spent_time_survives_a_record_that_is_older_than_the_heartbeat(store):
    store.create(make_study())
    store.tick("digits", 12.5)
    store.put(make_study(message="stale record, spent_s is 0"))
    assert store.study("digits").spent_s == 12.5
    store.tick("digits", 3.0)
    assert store.study("digits").spent_s == 12.5


def test_a_taken_name_is_refused_with_the_way_to_continue(store):
    store.create(make_study())
    with pytest.raises(UsageError, match="autocompress resume digits"):
        store.create(make_study())


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101, "a b"])
def test_a_name_that_is_no_folder_name_is_refused(store, name):
    with pytest.raises(UsageError, match="--name"):
        store.create(make_study(name))


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.study("digit"),
        lambda s: s.trials("digit"),
        lambda s: s.add_trial("digit", make_trial(0)),
        lambda s: s.tick("digit", 1.0),
        lambda s: s.update("digit", message="x"),
        lambda s: s.request_cancel("digit"),
        lambda s: s.front_rows("digit"),
    ],
)
def test_an_unknown_study_is_named_with_the_nearest_one(store, call):
    store.create(make_study())
    with pytest.raises(NotFoundError, match=r"no study 'digit' .* did you mean 'digits'"):
        call(store)


def test_timings_of_a_structure_are_remembered_per_study(store):
    store.create(make_study())
    key = make_trial(0).plan.structure_key()
    assert store.latency("digits", key) is None
    store.remember_latency("digits", key, LATENCY, size_bytes=4321)
    assert store.latency("digits", key) == LATENCY
    assert store.size_bytes("digits", key) == 4321
    assert store.latency("other", key) is None


def test_a_cancel_request_is_seen_until_the_study_is_claimed_again(store):
    store.create(make_study())
    store.claim("digits")
    assert not store.cancel_requested("digits")
    store.request_cancel("digits")
    assert store.cancel_requested("digits")
    store.claim("digits")
    assert not store.cancel_requested("digits")


# -- one writer


def test_a_claim_of_a_live_process_is_refused_and_of_a_killed_one_taken_over(tmp_path):
    with StudyStore(tmp_path) as mine:
        mine.create(make_study())
        other = run_python(CLAIM, tmp_path)
        try:
            assert other.stdout.readline() == "claimed\n"
            with pytest.raises(UsageError, match=f"process {other.pid}"):
                mine.claim("digits")
            assert mine.owner("digits") == other.pid
            assert mine.study("digits").state is StudyState.RUNNING
        finally:
            other.kill()
            other.communicate()
        assert mine.study("digits").state is StudyState.INTERRUPTED, "its owner is dead"
        assert mine.owner("digits") is None
        mine.claim("digits")
        assert mine.owner("digits") == os.getpid()
        assert mine.study("digits").state is StudyState.RUNNING


def test_closing_the_store_gives_the_claim_back(tmp_path):
    with StudyStore(tmp_path) as first:
        first.create(make_study())
        first.claim("digits")
    other = run_python(CLAIM, tmp_path)
    try:
        assert other.stdout.readline() == "claimed\n"
    finally:
        other.kill()
        other.communicate()


def test_readers_that_look_for_the_owner_do_not_end_the_claim(tmp_path):
    with StudyStore(tmp_path) as mine, StudyStore(tmp_path, readonly=True) as reader:
        mine.create(make_study())
        mine.claim("digits")
        for _ in range(3):
            assert reader.owner("digits") == os.getpid()
        code = CLAIM.replace('store.claim("digits")', "print(store.owner('digits'), flush=True)")
        other = run_python(code, tmp_path)
        try:
            assert other.stdout.readline() == f"{os.getpid()}\n"
        finally:
            other.kill()
            other.communicate()


def test_a_writer_killed_in_a_loop_leaves_a_sound_database(tmp_path):
    with StudyStore(tmp_path) as mine:
        mine.create(make_study())
        mine.add_trial("digits", make_trial(0))
    counts = []
    for pause_s in (0.05, 0.11, 0.17):
        writer = run_python(WRITE_FOREVER, tmp_path)
        assert writer.stdout.readline() == "writing\n"
        time.sleep(pause_s)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        with sqlite3.connect(tmp_path / DATABASE) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        raw.close()
        with StudyStore(tmp_path, readonly=True) as reader:
            numbers = [t.trial for t in reader.trials("digits")]
            assert numbers == list(range(len(numbers))), "every trial before the kill is there, none is half there"
            assert reader.study("digits").state is StudyState.INTERRUPTED
            counts.append(len(numbers))
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] > 1


def test_two_readers_see_whole_trials_while_a_writer_writes(tmp_path):
    with StudyStore(tmp_path) as mine:
        mine.create(make_study())
        mine.add_trial("digits", make_trial(0))
    writer = run_python(WRITE_FOREVER, tmp_path)
    errors: list[BaseException] = []

    def read(seen: list[int]) -> None:
        try:
            with StudyStore(tmp_path, readonly=True) as reader:
                end = time.monotonic() + 0.5
                while time.monotonic() < end:
                    seen.append(len(reader.front_rows("digits").trial))
        except BaseException as error:
            errors.append(error)

    try:
        assert writer.stdout.readline() == "writing\n"
        seen: tuple[list[int], list[int]] = ([], [])
        threads = [threading.Thread(target=read, args=(s,)) for s in seen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert writer.poll() is None, "the writer was not disturbed"
    finally:
        writer.kill()
        writer.communicate()
    assert errors == []
    for s in seen:
        assert s == sorted(s)
        assert s[-1] > s[0]


# -- the front's columns


def test_front_rows_hold_complete_trials_only_in_order(store):
    store.create(make_study())
    store.add_trial("digits", make_trial(2, val=0.8))
    store.add_trial("digits", make_trial(0, val=0.9))
    store.add_trial("digits", make_trial(1, val=None, state=TrialState.STOPPED))
    store.add_trial("digits", replace(make_trial(3), state=TrialState.FAILED, measurement=None))
    rows = store.front_rows("digits")
    assert rows.trial.tolist() == [0, 2]
    assert rows.val.tolist() == [0.9, 0.8]
    assert rows.size_bytes.tolist() == [1000, 1002]
    assert rows.latency_ms.tolist() == [0.1, 0.1]
    assert rows.trial.dtype == np.int64


def test_front_rows_of_twenty_thousand_trials_take_far_less_than_a_second(store):
    store.create(make_study())
    assert len(store.front_rows("digits").trial) == 0
    store.add_trials("digits", [make_trial(0)])
    text = json.dumps(make_trial(0).to_dict())
    with sqlite3.connect(store.path) as raw:
        rows = ((n, 0.5 + n * 1e-6, 1000 + n, 0.1, text) for n in range(1, 20_000))
        raw.executemany("INSERT INTO ac_trial VALUES ('digits', ?, 'complete', 'search', ?, ?, ?, ?)", rows)
    raw.close()
    start = time.perf_counter()
    rows = store.front_rows("digits")
    duration_s = time.perf_counter() - start
    assert len(rows.trial) == 20_000
    assert rows.val[19_999] == 0.5 + 19_999 * 1e-6
    assert duration_s < 0.5  # about 0.02 s alone; the machine may be busy


def test_the_front_is_read_from_the_index_without_the_records(store):
    store.create(make_study())
    with sqlite3.connect(store.path) as raw:
        plan = " ".join(str(row) for row in raw.execute(f"EXPLAIN QUERY PLAN {FRONT_QUERY}", ("digits",)))
    raw.close()
    assert "COVERING INDEX ac_trial_front" in plan
    assert "TEMP B-TREE" not in plan


# -- schema and files that cannot be used


def test_steps_are_applied_once_and_recorded(tmp_path):
    for _ in range(2):
        StudyStore(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as raw:
        assert [row[0] for row in raw.execute("SELECT step FROM ac_schema")] == list(range(1, len(MIGRATIONS) + 1))
    raw.close()


def test_a_new_step_is_applied_to_an_older_database(tmp_path, monkeypatch):
    with StudyStore(tmp_path) as old:
        old.create(make_study())
    step = ("ALTER TABLE ac_study ADD COLUMN note TEXT",)
    monkeypatch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, step))
    with StudyStore(tmp_path) as new:
        assert new.study("digits").name == "digits"
    monkeypatch.undo()
    for readonly in (True, False):
        with pytest.raises(UsageError, match="newer autocompress"):
            StudyStore(tmp_path, readonly=readonly)


def test_the_database_is_in_wal_mode(store):
    with sqlite3.connect(store.path) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw.close()


def test_reading_a_workspace_without_studies_says_how_to_start(tmp_path):
    with pytest.raises(NotFoundError, match="autocompress search"):
        StudyStore(tmp_path / "nowhere", readonly=True)
    assert not (tmp_path / "nowhere").exists(), "reading creates nothing"
    (tmp_path / DATABASE).touch()
    with pytest.raises(NotFoundError, match="autocompress search"):
        StudyStore(tmp_path, readonly=True)


def test_writing_through_a_readonly_store_is_refused(store):
    store.create(make_study())
    with (
        StudyStore(store.workspace, readonly=True) as reader,
        pytest.raises(UsageError, match="opened read-only"),
    ):
        reader.tick("digits", 1.0)


def test_a_readonly_store_cannot_write_even_past_its_own_check(store):
    store.create(make_study())
    with StudyStore(store.workspace, readonly=True) as reader:
        reader.readonly = False
        with pytest.raises(UsageError, match="readonly database"):
            reader.tick("digits", 1.0)


def test_a_workspace_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="--workspace"):
        StudyStore(tmp_path / "file" / "runs")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / DATABASE).mkdir()
    with pytest.raises(UsageError, match="--workspace"):
        StudyStore(tmp_path / "runs")


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
        with StudyStore(Path(folder)) as first:
            first.create(make_study())
        Path(folder).chmod(0o555)
        request.getfixturevalue("ordinary_user")
        with StudyStore(Path(folder), readonly=True) as reader:
            assert reader.study("digits").name == "digits"
        with pytest.raises(UsageError, match="permissions"):
            StudyStore(Path(folder))
        if os.getuid() == 0:
            os.seteuid(0)
        Path(folder).chmod(0o755)


@pytest.mark.parametrize("readonly", [True, False])
def test_a_file_that_is_no_database_is_named(tmp_path, readonly):
    (tmp_path / DATABASE).write_bytes(b"this is text, not a database " * 200)
    with pytest.raises(UsageError, match=f"{DATABASE} is not an autocompress database"):
        StudyStore(tmp_path, readonly=readonly)


def test_a_damaged_database_is_a_usage_error_and_not_a_traceback(tmp_path):
    with StudyStore(tmp_path) as first:
        first.create(make_study())
        first.add_trials("digits", [make_trial(n) for n in range(500)])
    with (tmp_path / DATABASE).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with (
        pytest.raises(UsageError, match=r"damaged|not an autocompress database"),
        StudyStore(tmp_path, readonly=True) as reader,
    ):
        reader.trials("digits")


def test_a_full_disk_is_named_with_the_way_to_continue(store):
    store.create(make_study())
    assert store._connection is not None
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UsageError, match=r"disk of .* is full"):
        store.add_trials("digits", [make_trial(n) for n in range(500)])
    assert store.trials("digits") == []


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "file_system", lambda _folder: "nfs4")
    with pytest.raises(UsageError, match=r"network file system \(nfs4\)"):
        StudyStore(tmp_path)


def test_a_path_with_spaces_and_signs_works_and_a_question_mark_is_refused(tmp_path):
    with StudyStore(tmp_path / "a b#%41") as first:
        first.create(make_study())
    with StudyStore(tmp_path / "a b#%41", readonly=True) as reader:
        assert reader.names() == ["digits"]
    with pytest.raises(UsageError, match="--workspace"):
        StudyStore(tmp_path / "what?")


# -- beside Optuna


def test_optuna_shares_the_file_in_wal_mode_while_others_write(tmp_path):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with StudyStore(tmp_path) as mine:
        mine.create(make_study())
        storage = open_optuna_storage(mine)
        study = optuna.create_study(storage=storage, study_name="digits", directions=["minimize"] * 3)
        space = {"x": optuna.distributions.FloatDistribution(0, 1)}
        for number in range(3):
            trial = study.ask(space)
            mine.add_trial("digits", make_trial(number))
            study.tell(trial, [0.1, 2.0, 3.0])
            mine.request_cancel("digits")
        with storage.engine.connect() as connection:
            pragmas = [connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous")]
            assert [*pragmas, connection.exec_driver_sql("PRAGMA busy_timeout").scalar()] == ["wal", 1, 30_000]
        storage.remove_session()
        storage.engine.dispose()
        assert len(study.trials) == len(mine.trials("digits")) == 3
        storage.remove_session()
        storage.engine.dispose()
