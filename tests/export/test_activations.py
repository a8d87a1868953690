"""Ranges of activations, and a quantizer that keeps to itself."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch
from integers import EXACT_BITS
from torch import Tensor, nn

from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.export.activations import calibrate, masking_nodes, quantize_activations
from autocompress.export.artifact import emit, make_exporter
from autocompress.export.check import check_artifact
from autocompress.plan import CompressionPlan


@pytest.fixture
def graph() -> onnx.ModelProto:
    """output = relu(input @ w), w = identity times -1."""
    value = onnx.helper.make_tensor_value_info
    w = onnx.numpy_helper.from_array(-np.eye(3, dtype=np.float32), "w")
    nodes = [
        onnx.helper.make_node("MatMul", ["input", "w"], ["y"], name="n0"),
        onnx.helper.make_node("Relu", ["y"], ["output"], name="n1"),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [value("input", 1, ["b", 3])], [value("output", 1, ["b", 3])], [w])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _batches() -> list[dict[str, np.ndarray]]:
    first = np.array([[1.0, -2.0, 0.5]], np.float32)
    second = np.array([[-4.0, 3.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    return [{"input": first}, {"input": second}]


def test_ranges_are_the_extremes_over_all_batches(graph):
    ranges = calibrate(graph, _batches())
    assert ranges["input"] == (-4.0, 3.0)
    assert ranges["y"] == (-3.0, 4.0)
    assert ranges["output"] == (0.0, 4.0)


def test_zero_is_exact_and_the_given_scales_are_used(graph):
    scale = np.array([0.5, 0.25, 1.0], np.float32)
    ranges = calibrate(graph, _batches())
    model = quantize_activations(graph, ranges, {"w": (scale, 1)}, [])
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.array_equal(found["w_quantized"], np.diag([-2, -4, -1]).astype(np.int8))
    assert found["w_quantized"].dtype == np.int8
    assert np.array_equal(found["w_scale"], scale)
    assert found["input_zero_point"].dtype == np.uint8
    assert found["input_zero_point"] == round(4 / 7 * 255)
    assert found["output_zero_point"] == 0


def test_a_node_that_is_kept_float_keeps_its_float_weight(graph):
    model = quantize_activations(graph, calibrate(graph, _batches()), {}, ["n0"])
    assert "w" in {t.name for t in model.graph.initializer}
    assert "w_quantized" not in {t.name for t in model.graph.initializer}


def test_the_root_logger_is_left_as_it_was(graph):
    root = logging.getLogger()
    before = (root.level, list(root.handlers), list(root.filters))
    quantize_activations(graph, calibrate(graph, _batches()), {}, [])
    assert (root.level, list(root.handlers), list(root.filters)) == before


class Masked(nn.Module):
    """Attention over [n, 5, 8] whose scores are masked by the sum with a constant."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self.query, self.out, self.masked = nn.Linear(8, 8), nn.Linear(8, 3), masked

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ x.transpose(1, 2) + torch.full((5, 5), self.masked).triu(1)
        out: Tensor = self.out(scores.softmax(-1) @ x).mean(1)
        return out


def test_a_layer_with_weights_is_no_mask_however_large_its_values(graph):
    ranges = {"input": (-1e6, 1e6), "y": (-1e6, 1e6), "output": (0.0, 1.0)}
    assert masking_nodes(graph, ranges, ["w"]) == ["n1"]
    assert masking_nodes(graph, {"input": (-9e3, 9e3), "y": (0.0, 1.0)}, []) == []


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min, -1e4])
def test_the_sum_with_a_mask_stays_float(masked, recwarn):
    """Between a score and minus infinity there are no 256 steps."""
    torch.manual_seed(0)
    model = Masked(masked).eval()
    samples = (torch.randn(32, 5, 8),)
    plan = CompressionPlan(weight_bits={"query": EXACT_BITS, "out": EXACT_BITS}, activations="uint8")
    integers = settle_weights_(quantize_weights_(model, plan.weight_bits))
    exporter = make_exporter(model, samples)
    data = emit(exporter, model, plan, integers, trained=True)
    assert len(emit(exporter, model, plan, integers, trained=False)) == len(data)
    assert check_artifact(data, model, samples, exact=False) < 0.05
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
    assert "DequantizeLinear" in {node.op_type for node in onnx.load_from_string(data).graph.node}
