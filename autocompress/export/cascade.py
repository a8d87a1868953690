"""Joins two files into one that answers in two stages: the second network runs only where the first is unsure.

    first(x) -> confidence = max softmax -> If any is below the threshold: second(those samples) in their places

Both networks are taken from their files as they are, so the joined file computes what the two compute. It takes
batches of any size: samples that the first network is sure of never reach the second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from autocompress.export.pack import to_bytes

_MARK = "_"  # before every inner name of the second network: no name of the first begins with it


def confidences(outputs: np.ndarray) -> np.ndarray:
    """Largest softmax probability of each sample, [n] from outputs [n, classes]; what the joined file computes."""
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    largest: np.ndarray = (shifted.max(axis=1) / shifted.sum(axis=1)).astype(np.float32)
    return largest


def join(first: bytes, second: bytes, *, threshold: float) -> bytes:
    """One file of two.

    Args:
        first, second: files of this program, with the same inputs and outputs [n, classes].
        threshold: of the first one's largest probability; below it the second one answers.
    Raises:
        ValueError: the threshold is not in (0, 1], or the inputs or outputs differ.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}; at 0 the second network would never answer")
    model, other = (ir.from_proto(onnx.load_from_string(file)) for file in (first, second))
    _refuse_other_shapes(model.graph, other.graph)
    for key, function in other.functions.items():  # one of this name has the same body
        model.functions.setdefault(key, function)
    for domain, version in other.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
    graph = model.graph
    (output,) = graph.outputs
    name = output.name
    output.name = f"{_MARK}{_MARK}"
    add = _Adder(graph)
    limit = add.constant(np.array(threshold, np.float32))
    confidence = add("ReduceMax", add("Softmax", output, axis=-1), add.constant(np.array([-1])), keepdims=0)
    unsure = add("Less", add("ReduceMin", confidence, keepdims=0), limit)
    branches = {
        "then_branch": _asking(other.graph, graph.inputs, output, confidence, limit),
        "else_branch": _answered(output),
    }
    answer = add("If", unsure, **branches)
    answer.name, answer.type, answer.shape = name, output.type, output.shape
    graph.outputs[0] = answer
    return _stripped(to_bytes(model))


def _stripped(file: bytes) -> bytes:
    """Without the inner shapes that the serializer writes into the branches, which are bytes too."""
    proto = onnx.load_from_string(file)
    for attribute in proto.graph.node[-1].attribute:
        del attribute.g.value_info[:]
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _refuse_other_shapes(first: ir.Graph, second: ir.Graph) -> None:
    for kind, ours, theirs in (("inputs", first.inputs, second.inputs), ("outputs", first.outputs, second.outputs)):
        mine, other = ([(v.name, v.dtype, _sizes(v)) for v in values] for values in (ours, theirs))
        if mine != other:
            raise ValueError(f"two files can only be joined if their {kind} are the same, got {mine} and {other}")


def _sizes(value: ir.Value) -> list[int | None]:
    """Sizes of the axes behind the batch; None for an open one."""
    return [d if isinstance(d, int) else None for d in (value.shape or ())][1:]


def _answered(output: ir.Value) -> ir.Graph:
    """The branch of a batch that the first network is sure of."""
    node = ir.node("Identity", [output])
    return _branch([], node, [node], f"{_MARK}{_MARK}e")


def _asking(
    second: ir.Graph, inputs: Sequence[ir.Value], output: ir.Value, confidence: ir.Value, limit: ir.Value
) -> ir.Graph:
    """The branch that asks the second network about the unsure samples and puts its answers in their places."""
    places = [ir.node("Less", [confidence, limit])]
    places.append(ir.node("NonZero", [places[-1].outputs[0]]))
    places.append(ir.node("Transpose", [places[-1].outputs[0]]))  # [unsure, 1]
    where = places[-1].outputs[0]
    rows = [ir.node("GatherND", [value, where]) for value in inputs]
    for value, row in zip(second.inputs, rows, strict=True):
        ir.convenience.replace_all_uses_with(value, row.outputs[0])
    (answers,) = second.outputs
    nodes = list(second)
    second.outputs.clear()
    second.remove(nodes)
    initializers = list(second.initializers.values())
    second.initializers.clear()
    last = ir.node("ScatterND", [output, where, answers])
    for node in nodes:
        for value in node.outputs:
            value.name = f"{_MARK}{value.name}"
    for value in initializers:
        value.name = f"{_MARK}{value.name}"
    for index, node in enumerate((*places, *rows)):
        node.outputs[0].name = f"{_MARK}{_MARK}{index}"
    return _branch(initializers, last, [*places, *rows, *nodes, last], f"{_MARK}{_MARK}s")


def _branch(initializers: Sequence[ir.Value], last: ir.Node, nodes: Sequence[ir.Node], name: str) -> ir.Graph:
    last.outputs[0].name = name
    return ir.Graph([], last.outputs, nodes=nodes, initializers=initializers, name="b")


class _Adder:
    """Appends nodes to a graph, each output with a name that nothing else has."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._count = graph, 0

    def __call__(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, list(inputs), attributes=attributes)
        node.outputs[0].name = self._name()
        self._graph.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=self._name(), const_value=ir.tensor(array))
        self._graph.register_initializer(value)
        return value

    def _name(self) -> str:
        self._count += 1
        return f"{_MARK}{_MARK}{_MARK}{self._count}"
