"""Makes the sizes that a traced graph holds as constants follow from the data, so that it fits narrower networks too.

The shapes that are known here are those of the dense network. Whether a graph with freed sizes still computes what the
network computes is for the caller to check.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from autocompress.export.recurrent import RECURRENT


def free_shapes_(model: ir.Model) -> None:
    """Free the target shapes of reshapes and the sizes of equal splits, in place.

    [-1, 64] after a pool becomes [0, -1]: the batch is copied and the channels are what is left.
    """
    graph = model.graph
    for node in graph:
        if node.op_type == "Split":
            _free_split_(node)
        elif node.op_type == "Reshape" and (target := _freed(node)) is not None:
            _set_target_(graph, node, target)
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]
    RemoveUnusedNodesPass()(model)


def _free_split_(node: ir.Node) -> None:
    """Into equal parts, whatever their size."""
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    if sizes is None or sizes.const_value is None or len(set(sizes.const_value.numpy().tolist())) != 1:
        return
    node.resize_inputs(1)
    node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _freed(node: ir.Node) -> list[int] | None:
    """A target that copies what stays in its place and leaves one size open, or None where there is none to be had."""
    given, shape = node.inputs[0], node.inputs[1]
    if _joins_directions(given):
        return [0, 0, -1]
    before = list(given.shape) if given is not None and given.shape is not None else []
    after = list(node.outputs[0].shape) if node.outputs[0].shape is not None else []
    if not before or len(after) < 2 or not _same(before[0], after[0]) or shape is None:
        return None
    if shape.const_value is None:
        return _copied(before, after)
    target: list[int] = shape.const_value.numpy().tolist()
    return freed_target(before, after, target) if target[0] == -1 else None


def _joins_directions(value: ir.Value | None) -> bool:
    """Whether this is what a recurrent node gives, [steps, batch, directions, hidden]: joined, its size is open."""
    turned = value.producer() if value is not None else None
    if turned is None or turned.op_type != "Transpose" or list(turned.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
        return False
    source = turned.inputs[0].producer() if turned.inputs[0] is not None else None
    return source is not None and source.op_type in RECURRENT


def freed_target(before: Sequence[object], after: Sequence[object], target: list[int]) -> list[int] | None:
    """The target of a reshape with the size left open that pruning changes; the batch is the first one.

    - Sizes that stay in their place, from the first on, are copied: [-1, 28, 64] of [n, 28, 4, 16] is [0, 0, -1].
    - Where the last axis is split into heads, their number is open: [-1, 28, 4, 16] of [n, 28, 64] is [0, 0, -1, 16],
      and [-1, 28, 3, 4, 16] of [n, 28, 192] is [0, 0, 3, -1, 16].
    - Of other sizes that a reshape changes, the largest is open: a channel shuffle [-1, 2, 24, 7, 7] is
      [0, 2, -1, 7, 7].
    """
    head, tail = _equal_head(before, after), _equal_tail(before, after)
    changed = list(range(head, len(target) - tail))
    if not changed:
        changed = list(range(max(1, head - 1), len(target) - tail))
        head = max(1, head - 1)
    if not changed:
        return None
    splits_last = tail == 0 and head >= 2 and len(before) == head + 1 and len(changed) >= 2
    if splits_last:
        free = changed[1] if target[changed[0]] == 3 and len(changed) > 2 else changed[0]
    else:
        free = max(changed, key=target.__getitem__)
    found = [0] * head + target[head:]
    found[free] = -1
    return found


def _copied(before: Sequence[object], after: Sequence[object]) -> list[int] | None:
    """A constant target for one that is computed: everything but the last size is copied."""
    head = _equal_head(before, after)
    return [0] * head + [-1] if len(after) == head + 1 else None


def _set_target_(graph: ir.Graph, node: ir.Node, target: list[int]) -> None:
    name = f"shape_{'_'.join(map(str, target))}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(target, np.int64), name=name)
        freed = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        graph.register_initializer(freed)
    node.replace_input_with(1, graph.initializers[name])
    node.attributes.pop("allowzero", None)


def _equal_head(before: Sequence[object], after: Sequence[object]) -> int:
    """How many of the first sizes a reshape leaves as they are; at least the batch."""
    count = 1
    while count < min(len(before), len(after)) and _same(before[count], after[count]):
        count += 1
    return count


def _equal_tail(before: Sequence[object], after: Sequence[object]) -> int:
    """How many of the last sizes a reshape leaves as they are; the first one is never counted."""
    count = 0
    while count + 1 < min(len(before), len(after)) and _same(before[-1 - count], after[-1 - count]):
        count += 1
    return count


def _same(a: object, b: object) -> bool:
    """Whether two sizes are known to be equal; one that was not inferred equals nothing."""
    return a == b and getattr(a, "value", a) is not None
