"""Ranges of activations, and a quantizer that keeps to itself."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest

from autocompress.export.activations import calibrate, quantize_activations


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
