"""Opening files: inputs in the order of the graph, random inputs of the right kind, and errors in words."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autocompress.errors import DeviceError, first_line
from autocompress.measure.runtime import _DTYPES, check_runtime, input_arrays, open_artifact


@pytest.fixture
def difference(tmp_path):
    """A file that gives input_0 - input_1, both [n, 3]."""
    shape = ["n", 3]
    graph = helper.make_graph(
        [helper.make_node("Sub", ["input_0", "input_1"], ["output"])],
        "difference",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("input_0", "input_1")],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "difference.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def typed(path, kind: int, shape: list):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["output"])],
        "typed",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info("output", kind, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_inputs_are_taken_in_the_order_of_the_graph(difference):
    run = open_artifact(difference, runtime="onnxruntime", threads=1)
    one, two = np.full((2, 3), 5, np.float32), np.full((2, 3), 2, np.float32)
    assert (run([one, two]) == 3).all()
    assert (run([two, one]) == -3).all()


def test_too_few_arrays_name_the_inputs(difference):
    run = open_artifact(difference, runtime="onnxruntime", threads=1)
    with pytest.raises(ValueError, match="inputs input_0, input_1, got 1 arrays"):
        run([np.zeros((1, 3), np.float32)])


@pytest.mark.parametrize("content", [None, b"no network"])
def test_a_file_that_does_not_load_is_one_line(tmp_path, content):
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"onnxruntime cannot load .*x\.onnx") as caught:
        open_artifact(path, runtime="onnxruntime", threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("\n one \n two"), "one"), (ValueError(" \n"), "ValueError"), (MemoryError(), "MemoryError")],
)
def test_an_error_is_one_line_and_its_kind_where_it_says_nothing(error, line):
    assert first_line(error) == line


def test_a_runtime_that_is_not_installed_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"openvino is not installed; pip install 'autocompress\[openvino\]'"):
        check_runtime("openvino")
    with pytest.raises(DeviceError):
        open_artifact(tmp_path / "x.onnx", runtime="openvino", threads=1)
    check_runtime("onnxruntime")


def test_random_inputs_have_the_shapes_and_the_batch_asked_for(difference):
    arrays = input_arrays(difference, 4)
    assert [(a.shape, a.dtype) for a in arrays] == [((4, 3), np.float32)] * 2
    assert np.array_equal(input_arrays(difference, 4)[0], arrays[0]), "the same every time"
    assert arrays[0].std() > 0.3


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TensorProto.FLOAT16, "tensor(float16)"),
        (TensorProto.DOUBLE, "tensor(double)"),
        (TensorProto.INT64, "tensor(int64)"),
        (TensorProto.INT32, "tensor(int32)"),
        (TensorProto.UINT8, "tensor(uint8)"),
        (TensorProto.INT8, "tensor(int8)"),
        (TensorProto.BOOL, "tensor(bool)"),
    ],
)
def test_random_inputs_have_the_type_that_the_file_asks_for(tmp_path, kind, name):
    (array,) = input_arrays(typed(tmp_path / "t.onnx", kind, ["n", "free", 2]), 3)
    assert array.dtype == _DTYPES[name]
    assert array.shape == (3, 1, 2), "a free dimension is 1"
    assert (array == 0).all() or "float" in name or "double" in name, "0 is a valid index of anything"
