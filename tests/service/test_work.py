"""Starting, cancelling, resuming, refining, watching and taking away, with a stand-in for the search."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import sqlite3
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from example_study import example_trial, write_example
from served import OTHER, serving
from tiny_study import wait_for

from autocompress.config import StudyConfig
from autocompress.plan import CompressionPlan
from autocompress.records import Cascade
from autocompress.service.admission import refined
from autocompress.service.problems import Problem
from autocompress.service.scheduler import job_command
from autocompress.study.store import StudyStore


def fake_search(workspace, job, server):
    real = job_command(workspace, job, server)
    return [real[0], str(Path(__file__).with_name("fake_search.py")), *real[3:]]


@pytest.fixture
def searching(tmp_path, monkeypatch):
    """A server whose searches are stand-ins; `server`, which all tests share, starts none."""
    monkeypatch.setenv("FAKE_TRIALS", "8")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with serving(tmp_path / "runs", fake_search) as served:
        yield served


@pytest.fixture
def idle(tmp_path):
    """A server whose searches do nothing until they are ended."""
    with serving(tmp_path / "runs") as served:
        yield served


def state(server, summary) -> str:
    return server.get(f"/api/v1/studies/{summary['id']}").json["state"]


def test_a_search_goes_from_the_queue_to_its_end(searching):
    made = searching.post("/api/v1/studies", {"builtin": "digits", "budget": "1m", "set": {"search.max_drop": 0.02}})
    assert made.status == 201
    assert made.json["study"] == "digits"
    assert made.json["state"] in ("queued", "running")
    wait_for(lambda: state(searching, made.json) == "finished", seconds=60, what="the end")
    detail = searching.get(made.headers["location"]).json
    assert detail["config"]["search"]["max_drop"] == 0.02
    assert detail["budget_s"] == 60.0
    assert detail["trials"]["total"] == 8
    assert detail["job"]["state"] == "finished"
    assert [e["action"] for e in searching.get("/api/v1/audit").json["items"]] == ["create"]


def test_names_are_made_unless_they_are_given(idle):
    names = [idle.post("/api/v1/studies", {"builtin": "digits"}).json["study"] for _ in range(3)]
    assert names == ["digits", "digits-2", "digits-3"]
    taken = idle.post("/api/v1/studies", {"builtin": "digits", "name": "digits"})
    assert (taken.status, taken.json["errors"][0]["field"]) == (409, "name")


def test_many_who_start_the_same_at_once_get_a_study_each(idle):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: idle.post("/api/v1/studies", {"builtin": "digits"}), range(8)))
    assert [answer.status for answer in made] == [201] * 8
    assert len({answer.json["id"] for answer in made}) == 8


def test_what_waits_knows_its_place(idle):
    for name, priority in (("a", 0), ("b", 0), ("c", 9)):
        idle.post("/api/v1/studies", {"builtin": "digits", "name": name, "priority": priority})
    wait_for(lambda: idle.get("/api/v1/studies?name=a").json["items"][0]["state"] == "running", seconds=20, what="a")
    entries = {entry["study"]: entry for entry in idle.get("/api/v1/studies").json["items"]}
    assert [entries[name]["job"]["position"] for name in "abc"] == [None, 2, 1]
    assert idle.get("/api/v1/devices").json["items"][0]["queued"] == 2


def test_a_request_that_is_sent_again_starts_nothing(idle):
    headers = {"Idempotency-Key": "once"}
    first = idle.post("/api/v1/studies", {"builtin": "digits"}, headers=headers)
    again = idle.post("/api/v1/studies", {"builtin": "digits"}, headers=headers)
    assert (again.status, again.json["id"]) == (201, first.json["id"])
    assert again.headers["idempotent-replayed"] == "true"
    other = idle.post("/api/v1/studies", {"builtin": "digits", "budget": "3m"}, headers=headers)
    assert other.status == 422
    assert len(idle.get("/api/v1/studies").json["items"]) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"builtin": "digits", "budget": "soon"}, "search.budget"),
        ({"builtin": "digits", "set": {"search.max_drop": -1}}, "search.max_drop"),
        ({"builtin": "digits", "set": {"search.max_dorp": 0.1}}, "search.max_dorp"),
        ({"builtin": "digits", "set": {"nothing.x": 1}}, "nothing.x"),
        ({"builtin": "digits", "set": {"name": "x"}}, "name"),
        ({"builtin": "digits", "device": "phone"}, "device"),
        ({"builtin": "digits", "priority": 1000}, "priority"),
        ({"builtin": "digits", "study_file": ""}, "builtin"),
        ({"builtin": "digits", "surprise": 1}, "surprise"),
        ({}, "builtin"),
        ({"study_file": '[search]\nbudget = "x"\nseed = -1'}, "search.seed"),
    ],
)
def test_a_wrong_value_is_told_at_its_field(server, body, field):
    answer = server.post("/api/v1/studies", body)
    assert answer.status == 422
    assert field in [error["field"] for error in answer.json["errors"]]


def test_a_search_is_cancelled_within_seconds_and_goes_on_where_it_was(searching, monkeypatch):
    monkeypatch.setenv("FAKE_TRIALS", "400")
    made = searching.post("/api/v1/studies", {"builtin": "digits"}).json
    address = f"/api/v1/studies/{made['id']}"
    wait_for(lambda: searching.get(address).json["trials"]["total"] >= 3, seconds=60, what="the third trial")
    asked = searching.post(f"{address}/cancel", token=OTHER)
    assert asked.status == 200
    wait_for(lambda: searching.get(address).json["state"] == "cancelled", seconds=15, what="the end")
    kept = searching.get(address).json["trials"]["total"]
    assert kept >= 3
    assert searching.post(f"{address}/cancel").status == 409
    monkeypatch.setenv("FAKE_TRIALS", str(kept + 2))
    assert searching.post(f"{address}/resume").status == 201
    wait_for(lambda: searching.get(address).json["state"] == "finished", seconds=60, what="the end of the rest")
    assert searching.get(address).json["trials"]["total"] == kept + 2
    assert searching.post(f"{address}/resume").status == 409
    entries = searching.get("/api/v1/audit").json["items"]
    assert [(e["action"], e["actor"]) for e in entries] == [("resume", "owner"), ("cancel", "ann"), ("create", "owner")]


def test_what_waits_is_cancelled_at_once(idle):
    idle.post("/api/v1/studies", {"builtin": "digits", "name": "first"})
    second = idle.post("/api/v1/studies", {"builtin": "digits", "name": "second"}).json
    assert idle.post(f"/api/v1/studies/{second['id']}/cancel").json["state"] == "cancelled"
    assert idle.get(f"/api/v1/studies/{second['id']}").json["facts"] is None


def test_a_search_that_does_not_end_when_asked_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("autocompress.service.scheduler._GRACE_S", 0.5)
    deaf = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    with serving(tmp_path, lambda *_: deaf) as server:
        made = server.post("/api/v1/studies", {"builtin": "digits"}).json
        wait_for(lambda: state(server, made) == "running", seconds=20, what="the start")
        time.sleep(1.0)  # it must be deaf before it is asked
        server.post(f"/api/v1/studies/{made['id']}/cancel")
        wait_for(lambda: state(server, made) == "cancelled", seconds=20, what="the end")


def test_a_search_that_dies_again_and_again_fails_with_the_reason(tmp_path):
    with serving(tmp_path, lambda *_: [sys.executable, "-S", "-c", "raise SystemExit(3)"]) as server:
        made = server.post("/api/v1/studies", {"builtin": "digits"}).json
        wait_for(lambda: state(server, made) == "failed", seconds=30, what="the failure")
        found = server.get(f"/api/v1/studies/{made['id']}").json
    assert found["job"]["attempt"] == 3
    assert "died 3 times in a row" in found["error"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is not here")
def test_a_search_that_holds_too_much_memory_fails_with_its_trials_kept_and_can_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_TRIALS", "400")
    monkeypatch.setenv("FAKE_BYTES", "400_000_000")  # in the process that trains, which is in another group
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with serving(tmp_path, fake_search, max_memory_bytes=300_000_000) as server:
        made = server.post("/api/v1/studies", {"builtin": "digits"})
        at = made.headers["location"]
        wait_for(lambda: server.get(at).json["state"] == "failed", seconds=60, what="the end")
        found = server.get(at).json
        told = re.fullmatch(
            r"it held (\d+) MB of memory, where a search on this server may hold 300 MB; what it found is kept:"
            r" resume it on a server with a larger --max-memory, or start one with less data", found["error"]
        )  # fmt: skip
        assert told, found["error"]
        assert 300 < int(told[1]) < 700, "as soon as it was too much"
        assert found["job"]["attempt"] == 1, "it is not tried again: it would be the same"
        kept = found["trials"]["total"]
        assert kept == len((tmp_path / "trials.log").read_text().splitlines()) > 0
        assert not [p for p in Path("/proc").glob("[0-9]*/cwd") if _leads_to(p, tmp_path)], "its worker is gone, too"
        monkeypatch.setenv("FAKE_BYTES", "0")
        monkeypatch.setenv("FAKE_TRIALS", str(kept + 2))
        assert server.post(f"{at}/resume").status == 201
        wait_for(lambda: server.get(at).json["state"] == "finished", seconds=60, what="the end of the rest")
        assert server.get(at).json["trials"]["total"] == kept + 2


def _leads_to(link: Path, folder: Path) -> bool:
    try:
        return link.readlink() == folder
    except OSError:
        return False


def test_a_cascade_cannot_be_refined_but_its_parts_can():
    from example_study import example_trial

    cascade = Cascade(first=3, second=5, threshold=0.9, passed_on=0.2, second_plan=CompressionPlan())
    with pytest.raises(Problem, match="search around trial 3 or 5"):
        refined(StudyConfig(), example_trial(7, 0.9, 500, 0.5, cascade=cascade))


def test_a_refined_search_stays_near_the_trial_it_began_with(tmp_path):
    from dataclasses import replace

    from example_study import example_record

    from autocompress.config import load_config

    tables = {"model": {"factory": "resnet20"}, "data": {"factory": "digits"}, "search": {"budget": "2m"}}
    config = load_config(tables, name="digits").model_dump(mode="json")
    write_example(tmp_path, replace(example_record(), config=config))
    teacher = tmp_path / "artifacts" / "digits" / "teacher.safetensors"
    teacher.write_bytes(b"weights")
    with serving(tmp_path) as server:
        (entry,) = server.get("/api/v1/studies").json["items"]
        made = server.post(f"/api/v1/studies/{entry['id']}/refine", {"trial": 1, "budget": "3m"})
        assert made.status == 201, made.body
        assert made.json["study"] == "digits-around-1"
        config = server.get(made.headers["location"]).json["config"]
        assert server.post(f"/api/v1/studies/{entry['id']}/refine", {"trial": 5}).status == 409
        assert server.post(f"/api/v1/studies/{entry['id']}/refine", {"trial": 99}).status == 404
    assert config["model"]["weights"] == "teacher.safetensors", "nobody is told where it lies"
    with contextlib.closing(sqlite3.connect(tmp_path / "autocompress.db")) as database:
        (spec,) = database.execute("SELECT spec FROM ac_job").fetchone()
    assert json.loads(spec)["config"]["model"]["weights"] == str(teacher)
    assert config["search"]["max_size"] == 154_000, "a tenth more than the trial's 140 kB"
    assert config["search"]["max_latency"] == pytest.approx(0.198)
    assert (config["search"]["budget"], config["space"]["max_prune_ratio"]) == (180.0, 0.6)
    assert config["space"]["weight_bits"] == [4, 8]


# -- events


def test_events_tell_every_trial_once_also_over_a_lost_connection(searching, monkeypatch):
    monkeypatch.setenv("FAKE_TRIALS", "25")
    made = searching.post("/api/v1/studies", {"builtin": "digits"}).json
    address, told, last = f"/api/v1/studies/{made['id']}/events", [], "0"
    while not told or told[-1] < 24:
        with searching.stream(address, {"Last-Event-ID": last}) as events:
            for kind, identity, data in events:
                last = identity or last
                if kind == "trial":
                    told.append(data["trial"]["trial"])
                    if len(told) % 4 == 0 or told[-1] == 24:
                        break
    assert told == list(range(25)), "each once, and in order"
    with searching.stream(address) as events:
        assert {next(events)[0] for _ in range(3)} == {"state", "job", "front"}


def test_somebody_who_was_away_gets_all_that_was_missed(tmp_path):
    write_example(tmp_path)
    with serving(tmp_path) as server:
        with server.stream("/api/v1/events", {"Last-Event-ID": "2"}) as events:
            found = [next(events) for _ in range(6)]
        trials = [(identity, data["trial"]["trial"]) for kind, identity, data in found if kind == "trial"]
        assert trials == [("3", 2), ("4", 3), ("5", 4), ("6", 5)]
        assert [kind for kind, _, _ in found[4:]] == ["state", "front"]
        with server.stream("/api/v1/events") as events:
            assert [next(events)[0] for _ in range(2)] == ["state", "front"], "a newcomer is told how things stand"
            with StudyStore(tmp_path) as store:
                store.add_trial("digits", example_trial(6, 0.979, 50_000, 0.2))
            kind, identity, data = next(events)
            assert (kind, identity, data["trial"]["trial"]) == ("trial", "7", 6)
            rest = {kind: data for kind, _, data in (next(events) for _ in range(2))}
        assert 6 in rest["front"]["front"]
        assert rest["state"]["trials"]["total"] == 7


@pytest.mark.parametrize("last", ["x", "-1", "1" * 25, "99999"])
def test_a_strange_last_id_is_no_id(server, last):
    with server.stream("/api/v1/events", {"Last-Event-ID": last}) as events:
        assert next(events)[0] == "state"


def test_many_who_begin_to_listen_at_once_are_told_every_trial_once(tmp_path):
    write_example(tmp_path)
    with serving(tmp_path) as server, StudyStore(tmp_path) as store:
        with server.stream("/api/v1/events") as events:
            known = next(events)[1]
        wait_for(
            lambda: "autocompress_event_streams 0" in server.get("/api/v1/metrics").body.decode(),
            seconds=10,
            what="quiet",
        )
        store.add_trials("digits", [example_trial(n, 0.97, 50_000, 0.2) for n in range(6, 12)])
        with contextlib.ExitStack() as open_streams, ThreadPoolExecutor(16) as clients:
            since = [{"Last-Event-ID": known} if n % 2 else {} for n in range(16)]
            streams = list(
                clients.map(lambda headers: open_streams.enter_context(server.stream("/api/v1/events", headers)), since)
            )
            first = [next(events) for events in streams]  # all are listening now
            store.add_trial("digits", example_trial(12, 0.97, 50_000, 0.2))
            told = list(clients.map(_trials_until_12, first, streams))
    assert told == [list(range(6, 13)) if headers else [12] for headers in since]


def _trials_until_12(first, events):
    found = []
    for kind, _, data in itertools.chain([first], events):
        if kind == "trial":
            found.append(data["trial"]["trial"])
            if found[-1] == 12:
                break
    return found


def test_a_stream_of_an_unknown_study_is_refused_before_it_begins(server):
    assert server.get("/api/v1/studies/s0000000000000000/events").status == 404


# -- taking away


def test_a_bundle_is_made_kept_and_downloaded(tmp_path, monkeypatch):
    def write(point, study, *, workspace, out):
        out.mkdir(parents=True)
        (out / "model.onnx").write_bytes(b"onnx")
        (out / "plan.json").write_text(json.dumps({"trial": point.trial}))

    monkeypatch.setattr("autocompress.bundle.write_bundle", write)
    write_example(tmp_path)
    with serving(tmp_path, max_exports=1) as server:
        (entry,) = server.get("/api/v1/studies").json["items"]
        made = [
            server.post(f"/api/v1/studies/{entry['id']}/exports", {"pick": pick}).headers["location"]
            for pick in ("trial:2", "small")
        ]
        for location in made:
            wait_for(lambda at=location: server.get(at).json["state"] == "done", seconds=30, what="the bundle")
        assert server.get(made[1]).json["trial"] == 1
        wait_for(lambda: server.get(f"{made[0]}/file").status == 410, seconds=10, what="the end of the oldest")
        answer = server.get(f"{made[1]}/file")
        assert answer.headers["content-disposition"] == 'attachment; filename="digits-trial-1.zip"'
        with zipfile.ZipFile(io.BytesIO(answer.body)) as bundle:
            assert bundle.namelist() == ["digits-trial-1/model.onnx", "digits-trial-1/plan.json"]
        unmet = server.post(f"/api/v1/studies/{entry['id']}/exports", {"pick": "small", "max_size": "1kB"})
        at = unmet.headers["location"]
        wait_for(lambda: server.get(at).json["state"] == "failed", seconds=10, what="the refusal")
        assert "no artifact meets the constraints" in server.get(at).json["error"]
        assert server.get(at).json["exit_code"] == 3


def test_a_bundle_of_which_nothing_can_be_recorded_does_not_end_the_others(tmp_path, monkeypatch):
    from autocompress.service.exports import Exports

    monkeypatch.setattr(
        "autocompress.bundle.write_bundle",
        lambda point, study, *, workspace, out: (out.mkdir(parents=True), (out / "model.onnx").write_bytes(b"x")),
    )
    write_example(tmp_path)
    record, calls = Exports._record, itertools.count()

    def fails_twice(self, *given, **values):
        if next(calls) < 2:  # that the first one is done, and then that it is not
            raise OSError("the disk is full")
        record(self, *given, **values)

    monkeypatch.setattr(Exports, "_record", fails_twice)
    exports = Exports(tmp_path, keep=5)
    exports.start()
    first, second = (exports.ask("digits", {"pick": pick}, actor="ann")["id"] for pick in ("small", "fast"))
    wait_for(lambda: exports.get(second)["state"] == "done", seconds=20, what="the second bundle")
    assert exports.get(first)["state"] == "queued"
    exports.stop()


def test_a_server_that_stops_leaves_the_bundles_that_wait_to_the_next(tmp_path, monkeypatch):
    from autocompress.service.exports import Exports

    begun, ready = threading.Event(), threading.Event()

    def write(point, study, *, workspace, out):
        begun.set()
        assert ready.wait(30)
        out.mkdir(parents=True)

    monkeypatch.setattr("autocompress.bundle.write_bundle", write)
    write_example(tmp_path)
    exports = Exports(tmp_path, keep=5)
    exports.start()
    asked = [exports.ask("digits", {"pick": "small"}, actor="ann")["id"] for _ in range(3)]
    assert begun.wait(30)
    stopping = threading.Thread(target=exports.stop)
    stopping.start()
    assert exports._stopping.wait(30)
    ready.set()
    stopping.join(30)
    assert [exports.get(one)["state"] for one in asked] == ["done", "queued", "queued"]
    exports._database.close()


def test_bundles_that_a_killed_server_left_undone_are_made_by_the_next(tmp_path, monkeypatch):
    from autocompress.service.exports import Exports

    monkeypatch.setattr(
        "autocompress.bundle.write_bundle",
        lambda point, study, *, workspace, out: (out.mkdir(parents=True), (out / "model.onnx").write_bytes(b"x")),
    )
    write_example(tmp_path)
    left = Exports(tmp_path, keep=5)
    asked = left.ask("digits", {"pick": "small"}, actor="ann")["id"]
    with serving(tmp_path) as server:
        wait_for(lambda: server.get(f"/api/v1/exports/{asked}").json["state"] == "done", seconds=20, what="the bundle")
