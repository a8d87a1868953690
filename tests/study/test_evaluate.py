"""One trial from its plan to its record, on a network with blocks that can go; what is shipped is looked at."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.compress.drop import Dropped
from autocompress.compress.sparsify import zeros_share
from autocompress.config import load_config
from autocompress.plan import CompressionPlan, DistillPlan
from autocompress.records import Baseline, DeviceFacts, Latency, StudyRecord, StudyState, TrialRecord, TrialState
from autocompress.recover.data import Split
from autocompress.search.cost import SizeModel
from autocompress.search.options import Options
from autocompress.search.sensitivity import Sensitivity
from autocompress.search.stopping import Constraints, Rival, Rung
from autocompress.space.search_space import SearchSpace
from autocompress.study import prepare as preparation
from autocompress.study.digests import outputs_digest, profile_digest
from autocompress.study.evaluate import evaluate
from autocompress.study.load import load_objects, unfreeze_
from autocompress.study.prepare import prepare
from autocompress.study.rebuild import rebuild_artifact
from autocompress.study.requests import Member, Request, Source
from autocompress.study.task import Ancestor, Task, _some_batches, load_state
from autocompress.zoo.models import ResNet

ARGS = {"in_channels": 1, "classes": 4, "widths": [8, 16], "depths": [2, 2]}
BASELINE = Baseline(
    metric="accuracy", val=0.5, test=None, size_bytes=30_000, latency_ms=1.0, params=0, macs=0, artifact=""
)
TIMED = Latency(latency_ms=1.0, ratio=1.0, ratio_ci=(1.0, 1.0), blocks=1)
FASTER = replace(TIMED, latency_ms=0.5, ratio=0.5)
BLOCKS = ("layers.0", "layers.1", "layers.3")  # layers.2 changes the shape


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Task]:
    """A prepared study on the tiny data; its teacher is not trained, nothing is timed, all is in single precision."""
    folder, threads = tmp_path_factory.mktemp("evaluate"), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        patch.setattr("autocompress.study.prepare.prefers_bf16", lambda *_: False)
        torch.manual_seed(0)
        save_file(ResNet(**ARGS).state_dict(), folder / "teacher.safetensors")
        tables = {
            "model": {"factory": "autocompress.zoo.models:ResNet", "args": ARGS, "weights": "teacher.safetensors"},
            "data": {"factory": "tiny:make_tiny_data"},
            "space": {"round_to": 2, "rank_ratio": [0.0, 0.3]},
            "search": {"batch_size": 32},
        }
        config = load_config(tables, name="blocks")
        source = Source(config=config, workspace=folder / "runs", budget_s=60.0, base=folder)
        yield prepare(source, BASELINE, lambda _: None)[0]
    torch.set_num_threads(threads)


def _plan(task: Task, **choices: object) -> CompressionPlan:
    """Two of three blocks out, the stream at half its width, three kinds of bits."""
    params = {"remove_block/layers.1": True, "remove_block/layers.3": True, "prune_ratio/conv1": 0.5}
    bits = {"weight_bits/conv1": 8, "weight_bits/layers.0.conv1": 3, "weight_bits/layers.1.conv1": 4}
    return SearchSpace(config=task.source.config.space, facts=task.facts).decode({**params, **bits, **choices})


def _run(task: Task, trial: int, plan: CompressionPlan, parent: TrialRecord | None = None, **more: Any) -> TrialRecord:
    request = Request(
        trial=trial, plan=plan, origin="search", constraints=Constraints(),
        parent=parent.trial if parent else None, parent_plan=parent.plan if parent else None,
        seen=parent.trained_samples if parent else 0,
        **{"anchor": True, "latency": TIMED, "train_s": 0.5, "deadline": time.monotonic() + 120, **more},
    )  # fmt: skip
    return evaluate(task, request, lambda _: None)


def _network(task: Task, record: TrialRecord) -> nn.Module:
    network = task.prune(record.plan)
    network.load_state_dict(load_state(task.source.folder / f"trial-{record.trial}" / "weights.safetensors"))
    return network


def test_the_facts_of_a_study_name_its_blocks(task: Task):
    assert tuple(b.name for b in task.facts.blocks) == BLOCKS
    assert [b.groups for b in task.facts.blocks] == [(f"{name}.conv1",) for name in BLOCKS]
    assert task.facts.from_dict(json.loads(json.dumps(task.facts.to_dict()))) == task.facts


def test_the_teacher_answers_to_the_data_before_the_first_trial_and_the_answers_are_kept(task: Task):
    doubts, size = task.outputs.doubts(), task.trainer.batch_size
    assert doubts is not None
    assert int(doubts.isnan().sum()) == len(doubts) % size, "an epoch leaves out what fills no batch"
    assert task.outputs_file is not None
    assert task.outputs_file.is_file()


@pytest.mark.parametrize(("trial", "activations"), [(1, "float"), (2, "uint8")])
def test_a_plan_without_blocks_becomes_a_smaller_file_and_an_honest_record(task: Task, trial: int, activations: str):
    record = _run(task, trial, _plan(task, activations=activations))
    assert (record.state, record.reason) == (TrialState.COMPLETE, "")
    assert record.widths == {
        "conv1": 4, "layers.0.conv1": 8, "layers.1.conv1": 0, "layers.2.conv1": 16, "layers.2.conv2": 16,
        "layers.3.conv1": 0,
    }  # fmt: skip
    network, measured = _network(task, record), record.measurement
    assert [type(network.layers[i]) for i in (1, 3)] == [Dropped, Dropped]
    assert measured is not None
    assert measured.val is not None
    assert measured.params == sum(p.numel() for p in network.parameters())
    by_hand = 4 * 9 + 2 * 4 * 8 * 9 + (4 * 16 + 16 * 16) * 9 + 4 * 16 + 16 * 4 + 4  # convolutions, projection, linear
    assert measured.params == by_hand + 2 * (4 + 8 + 4 + 16 + 16 + 16)  # and a scale and a shift per channel
    positions = {8: 64, 4: 16}
    stem, block = 4 * 9 + 2 * 4 * 8 * 9, (4 * 16 + 16 * 16) * 9 + 4 * 16
    assert measured.macs == stem * positions[8] + block * positions[4] + 16 * 4
    file = task.source.workspace / str(record.artifact)
    assert file.stat().st_size == measured.size_bytes
    assert sum("Conv" in node.op_type for node in onnx.load(file).graph.node) == 6
    assert json.loads((file.parent / "plan.json").read_text())["removed_blocks"] == ["layers.1", "layers.3"]


def test_a_trial_goes_on_from_the_weights_of_one_without_the_same_blocks(task: Task):
    plan = _plan(task)
    first = _run(task, 3, plan)
    further = _run(task, 4, plan, first)
    assert (further.state, further.reason) == (TrialState.COMPLETE, "")
    assert further.measurement is not None
    assert first.measurement is not None
    assert further.measurement.params == first.measurement.params


def test_a_factored_trial_is_counted_exactly_and_its_heir_begins_where_it_ended(task: Task):
    """16 x 16 x 3 x 3 is even at rank 24: 70 % of it are 16, two factors of 16 x 16 x 3."""
    choices = {"activations": "float", "prune_ratio/conv1": 0.0}
    whole = _run(task, 40, _plan(task, **choices))
    plan = _plan(task, **choices, **{"rank_ratio/layers.2.conv2": 0.3})
    record = _run(task, 41, plan)
    assert (record.state, record.reason) == (TrialState.COMPLETE, "")
    network = _network(task, record)
    assert network.get_submodule("layers.2.conv2").rank == 16
    assert record.measurement is not None
    assert whole.measurement is not None
    saved = 16 * 16 * 9 - 2 * 16 * 16 * 3
    assert whole.measurement.params - record.measurement.params == saved
    assert whole.measurement.macs - record.measurement.macs == 16 * saved
    nodes = [node.op_type for node in onnx.load(task.source.workspace / str(record.artifact)).graph.node]
    assert nodes.count("Conv") == 7
    weights = task.source.folder / "trial-41" / "weights.safetensors"
    heir = task.prune(plan, Ancestor(plan=plan, weights=weights))
    with torch.no_grad():
        assert torch.allclose(heir(*task.example), network(*task.example), atol=1e-4)
    further = _run(task, 42, replace(plan, weight_bits=dict.fromkeys(plan.weight_bits, 4)), record)
    assert (further.state, further.reason) == (TrialState.COMPLETE, "")


def test_what_cannot_be_factored_is_named_with_its_reason(task: Task):
    skips = {s.name: s.reason for s in task.facts.skips if s.what == "factor"}
    assert skips["conv1"] == "it is so small that factors would hold or multiply as much"
    assert "layers.2.conv2" not in skips


def test_bits_and_ratios_inside_of_a_removed_block_do_no_harm(task: Task):
    loose = CompressionPlan(
        prune_ratio={"layers.1.conv1": 0.5, "conv1": 0.5},
        weight_bits={"layers.1.conv1": 4, "layers.1.conv2": 16, "layers.0.conv1": 4},
        removed_blocks=("layers.1",),
    )
    record = _run(task, 5, loose)
    assert (record.state, record.reason, record.widths["layers.1.conv1"]) == (TrialState.COMPLETE, "", 0)


def test_a_block_that_the_model_does_not_have_fails_the_trial_with_its_name(task: Task):
    record = _run(task, 6, CompressionPlan(removed_blocks=("layers.7",)))
    assert record.state is TrialState.FAILED
    assert "the plan removes 'layers.7', which is not a block of the model" in record.reason


def test_a_study_that_keeps_its_blocks_looks_for_none(task: Task, tmp_path: Path):
    from autocompress.study.model_facts import find_facts

    config = load_config({"space": {"remove_blocks": False}}, name="x")
    assert find_facts(task.model, task.example, config, []).blocks == ()


def test_what_is_no_objective_of_the_study_is_not_judged(task: Task, monkeypatch: pytest.MonkeyPatch):
    """A file as slow as the dense one may be on the front of accuracy and size; its rivals' latency is 0 there."""
    search = task.source.config.search.model_copy(update={"objectives": ("accuracy", "size")})
    config = task.source.config.model_copy(update={"search": search})
    own = replace(task, source=replace(task.source, config=config))
    rival = Rival(trial=1, plan=CompressionPlan(), drop=0.0, size_ratio=0.9, latency_ratio=0.0)
    record = _run(own, 50, _plan(task), rivals=(rival,), anchor=False, train_s=0.2)
    assert (record.state, record.reason) == (TrialState.COMPLETE, "")
    slow = _run(task, 51, _plan(task), rivals=(rival,), anchor=False, train_s=0.2)
    assert slow.state is TrialState.STOPPED


def test_an_heir_keeps_what_its_ancestor_learned_of_the_channels_it_keeps(task: Task):
    """Nothing is trained in the heir: its first weights are the ancestor's, but for what was folded into them."""
    ancestor = _run(task, 11, _plan(task, **{"prune_ratio/conv1": 0.25, "remove_block/layers.3": False}))
    plan = _plan(task)
    heir = task.prune(
        plan,
        Ancestor(plan=ancestor.plan, weights=task.source.folder / f"trial-{ancestor.trial}" / "weights.safetensors"),
    )
    trained, fresh = _network(task, ancestor), task.prune(plan)
    assert [type(heir.layers[i]) for i in (1, 3)] == [Dropped, Dropped]
    assert heir.conv1.weight.shape == fresh.conv1.weight.shape
    rows = {tuple(row.flatten().tolist()) for row in trained.conv1.weight}
    assert all(tuple(row.flatten().tolist()) in rows for row in heir.conv1.weight), "channels of the trained network"
    assert not torch.equal(heir.conv1.weight, fresh.conv1.weight)


def test_an_heir_is_trained_on_the_samples_after_those_of_its_ancestor(task: Task):
    first = _run(task, 12, _plan(task, **{"prune_ratio/conv1": 0.25}))
    heir = _run(task, 13, _plan(task), first)
    assert (heir.state, heir.parent) == (TrialState.COMPLETE, 12)
    assert heir.trained_samples > first.trained_samples > 0


def test_a_training_that_cannot_reach_the_front_ends_at_its_rung(task: Task, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Task, "glance", lambda *_: 0.4)
    barely = Rival(trial=0, plan=CompressionPlan(), drop=0.049, size_ratio=0.01, latency_ratio=0.01)
    ended = _run(task, 14, _plan(task), rivals=(barely,), rung=Rung(hope=0.5), anchor=False, latency=FASTER)
    assert ended.state is TrialState.STOPPED
    assert ended.reason.startswith("after 40% of its training it lost 0.4000")
    assert ended.rung_drop == 0.4
    assert ended.rung_s is not None
    assert 0 < ended.rung_s <= ended.durations_s["train"]
    assert not (task.source.folder / "trial-14").exists(), "nothing is left of it"
    anchor = _run(task, 15, _plan(task), rivals=(barely,), rung=Rung(hope=0.5))
    assert anchor.state is TrialState.COMPLETE, "an anchor is trained whatever it looks like"
    assert anchor.rung_drop == 0.4


def test_a_training_begins_if_half_of_it_fits_before_what_comes_after_it(task: Task):
    plan = _plan(task)
    late = _run(task, 60, plan, train_s=2.0, deadline=time.monotonic() + 50.5, beside_s=50)
    assert (late.state, late.reason) == (TrialState.STOPPED, "too little time was left to train it")
    assert _run(task, 60, plan, train_s=2.0, deadline=time.monotonic() + 51.5, beside_s=50).state is TrialState.COMPLETE


def test_tables_zeros_and_companions_reach_the_file(task: Task):
    plain = _plan(task, activations="float")
    distill = DistillPlan(hints=0.1, attention=0.1, mean_teacher=0.1)
    record = _run(task, 20, replace(plain, levels="codebook", sparsity=0.6, distill=distill))
    assert (record.state, record.reason) == (TrialState.COMPLETE, "")
    weights = load_state(task.source.folder / "trial-20" / "weights.safetensors")
    layers = [n.name for n in task.facts.layers if n.name.partition(".")[2][:1] not in ("1", "3")]
    assert zeros_share([weights[f"{name}.weight"] for name in layers]) == pytest.approx(0.6, abs=0.01)
    without = _run(task, 21, replace(plain, levels="codebook"))
    assert record.measurement is not None
    assert without.measurement is not None
    assert record.measurement.compressed_bytes < 0.97 * without.measurement.compressed_bytes
    assert abs(record.measurement.size_bytes - without.measurement.size_bytes) < 50  # only tables differ


def test_a_soup_has_the_mean_of_its_members_weights_and_trains_nothing(task: Task):
    plan = _plan(task, activations="float")
    first = _run(task, 22, plan)
    second = _run(task, 23, plan, parent=first)
    soup = _run(task, 24, plan, soup=tuple(Member(trial=r.trial, plan=r.plan) for r in (first, second)))
    assert (soup.state, soup.learning_curve) == (TrialState.COMPLETE, ())
    one, two, mean = (load_state(task.source.folder / f"trial-{n}" / "weights.safetensors") for n in (22, 23, 24))
    for name in ("conv1.weight", "fc.weight", "bn1.weight"):
        assert torch.allclose(mean[name], (one[name] + two[name]) / 2)


def test_trained_networks_can_teach_along(task: Task):
    plan = _plan(task, activations="float")
    first = _run(task, 25, plan)
    joint = task.outputs_with([Ancestor(plan=plan, weights=task.source.folder / "trial-25" / "weights.safetensors")])
    inputs, _, soft = joint.batch(torch.arange(4))
    network = _network(task, first)
    with torch.no_grad():
        wanted = (task.model(*inputs).softmax(1) + network(*inputs).softmax(1)) / 2
    assert soft is not None
    assert torch.allclose(soft.softmax(1), wanted, atol=1e-5)
    assert _run(task, 26, plan, teachers=(Member(trial=25, plan=plan),)).state is TrialState.COMPLETE
    assert task.outputs_with([]) is task.outputs


@pytest.mark.parametrize(
    ("trial", "choices"),
    [
        (36, {"activations": "uint8"}),
        (37, {"activations": "float", "sparsity": 0.5, "levels": "codebook"}),
        (38, {"activations": "uint8", "rank_ratio/layers.2.conv2": 0.3, "prune_ratio/conv1": 0.0}),
        (49, {"activations": "float", "sparsity": 0.5, "rounding": "feedback"}),
    ],
)
def test_a_file_is_made_again_from_plan_and_weights_to_the_last_bit(task: Task, trial: int, choices: dict[str, Any]):
    record = _run(task, trial, _plan(task, **choices), train_s=2.0)  # long enough that the scales learn something
    assert record.state is TrialState.COMPLETE
    path = task.source.workspace / str(record.artifact)
    wanted = path.read_bytes()
    path.unlink()
    study = StudyRecord(
        name=task.source.config.name, state=StudyState.FINISHED, seed=0, budget_s=60.0, spent_s=60.0, created="",
        config=task.source.config.model_dump(mode="json"), config_hash="", device=DeviceFacts(),
        base=str(task.source.base), facts=task.facts,
    )  # fmt: skip
    assert rebuild_artifact(study, record.plan, path.parent, task.source.workspace) == wanted
    path.with_name("rounding.safetensors").unlink()  # the searched scales are not the learned ones
    assert rebuild_artifact(study, record.plan, path.parent, task.source.workspace) != wanted


def test_what_is_kept_for_later_studies_depends_on_what_the_model_computes(task: Task, monkeypatch: pytest.MonkeyPatch):
    """The same weights may be read with another stride or number of heads."""
    monkeypatch.setattr(task, "baseline", replace(BASELINE, artifact="dense.onnx"))
    task.source.workspace.mkdir(parents=True, exist_ok=True)
    dense = task.source.workspace / "dense.onnx"
    keys = []
    for content in (b"one", b"other", b"one"):
        dense.write_bytes(content)
        keys.append((outputs_digest(task, "data"), profile_digest(task, "data", [])))
    dense.unlink()
    one, other, again = keys
    assert one == again
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_what_was_measured_once_serves_studies_of_any_budget_unless_time_was_short(
    task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    allowed: list[float] = []

    def measured(*_: Any, seconds: float, **__: Any) -> Sensitivity:
        allowed.append(seconds)
        return Sensitivity(seconds=seconds, complete=seconds > 10)

    def profile(minutes: float, **space: Any) -> None:
        config = task.source.config.model_copy(update={"space": task.source.config.space.model_copy(update=space)})
        source = replace(task.source, config=config, budget_s=60 * minutes, workspace=tmp_path)
        monkeypatch.setattr(task, "source", source)
        preparation._sensitivity(task, "data", lambda _: None)

    monkeypatch.setattr(preparation, "measure_sensitivity", measured)
    for minutes in (1, 1, 0.5, 5, 30, 1):
        profile(minutes)
    assert allowed == pytest.approx([3.6, 18]), "a minute's was cut short and is measured again in five minutes"
    profile(1, max_prune_ratio=0.6)
    assert len(allowed) == 2, "how far groups may be pruned says nothing of how much they matter"
    profile(1, weight_bits=(3, 8))
    assert len(allowed) == 3
    assert max(seconds / budget for seconds, budget in zip(allowed, (60, 300, 60), strict=True)) <= 0.12


def test_the_bytes_of_a_file_are_known_before_it_is_written(task: Task):
    """All but those of the graph, which the first file of its kind tells."""
    plans = [_plan(task, activations="float", **{"prune_ratio/layers.2.conv2": ratio}) for ratio in (0.0, 0.5)]
    files = [_run(task, 40 + i, plan, train_s=0.05).measurement for i, plan in enumerate(plans)]
    options = Options(SearchSpace(config=task.source.config.space, facts=task.facts))
    model, (first, second) = SizeModel(options), [float(m.size_bytes) for m in files if m is not None]
    model.observe(options.encode(plans[:1]), np.array([first]))
    assert model.predict(options.encode(plans[1:]))[0] == pytest.approx(second, rel=0.01)
    assert abs(second / first - 1) > 0.05


def test_removed_channels_are_folded_unless_the_study_says_otherwise(task: Task, monkeypatch: pytest.MonkeyPatch):
    plan = _plan(task)
    folded = task.prune(plan)
    monkeypatch.setattr(task, "grams", None)
    cut = task.prune(plan)
    changed = {name for name, value in folded.state_dict().items() if not torch.equal(value, cut.state_dict()[name])}
    assert "layers.0.conv1.weight" in changed
    assert "fc.weight" not in changed


def test_importance_and_glances_look_at_samples_from_all_over_the_data(task: Task, monkeypatch: pytest.MonkeyPatch):
    ordered = Split(inputs=(torch.arange(100.0)[:, None],), targets=torch.arange(100) // 25)
    batches = _some_batches(ordered, 4)
    assert [sorted(targets.tolist()) for _, targets in batches] == [[0, 1, 2, 3]] * 8
    assert all(torch.equal(inputs[0].flatten() // 25, targets.float()) for inputs, targets in batches)
    assert [len(targets) for _, targets in _some_batches(ordered.sample(10), 4)] == [4, 3, 3]

    seen: list[Split] = []

    def value(_: Task, __: nn.Module, split: Split, targets: Any) -> float:
        assert np.array_equal(split.targets.numpy(), targets)
        seen.append(split)
        return 0.5

    monkeypatch.setattr("autocompress.study.task._GLANCED", 4)
    monkeypatch.setattr(task, "_teacher_value", 0.75)
    monkeypatch.setattr(Task, "_value", value)
    assert task.glance(copy.deepcopy(task.model)) == 0.25
    rows = torch.tensor([0, 21, 42, 63])
    assert torch.equal(seen[0].inputs[0], task.splits.val.inputs[0][rows])
    assert torch.equal(seen[0].targets, task.splits.val.targets[rows])


def test_what_was_frozen_is_trained_but_for_whole_numbers():
    network = nn.Linear(2, 2).requires_grad_(False)
    network.register_parameter("steps", nn.Parameter(torch.tensor([3]), requires_grad=False))
    unfreeze_(network)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["weight", "bias"]


def test_a_metric_of_ones_own_is_found_by_its_name_for_objects_from_python_too(tmp_path: Path):
    (tmp_path / "scores_by_name.py").write_text("def half(outputs, targets):\n    return 0.5\n")
    pickled = tmp_path / "source.pkl"
    pickled.write_bytes(cloudpickle.dumps((nn.Linear(1, 2), {}, None)))
    config = load_config({"task": {"metric": "scores_by_name:half", "direction": "maximize"}}, name="x")
    _, _, metric = load_objects(Source(config=config, workspace=tmp_path, budget_s=1.0, base=tmp_path, pickled=pickled))
    assert metric(np.zeros((1, 2)), np.zeros(1)) == 0.5
