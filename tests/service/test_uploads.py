"""Weights that clients send: those that fit are kept under their hash, and nothing that could run code is opened."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import save
from served import serving

from autocompress.service.problems import Problem
from autocompress.service.uploads import check_tensors, read_header
from autocompress.zoo.factory import BUILTIN_MODELS
from autocompress.zoo.models import resnet20
from autocompress.zoo.registry import arguments, shapes

ARGS = {"in_channels": 1, "width": 4}
ADDRESS = f"/api/v1/models?architecture=resnet20&args={quote(json.dumps(ARGS))}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("uploads") / "runs", max_upload_bytes=2_000_000) as served:
        # What a process with torch would say; asking one takes seconds, and a test of its own does.
        known = {"resnet20": arguments()["resnet20"]}
        served.parts.models.__dict__["_architectures"] = known
        yield served


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    def ask(what: str, *rest: str):
        assert what == "shapes"
        return shapes(rest[0], json.loads(rest[1]))

    monkeypatch.setattr("autocompress.service.uploads._ask", ask)


def weights(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {name: tensor.contiguous() for name, tensor in resnet20(**ARGS).state_dict().items()}
    return {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}


def safetensors(table: object, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list, begin: int, end: int, kind: str = "F32") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def send(server, body: bytes, address: str = ADDRESS):
    return server.send("POST", address, body, headers={"Content-Type": "application/octet-stream"})


def stored(server) -> list[str]:
    return sorted(path.name for path in (server.workspace / "models").iterdir())


def test_weights_that_fit_are_kept_once_and_can_be_searched(server):
    body = save(weights())
    first = send(server, body)
    assert first.status == 201, first.body
    assert stored(server) == [f"{first.json['id']}.safetensors"]
    assert (server.workspace / "models" / stored(server)[0]).read_bytes() == body
    again = send(server, body)
    assert (again.status, again.json["id"]) == (200, first.json["id"])
    study = (
        f'[model]\nfactory = "resnet20"\nargs = {{in_channels = 1, width = 4}}\nweights = "{first.json["weights"]}"\n'
    )
    asked = {"study_file": f'{study}[data]\nfactory = "digits"', "name": "uploaded"}
    made = server.post("/api/v1/studies", asked)
    assert made.status == 201, made.body
    config = server.get(made.headers["location"]).json["config"]
    assert config["model"]["weights"] == f"{first.json['id']}.safetensors", "no folder of the server is told"
    job = server.parts.jobs.latest()["uploaded"]
    assert Path(job.spec["config"]["model"]["weights"]).read_bytes() == body
    other = study.replace("width = 4", "width = 8")
    refused = server.post("/api/v1/studies", {"study_file": f'{other}[data]\nfactory = "digits"'})
    assert [error["field"] for error in refused.json["errors"]] == ["model.weights"]
    assert server.get("/api/v1/models").json["uploaded"][0]["args"] == ARGS


class Exploit:
    """What an attacker puts into a pickle: it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def crafted_pt(mark: Path) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": Exploit(mark)}, out)
    return out.getvalue()


def crafted_pt2(mark: Path, folder: Path) -> bytes:
    """An exported program whose sample inputs are a pickle that runs code, and whose shapes are Python."""
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, folder / "clean.pt2")
    out = io.BytesIO()
    with zipfile.ZipFile(folder / "clean.pt2") as clean, zipfile.ZipFile(out, "w") as crafted:
        for name in clean.namelist():
            content = clean.read(name)
            if "sample_inputs" in name:
                content = crafted_pt(mark)
            crafted.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["pt", "pt2", "bare pickle", "pt behind a safetensors table"])
def test_crafted_files_are_refused_and_nothing_in_them_runs(server, tmp_path, kind):
    mark, before = tmp_path / "pwned", stored(server)
    body = {
        "pt": lambda: crafted_pt(mark),
        "pt2": lambda: crafted_pt2(mark, tmp_path),
        "bare pickle": lambda: pickle.dumps(Exploit(mark)),
        "pt behind a safetensors table": lambda: safetensors({"__metadata__": {"format": "pt"}}, crafted_pt(mark)),
    }[kind]()
    if kind == "bare pickle":  # the exploit works, where somebody is fool enough to load it
        pickle.loads(body)
        mark.rmdir()
    answer = send(server, body)
    assert answer.status in (415, 422), answer.body
    assert not mark.exists()
    assert stored(server) == before


DAMAGED = {
    "nothing": b"",
    "a few bytes": b"\x01\x02\x03",
    "a table longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a negative length": b"\xff" * 8 + b"{}",
    "no json": safetensors(b"not json"),
    "a list": safetensors(b"[1]"),
    "nested": safetensors(b"[" * 100_000),
    "an overlap": safetensors({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"\0" * 4),
    "a gap": safetensors({"a": entry([1], 4, 8)}, b"\0" * 8),
    "beyond the end": safetensors({"a": entry([100], 0, 400)}, b"\0" * 4),
    "something behind": safetensors({"a": entry([1], 0, 4)}, b"\0" * 4 + b"PK\x03\x04"),
    "a shape that lies": safetensors({"a": entry([2], 0, 4)}, b"\0" * 4),
    "a negative shape": safetensors({"a": entry([-1, -1], 0, 4)}, b"\0" * 4),
    "a huge shape": safetensors({"a": entry([2**62, 2**62], 0, 4)}, b"\0" * 4),
    "a shape of text": safetensors({"a": entry(["1"], 0, 4)}, b"\0" * 4),
    "an unknown type": safetensors({"a": entry([1], 0, 4, "PICKLE")}, b"\0" * 4),
    "a name twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "true for a number": safetensors({"a": entry([True], 0, 4)}, b"\0" * 4),
}


@pytest.mark.parametrize("what", DAMAGED, ids=list(DAMAGED))
def test_a_damaged_table_is_refused_before_anything_is_read_by_it(server, what):
    before = stored(server)
    answer = send(server, DAMAGED[what])
    assert answer.status == 422, answer.body
    assert stored(server) == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fc.weight": None}, "'fc.weight' is missing (1 of"),
        ({"extra": torch.zeros(1)}, "no 'extra'"),
        ({"fc.weight": torch.zeros(3, 3)}, "'fc.weight' must have the shape [10, 16], got [3, 3]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_tensor(server, changes, told):
    answer = send(server, save(weights(**changes)))
    assert answer.status == 422
    assert told in answer.json["detail"]


@pytest.mark.parametrize(
    ("address", "field"),
    [
        ("/api/v1/models?architecture=os:system", "architecture"),
        ("/api/v1/models?architecture=..%2F..%2Fetc", "architecture"),
        ("/api/v1/models?architecture=resnet20&args=%7B%22width%22%3A0%7D", "args.width"),
        ("/api/v1/models?architecture=resnet20&args=%7B%22width%22%3A99999999%7D", "args.width"),
        ("/api/v1/models?architecture=resnet20&args=%7B%22width%22%3A%22x%22%7D", "args.width"),
        ("/api/v1/models?architecture=resnet20&args=%7B%22width%22%3Atrue%7D", "args.width"),
        ("/api/v1/models?architecture=resnet20&args=%7B%22base%22%3A%22%2Fetc%22%7D", "args.base"),
        ("/api/v1/models?architecture=resnet20&args=%5B%5D", "args"),
        ("/api/v1/models?architecture=resnet20&args=" + "%5B" * 1000, "args"),
    ],
)
def test_a_network_or_an_argument_that_is_not_known_is_refused_with_the_field(server, address, field):
    answer = send(server, b"x", address)
    assert answer.status == 422
    assert [error["field"] for error in answer.json["errors"]] == [field]


def test_an_upload_that_is_too_long_leaves_nothing(server):
    before = stored(server)
    assert send(server, safetensors({}, b"\0" * 3_000_000)).status == 413
    assert stored(server) == before


def test_a_place_for_models_can_be_full(tmp_path):
    kept = save(weights())
    with serving(tmp_path, max_models=1) as server:
        server.parts.models.__dict__["_architectures"] = {"resnet20": arguments()["resnet20"]}
        assert send(server, kept).status == 201
        assert send(server, save(weights())).status == 429, "other weights, drawn anew"
        assert send(server, kept).status == 200


def test_the_table_of_a_real_file_is_read_as_it_is():
    body = save({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, metadata={"made by": "a test"})
    assert read_header(io.BytesIO(body), len(body)) == {"a": ("F32", [2, 3]), "b": ("I64", [4])}


def test_a_network_of_too_many_parameters_is_refused():
    with pytest.raises(Problem, match="at most 1000000000 parameters"):
        check_tensors({}, {"a": [100_000, 100_000]})


def test_the_schema_of_every_network_is_that_of_its_function():
    known = arguments()
    assert set(known) == set(BUILTIN_MODELS)
    assert known["resnet20"]["properties"]["width"] == {
        "type": "integer", "default": 16, "minimum": 1, "maximum": 10_000,
    }  # fmt: skip
    for name in known:
        assert not known[name]["required"], f"{name} can be built without arguments"


def test_shapes_are_those_of_the_state_dict():
    assert shapes("resnet20", ARGS) == {name: list(t.shape) for name, t in resnet20(**ARGS).state_dict().items()}


@pytest.mark.slow
def test_a_process_with_torch_answers_the_server(tmp_path, monkeypatch):
    monkeypatch.undo()
    with serving(tmp_path) as server:
        names = [entry["name"] for entry in server.get("/api/v1/models").json["architectures"]]
        assert {"resnet20", "mobilenetv2"} <= set(names)
        assert send(server, save(weights())).status == 201
