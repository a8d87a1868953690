"""Integers in few bits: to bytes and back, in numpy and by the runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autocompress.export.pack import PackedWeight, pack_float, pack_words, scales_outputs, tidy, to_bytes, unpack_words


def _integers(bits, shape=None):
    limit = 2 ** (bits - 1)
    shapes = shape or arrays.array_shapes(min_dims=1, max_dims=4, max_side=9)
    return arrays.arrays(np.int8, shapes, elements=st.integers(-limit, limit - 1))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_packing_and_unpacking_gives_back_the_integers(bits):
    @given(_integers(bits))
    def check(integers):
        words = pack_words(integers, bits)
        assert words.dtype == np.uint64
        assert len(words) == -(-integers.size // (64 // bits))
        assert np.array_equal(unpack_words(words, bits, integers.shape), integers)

    check()


def test_the_first_value_is_in_the_lowest_bits():
    assert pack_words(np.array([-4, 3, 0], np.int8), 3).tolist() == [0 + (7 << 3) + (4 << 6)]


@pytest.mark.parametrize(
    ("op", "attributes", "axes"),
    [
        ("Conv", {}, {0}),
        ("Gemm", {}, {1}),
        ("Gemm", {"transB": 0}, {1}),
        ("Gemm", {"transB": 1}, {0}),
        ("MatMul", {}, {1}),
        ("Add", {}, set()),
    ],
)
def test_the_scales_of_a_weight_must_lie_on_the_outputs_of_its_product(op, attributes, axes):
    node = ir.node(op, [ir.Value(name="x"), ir.Value(name="w")], attributes=attributes)
    square, ones = np.zeros((4, 4), np.int8), np.ones(4, np.float32)
    weights = [PackedWeight(name="w", integers=square, axis=axis, scale=ones, bits=8) for axis in (0, 1)]
    assert {w.axis for w in weights if scales_outputs(w, node, 1)} == axes
    assert not any(scales_outputs(w, node, 0) for w in weights), "it is what is multiplied"


def _adding(shape) -> ir.Model:
    """output = input + w, w as an initializer."""
    w = onnx.numpy_helper.from_array(np.zeros(shape, np.float32), "w")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["input", "w"], ["output"])], "g",
        [value("input", 1, shape)], [value("output", 1, shape)], [w],
    )  # fmt: skip
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))


def _run(model: bytes, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model).run(None, {"input": x})[0]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (5, 7), (2, 3, 3, 3), (22, 1)])
def test_the_runtime_unfolds_the_same_weights(bits, shape):
    limit = 2 ** (bits - 1) - 1
    generator = np.random.default_rng(0)
    integers = generator.integers(-limit, limit + 1, shape).astype(np.int8)
    scale = generator.uniform(0.5, 2, shape[0]).astype(np.float32)
    model = _adding(shape)
    packed = PackedWeight(name="w", integers=integers, axis=0, scale=scale, bits=bits)
    data = to_bytes(tidy(pack_float(model, [packed], [])))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    wanted = integers * scale.reshape(-1, *[1] * (len(shape) - 1))
    assert np.array_equal(_run(data, np.zeros(shape, np.float32)), wanted)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 3, 3, 3)])
def test_the_runtime_looks_weights_up_in_their_table(bits, shape):
    generator = np.random.default_rng(bits)
    half = np.sort(generator.choice(np.arange(1, 128), 2 ** (bits - 1), replace=False))
    table = np.concatenate([-half[::-1], half]).astype(np.int8)
    integers = generator.choice(table, shape).astype(np.int8)
    scale = generator.uniform(0.5, 2, shape[0]).astype(np.float32)
    packed = PackedWeight(name="w", integers=integers, axis=0, scale=scale, bits=bits, table=table)
    data = to_bytes(tidy(pack_float(_adding(shape), [packed], [])))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    wanted = integers * scale.reshape(-1, *[1] * (len(shape) - 1))
    assert np.array_equal(_run(data, np.zeros(shape, np.float32)), wanted)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_layer_of_zeros_stays_zero(bits):
    packed = PackedWeight(
        name="w", integers=np.zeros((3, 5), np.int8), axis=0, scale=np.ones(3, np.float32), bits=bits
    )  # fmt: skip
    data = to_bytes(tidy(pack_float(_adding((3, 5)), [packed], [])))
    assert not _run(data, np.zeros((3, 5), np.float32)).any()


def test_output_channels_on_the_second_axis_are_scaled_there():
    integers = np.array([[1, 2], [3, -4], [5, 6]], np.int8)
    packed = PackedWeight(name="w", integers=integers, axis=1, scale=np.array([1.0, 10.0], np.float32), bits=4)
    data = to_bytes(tidy(pack_float(_adding((3, 2)), [packed], [])))
    assert _run(data, np.zeros((3, 2), np.float32)).tolist() == [[1, 20], [3, -40], [5, 60]]


def test_half_floats_are_widened_by_the_file():
    model = _adding((2,))
    model.graph.initializers["w"].const_value = ir.tensor(np.array([0.1, 3.0], np.float32), name="w")
    data = to_bytes(tidy(pack_float(model, [], ["w"])))
    assert _run(data, np.zeros(2, np.float32)).tolist() == [np.float32(np.float16(0.1)), 3.0]


def test_fewer_bits_are_fewer_bytes():
    def size(bits):
        integers = np.zeros((64, 576), np.int8)
        packed = PackedWeight(name="w", integers=integers, axis=0, scale=np.arange(1, 65, dtype=np.float32), bits=bits)
        return len(to_bytes(tidy(pack_float(_adding((64, 576)), [packed], []))))

    weights = 64 * 576
    assert size(8) - size(4) == pytest.approx(weights / 2, abs=50)
    assert size(3) < weights * 3 / 8 * 1.02 + 1800
    assert size(2) < weights * 2 / 8 + 1800


def test_equal_constants_are_stored_once_and_inner_names_are_short():
    graph = _adding((100,))
    again = ir.Value(
        name="a_very_long_name", const_value=ir.tensor(np.zeros(100, np.float32), name="a_very_long_name"),
        shape=ir.Shape((100,)), type=ir.TensorType(ir.DataType.FLOAT),
    )  # fmt: skip
    graph.graph.register_initializer(again)
    add = graph.graph[0]
    extra = ir.node("Add", [add.inputs[0], again])
    graph.graph.insert_before(add, extra)
    add.replace_input_with(0, extra.outputs[0])
    proto = onnx.load_from_string(to_bytes(tidy(graph)))
    assert [len(t.name) for t in proto.graph.initializer] == [1]
    assert [i.name for i in proto.graph.input] == ["input"]
    assert [o.name for o in proto.graph.output] == ["output"]
    assert _run(proto.SerializeToString(), np.ones(100, np.float32)).tolist() == [1.0] * 100
