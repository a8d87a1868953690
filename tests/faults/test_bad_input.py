"""What bad input gets at the command line: one sentence with a next step, its exit code, and nothing left behind.

The worker runs inside of the test's process here; that errors pass between processes unchanged is a
contract of the executor.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from example_study import example_record, example_trials, write_example
from tiny_study import NAME, write_study

from autocompress import cli
from autocompress.records import StudyState
from autocompress.study import driver as driver_module
from autocompress.study.database import MIGRATIONS, Database
from autocompress.study.store import StudyStore

MODULE = """
import torch
from torch import nn
from tiny import TinyNet, make_tiny_data

def raises():
    raise RuntimeError("no weights today")

def no_module():
    return {"not": "a network"}

class Empty(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4]

class Tuple(TinyNet):
    def forward(self, x):
        out = super().forward(x)
        return out, out

class Auxiliary(TinyNet):
    def forward(self, x):
        out = super().forward(x)
        return (out, out) if self.training else out

class Untrainable(TinyNet):
    def forward(self, x):
        if self.training:
            raise NotImplementedError("made for use alone")
        return super().forward(x)

def double():
    return TinyNet().double()

class Wide(TinyNet):
    def __init__(self):
        super().__init__(classes=3)

class Control(TinyNet):
    def forward(self, x):
        out = super().forward(x)
        while float(out.abs().sum().detach()) > 1e9 or (out[0, 0] > 0 and out[1, 1] > 7):
            out = out / 2 if bool((out > 0.123).any()) else -out
        return out

class Smaller(TinyNet):
    def __init__(self):
        super().__init__(channels=12)

def data(**changes):
    made = make_tiny_data()
    inputs, targets = made["train"]
    made["train"] = (changes.get("inputs", inputs), changes.get("targets", targets))
    return made

def nan():
    inputs = make_tiny_data()["train"][0].clone()
    inputs[7, 0, 0, 0] = float("nan")
    return data(inputs=inputs)

def empty():
    return {"train": (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))}

def float_targets():
    return data(targets=torch.rand(256))

def wrong_dtype():
    made = make_tiny_data()
    return {name: (x.to(torch.int64), y) for name, (x, y) in made.items()}

def double_data():
    made = make_tiny_data()
    return {name: (x.double(), y) for name, (x, y) in made.items()}

def negative():
    return data(targets=torch.arange(256) % 4 - 1)

def unknown_class():
    made = make_tiny_data()
    made["val"] = (made["val"][0], made["val"][1] + 1)
    return made

def one_class():
    return data(targets=torch.zeros(256, dtype=torch.long))

def wrong_shape():
    made = make_tiny_data()
    return {name: (x.repeat(1, 3, 1, 1), y) for name, (x, y) in made.items()}

def no_mapping():
    return [1, 2, 3]
"""


class InProcess:
    """An executor that prepares a study where it stands."""

    def __init__(self, *, on_progress, tick):
        self.on_progress, self.alive = on_progress, False

    def call(self, method, *arguments, deadline):
        from autocompress.study.executors import WorkerDied
        from autocompress.study.prepare import prepare

        if method != "prepare" or time.monotonic() > deadline:
            raise WorkerDied("it took longer than its time and was ended")
        _task, result = prepare(*arguments, self.on_progress)
        return result

    def close(self):
        return None


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a finished study, which must be as it was after every error."""
    import os

    for variable in [v for v in os.environ if v.startswith("AUTOCOMPRESS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver_module, "LocalWorker", InProcess)
    write_example(tmp_path / "runs")
    (tmp_path / "bad_nets.py").write_text(MODULE)
    return tmp_path / "runs"


def refused(workspace: Path, capsys, *arguments: object, **changes: dict) -> tuple[int, str]:
    """Exit code and the sentence of a search that must fail; nothing may be left of it, or lost of others."""
    path = write_study(workspace.parent, **changes)
    code = cli.run(["search", str(path), "--workspace", str(workspace), *map(str, arguments)])
    output = capsys.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if not line.startswith(("setup:", "teacher:", "baseline:"))]
    assert len(lines) == 1, output.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in output.err
    with StudyStore(workspace, readonly=True) as store:
        assert store.names() == ["digits"], "the name is free again"
        assert store.trials("digits") == example_trials()
        assert store.study("digits") == example_record()
    assert not (workspace / "artifacts" / NAME).exists()
    return code, lines[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"search": {"sampelr": "tpe"}}, "unknown key 'sampelr'; did you mean 'sampler'"),
        ({"serach": {"seed": 1}}, "unknown key 'serach'; did you mean 'search'"),
        ({"task": {"metric": "acuracy"}}, "unknown metric 'acuracy'; did you mean 'accuracy'"),
        ({"device": {"name": "phone"}}, "unknown device 'phone'"),
        ({"device": {"runtime": "onnxrutime"}}, "unknown runtime 'onnxrutime'; did you mean 'onnxruntime'"),
        ({"search": {"budget": "0s"}}, "a duration above 0 such as 90s, 10m or 2h was expected, got '0s'"),
        ({"search": {"budget": "abc"}}, "got 'abc'"),
        ({"search": {"budget": -5}}, "got -5"),
        ({"search": {"objectives": ["size", "latency"]}}, "objectives must name accuracy"),
        ({"model": {"factory": "tiny:Tiny"}}, "TinyNet"),
        ({"model": {"factory": "nowhere_at_all:net"}}, "nowhere_at_all"),
        ({"model": {"factory": "bad_nets:raises", "args": {}}}, "no weights today"),
        ({"model": {"factory": "bad_nets:no_module", "args": {}}}, "must return a torch.nn.Module, got a dict"),
        ({"model": {"factory": "bad_nets:Empty", "args": {}, "weights": None}}, "has no parameters"),
        ({"model": {"factory": "bad_nets:Smaller", "args": {}}}, "do not fit the model"),
        ({"model": {"weights": "gone.safetensors"}}, "gone.safetensors"),
        ({"model": {"args": {"chanels": 3}}}, "chanels"),
        ({"model": {"factory": "bad_nets:Tuple", "args": {}, "weights": None}}, "returns a tuple, one tensor was"),
        (
            {"model": {"factory": "bad_nets:Auxiliary", "args": {}, "weights": None}},
            "returns a tuple in train mode, the logits alone, [2, 4], were expected; switch auxiliary outputs off",
        ),
        (
            {"model": {"factory": "bad_nets:Untrainable", "args": {}, "weights": None}},
            "fails in train mode: NotImplementedError: made for use alone; its forward must do both",
        ),
        (
            {"model": {"factory": "bad_nets:double", "args": {}, "weights": None}},
            "has float64 parameters, files hold float32; call model.float() and give float32 data",
        ),
        ({"model": {"factory": "bad_nets:Wide", "args": {}, "weights": None}}, "the data has 4 classes"),
        ({"data": {"factory": "bad_nets:missing"}}, "missing"),
        ({"data": {"factory": "bad_nets:no_mapping"}}, "must return a mapping"),
        ({"data": {"factory": "bad_nets:empty"}}, "train has no samples"),
        ({"data": {"factory": "bad_nets:nan"}}, "NaN or infinite values in 1 of 256 samples, first in sample 7"),
        ({"data": {"factory": "bad_nets:float_targets"}}, "accuracy needs integer class labels"),
        ({"data": {"factory": "bad_nets:wrong_dtype"}}, "check that model and data belong together"),
        ({"data": {"factory": "bad_nets:double_data"}}, "; give float32 inputs"),
        ({"data": {"factory": "bad_nets:negative"}}, "must be class labels from 0, got -1"),
        ({"data": {"factory": "bad_nets:unknown_class"}}, "val holds the class 4 but the highest of train is 3"),
        ({"data": {"factory": "bad_nets:one_class"}}, "train holds only the class 0"),
        ({"data": {"factory": "bad_nets:wrong_shape"}}, "check that model and data belong together"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named_with_exit_code_2(workspace, capsys, changes, expected):
    code, sentence = refused(workspace, capsys, **changes)
    assert code == 2, sentence
    assert expected in sentence


def test_a_network_that_cannot_be_exported_is_named(workspace, capsys):
    model = {"factory": "bad_nets:Control", "args": {"channels": 16}}
    code, sentence = refused(workspace, capsys, model=model)
    assert code == 2
    assert "export" in sentence


def test_a_teacher_that_diverges_is_named_with_what_to_lower(workspace, capsys):
    code, sentence = refused(workspace, capsys, model={"weights": None, "learning_rate": 1e9, "epochs": 50})
    assert code == 2
    assert "training the teacher diverged at a learning rate of 1000000000.0; lower model.learning_rate" in sentence


@pytest.mark.parametrize("study", ["digitz", "nowhere.toml"])
def test_an_unknown_study_is_named(workspace, capsys, study):
    code = cli.run(["search", study, "--workspace", str(workspace)])
    assert code == (2 if study.endswith(".toml") else 4)
    assert capsys.readouterr().err.startswith("error: ")


def test_a_runtime_that_is_not_installed_names_what_to_install(workspace, capsys, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "openvino" else real(n, *a))
    code, sentence = refused(workspace, capsys, device={"runtime": "openvino"})
    assert code == 5
    assert "pip install 'autocompress[openvino]'" in sentence


def test_more_threads_than_cores_is_refused(workspace, capsys):
    code, sentence = refused(workspace, capsys, device={"threads": 4096})
    assert code == 5
    assert "device.threads is 4096" in sentence


def test_a_study_file_that_is_no_toml_is_named(workspace, capsys, tmp_path):
    (tmp_path / "broken.toml").write_text("[model\n")
    assert cli.run(["search", "broken.toml", "--workspace", str(workspace)]) == 2
    assert "is not a TOML file" in capsys.readouterr().err


def test_a_database_of_a_newer_version_is_left_alone(workspace, capsys, tmp_path):
    database = Database(workspace)
    with database.write() as connection:
        connection.execute("INSERT INTO ac_schema VALUES (?, 'tomorrow')", (len(MIGRATIONS) + 1,))
    database.close()
    before = (workspace / "autocompress.db").read_bytes()
    path = write_study(tmp_path)
    for arguments in (["search", path], ["resume", "digits"], ["front", "digits"], ["list"]):
        assert cli.run([*map(str, arguments), "--workspace", str(workspace)]) == 2
        assert "was written by a newer autocompress" in capsys.readouterr().err
    assert (workspace / "autocompress.db").read_bytes() == before


def test_a_name_that_is_taken_is_refused_before_anything_starts(workspace, capsys, tmp_path):
    path = write_study(tmp_path)
    assert cli.run(["search", str(path), "--name", "digits", "--workspace", str(workspace)]) == 2
    assert f"continue it with `autocompress resume digits --workspace {workspace}`" in capsys.readouterr().err
    with StudyStore(workspace, readonly=True) as store:
        assert store.study("digits").state is StudyState.FINISHED
