"""Integer matrix products whose activations are quantized while the model runs, with our integers for the weights.

A linear layer becomes DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses into one kernel; an LSTM
becomes the runtime's own DynamicQuantizeLSTM. Nothing is calibrated. There is no such kernel for convolutions that
pays, and none at all for GRUs and plain recurrent layers: their weights are stored in few bits and computed in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from autocompress.export.pack import PackedWeight, scales_outputs, stored_integers

RUNTIME_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators


def quantize_dynamically(model: ir.Model, weights: Sequence[PackedWeight]) -> list[PackedWeight]:
    """Put integer products where the given weights are used by linear layers and LSTMs, in place.

    Returns:
        The weights for which there is no integer kernel; they are still float in the graph.
    """
    left = []
    rounded: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
    sites = {w.name: w for w in weights}
    for weight in weights:
        value = model.graph.initializers.get(weight.name)
        uses = value.uses() if value is not None else ()
        nodes = [use.node for use in uses]
        if not nodes:
            continue
        if all(scales_outputs(weight, node, index) and _is_product(node) for node, index in uses):
            for node in nodes:
                _replace_product_(model, node, weight, rounded)
        elif all(node.op_type == "LSTM" and _weights_of(node) <= set(sites) for node in nodes):
            for node in nodes:
                if node.graph is not None:  # the other matrix may have come first
                    _replace_lstm_(model, node, sites)
        else:
            left.append(weight)
    model.graph.sort()
    return [w for w in left if w.name in model.graph.initializers and model.graph.initializers[w.name].uses()]


def _is_product(node: ir.Node) -> bool:
    if node.op_type == "MatMul":
        return True
    plain = all(node.attributes[k].as_float() == 1.0 for k in ("alpha", "beta") if k in node.attributes)
    return node.op_type == "Gemm" and plain and ("transA" not in node.attributes or not node.attributes["transA"].value)


def _replace_product_(
    model: ir.Model, node: ir.Node, weight: PackedWeight, rounded: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]]
) -> None:
    """x W + b as (round(x) round(W)) * (scale of x * scale of W) + b."""
    graph, x = model.graph, node.inputs[0]
    assert x is not None
    made: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, outputs: int = 1, **attributes: object) -> ir.Node:
        made.append(ir.node(op, list(inputs), attributes=attributes, num_outputs=outputs))
        return made[-1]

    if x not in rounded:  # queries, keys and values may be three products of one input
        whole, scale, zero = add("DynamicQuantizeLinear", x, outputs=3).outputs
        rounded[x] = whole, scale, zero
    whole, scale, zero = rounded[x]
    if node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].value:
        weight = replace(
            weight, name=f"{weight.name}_t", integers=np.ascontiguousarray(weight.integers.T), axis=1 - weight.axis
        )
    integers = _once(model, weight)
    column = _constant(graph, f"{weight.name}_column", weight.scale.astype(np.float32))
    product = add("MatMulInteger", whole, integers, zero).outputs[0]
    back = add("Cast", product, to=ir.DataType.FLOAT).outputs[0]
    result = add("Mul", back, add("Mul", scale, column).outputs[0]).outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = add("Add", result, node.inputs[2]).outputs[0]
    _put_(graph, node, made, result)


def _replace_lstm_(model: ir.Model, node: ir.Node, weights: dict[str, PackedWeight]) -> None:
    graph = model.graph
    parts: list[ir.Value] = []
    scales: list[ir.Value] = []
    for index in (1, 2):
        value = node.inputs[index]
        assert value is not None
        weight = weights[
            str(value.name)
        ]  # [directions, 4 * hidden, in]; the operator wants [directions, in, 4 * hidden]
        turned = replace(
            weight, name=f"{weight.name}_t", integers=np.ascontiguousarray(weight.integers.transpose(0, 2, 1)), axis=2,
            scale=weight.scale.transpose(0, 2, 1),
        )  # fmt: skip
        parts.append(_once(model, turned))
        scales.append(_constant(graph, f"{turned.name}_column", weight.scale[..., 0].astype(np.float32)))
    shape = scales[0].const_value.shape
    zeros = _constant(graph, f"{node.inputs[1].name}_zero", np.zeros(tuple(shape.numpy()), np.int8))
    rest = [*node.inputs[3:], *[None] * (8 - len(node.inputs))]
    inputs = [node.inputs[0], *parts, *rest[:5], scales[0], zeros, scales[1], zeros]
    attributes = {k: a for k, a in node.attributes.items() if k != "layout"}
    made = ir.Node(
        RUNTIME_DOMAIN, "DynamicQuantizeLSTM", inputs, list(attributes.values()), num_outputs=len(node.outputs)
    )  # fmt: skip
    model.opset_imports.setdefault(RUNTIME_DOMAIN, 1)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.name, new.type = old.name, old.type
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(list(node.outputs), list(made.outputs))
    graph.remove(node, safe=True)


def _weights_of(node: ir.Node) -> set[str]:
    return {str(value.name) for value in node.inputs[1:3] if value is not None}


def _once(model: ir.Model, weight: PackedWeight) -> ir.Value:
    """The stored integers of a weight; a layer that is used twice is stored once."""
    known = next((v for v in model.graph.initializers.values() if v.name == f"{weight.name}_packed"), None)
    if known is None:
        return stored_integers(model, weight)
    return known if weight.bits == 8 else next(iter(known.uses())).node.outputs[0]


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def _put_(graph: ir.Graph, node: ir.Node, made: list[ir.Node], result: ir.Value) -> None:
    """Let `made` stand where `node` was."""
    old = node.outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
