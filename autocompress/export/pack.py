"""Stores each weight in the bits it needs, in a form the runtime unfolds once, when it loads the file.

Integers are kept in 1 to 6 or 8 bits, or as places in a table of those that occur, and unpacked by a few nodes
that depend on constants alone, so ONNX Runtime folds them at load and runs the same float or int8 kernels
as for an unpacked file. (A bare int4 DequantizeLinear would be executed at every inference.) The nodes
are written once as ONNX functions; a layer costs one call. Names and repeated constants are bytes too and
are shortened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

DOMAIN = "ac"
_WORD_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """One weight as it will be stored.

    Attributes:
        name: the initializer it replaces.
        integers: int8, in the layout of the graph; `axis`: its output channels.
        scale: float32 [out], or with as many axes as the integers, to be multiplied with them as it is.
        bits: 1 to 6, or 8.
        table: int8, the at most 2^bits integers that occur, rising; what is stored are places in it.
    """

    name: str
    integers: np.ndarray
    axis: int
    scale: np.ndarray
    bits: int
    table: np.ndarray | None = None

    def column(self) -> np.ndarray:
        """The scale with as many axes as the integers."""
        if self.scale.ndim == self.integers.ndim:
            return self.scale
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)


def scales_outputs(weight: PackedWeight, node: ir.Node, index: int) -> bool:
    """Whether a node with this weight as its input of this index is a product of which each output has one scale.

    Only then may integers be multiplied first and scaled after. Of a tied weight [4, 12] with four scales that holds
    for Gemm(x, w, transB=1), and not for MatMul(h, w), whose outputs are the twelve.
    """
    axis = {"Conv": 0, "Gemm": 1, "MatMul": weight.integers.ndim - 1}.get(node.op_type)
    if node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].value:
        axis = 0
    return index == 1 and axis == weight.axis


def pack_words(integers: np.ndarray, bits: int) -> np.ndarray:
    """As many `bits`-wide fields as fit into each uint64 word, lowest first; values are stored with an offset.

    Five values in 3 bits: word = sum((value_i + 4) << 3 i). 21 such fields fill 63 of the 64 bits.

    Args:
        integers: int8 of any shape, each in [-2^(bits-1), 2^(bits-1)).
    """
    return pack_fields(integers.astype(np.int64) + 2 ** (bits - 1), bits)


def pack_fields(numbers: np.ndarray, bits: int) -> np.ndarray:
    """The same for numbers in [0, 2^bits), which are stored as they are."""
    per_word = _WORD_BITS // bits
    flat = numbers.reshape(-1).astype(np.uint64)
    fields = np.pad(flat, (0, -len(flat) % per_word)).reshape(-1, per_word)
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    words: np.ndarray = np.bitwise_or.reduce(fields << shifts, axis=1)
    return words


def unpack_words(words: np.ndarray, bits: int, shape: Sequence[int]) -> np.ndarray:
    """Inverse of `pack_words`; what the nodes in the file compute."""
    per_word = _WORD_BITS // bits
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    fields = (words[:, None] >> shifts) & np.uint64(2**bits - 1)
    count = math.prod(shape)
    integers: np.ndarray = fields.reshape(-1)[:count].astype(np.int8) - np.int8(2 ** (bits - 1))
    return integers.reshape(shape)


def pack_float(model: ir.Model, weights: Sequence[PackedWeight], halves: Sequence[str]) -> ir.Model:
    """Replace float weights by integers times scale, and those named in `halves` by float16, in place."""
    graph = model.graph
    for weight in weights:
        scale = _constant(graph, f"{weight.name}_scale", weight.column())
        whole = _stored(graph, weight)
        outputs = _call("Weight", [*whole, scale], weight, model)
        _substitute(graph, weight.name, outputs)
    for name in halves:
        array = _array(graph.initializers[name]).astype(np.float16)
        half = _constant(graph, f"{name}_half", array)
        cast = ir.node("Cast", [half], attributes={"to": ir.DataType.FLOAT})
        _substitute(graph, name, cast)
    return model


def pack_integer(model: ir.Model, weights: Sequence[PackedWeight]) -> ir.Model:
    """Replace the int8 weights of a QDQ graph by packed ones, in place.

    The integers are the ones that the quantizer wrote; they are checked against `weights`.

    Raises:
        ValueError: the quantizer's integers are not ours.
    """
    graph = model.graph
    for weight in weights:
        name = f"{weight.name}_quantized"
        if not np.array_equal(_array(graph.initializers[name]), weight.integers):
            raise ValueError(f"the quantizer changed the integers of {weight.name}")
        if weight.bits == 8:
            continue
        whole = _stored(graph, weight)
        _substitute(graph, name, _call("Integer", whole, weight, model))
    return model


def stored_integers(model: ir.Model, weight: PackedWeight) -> ir.Value:
    """The integers of a weight as int8, stored in its bits; what unpacks them is the last node of the graph."""
    graph = model.graph
    if weight.bits == 8:
        return _stored(graph, weight)[0]
    call = _call("Integer", _stored(graph, weight), weight, model)
    graph.append(call)
    return call.outputs[0]


def to_bytes(model: ir.Model) -> bytes:
    """The bytes of the file, without the inner shapes that the serializer adds."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString(deterministic=True))


def tidy(model: ir.Model) -> ir.Model:
    """Merge equal constants, drop unused ones and shorten every inner name, in place."""
    graph = model.graph
    first: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
            continue
        tensor = value.const_value
        assert tensor is not None
        key = (str(tensor.dtype), tensor.tobytes(), tuple(tensor.shape.numpy()))
        if key in first:
            ir.convenience.replace_all_uses_with(value, first[key])
            del graph.initializers[name]
        else:
            first[key] = value
    _share_activations_(model)
    graph.sort()
    _shorten_names_(graph)
    return model


# Each function is written once per file; `shape` is an attribute of the call.
def _call(what: str, inputs: list[ir.Value], weight: PackedWeight, model: ir.Model) -> ir.Node:
    kind = f"{what}{weight.bits}{'' if weight.table is None else 'T'}"
    identifier = (DOMAIN, kind, "")
    if identifier not in model.functions:
        model.functions[identifier] = _function(kind, weight.bits, table=weight.table is not None)
        model.opset_imports.setdefault(DOMAIN, 1)
    attributes = {"s": list(weight.integers.shape)} if _is_words(weight.bits) else {}
    return ir.node(kind, inputs, attributes=attributes, domain=DOMAIN)


def _is_words(bits: int) -> bool:
    return bits not in (4, 8)


def _function(kind: str, bits: int, *, table: bool) -> ir.Function:
    packed, values = ir.Value(name="p"), ir.Value(name="t")
    inputs = [packed, values] if table else [packed]
    nodes: list[ir.Node] = []

    def add(op: str, *args: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, list(args), attributes=attributes)
        nodes.append(node)
        node.outputs[0].name = f"v{len(nodes)}"
        return node.outputs[0]

    def constant(array: np.ndarray) -> ir.Value:
        return add("Constant", value=ir.tensor(array))

    attributes = []
    if _is_words(bits):
        per_word = _WORD_BITS // bits
        shape_attribute = ir.Attr("s", ir.AttributeType.INTS, None)
        attributes.append(shape_attribute)
        reference = ir.RefAttr("value_ints", "s", ir.AttributeType.INTS)
        constant_shape = ir.Node("", "Constant", [], attributes=[reference])
        nodes.append(constant_shape)
        shape = constant_shape.outputs[0]
        shape.name = "shape"
        column = add("Unsqueeze", packed, constant(np.array([1], np.int64)))
        shifts = constant(np.arange(per_word, dtype=np.uint64) * np.uint64(bits))
        shifted = add("BitShift", column, shifts, direction="RIGHT")
        fields = add("BitwiseAnd", shifted, constant(np.array(2**bits - 1, np.uint64)))
        kind_of = ir.DataType.INT32 if table else ir.DataType.INT8
        flat = add("Reshape", add("Cast", fields, to=kind_of), constant(np.array([-1], np.int64)))
        count = add("ReduceProd", shape)
        used = add(
            "Slice", flat, constant(np.array([0], np.int64)), add("Reshape", count, constant(np.array([1], np.int64)))
        )
        offset = constant(np.array(2 ** (bits - 1), np.int8)) if not table else None
        whole = add("Gather", values, used) if offset is None else add("Sub", used, offset)
        result = add("Reshape", whole, shape)
    elif table:
        result = add("Gather", values, add("Cast", packed, to=ir.DataType.INT32))
    else:
        result = packed
    if kind.startswith("Weight"):
        scale = ir.Value(name="c")
        inputs.append(scale)
        result = add("Mul", add("Cast", result, to=ir.DataType.FLOAT), scale)
    elif not _is_words(bits) and not table:
        result = add("Cast", result, to=ir.DataType.INT8)
    graph = ir.Graph(inputs, [result], nodes=nodes, opset_imports={"": 21}, name=kind)
    return ir.Function(DOMAIN, kind, graph=graph, attributes=attributes)


def _stored(graph: ir.Graph, weight: PackedWeight) -> list[ir.Value]:
    """What is written of a weight: its packed integers, or places in a table and the table."""
    name = f"{weight.name}_packed"
    if weight.table is not None:
        places = np.searchsorted(weight.table, weight.integers)
        packed = pack_fields(places, weight.bits) if _is_words(weight.bits) else places.astype(ml_dtypes.uint4)
        return [_constant(graph, name, packed), _constant(graph, f"{weight.name}_table", weight.table)]
    if _is_words(weight.bits):
        return [_constant(graph, name, pack_words(weight.integers, weight.bits))]
    kind = ml_dtypes.int4 if weight.bits == 4 else np.int8
    return [_constant(graph, name, weight.integers.astype(kind))]


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    array: np.ndarray = value.const_value.numpy()
    return array


def _substitute(graph: ir.Graph, name: str, node: ir.Node) -> None:
    old = graph.initializers[name]
    first = next(n for n in graph if any(i is old for i in n.inputs))
    graph.insert_before(first, node)
    ir.convenience.replace_all_uses_with(old, node.outputs[0])
    del graph.initializers[name]


def _share_activations_(model: ir.Model) -> None:
    """Write each QuantizeLinear -> DequantizeLinear pair as one call of a function."""
    graph = model.graph
    pairs = []
    for node in graph:
        uses = node.outputs[0].uses() if node.op_type == "QuantizeLinear" else []
        if len(uses) == 1 and not node.outputs[0].is_graph_output():
            after = uses[0].node
            if after.op_type == "DequantizeLinear" and list(after.inputs[1:]) == list(node.inputs[1:]):
                pairs.append((node, after))
    for quantize, dequantize in pairs:
        call = ir.node("Q", list(quantize.inputs), domain=DOMAIN)
        old, new = dequantize.outputs[0], call.outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        graph.insert_after(dequantize, call)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(dequantize, safe=True)
        graph.remove(quantize, safe=True)
    if pairs:
        x, s, z = (ir.Value(name=n) for n in "xsz")
        inner = ir.node("QuantizeLinear", [x, s, z])
        outer = ir.node("DequantizeLinear", [inner.outputs[0], s, z])
        inner.outputs[0].name, outer.outputs[0].name = "q", "y"
        body = ir.Graph([x, s, z], outer.outputs, nodes=[inner, outer], opset_imports={"": 21}, name="Q")
        model.functions[(DOMAIN, "Q", "")] = ir.Function(DOMAIN, "Q", graph=body, attributes=[])
        model.opset_imports.setdefault(DOMAIN, 1)


def _shorten_names_(graph: ir.Graph) -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

    def short(index: int) -> str:
        text = ""
        while True:
            text = alphabet[index % len(alphabet)] + text
            index = index // len(alphabet) - 1
            if index < 0:
                return text

    fixed = {v.name for v in (*graph.inputs, *graph.outputs)}
    names = (n for n in map(short, range(10**7)) if n not in fixed)
    values = list(graph.initializers.values())
    graph.initializers.clear()
    for value in values:
        value.name = next(names)
        if value.const_value is not None:
            value.const_value.name = value.name
        graph.register_initializer(value)
    for node in graph:
        node.name = None
        for value in node.outputs:
            if value.name not in fixed:
                value.name = next(names)
    graph.name = "g"
