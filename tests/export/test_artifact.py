"""The whole chain on a small network: what is in the file, and what it computes."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tiny import TinyNet
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.fold import fold
from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.errors import UsageError
from autocompress.export import artifact as artifact_module
from autocompress.export.artifact import emit, make_exporter
from autocompress.export.check import check_artifact
from autocompress.export.to_onnx import fill
from autocompress.plan import CompressionPlan
from autocompress.records import ModelFacts
from autocompress.space.groups import find_groups

LAYERS = ("conv1", "conv2", "fc")


def _samples(count: int = 48) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinyNet(channels=16)
        with torch.no_grad():
            for norm in (model.bn1, model.bn2):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
                norm.weight.uniform_(0.5, 1.5)
            model.bn2.weight[3] = -0.7
            model.bn2.weight[5] = 0.0
        return model.eval()


@pytest.fixture(scope="module")
def exporter(dense):
    return make_exporter(dense, (_samples(),))


def _rounded(model, plan):
    network = quantize_weights_(copy.deepcopy(model), plan.weight_bits, plan.levels)
    return network, settle_weights_(network)


def _run(data: bytes, x: Tensor) -> np.ndarray:
    return ort.InferenceSession(data).run(None, {"input": x.numpy()})[0]


FORMATS = [
    *((bits, "uniform") for bits in (1, 2, 3, 4, 8)),
    *((bits, "codebook") for bits in (2, 4, 5)),
    (3, "power_of_two"),
]


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(("bits", "levels"), [*FORMATS, (16, "uniform"), (32, "uniform")])
def test_a_float_file_computes_what_torch_computes(exporter, dense, bits, levels, batch):
    plan = CompressionPlan(weight_bits=dict.fromkeys(LAYERS, bits), levels=levels)
    network, integers = _rounded(dense, plan)
    data = emit(exporter, network, plan, integers, trained=True)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    tolerance = 5e-3 if bits == 16 else 1e-5
    for seed in range(3):
        x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        assert np.allclose(_run(data, x), network(x).detach().numpy(), atol=tolerance)


@pytest.mark.parametrize(("bits", "levels"), FORMATS)
def test_the_integers_in_the_uint8_file_are_those_of_torch(exporter, dense, bits, levels, monkeypatch):
    written = {}
    original = artifact_module.pack_integer

    def spy(model, weights):
        graph = model.graph.initializers
        written.update({w.name: graph[f"{w.name}_quantized"].const_value.numpy().copy() for w in weights})
        return original(model, weights)

    monkeypatch.setattr(artifact_module, "pack_integer", spy)
    plan = CompressionPlan(weight_bits=dict.fromkeys(LAYERS, bits), activations="uint8", levels=levels)
    network, settled = _rounded(dense, plan)
    emit(exporter, network, plan, settled, trained=True)
    _, integers = fold(network, exporter.pairs, settled)
    assert set(written) == {exporter.skeleton.sites[f"{n}.weight"][0].name for n in LAYERS}
    for name in LAYERS:
        site = exporter.skeleton.sites[f"{name}.weight"][0]
        expected = integers[name].integers.numpy()
        assert np.array_equal(written[site.name], expected.T if site.transposed else expected)


def _ops_after_loading(data: bytes, tmp_path) -> list[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(data, options)
    return [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize(("bits", "levels"), FORMATS)
def test_the_runtime_runs_integer_kernels_and_unpacks_nothing_at_every_inference(
    exporter, dense, bits, levels, tmp_path
):
    plan = CompressionPlan(weight_bits=dict.fromkeys(LAYERS, bits), activations="uint8", levels=levels)
    network, integers = _rounded(dense, plan)
    ops = _ops_after_loading(emit(exporter, network, plan, integers, trained=True), tmp_path)
    assert ops.count("QLinearConv") == 2
    assert not {"Conv", "FusedConv", "BitShift", "Cast"} & set(ops)
    assert ops.count("QGemm") + ops.count("QLinearMatMul") == 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_float_file_is_unpacked_when_it_is_loaded(exporter, dense, bits, tmp_path):
    plan = CompressionPlan(weight_bits=dict.fromkeys(LAYERS, bits))
    network, integers = _rounded(dense, plan)
    ops = _ops_after_loading(emit(exporter, network, plan, integers, trained=True), tmp_path)
    assert not {"BitShift", "BitwiseAnd", "Cast", "DequantizeLinear", "Mul"} & set(ops)


@pytest.mark.parametrize("activations", ["float", "uint8"])
def test_a_pruned_network_goes_through_without_another_trace(exporter, dense, activations, monkeypatch):
    def refuse(*_):
        raise AssertionError("traced again")

    monkeypatch.setattr(artifact_module, "trace", refuse)
    monkeypatch.setattr(artifact_module, "trace_skeleton", refuse)
    example = (_samples(2),)
    groups, _ = find_groups(dense, example)
    plan = CompressionPlan(
        prune_ratio={"conv1": 0.5}, weight_bits=dict.fromkeys(LAYERS, 4), activations=activations
    )  # fmt: skip
    narrow = prune_to_plan(
        dense, plan, ModelFacts(layers=(), groups=tuple(groups)), {"conv1": torch.arange(16.0)}, example
    )
    network, integers = _rounded(narrow, plan)
    data = emit(exporter, network, plan, integers, trained=True)
    distance = check_artifact(data, network, (_samples(9),), exact=activations == "float")
    assert distance < (1e-4 if activations == "float" else 0.1)


def test_an_untrained_file_has_the_bytes_of_a_trained_one(exporter, dense):
    plan = CompressionPlan(weight_bits=dict.fromkeys(LAYERS, 4), activations="uint8")
    network, integers = _rounded(dense, plan)
    sketch = emit(exporter, network, plan, integers, trained=False)
    trained = emit(exporter, network, plan, integers, trained=True)
    assert len(sketch) == pytest.approx(len(trained), abs=16)


def test_a_layer_that_stays_float_is_left_out_of_the_integer_kernels(exporter, dense, tmp_path):
    plan = CompressionPlan(weight_bits={"conv1": 8, "conv2": 8, "fc": 32}, activations="uint8")
    network, integers = _rounded(dense, plan)
    ops = _ops_after_loading(emit(exporter, network, plan, integers, trained=True), tmp_path)
    assert ops.count("QLinearConv") == 2
    assert "Gemm" in ops


def test_a_layer_of_zeros_ships(exporter, dense):
    empty = copy.deepcopy(dense)
    with torch.no_grad():
        empty.conv2.weight.zero_()
    for activations in ("float", "uint8"):
        plan = CompressionPlan(weight_bits=dict.fromkeys(LAYERS, 4), activations=activations)
        network, integers = _rounded(empty, plan)
        data = emit(exporter, network, plan, integers, trained=True)
        assert check_artifact(data, network, (_samples(5),), exact=activations == "float") < 0.1


class _TwoOutputs(TinyNet):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out = super().forward(x)
        return out, out


def test_several_outputs_are_refused_before_anything_is_traced():
    with pytest.raises(UsageError, match=r"returns a tuple, one tensor was expected; wrap it"):
        make_exporter(_TwoOutputs().eval(), (_samples(4),))


class _Tokens(nn.Module):
    """Embedding tied to a linear layer, joined projection, three-dimensional inputs, SiLU, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.norm = nn.GroupNorm(2, 16)
        self.inner = nn.Linear(16, 32)
        self.outer = nn.Linear(32, 16)
        self.tied = nn.Linear(16, 12, bias=False)
        self.tied.weight = self.embed.weight
        self.side = nn.Linear(3, 12)
        self.fc = nn.Linear(12, 4)

    def forward(self, tokens: Tensor, side: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.outer(F.silu(self.inner(x)))
        out: Tensor = self.fc(self.tied(x).mean(1) + self.side(side))
        return out


def test_tied_weights_several_inputs_and_matrix_products_ship_in_integers(tmp_path):
    torch.manual_seed(0)
    model = _Tokens().eval()
    samples = (torch.randint(0, 12, (16, 5)), torch.randn(16, 3))
    exporter = make_exporter(model, samples)
    assert len(exporter.skeleton.sites["inner.weight"]) == 1
    for activations in ("float", "uint8"):
        plan = CompressionPlan(
            weight_bits=dict.fromkeys(("inner", "outer", "side", "fc"), 4), activations=activations
        )  # fmt: skip
        network, integers = _rounded(model, plan)
        data = emit(exporter, network, plan, integers, trained=True)
        assert check_artifact(data, network, samples, exact=activations == "float") < 0.1
        stored = ir.from_proto(onnx.load_from_string(data)).graph.initializers.values()
        assert sum(v.dtype == ir.DataType.INT4 for v in stored) == 4
        assert [i.name for i in onnx.load_from_string(data).graph.input] == ["input_0", "input_1"]


class _Autoencoder(nn.Module):
    """What it decodes with is the weight that it encodes with: Gemm(x, w, transB=1) and MatMul(h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(12, 4)
        with torch.no_grad():
            self.encode.weight *= torch.tensor([[0.1], [1.0], [3.0], [10.0]])  # so that it matters which scale is whose

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encode(x)), self.encode.weight.T)


@pytest.mark.parametrize("activations", ["uint8", "dynamic"])
def test_a_weight_that_is_used_both_ways_is_scaled_as_it_was_rounded(activations):
    torch.manual_seed(0)
    model, samples = _Autoencoder().eval(), (torch.randn(32, 12),)
    plan = CompressionPlan(weight_bits={"encode": 8}, activations=activations)
    network, integers = _rounded(model, plan)
    data = emit(make_exporter(model, samples), network, plan, integers, trained=True)
    assert check_artifact(data, network, samples, exact=False) < 0.05


@pytest.mark.parametrize(("bits", "kind"), [(4, ir.DataType.INT4), (16, ir.DataType.FLOAT16)])
def test_a_model_that_is_one_layer_is_stored_in_its_bits(bits, kind):
    torch.manual_seed(0)
    model, samples = nn.Linear(16, 4).eval(), (torch.randn(32, 16),)
    plan = CompressionPlan(weight_bits={"": bits})
    network, integers = _rounded(model, plan)
    data = emit(make_exporter(model, samples), network, plan, integers, trained=True)
    assert check_artifact(data, network, samples, exact=True) < 1e-3
    stored = ir.from_proto(onnx.load_from_string(data)).graph.initializers.values()
    assert [tuple(v.shape) in ((4, 16), (16, 4)) for v in stored if v.dtype == kind] == [True]


@pytest.mark.parametrize(("count", "large"), [(128, 126), (48, 47)])
def test_ranges_come_from_samples_all_over_the_data(exporter, dense, count, large):
    """Of 128 samples every second one is taken, of 48 all."""
    x = torch.zeros(count, 1, 8, 8)
    x[large] = 50.0
    graph = fill(exporter.skeleton, exporter.dense)
    assert artifact_module._calibrate(graph, (x,))["input"] == (0.0, 50.0)
