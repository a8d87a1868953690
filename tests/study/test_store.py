"""What the store keeps, and who may write it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
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
from autocompress.study.database import DATABASE
from autocompress.study.store import FRONT_QUERY, StudyStore

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


def test_a_reader_of_the_same_process_leaves_the_claim_where_it_is(tmp_path):
    with StudyStore(tmp_path) as writer:
        writer.create(make_study(state=StudyState.RUNNING))
        writer.claim("digits")
        for readonly in (True, False):
            with StudyStore(tmp_path, readonly=readonly) as other:
                assert other.owner("digits") == os.getpid()
        assert writer.study("digits").state is StudyState.RUNNING
        assert writer.owner("digits") == os.getpid()


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


def test_front_rows_may_be_of_the_zipped_files(store):
    store.create(make_study())
    store.add_trial("digits", make_trial(3))
    assert store.front_rows("digits").size_bytes.tolist() == [1003]
    assert store.front_rows("digits", compressed=True).size_bytes.tolist() == [900]


def test_front_rows_of_twenty_thousand_trials_take_far_less_than_a_second(store):
    store.create(make_study())
    assert len(store.front_rows("digits").trial) == 0
    store.add_trials("digits", [make_trial(0)])
    text = json.dumps(make_trial(0).to_dict())
    with sqlite3.connect(store.path) as raw:
        rows = ((n, 0.5 + n * 1e-6, 1000 + n, 0.1, text) for n in range(1, 20_000))
        raw.executemany(
            "INSERT INTO ac_trial (study, number, state, origin, val, size_bytes, latency_ms, record)"
            " VALUES ('digits', ?, 'complete', 'search', ?, ?, ?, ?)",
            rows,
        )
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
