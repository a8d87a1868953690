"""`--server URL` on the verbs: the same answers as from the workspace, and exit code 5 where there is no server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from example_study import write_example
from served import TOKEN, serving
from test_work import fake_search
from tiny_study import environment, wait_for

from autocompress import cli
from autocompress.service.client import Client


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
    assert f"next: autocompress export mine --pick knee --out mine-bundle --server {server.url}" in output.out
    assert "trial    4" in output.err
    assert call(server, "search", "digits", "--name", "mine") == 2
    assert "exists; choose another name" in capsys.readouterr().err


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
    monkeypatch.setenv("FAKE_TRIALS", str(server.get(address).json["trials"]["total"] + 1))
    assert call(server, "resume", "long") == 0
    assert "long: finished" in capsys.readouterr().out
    assert call(server, "resume", "long") == 2
    assert call(server, "cancel", "long") == 0
    assert "nothing to cancel" in capsys.readouterr().out


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
    assert not Path("other").exists()


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
