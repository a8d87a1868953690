"""A graph without blocks: cut from the whole one, it is the file that a trace of the shorter network gives."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from autocompress.compress.drop import drop_blocks_
from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.export import artifact as artifact_module
from autocompress.export.artifact import Exporter, emit, make_exporter
from autocompress.export.check import check_artifact
from autocompress.export.to_onnx import without_blocks
from autocompress.plan import CompressionPlan
from autocompress.records import ModelFacts
from autocompress.space.groups import find_groups
from autocompress.space.layers import find_layers
from autocompress.zoo.models import ResNet

SAMPLES = (torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1)),)
EXAMPLE = (SAMPLES[0][:2],)
BITS = (2, 3, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """Blocks `layers.0`, `layers.1`, `layers.2` and `layers.4`; `layers.3` changes the shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(1, 4, (8, 16), (3, 2))
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
        return model.eval()


@pytest.fixture(scope="module")
def traced(dense) -> Exporter:
    return make_exporter(dense, SAMPLES)


@pytest.fixture
def exporter(traced) -> Exporter:
    """Traced once; what it keeps is each test's own."""
    return replace(traced, shorter={}, retraced={})


@pytest.fixture
def traces(monkeypatch) -> list[int]:
    """One entry per network that is traced."""
    found: list[int] = []
    original = artifact_module.trace_skeleton
    monkeypatch.setattr(artifact_module, "trace_skeleton", lambda *a: found.append(1) or original(*a))
    return found


def _plan(*blocks: str, activations: str = "float", ratio: float = 0.0) -> CompressionPlan:
    return CompressionPlan.from_dict(
        {"removed_blocks": blocks, "activations": activations, "prune_ratio": {"conv1": ratio, "layers.2.conv1": ratio}}
    )


def _rounded(dense: nn.Module, plan: CompressionPlan) -> tuple[nn.Module, dict]:
    groups, _ = find_groups(dense, EXAMPLE, round_to=2)
    scores = {g.name: torch.arange(float(g.channels)) for g in groups}
    network = prune_to_plan(dense, plan, ModelFacts(layers=(), groups=tuple(groups)), scores, EXAMPLE)
    return network, settle_weights_(quantize_weights_(network, plan.weight_bits))


def _nodes(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


def test_every_module_that_takes_and_gives_one_tensor_has_a_span(exporter):
    blocks = [f"layers.{n}" for n in range(5)]
    assert set(blocks) <= set(exporter.skeleton.spans)
    spans = [exporter.skeleton.spans[b] for b in blocks]
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert "fc" not in exporter.skeleton.spans  # what comes out of it is the output of the graph


def test_the_cut_file_is_the_traced_one(dense, exporter, traces):
    plan = _plan("layers.0", "layers.1", "layers.4")
    network, _ = _rounded(dense, plan)
    cut = emit(exporter, network, plan, {}, trained=True)
    assert traces == []
    anew = emit(make_exporter(network, SAMPLES), network, CompressionPlan(), {}, trained=True)
    assert sorted(_nodes(cut)) == sorted(_nodes(anew))
    assert len(cut) == pytest.approx(len(anew), abs=64)


@pytest.mark.parametrize("blocks", [("layers.1",), ("layers.4",), ("layers.0", "layers.1", "layers.2", "layers.4")])
def test_the_nodes_and_the_bytes_of_a_block_are_gone(dense, exporter, blocks):
    plan = _plan(*blocks)
    cut = emit(exporter, _rounded(dense, plan)[0], plan, {}, trained=True)
    whole = emit(exporter, dense, CompressionPlan(), {}, trained=True)
    assert _nodes(whole).count("Conv") - _nodes(cut).count("Conv") == 2 * len(blocks)
    gone = sum(p.numel() for n, p in dense.named_parameters() if n.startswith(blocks) and "bn" not in n)
    assert len(whole) - len(cut) >= 4 * gone  # float32


@pytest.mark.parametrize("activations", ["float", "uint8"])
def test_blocks_widths_and_mixed_bits_ship_together_without_another_trace(dense, exporter, activations, traces):
    layers = [layer.name for layer in find_layers(dense)[0]]
    plan = CompressionPlan(
        prune_ratio={"conv1": 0.25, "layers.2.conv1": 0.5, "layers.1.conv1": 0.5},  # the last one is gone
        weight_bits={name: BITS[i % 6] for i, name in enumerate(layers)},
        activations=activations,
        removed_blocks=("layers.1", "layers.4"),
    )
    network, integers = _rounded(dense, plan)
    assert not any(name.startswith(("layers.1.", "layers.4.")) for name in integers)
    sketch = emit(exporter, network, plan, integers, trained=False)
    data = emit(exporter, network, plan, integers, trained=True)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    distance = check_artifact(data, network, (SAMPLES[0][:9],), exact=activations == "float")
    assert distance < (5e-3 if activations == "float" else 0.1)
    assert len(sketch) == pytest.approx(len(data), abs=64)
    assert traces == []


def test_one_skeleton_per_set_of_blocks_serves_all_widths(dense, exporter):
    for ratio in (0.0, 0.25, 0.5):
        plan = _plan("layers.2", "layers.0", ratio=ratio)
        emit(exporter, _rounded(dense, plan)[0], plan, {}, trained=True)
    assert list(exporter.shorter) == [("layers.0", "layers.2")]


def test_only_so_many_skeletons_are_kept(dense, exporter, monkeypatch):
    monkeypatch.setattr(artifact_module, "_MOST_KEPT", 2)
    for block in ("layers.0", "layers.1", "layers.2"):
        emit(exporter, _rounded(dense, _plan(block))[0], _plan(block), {}, trained=True)
    assert list(exporter.shorter) == [("layers.1",), ("layers.2",)]


def test_what_cannot_be_cut_is_traced_once(dense, exporter, traces, monkeypatch):
    monkeypatch.setattr(artifact_module, "without_blocks", lambda *_: None)
    for ratio in (0.5, 0.25):
        plan = replace(_plan("layers.1", activations="uint8", ratio=ratio), weight_bits={"layers.2.conv1": 4})
        network, integers = _rounded(dense, plan)
        sketch, data = (emit(exporter, network, plan, integers, trained=trained) for trained in (False, True))
        assert check_artifact(data, network, SAMPLES, exact=False) < 0.1
        assert len(sketch) == pytest.approx(len(data), abs=64)
    assert traces == [1]


def test_a_wrong_cut_is_noticed(dense, exporter, traces, monkeypatch):
    monkeypatch.setattr(artifact_module, "without_blocks", lambda whole, _: without_blocks(whole, ["layers.2"]))
    data = emit(exporter, _rounded(dense, _plan("layers.1"))[0], _plan("layers.1"), {}, trained=True)
    wanted = drop_blocks_(copy.deepcopy(dense), ["layers.1"])(*SAMPLES).detach().numpy()
    got = ort.InferenceSession(data).run(None, {"input": SAMPLES[0].numpy()})[0]
    assert np.allclose(got, wanted, atol=1e-4)
    assert traces == [1]


class _LastIsABlock(nn.Module):
    """The network ends in its residual block, so the value that comes out of it bears the name of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(6, 4), _Mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(self.first(x))
        return out


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


def test_a_block_that_gives_the_output_is_traced_without(traces):
    torch.manual_seed(0)
    model, samples = _LastIsABlock().eval(), (torch.randn(8, 6),)
    exporter = make_exporter(model, samples)
    assert "block" not in exporter.skeleton.spans
    plan = CompressionPlan(removed_blocks=("block",))
    network = prune_to_plan(model, plan, ModelFacts(layers=(), groups=()), {}, samples)
    data = emit(exporter, network, plan, {}, trained=True)
    assert check_artifact(data, network, samples, exact=True) < 1e-5
    assert _nodes(data) == ["Gemm"]
    assert traces == [1, 1]


@pytest.mark.parametrize("norm_first", [True, False])
def test_layers_of_a_transformer_are_cut_out(traces, norm_first):
    torch.manual_seed(0)
    stack = [nn.TransformerEncoderLayer(16, 2, 32, norm_first=norm_first, batch_first=True) for _ in range(3)]
    model = nn.Sequential(nn.Linear(6, 16), *stack, nn.Flatten(), nn.Linear(80, 4)).eval()
    samples = (torch.randn(16, 5, 6),)
    exporter = make_exporter(model, samples)
    plan = CompressionPlan(
        weight_bits={"1.linear1": 4, "2.linear1": 4, "3.linear2": 8}, activations="uint8", removed_blocks=("1", "3")
    )
    network = prune_to_plan(model, plan, ModelFacts(layers=(), groups=()), {}, samples)
    integers = settle_weights_(quantize_weights_(network, plan.weight_bits))
    assert set(integers) == {"2.linear1"}
    data = emit(exporter, network, plan, integers, trained=True)
    assert check_artifact(data, network, samples, exact=False) < 0.1
    assert _nodes(data).count("Softmax") == 1
    assert traces == [1]
