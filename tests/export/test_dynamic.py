"""Dynamic integers: the integers are torch's, the runtime runs its integer kernels, and sizes follow pruning."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from integers import EXACT_BITS
from sequences import Attending, Joined, Recurrent, inputs
from torch import nn

from autocompress.compress.importance import score_channels
from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.export import artifact as artifact_module
from autocompress.export.artifact import emit, make_exporter
from autocompress.export.check import check_artifact
from autocompress.export.pack import PackedWeight, unpack_words
from autocompress.plan import CompressionPlan
from autocompress.records import ModelFacts
from autocompress.recover.distill import hard_loss
from autocompress.space.attention import open_attention_
from autocompress.space.groups import find_groups
from autocompress.space.layers import find_layers

SAMPLES = (inputs(32),)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    found = {
        "attention": Attending(Joined(8, 4)).eval(),
        "lstm": Recurrent(layers=2, both=True, reads="mean").eval(),
        "gru": Recurrent(nn.GRU).eval(),
    }
    for model in found.values():
        open_attention_(model, SAMPLES)
    return {name: (model, make_exporter(model, SAMPLES)) for name, model in found.items()}


def compressed(model, *, bits, activations="dynamic", ratio=0.0):
    """A network and its plan, everything alike."""
    layers, _ = find_layers(model)
    groups, _ = find_groups(model, SAMPLES, round_to=2)
    plan = CompressionPlan(
        prune_ratio={g.name: ratio for g in groups}, weight_bits={n.name: bits for n in layers}, activations=activations
    )
    batch = (SAMPLES, torch.arange(32) % 3)
    scores = score_channels(model, groups, "taylor", [batch], hard_loss, seed=0)
    network = prune_to_plan(model, plan, ModelFacts(layers=(), groups=tuple(groups)), scores, SAMPLES)
    return network, plan, settle_weights_(quantize_weights_(network, plan.weight_bits))


def loaded_ops(data, tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(data, options)
    return [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("bits", [3, 4, EXACT_BITS])
def test_the_runtime_multiplies_integers_and_unpacks_nothing(networks, bits, tmp_path):
    expected = {"attention": ("DynamicQuantizeMatMul", 4), "lstm": ("DynamicQuantizeLSTM", 2), "gru": ("GRU", 1)}
    for name, (kernel, count) in expected.items():
        model, exporter = networks[name]
        network, plan, integers = compressed(model, bits=bits)
        data = emit(exporter, network, plan, integers, trained=True)
        assert check_artifact(data, network, SAMPLES, exact=False) < 0.05, name
        ops = loaded_ops(data, tmp_path)
        assert ops.count(kernel) == count, ops
        assert not {"BitShift", "Cast", "DequantizeLinear", "LSTM"} & set(ops), ops


def test_the_integers_of_a_linear_layer_and_of_an_lstm_are_those_of_torch(networks):
    model, exporter = networks["lstm"]
    network, plan, settled = compressed(model, bits=8)
    graph = ir.from_proto(onnx.load_from_string(emit(exporter, network, plan, settled, trained=True))).graph
    stored = [v.const_value.numpy() for v in graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert set(settled) >= {"fc", "rnn.weight_ih_l0", "rnn.weight_hh_l1_reverse"}

    def is_there(wanted):
        return any(a.shape == wanted.shape and np.array_equal(a, wanted) for a in stored)

    assert is_there(settled["fc"].integers.numpy().T)
    for kind in ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"):
        i, f, g, o = np.split(settled[f"rnn.{kind}"].integers.numpy(), 4)
        ri, rf, rg, ro = np.split(settled[f"rnn.{kind}_reverse"].integers.numpy(), 4)
        # ONNX: gates i, o, f, c; the runtime's operator wants [directions, in, gates * hidden]
        joined = np.stack([np.concatenate([i, o, f, g]).T, np.concatenate([ri, ro, rf, rg]).T])
        assert is_there(joined), kind


@pytest.mark.parametrize("activations", ["float", "uint8", "dynamic"])
def test_fewer_heads_and_hidden_units_need_no_other_trace(networks, activations, monkeypatch):
    def refuse(*_):
        raise AssertionError("traced again")

    monkeypatch.setattr(artifact_module, "trace", refuse)
    monkeypatch.setattr(artifact_module, "trace_skeleton", refuse)
    for name, (model, exporter) in networks.items():
        network, plan, integers = compressed(model, bits=4, activations=activations, ratio=0.5)
        assert sum(p.numel() for p in network.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
        data = emit(exporter, network, plan, integers, trained=True)
        distance = check_artifact(data, network, SAMPLES, exact=activations == "float")
        assert distance < (1e-4 if activations == "float" else 0.1), name


def test_packed_recurrent_weights_are_read_back(networks):
    model, exporter = networks["gru"]
    network, plan, settled = compressed(model, bits=3, activations="float")
    graph = ir.from_proto(onnx.load_from_string(emit(exporter, network, plan, settled, trained=True))).graph
    r, z, n = np.split(settled["rnn.weight_ih_l0"].integers.numpy(), 3)
    wanted = np.concatenate([z, r, n])[None]
    words = [v.const_value.numpy() for v in graph.initializers.values() if v.dtype == ir.DataType.UINT64]
    assert any(
        len(w) == -(-wanted.size // 21) and np.array_equal(unpack_words(w, 3, wanted.shape), wanted) for w in words
    )


def test_a_scale_may_have_the_axes_of_its_integers():
    integers = np.zeros((2, 4, 3), np.int8)
    per_row = PackedWeight(name="w", integers=integers, axis=1, scale=np.ones((2, 4, 1), np.float32), bits=8)
    assert per_row.column().shape == (2, 4, 1)
    plain = PackedWeight(name="w", integers=integers, axis=1, scale=np.ones(4, np.float32), bits=8)
    assert plain.column().shape == (1, 4, 1)


def test_a_rounded_recurrent_layer_reads_its_rounded_weights_and_can_be_copied():
    torch.manual_seed(0)
    model = Recurrent(both=True).eval()
    rounded = quantize_weights_(copy.deepcopy(model), {"rnn": 2})
    x = inputs()
    got = rounded(x)
    assert not torch.allclose(got, model(x), atol=1e-3)
    got.sum().backward()
    assert rounded.rnn.parametrizations.weight_hh_l0.original.grad is not None
    again = copy.deepcopy(rounded)
    settled = settle_weights_(again)
    assert torch.equal(again(x), got)
    assert set(settled) == {f"rnn.weight_{k}_l0{end}" for k in ("ih", "hh") for end in ("", "_reverse")}
    assert torch.equal(again.rnn.weight_ih_l0, settled["rnn.weight_ih_l0"].dequantize())
    assert len(again.rnn.weight_hh_l0[0].unique()) <= 3


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(12, 8), nn.Linear(8, 3)

    def forward(self, words):
        return self.fc(self.embed(words).mean(1).relu())


def test_the_table_of_an_embedding_is_stored_in_its_bits_whatever_the_activations_are():
    torch.manual_seed(0)
    model, words = Words().eval(), (torch.randint(0, 12, (32, 5)),)
    exporter = make_exporter(model, words)
    for activations in ("float", "uint8", "dynamic"):
        for bits in (4, 32):
            plan = CompressionPlan(weight_bits={"embed": bits, "fc": 8}, activations=activations)
            network = quantize_weights_(copy.deepcopy(model), plan.weight_bits)
            settled = settle_weights_(network)
            data = emit(exporter, network, plan, settled, trained=True)
            assert check_artifact(data, network, words, exact=activations == "float") < 0.05
            stored = ir.from_proto(onnx.load_from_string(data)).graph.initializers.values()
            table = next(v.const_value.numpy() for v in stored if tuple(v.shape) == (12, 8))
            wanted = settled["embed"].integers.numpy() if bits == 4 else model.embed.weight.detach().numpy()
            assert np.array_equal(table.astype(np.float32), wanted.astype(np.float32))
