"""Float ONNX of a network: traced once, then filled with the weights of every pruned variant.

Tracing takes seconds and depends only on the architecture, so one skeleton is traced per study and
a trial replaces the tensors in it (milliseconds). Whether that was allowed is checked against
torch; where it was not, the pruned network is traced itself.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from autocompress.errors import UsageError

OPSET = 21  # the first with int4; every later runtime reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a parameter stands in the graph: initializer `name`, transposed if it is [in, out]."""

    name: str
    transposed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A traced graph and where each parameter stands in it."""

    model: ir.Model
    sites: Mapping[str, Site]


def input_names(count: int) -> list[str]:
    """`input`, or `input_0`, `input_1`, ... where a network takes several."""
    return ["input"] if count == 1 else [f"input_{i}" for i in range(count)]


def trace_skeleton(model: nn.Module, example: Sequence[Tensor]) -> Skeleton:
    """Trace a copy of `model` whose parameters are all different, so that none are merged.

    Args:
        model: in eval mode, batch norms folded.
        example: the inputs of one forward, each [batch, ...] with batch at least 2.
    Raises:
        UsageError: the network cannot be exported; the text says why.
    """
    return trace(_scrambled(model), example)


def trace(model: nn.Module, example: Sequence[Tensor]) -> Skeleton:
    """Trace `model` as it is; raises like `trace_skeleton`."""
    onnx_model = _export(model, example)
    graph = onnx_model.graph
    strip(onnx_model)
    _free_flattening_(graph)
    return Skeleton(model=onnx_model, sites=_find_sites(graph, model))


def fill(skeleton: Skeleton, model: nn.Module) -> ir.Model:
    """A copy of the skeleton with the parameters of `model` in it.

    Args:
        model: the architecture of the skeleton, possibly with fewer channels.
    """
    filled = skeleton.model.clone()
    initializers = filled.graph.initializers
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    groups = {n: m.groups for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    layer_of = {site.name: key.removesuffix(".weight") for key, site in skeleton.sites.items()}
    for key, site in skeleton.sites.items():
        array = state[key].detach().cpu().numpy()
        value = initializers[site.name]
        value.const_value = ir.tensor(np.ascontiguousarray(array.T if site.transposed else array), name=site.name)
        value.shape = ir.Shape(value.const_value.shape)
    for node in filled.graph:
        weight = node.inputs[1].name if node.op_type == "Conv" and node.inputs[1] is not None else None
        if weight in layer_of and layer_of[weight] in groups:
            node.attributes["group"] = ir.AttrInt64("group", groups[layer_of[weight]])
    return filled


def _export(model: nn.Module, example: Sequence[Tensor]) -> ir.Model:
    batch = torch.export.Dim("batch", min=1, max=2**20)
    quiet = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(quiet), redirect_stderr(quiet), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                tuple(example),
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names(len(example)),
                output_names=["output"],
                dynamic_shapes=tuple({0: batch} for _ in example),
                verbose=False,
            )
    except Exception as error:
        raise UsageError(
            f"the model cannot be exported to ONNX: {_reason(error)}; "
            "make its forward exportable by torch.onnx.export(dynamo=True) with a dynamic batch"
        ) from error
    assert program is not None
    exported = program.model
    if len(exported.graph.outputs) != 1:
        raise UsageError(
            f"the model returns {len(exported.graph.outputs)} outputs, one tensor was expected; "
            "wrap it in a module whose forward returns the logits alone"
        )
    return exported


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; exporters wrap errors several times over."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _scrambled(model: nn.Module) -> nn.Module:
    scrambled = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*scrambled.parameters(), *scrambled.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.05)
    return scrambled


def strip(model: ir.Model) -> ir.Model:
    """Drop names of nodes, doc strings, metadata and inner shapes, in place: bytes that no runtime needs."""
    model.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    model.producer_name = model.producer_version = None
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string, node.name = None, None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape, value.type = None, None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


def _free_flattening_(graph: ir.Graph) -> None:
    """Turn Reshape(x, [-1, features]) into Reshape(x, [0, -1]), which holds for any number of features."""
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is None:
            continue
        shape = node.inputs[1].const_value.numpy()
        if shape.shape == (2,) and shape[0] == -1:
            freed = ir.tensor(np.array([0, -1], np.int64), name=f"{node.inputs[1].name}_free")
            value = ir.Value(
                name=freed.name, const_value=freed, shape=ir.Shape((2,)), type=ir.TensorType(ir.DataType.INT64)
            )
            if value.name not in graph.initializers:
                graph.register_initializer(value)
            node.replace_input_with(1, graph.initializers[value.name])
            node.attributes.pop("allowzero", None)
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]


def _find_sites(graph: ir.Graph, model: nn.Module) -> dict[str, Site]:
    """Match initializers to parameters: by name where the exporter kept it, else by value, straight or transposed."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    arrays = {key: t.detach().cpu().numpy() for key, t in state.items() if t.is_floating_point() and t.ndim > 0}
    sites: dict[str, Site] = {}
    for name, value in graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        keys = [name] if name in arrays else [k for k in arrays if k not in sites]
        for key in keys:
            if arrays[key].shape == array.shape and np.array_equal(arrays[key], array):
                sites[key] = Site(name=name, transposed=False)
                break
            if array.ndim == 2 and arrays[key].shape == array.T.shape and np.array_equal(arrays[key], array.T):
                sites[key] = Site(name=name, transposed=True)
                break
    return sites
