"""A bundle holds the measured bytes, says where they came from, and runs without the package."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from front_factories import BASELINE, make_point, make_study
from onnx import TensorProto, helper, numpy_helper

from autocompress.bundle import RUN_SCRIPT, new_folder, write_bundle
from autocompress.errors import NotFoundError, UsageError
from autocompress.plan import CompressionPlan
from autocompress.records import Cascade, FrontPoint
from autocompress.resources import resource


def linear_model(inputs: tuple[str, ...] = ("input",)) -> bytes:
    """[batch, 4] to [batch, 3]; two inputs are added first."""
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "weight")
    nodes = [helper.make_node("MatMul", [inputs[0], "weight"], ["output"])]
    if len(inputs) == 2:
        nodes = [
            helper.make_node("Add", list(inputs), ["sum"]),
            helper.make_node("MatMul", ["sum", "weight"], ["output"]),
        ]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, floats, ["batch", 4]) for name in inputs],
        [helper.make_tensor_value_info("output", floats, ["batch", 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def place(workspace: Path, content: bytes) -> FrontPoint:
    point = make_point(17, size_bytes=len(content))
    path = workspace / point.artifact
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return point


def run(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(bundle / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=bundle.parent)


def test_the_measured_bytes_come_first_and_only_provenance_follows(workspace: Path, tmp_path: Path) -> None:
    original = linear_model()
    out = write_bundle(place(workspace, original), make_study(), workspace=workspace, out=tmp_path / "out")
    shipped = (out / "model.onnx").read_bytes()
    assert shipped.startswith(original)
    before, after = onnx.load_from_string(original), onnx.load_from_string(shipped)
    assert after.graph == before.graph
    onnx.checker.check_model(after)
    stored = {entry.key: entry.value for entry in after.metadata_props}
    assert stored["autocompress.trial"] == "17"
    assert stored["autocompress.config_hash"] == "0123456789abcdef"
    assert json.loads(stored["autocompress.versions"])["torch"] == "2.10.0"
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["autocompress.study"] == "digits"


def test_provenance_that_is_already_there_is_not_doubled(workspace: Path, tmp_path: Path) -> None:
    model = onnx.load_from_string(linear_model())
    model.metadata_props.add(key="autocompress.trial", value="3")
    point = place(workspace, model.SerializeToString())
    out = write_bundle(point, make_study(), workspace=workspace, out=tmp_path / "out")
    keys = [entry.key for entry in onnx.load(out / "model.onnx").metadata_props]
    assert len(keys) == len(set(keys)) == 5


def test_the_card_says_both_sizes_and_the_intervals(workspace: Path, tmp_path: Path) -> None:
    original = linear_model()
    out = write_bundle(place(workspace, original), make_study(), workspace=workspace, out=tmp_path / "out")
    card = (out / "model_card.md").read_text(encoding="utf-8")
    shipped = (out / "model.onnx").stat().st_size
    for text in (
        f"The measured artifact has {len(original):,} bytes",
        f"`model.onnx` here has {shipped:,}: the same bytes, and {shipped - len(original):,} of provenance",
        "| accuracy, validation | 0.9790 (95 % 0.9460 to 0.9920, n = 180) | 0.9810",
        "| accuracy, test | 0.9760 (95 % 0.9545 to 0.9875, n = 360)",
        "0.20 points worse",
        "ratio 0.327, 95 % interval 0.322 to 0.331",
        "`input`: float32, [batch, 4]",
        "train 1257, val 180, test 360",
        "4 cores, x86-64 with AVX2",
    ):
        assert text in card
    assert "was changed since" not in card


def test_the_card_names_the_blocks_that_were_removed(workspace: Path, tmp_path: Path) -> None:
    point = replace(place(workspace, linear_model()), plan=CompressionPlan(removed_blocks=("layer2.1",)))
    out = write_bundle(point, make_study(), workspace=workspace, out=tmp_path / "out")
    assert "- removed: 1 block (layer2.1)" in (out / "model_card.md").read_text()
    assert json.loads((out / "plan.json").read_text())["removed_blocks"] == ["layer2.1"]


@pytest.mark.parametrize(
    ("metric", "ci", "shown", "why"),
    [
        ("accuracy", (0.9, 0.95), "0.9300 (95 % 0.9000 to 0.9500, n = 180)", "Wilson's, of a share of samples"),
        ("f1", (0.9, 0.95), "0.9300 (95 % 0.9000 to 0.9500, n = 180)", "a bootstrap over the samples"),
        ("mse", (0.9, 0.95), "0.93 (95 % 0.9 to 0.95, n = 180)", "a bootstrap over the samples"),
        ("f1", None, "0.9300 (n = 180)", "The study recorded no interval of the f1."),
        ("margin", None, "0.93 (n = 180)", "The margin has no interval: a metric of your own is called once"),
    ],
)
def test_the_card_has_the_interval_of_every_metric_or_says_why_not(
    workspace: Path, tmp_path: Path, metric: str, ci: tuple[float, float] | None, shown: str, why: str
) -> None:
    point = replace(place(workspace, linear_model()), val=0.93, val_ci=ci, test=None, test_ci=None)
    study = make_study(baseline=replace(BASELINE, metric=metric))
    card = (write_bundle(point, study, workspace=workspace, out=tmp_path / "out") / "model_card.md").read_text()
    assert f"| {metric}, validation | {shown} |" in card
    assert f"| {metric}, test | not measured |" in card
    assert why in card


def test_a_file_that_changed_since_it_was_measured_is_told_on_the_card(workspace: Path, tmp_path: Path) -> None:
    point = replace(place(workspace, linear_model()), size_bytes=61_044)
    out = write_bundle(point, make_study(), workspace=workspace, out=tmp_path / "out")
    assert "The study recorded 61,044 bytes: the file was changed" in (out / "model_card.md").read_text()


def test_plan_and_weights_go_along(workspace: Path, tmp_path: Path) -> None:
    point = place(workspace, linear_model())
    (workspace / point.artifact).with_name("weights.safetensors").write_bytes(b"weights")
    out = write_bundle(point, make_study(), workspace=workspace, out=tmp_path / "deep" / "out")
    assert json.loads((out / "plan.json").read_text()) == point.plan.to_dict()
    assert (out / "weights.safetensors").read_bytes() == b"weights"
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]  # nothing half-written is left


def test_of_a_cascade_the_bundle_holds_both_plans(workspace: Path, tmp_path: Path) -> None:
    large = CompressionPlan(weight_bits={"conv1": 8})
    cascade = Cascade(first=3, second=5, threshold=0.9, passed_on=0.25, second_plan=large)
    point = replace(place(workspace, linear_model()), origin="cascade", cascade=cascade)
    out = write_bundle(point, make_study(), workspace=workspace, out=tmp_path / "out")
    assert json.loads((out / "plan.json").read_text()) == {
        "cascade": [{"trial": 3, "plan": point.plan.to_dict()}, {"trial": 5, "plan": large.to_dict()}],
        "threshold": 0.9,
    }
    card = (out / "model_card.md").read_text()
    assert "- two networks: trial 3 answers, trial 5 where its largest probability is below 0.9 (25.0%" in card
    assert "- trial: 17 (cascade)" in card
    assert "| latency, mean over validation samples | " in card


def test_the_script_runs_on_random_input(workspace: Path, tmp_path: Path) -> None:
    out = write_bundle(place(workspace, linear_model()), make_study(), workspace=workspace, out=tmp_path / "out")
    done = run(out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("output: shape (1, 3), float32\ntop class: ")


def test_the_script_runs_on_a_file(workspace: Path, tmp_path: Path) -> None:
    out = write_bundle(place(workspace, linear_model()), make_study(), workspace=workspace, out=tmp_path / "out")
    np.save(tmp_path / "input.npy", np.array([[1, 0, 0, 0], [-1, 0, 0, 0]], dtype=np.float64))
    done = run(out, str(tmp_path / "input.npy"))
    assert done.stdout == "output: shape (2, 3), float32\ntop class: 2, 0\n", done.stderr


def test_the_script_takes_one_file_per_input(workspace: Path, tmp_path: Path) -> None:
    point = place(workspace, linear_model(("input_0", "input_1")))
    out = write_bundle(point, make_study(), workspace=workspace, out=tmp_path / "out")
    np.save(tmp_path / "x.npy", np.ones((1, 4), dtype=np.float32))
    assert "output: shape (1, 3)" in run(out).stdout
    assert "output: shape (1, 3)" in run(out, str(tmp_path / "x.npy"), str(tmp_path / "x.npy")).stdout
    refused = run(out, str(tmp_path / "x.npy"))
    assert refused.returncode == 1
    assert "2 input(s): input_0, input_1; got 1 file(s)" in refused.stderr


def test_an_empty_folder_is_filled_and_a_full_one_is_refused(workspace: Path, tmp_path: Path) -> None:
    point, out = place(workspace, linear_model()), tmp_path / "out"
    out.mkdir()
    write_bundle(point, make_study(), workspace=workspace, out=out)
    with pytest.raises(UsageError, match="not empty; name a new folder, or delete this one first"):
        write_bundle(point, make_study(), workspace=workspace, out=out)


def test_a_file_in_the_way_is_refused_and_kept(workspace: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        write_bundle(place(workspace, linear_model()), make_study(), workspace=workspace, out=target)
    assert target.read_text() == "mine"


def test_a_link_to_an_empty_folder_leads_there(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    write_bundle(place(workspace, linear_model()), make_study(), workspace=workspace, out=tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == [
        "model.onnx", "model_card.md", "plan.json", "run.py",
    ]  # fmt: skip
    assert (tmp_path / "out").is_symlink()


def test_the_folder_one_stands_in_is_filled(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_bundle(place(workspace, linear_model()), make_study(), workspace=workspace, out=Path())
    assert {p.name for p in Path().iterdir()} == {"model.onnx", "model_card.md", "plan.json", "run.py"}


def test_what_lies_below_a_file_is_refused_in_one_sentence(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    point = place(workspace, linear_model())
    with pytest.raises(UsageError, match=r"cannot write .*below: .*file is a file; choose another folder with --out"):
        write_bundle(point, make_study(), workspace=workspace, out=tmp_path / "file" / "below")


def test_what_the_disk_refuses_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*: no space; choose another"), new_folder(tmp_path / "out"):
        raise OSError(28, "no space")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ({"metric": "accuracy", "kind": "auto"}, True),
        ({"metric": "my.metrics:cost", "kind": "classification"}, True),
        ({"metric": "mse", "kind": "auto"}, False),
        ({"metric": "f1", "kind": "multilabel"}, False),
        ({"metric": "my.metrics:cost", "kind": "regression"}, False),
    ],
)
def test_only_of_classes_the_script_names_the_largest(
    workspace: Path, tmp_path: Path, task: dict[str, str], named: bool
) -> None:
    study = make_study(config={"task": task})
    out = write_bundle(place(workspace, linear_model()), study, workspace=workspace, out=tmp_path / "out")
    assert ((out / "run.py").read_text() == RUN_SCRIPT) is named
    assert ("top class" in run(out).stdout) is named
    assert "output: shape (1, 3), float32" in run(out).stdout


def test_a_missing_artifact_is_named_and_leaves_nothing_behind(workspace: Path, tmp_path: Path) -> None:
    workspace.mkdir()
    with pytest.raises(NotFoundError, match="trial 17 of 'digits' is not in the workspace"):
        write_bundle(make_point(17), make_study(), workspace=workspace, out=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_an_artifact_outside_the_workspace_is_not_taken(workspace: Path, tmp_path: Path) -> None:
    workspace.mkdir()
    (tmp_path / "secret.onnx").write_bytes(linear_model())
    with pytest.raises(NotFoundError, match="not in the workspace"):
        write_bundle(make_point(17, artifact="../secret.onnx"), make_study(), workspace=workspace, out=tmp_path / "out")


def test_an_artifact_that_is_no_model_leaves_nothing_behind(workspace: Path, tmp_path: Path) -> None:
    point = place(workspace, b"\xff\xff not a protobuf")
    with pytest.raises(Exception, match=r"(?i)pars|decod"):
        write_bundle(point, make_study(), workspace=workspace, out=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_a_dense_model_without_a_baseline_still_has_a_card(workspace: Path, tmp_path: Path) -> None:
    point = replace(place(workspace, linear_model()), test=None)
    study = make_study(baseline=None, facts=None, data_sizes={}, versions={})
    out = write_bundle(point, study, workspace=workspace, out=tmp_path / "out")
    card = (out / "model_card.md").read_text()
    assert "no baseline to compare with" in card
    assert "not measured" in card


def test_resources_are_found_in_a_checkout() -> None:
    assert (resource("dashboards") / "report.html.jinja").is_file()
    assert resource("studies").is_dir()


@pytest.mark.parametrize("damage", [b"not a model", b"", linear_model()[:-60]], ids=["text", "empty", "cut off"])
def test_a_damaged_artifact_is_one_sentence_and_leaves_nothing_behind(workspace: Path, damage: bytes) -> None:
    point = place(workspace, damage)
    with pytest.raises(UsageError, match=r"model\.onnx is damaged, it is no ONNX model any more: .+; export another"):
        write_bundle(point, make_study(), workspace=workspace, out=workspace.parent / "out")
    assert {path.name for path in workspace.parent.iterdir()} == {"runs"}
