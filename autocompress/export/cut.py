"""Leaves blocks out of a traced graph, so that a network without them need not be traced: milliseconds, not seconds.

The exporter notes with every node the modules it came from. Where a module's nodes read one tensor and give one, these
two are its *span*; joining them and dropping what nobody reads any more leaves the graph of the network without that
module. Whether it does is for the caller to check against torch.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

Span = tuple[str, str]  # names of the values that go in and come out
_SCOPES = "pkg.torch.onnx.name_scopes"  # "['', 'layers', 'layers.0', 'add_25']": modules from the outside in, the node


def find_spans(graph: ir.Graph) -> dict[str, Span]:
    """Span of every module that has one, by the module's name; the graph must still hold what the exporter noted."""
    starts: defaultdict[str, set[str]] = defaultdict(set)
    ends: defaultdict[str, set[str]] = defaultdict(set)
    for value in _values(graph):
        made_in = _modules(value.producer())
        for use in value.uses():
            read_in = _modules(use.node)
            for name in read_in - made_in:
                starts[name].add(str(value.name))
            for name in made_in - read_in:
                ends[name].add(str(value.name))
        if value.is_graph_output():  # its name may not change, so nothing can stand in for it
            for name in made_in:
                ends[name] |= {"", str(value.name)}
    return {n: (min(starts[n]), min(ends[n])) for n in starts if len(starts[n]) == len(ends[n]) == 1}


def without_spans(model: ir.Model, spans: Sequence[Span]) -> ir.Model:
    """A copy in which the value that goes into each span is read wherever the one that comes out of it was."""
    cut = model.clone()
    values = {value.name: value for value in _values(cut.graph)}
    before = {end: start for start, end in spans}
    for end in before:
        start = end
        while start in before:  # of several spans in a row, what goes into the first
            start = before[start]
        ir.convenience.replace_all_uses_with(values[end], values[start])
    RemoveUnusedNodesPass()(cut)
    return cut


def _values(graph: ir.Graph) -> list[ir.Value]:
    """What depends on the input: inputs and outputs of nodes, and no weights."""
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _modules(node: ir.Node | None) -> frozenset[str]:
    scopes = node.metadata_props.get(_SCOPES) if node is not None else None
    return frozenset(ast.literal_eval(scopes)[1:-1]) if scopes else frozenset()
