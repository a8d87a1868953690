"""`--server URL` on the verbs: the same answers as from the workspace, and exit code 5 where there is no server."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from example_study import example_record, write_example
from served import TOKEN, serving
from test_work import fake_search
from tiny_study import environment, wait_for

from autocompress import cli, terminal
from autocompress.errors import ServerError
from autocompress.records import StudyState
from autocompress.service import client as client_module
from autocompress.service.client import Client, Unreachable
from autocompress.service.remote import start
from autocompress.study.store import StudyStore


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With one finished study; what a test starts there has a name of its own."""
    workspace = tmp_path_factory.mktemp("remote") / "runs"
    write_example(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_TRIALS", "5")
        patch.syspath_prepend(str(Path(__file__).parents[1]))
        patch.syspath_prepend(str(Path(__file__).parent))
        with serving(workspace, fake_search) as served:
            yield served


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOCOMPRESS_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)


def call(server, *arguments: str) -> int:
    return cli.run([*arguments, "--server", server.url])


@pytest.mark.parametrize("verb", [("front", "digits"), ("show", "digits"), ("show", "digits", "--trial", "1")])
def test_a_server_says_what_the_workspace_says(server, capsys, verb):
    assert call(server, *verb, "--json") == 0
    there = json.loads(capsys.readouterr().out)
    assert cli.run([*verb, "--json", "--workspace", str(server.workspace)]) == 0
    assert there == json.loads(capsys.readouterr().out)


def test_the_list_and_the_devices_are_those_of_the_server(server, capsys):
    assert call(server, "list", "--json") == 0
    rows = {row["study"]: row for row in json.loads(capsys.readouterr().out)["studies"]}
    assert (rows["digits"]["state"], rows["digits"]["trials"]["total"]) == ("finished", 6)
    assert call(server, "devices", "--json") == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["name"] == "local"
    assert call(server, "list") == 0
    assert "digits" in capsys.readouterr().out


def test_a_search_is_followed_to_its_end(server, capsys):
    assert call(server, "search", "digits", "--name", "mine", "--budget", "1m", "--set", "search.max_drop=0.02") == 0
    output = capsys.readouterr()
    assert "mine: finished" in output.out
    assert f"next: autocompress export mine --pick knee --out mine-bundle --server {server.url}\n" in output.out
    assert "autocompress report" not in output.out, "it has no --server"
    assert "trial    4" in output.err
    assert call(server, "search", "digits", "--name", "mine") == 2
    assert "exists; choose another name" in capsys.readouterr().err


def test_what_is_followed_is_judged_by_its_own_metric_and_objectives(server, monkeypatch):
    seen, open_view = {}, terminal.open_view
    monkeypatch.setattr(terminal, "open_view", lambda **asked: seen.update(asked) or open_view(**asked))
    settings = ("--set", "task.metric=mae", "--set", 'search.objectives=["accuracy","size"]')
    call(server, "search", "diabetes_mlp", "--name", "errors", *settings)
    assert (seen["metric"], seen["minimize"], seen["objectives"]) == ("mae", True, ["accuracy", "size"])


def test_a_limit_that_nothing_meets_gives_3(server, capsys):
    assert call(server, "search", "digits", "--name", "tight", "--set", "search.max_size=10") == 3
    assert "no artifact meets the constraints" in capsys.readouterr().err


def test_a_search_of_the_server_is_cancelled_and_resumed(server, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_TRIALS", "500")
    server.post("/api/v1/studies", {"builtin": "digits", "name": "long"})
    wait_for(lambda: len(server.get("/api/v1/studies?name=long").json["items"]) == 1, seconds=10, what="the study")
    address = f"/api/v1/studies/{server.get('/api/v1/studies?name=long').json['items'][0]['id']}"
    wait_for(lambda: server.get(address).json["trials"]["total"] >= 2, seconds=60, what="two trials")
    assert call(server, "cancel", "long") == 0
    assert "asked long to end" in capsys.readouterr().out
    wait_for(lambda: server.get(address).json["state"] == "cancelled", seconds=20, what="the end")
    total = server.get(address).json["trials"]["total"]
    monkeypatch.setenv("FAKE_TRIALS", str(total + 1))
    seen, open_view = {}, terminal.open_view
    monkeypatch.setattr(terminal, "open_view", lambda **asked: seen.update(asked) or open_view(**asked))
    assert call(server, "resume", "long") == 0
    assert [trial.trial for trial in seen["trials"]] == [total - 1], "the front so far: each is smaller than the last"
    assert "long: finished" in capsys.readouterr().out
    assert call(server, "resume", "long") == 2
    assert call(server, "cancel", "long") == 0
    assert "nothing to cancel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"), [("BudgetError", 6), ("DeviceError", 5), ("UsageError", 2), ("RuntimeError", 1)]
)
def test_a_search_that_fails_there_returns_and_says_what_it_would_here(server, capsys, monkeypatch, error, code):
    monkeypatch.setenv("FAKE_ERROR", error)
    assert call(server, "search", "digits", "--name", error) == code
    assert "as was asked" in capsys.readouterr().err
    assert call(server, "front", error) == 2
    assert "as was asked" in capsys.readouterr().err
    monkeypatch.delenv("FAKE_ERROR")
    assert call(server, "search", "digits", "--name", error) == 0, "there was no study, so its name is free"


def test_a_search_whose_process_dies_says_so_and_not_that_it_was_interrupted(tmp_path, capsys):
    with StudyStore(tmp_path / "runs") as store:
        store.create(example_record(state=StudyState.INTERRUPTED))
    dies = [sys.executable, "-S", "-c", "raise SystemExit(3)"]
    with serving(tmp_path / "runs", lambda *_: dies) as server:
        assert call(server, "resume", "digits") == 1
    output = capsys.readouterr()
    assert "error: its process died 3 times in a row without finishing a trial" in output.err
    assert "interrupted" not in output.err + output.out


def test_a_server_that_is_started_again_is_waited_for_but_not_for_ever(tmp_path, monkeypatch):
    looks = iter([Unreachable("gone"), Unreachable("gone"), [("state", "1", {"state": "finished"})]])

    def events(_study, _last_id):
        found = next(looks, Unreachable("gone"))
        if isinstance(found, Unreachable):
            raise found
        yield from found

    monkeypatch.setattr(client_module, "_RETRY_S", 0.0)
    client = Client("http://127.0.0.1:1", workspace=tmp_path)
    monkeypatch.setattr(client, "_events", events)
    assert list(client.follow("s1")) == [("state", {"state": "finished"})]
    with pytest.raises(ServerError, match="was lost; the search goes on if the server does"):
        list(client.follow("s1"))


@contextlib.contextmanager
def answering(content: bytes):
    """Address of a server that has one answer, and then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(content)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "broke off the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml", "sent something else than JSON"),
        (b"", "broke off the connection"),
    ],
)
def test_an_answer_that_is_cut_off_or_no_json_is_one_sentence(capsys, content, expected):
    with answering(content) as url:
        assert cli.run(["list", "--server", url]) == 5
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("url", ["http://[::1", "http://localhost:99999"])
def test_an_address_that_is_none_gives_5(capsys, url):
    assert cli.run(["list", "--server", url]) == 5
    assert "is no address" in capsys.readouterr().err


def test_a_study_file_names_its_study_unless_the_command_does():
    class Sent:
        def post(self, _path, body):
            return body

    Path("file.toml").write_text('name = "mine"\n[data]\nfactory = "digits"\n')
    Path("bare.toml").write_text('[data]\nfactory = "digits"\n')
    asked = [("file.toml", None), ("file.toml", "other"), ("bare.toml", None)]
    sent = [start(Sent(), file, overrides=[], name=name, flags={})["name"] for file, name in asked]
    assert sent == ["mine", "other", "bare"]


def test_a_bundle_of_the_server_is_written_here(server, capsys, monkeypatch):
    def write(point, study, *, workspace, out):
        out.mkdir(parents=True)
        (out / "model.onnx").write_bytes(b"onnx")

    monkeypatch.setattr("autocompress.bundle.write_bundle", write)
    assert call(server, "export", "digits", "--pick", "small", "--out", "taken", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "study": "digits", "trial": 1, "out": "taken", "files": ["model.onnx"],
    }  # fmt: skip
    assert Path("taken/model.onnx").read_bytes() == b"onnx"
    assert call(server, "export", "digits", "--out", "taken") == 2
    assert call(server, "export", "digits", "--max-size", "1kB", "--out", "other") == 3
    assert call(server, "export", "digits", "--pick", "trial:3", "--out", "other") == 4
    assert "trial 3 is not on the front" in capsys.readouterr().err
    assert call(server, "export", "digits", "--pick", "best", "--out", "other") == 2
    assert not Path("other").exists()
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    assert call(server, "export", "digits", "--out", "link") == 0
    assert [path.name for path in Path("empty").iterdir()] == ["model.onnx"]
    assert call(server, "export", "digits", "--out", "taken/model.onnx/below") == 2
    assert "is a file; choose another folder with --out" in capsys.readouterr().err


def test_a_study_file_that_names_code_is_refused_by_the_server(server, capsys):
    Path("own.toml").write_text('[model]\nfactory = "my.nets:net"\n[data]\nfactory = "digits"\n')
    assert call(server, "search", "own.toml") == 2
    assert "--allow-code" in capsys.readouterr().err


def test_weights_beside_a_study_file_are_sent_with_it(server, capsys, monkeypatch):
    import torch
    from safetensors.torch import save_file

    from autocompress.zoo.models import resnet20
    from autocompress.zoo.registry import arguments, shapes

    server.parts.models.__dict__["_architectures"] = arguments()
    monkeypatch.setattr("autocompress.service.uploads._ask", lambda _what, name, args: shapes(name, json.loads(args)))
    state = resnet20(in_channels=1, width=4).state_dict()
    save_file({name: torch.as_tensor(t).contiguous() for name, t in state.items()}, "teacher.safetensors")
    text = '[model]\nfactory = "resnet20"\nargs = {in_channels = 1, width = 4}\nweights = "teacher.safetensors"\n'
    Path("own.toml").write_text(f'{text}[data]\nfactory = "digits"\n')
    assert call(server, "search", "own.toml") == 0
    (model,) = server.get("/api/v1/models").json["uploaded"]
    job = server.parts.jobs.latest()["own"]
    assert Path(job.spec["config"]["model"]["weights"]).stem == model["id"]
    Path("own.toml").write_text(text.replace("safetensors", "pt") + '[data]\nfactory = "digits"\n')
    assert call(server, "search", "own.toml", "--name", "other") == 2
    assert ".safetensors only" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["search", "list", "front", "show", "export", "cancel", "resume", "devices"])
def test_no_server_gives_5(verb, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    study = [] if verb in ("list", "devices") else ["digits"]
    assert cli.run([verb, *study, "--server", url]) == 5
    assert "is `autocompress serve` running there?" in capsys.readouterr().err


def test_a_wrong_token_gives_5_and_an_unknown_study_4(server, capsys, monkeypatch):
    assert call(server, "front", "nothing") == 4
    monkeypatch.setenv("AUTOCOMPRESS_TOKEN", "wrong")
    assert call(server, "list") == 5
    assert "AUTOCOMPRESS_TOKEN" in capsys.readouterr().err


def test_a_token_of_the_workspace_is_for_this_machine_alone(tmp_path, monkeypatch):
    from autocompress.errors import ServerError, UsageError
    from autocompress.service.tokens import read_tokens

    monkeypatch.delenv("AUTOCOMPRESS_TOKEN", raising=False)
    token = read_tokens(tmp_path).first
    assert Client("http://localhost:1", workspace=tmp_path)._token == token
    with pytest.raises(ServerError, match=r"no token for example\.org"):
        Client("http://example.org", workspace=tmp_path)
    for url in ("ftp://localhost", "localhost:8765", "http://localhost/path", "http://localhost?x=1"):
        with pytest.raises(UsageError, match="--server takes an address"):
            Client(url, workspace=tmp_path)


def test_a_missing_extra_is_one_sentence():
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name in ('fastapi', 'uvicorn', 'starlette'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from autocompress.cli import run\n"
        "sys.exit(run(['serve']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=False, timeout=60
    )
    assert done.returncode == 2
    assert "pip install 'autocompress[serve]'" in done.stderr
    assert done.stderr.count("\n") == 1
