"""Splits layers of a traced graph into two factors, so that a factored network need not be traced: milliseconds.

Which layers are factored, and how narrow, differs from plan to plan; the graph around them does not. Whether the split
graph computes what the network computes is for the caller to check against torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from autocompress.export.to_onnx import Site, Skeleton

_PER_AXIS = ("kernel_shape", "strides", "dilations")


def with_factors(skeleton: Skeleton, names: Sequence[str]) -> Skeleton | None:
    """The skeleton of the network in which these layers are two factors, or None where it cannot be had from this one.

    Its new weights have no values yet.
    """
    model = skeleton.model.clone()
    sites = dict(skeleton.sites)
    for name in names:
        weights = sites.pop(f"{name}.weight", ())
        for part in ("first", "second"):
            sites[f"{name}.{part}.weight"] = tuple(replace(s, name=f"{s.name}.{part}") for s in weights)
        if bias := sites.pop(f"{name}.bias", None):
            sites[f"{name}.second.bias"] = bias
        if not weights or not all(_split_(model.graph, site) for site in weights):
            return None
    return Skeleton(model=model, sites=sites, spans={})


def _split_(graph: ir.Graph, site: Site) -> bool:
    """Put two nodes in the place of each that multiplies by this weight, in place; False where that is no product."""
    weight = graph.initializers[site.name]
    uses = [(use.node, use.idx) for use in weight.uses()]
    if not uses or any(node.op_type not in ("Conv", "Gemm", "MatMul") or index != 1 for node, index in uses):
        return False
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    first, second = (_placeholder(graph, f"{site.name}.{part}", array.ndim) for part in ("first", "second"))
    for node, _ in uses:
        _split_node_(graph, node, first, second, last=array.ndim > 2 and array.shape[-1] > 1)
    del graph.initializers[site.name]
    return True


def _placeholder(graph: ir.Graph, name: str, axes: int) -> ir.Value:
    tensor = ir.tensor(np.zeros((1,) * axes, np.float32), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=tensor.shape)
    graph.initializers[name] = value
    return value


def _split_node_(graph: ir.Graph, node: ir.Node, first: ir.Value, second: ir.Value, *, last: bool) -> None:
    output = node.outputs[0]
    own: list[dict[str, ir.Attr]] = [dict(node.attributes), dict(node.attributes)]
    if node.op_type == "Conv":
        axes = len(second.shape or ()) - 2
        in_second = [last and axis == axes - 1 for axis in range(axes)]
        own = [_for_axes(node.attributes, [not s for s in in_second]), _for_axes(node.attributes, in_second)]
    before = ir.node(node.op_type, [node.inputs[0], first], own[0])
    middle = before.outputs[0]
    middle.name, middle.type = f"{output.name}.{first.name}", output.type
    graph.insert_before(node, before)
    node.replace_input_with(0, middle)
    node.replace_input_with(1, second)
    for name, attribute in own[1].items():
        node.attributes[name] = attribute


def _for_axes(attributes: Mapping[str, ir.Attr], mine: Sequence[bool]) -> dict[str, ir.Attr]:
    """Attributes of a convolution that works along some axes alone; along the others it is 1 wide."""
    found = dict(attributes)
    for name in _PER_AXIS:
        if name in attributes:
            values = attributes[name].as_ints()
            found[name] = ir.AttrInt64s(name, [v if m else 1 for v, m in zip(values, mine, strict=True)])
    if "pads" in attributes:
        pads = attributes["pads"].as_ints()  # of all axes before, then of all axes behind
        found["pads"] = ir.AttrInt64s("pads", [p if m else 0 for p, m in zip(pads, [*mine, *mine], strict=True)])
    return found
