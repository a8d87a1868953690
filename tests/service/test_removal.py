"""Deleting a study: what goes, what stays, who is told, and when it is refused."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from example_study import example_record, example_trial, write_example
from served import OTHER, serving
from tiny_study import wait_for

from autocompress.records import StudyState
from autocompress.service import removal
from autocompress.study.database import open_optuna_storage
from autocompress.study.store import StudyStore


@pytest.fixture
def server(tmp_path):
    """Two finished studies, each in Optuna's tables, too; searches do nothing until they are ended."""
    for name in ("digits", "other"):
        write_example(tmp_path, example_record(name))
        (tmp_path / "artifacts" / name / "trial-1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "artifacts" / name / "trial-1" / "model.onnx").write_bytes(b"onnx")
    storage = open_optuna_storage(tmp_path / "autocompress.db")
    for name in ("digits", "other"):
        optuna.create_study(study_name=name, storage=storage)
    storage.engine.dispose()
    with serving(tmp_path) as served:
        yield served


def address(server, name: str) -> str:
    (entry,) = server.get(f"/api/v1/studies?name={name}").json["items"]
    return f"/api/v1/studies/{entry['id']}"


def optuna_names(workspace: Path) -> list[str]:
    storage = open_optuna_storage(workspace / "autocompress.db")
    try:
        return optuna.get_all_study_names(storage)
    finally:
        storage.engine.dispose()


def test_all_that_was_kept_of_a_study_is_gone_and_another_keeps_everything(server):
    digits, other = address(server, "digits"), address(server, "other")
    before = server.get(f"{other}/trials").json
    files = [path for path in (server.workspace / "artifacts" / "digits").rglob("*") if path.is_file()]
    kept = sum(path.stat().st_size for path in files)
    assert server.send("DELETE", digits, token=OTHER).status == 204
    assert [entry["study"] for entry in server.get("/api/v1/studies").json["items"]] == ["other"]
    for path in ("", "/front", "/trials", "/trials/1", "/table", "/figures/accuracy_size", "/events"):
        assert server.get(digits + path).status == 404, path
    assert server.send("DELETE", digits).status == 404
    assert [path.name for path in (server.workspace / "artifacts").iterdir()] == ["other"]
    assert optuna_names(server.workspace) == ["other"]
    assert server.get(f"{other}/trials").json == before
    (entry,) = server.get("/api/v1/audit").json["items"]
    assert (entry["action"], entry["actor"], entry["study"]) == ("delete", "ann", "digits")
    assert entry["detail"] == {"trials": 6, "files": len(files), "bytes": kept}


def test_the_files_are_gone_before_a_study_of_the_name_can_begin(tmp_path, monkeypatch):
    write_example(tmp_path)
    order, files, close = [], removal._remove_files, StudyStore.close
    monkeypatch.setattr(removal, "_remove_files", lambda *given: order.append("files") or files(*given))
    monkeypatch.setattr(StudyStore, "close", lambda store: order.append("claim") or close(store))
    removal.remove_study(tmp_path, "digits")
    assert order == ["files", "claim"]


def test_a_study_that_waits_or_runs_is_refused_and_can_go_once_it_has_ended(server):
    for name in ("first", "second"):
        server.post("/api/v1/studies", {"builtin": "digits", "name": name})
    first, second = address(server, "first"), address(server, "second")
    wait_for(lambda: server.get(first).json["state"] == "running", seconds=20, what="the start")
    for at, state in ((first, "running"), (second, "queued")):
        refused = server.send("DELETE", at)
        assert (refused.status, refused.json["detail"].partition(";")[0]) == (
            409, f"study {server.get(at).json['study']!r} is {state}",
        )  # fmt: skip
    server.post(f"{second}/cancel")
    assert server.send("DELETE", second).status == 204
    logs = [path.stem for path in (server.workspace / "logs").iterdir()]
    server.post(f"{first}/cancel")
    wait_for(lambda: server.get(first).json["state"] == "cancelled", seconds=20, what="the end")
    assert server.send("DELETE", first).status == 204
    assert len(logs) == 1
    assert not list((server.workspace / "logs").iterdir()), "the log of its job is gone"
    assert {entry["study"] for entry in server.get("/api/v1/studies").json["items"]} == {"digits", "other"}


def test_a_study_that_somebody_writes_beside_the_queue_is_refused(server, tmp_path):
    import subprocess
    import sys

    script = (
        "import pathlib, sys\nfrom autocompress.study.store import StudyStore\n"
        "store = StudyStore(pathlib.Path(sys.argv[1])); store.claim('digits'); print(flush=True); input()"
    )
    writer = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(writer, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        refused = server.send("DELETE", address(server, "digits"))
        process.communicate(b"\n")
    assert refused.status == 409
    assert "cannot be deleted while it runs" in refused.json["detail"]
    assert server.get(address(server, "digits")).json["trials"]["total"] == 6


def test_who_listens_is_told_and_misses_no_trial_of_a_later_study(server):
    digits, other = address(server, "digits"), address(server, "other")
    with server.stream("/api/v1/events") as events:
        for _ in range(4):
            next(events)  # how things stand
        assert server.send("DELETE", other).status == 204  # its trials were written last
        kind, _, data = next(events)
        assert (kind, data["study"], other.endswith(data["id"])) == ("deleted", "other", True)
        with StudyStore(server.workspace) as store:
            store.create(example_record("other", state=StudyState.RUNNING, created="2026-11-02T00:00:00+00:00"))
            store.add_trial("other", example_trial(0, 0.97, 90_000, 0.5))
        found = [next(events) for _ in range(3)]
    assert [(kind, data["study"]) for kind, _, data in found if kind == "trial"] == [("trial", "other")]
    assert server.get(f"{other}/trials").json["items"][0]["trial"] == 0
    assert len(server.get(f"{other}/trials").json["items"]) == 1, "nothing of the deleted study of its name"
    assert server.get(digits).json["trials"]["total"] == 6


def test_bundles_go_with_their_study_and_one_that_is_being_made_keeps_it(server, monkeypatch):
    import threading

    ready = threading.Event()

    def write(point, study, *, workspace, out):
        assert ready.wait(30)
        out.mkdir(parents=True)
        (out / "model.onnx").write_bytes(b"onnx")

    monkeypatch.setattr("autocompress.bundle.write_bundle", write)
    digits = address(server, "digits")
    made = server.post(f"{digits}/exports", {"pick": "small"}).headers["location"]
    refused = server.send("DELETE", digits)
    assert refused.status == 409
    assert "a bundle of study 'digits' is being made" in refused.json["detail"]
    ready.set()
    wait_for(lambda: server.get(made).json["state"] == "done", seconds=30, what="the bundle")
    assert server.send("DELETE", digits).status == 204
    assert server.get(made).status == 404
    assert not list((server.workspace / "exports").glob("*.zip"))
