"""A file that is not the network is refused with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autocompress.export.check import check_artifact

X = (torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]]),)


def _file(weight: list[list[float]]) -> bytes:
    value = onnx.helper.make_tensor_value_info
    w = onnx.numpy_helper.from_array(np.array(weight, np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["input", "w"], ["output"])
    columns = len(weight[0])
    graph = onnx.helper.make_graph(
        [node], "g", [value("input", 1, ["b", 2])], [value("output", 1, ["b", columns])], [w]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture
def doubling() -> nn.Module:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(2 * torch.eye(2))
    return model


def test_the_distance_is_relative_to_the_size_of_the_outputs(doubling):
    assert check_artifact(_file([[2, 0], [0, 2]]), doubling, X, exact=True) == 0
    assert check_artifact(_file([[2.2, 0], [0, 2.2]]), doubling, X, exact=False) == pytest.approx(0.1, rel=1e-5)


def test_a_float_file_that_is_off_is_refused(doubling):
    with pytest.raises(ValueError, match=r"off by 10.0% of torch's"):
        check_artifact(_file([[2.2, 0], [0, 2.2]]), doubling, X, exact=True)


def test_a_rounded_file_is_refused_only_when_the_signal_is_lost(doubling):
    check_artifact(_file([[1.0, 0], [0, 1.0]]), doubling, X, exact=False)
    with pytest.raises(ValueError, match=r"off by 200.0%"):
        check_artifact(_file([[-2, 0], [0, -2]]), doubling, X, exact=False)


def test_outputs_of_another_shape_are_refused(doubling):
    with pytest.raises(ValueError, match=r"shape \(3, 1\), torch gives \(3, 2\)"):
        check_artifact(_file([[2], [0]]), doubling, X, exact=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(doubling, value):
    with pytest.raises(ValueError, match="not finite"):
        check_artifact(_file([[value, 0], [0, 2]]), doubling, X, exact=False)


def test_a_file_that_is_not_valid_onnx_is_refused(doubling):
    model = onnx.load_from_string(_file([[2, 0], [0, 2]]))
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError):
        check_artifact(model.SerializeToString(), doubling, X, exact=True)
