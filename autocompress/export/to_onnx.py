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
from autocompress.export.cut import Span, find_spans, without_spans
from autocompress.export.recurrent import recurrent_arrays, set_hidden_sizes_, start_from_zero_
from autocompress.export.reshapes import free_shapes_

OPSET = 21  # the first with int4; every later runtime reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a parameter stands in the graph: initializer `name`, transposed if it is [in, out]."""

    name: str
    transposed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A traced graph, where each parameter stands in it (a tied one in several places), and spans of its modules."""

    model: ir.Model
    sites: Mapping[str, tuple[Site, ...]]
    spans: Mapping[str, Span]


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
    start_from_zero_(graph)
    free_shapes_(onnx_model)
    spans = find_spans(graph)
    strip(onnx_model)
    return Skeleton(model=onnx_model, sites=_find_sites(graph, model), spans=spans)


def without_blocks(skeleton: Skeleton, blocks: Sequence[str]) -> Skeleton | None:
    """The skeleton of the network without these blocks, or None where it cannot be had from this one."""
    if any(name not in skeleton.spans for name in blocks):
        return None
    model = without_spans(skeleton.model, [skeleton.spans[name] for name in blocks])
    left = {k: tuple(s for s in sites if s.name in model.graph.initializers) for k, sites in skeleton.sites.items()}
    return Skeleton(model=model, sites={key: sites for key, sites in left.items() if sites}, spans={})


def fill(skeleton: Skeleton, model: nn.Module) -> ir.Model:
    """A copy of the skeleton with the parameters of `model` in it.

    Args:
        model: the architecture of the skeleton, possibly with fewer channels.
    """
    filled = skeleton.model.clone()
    initializers = filled.graph.initializers
    arrays = _arrays(model)
    groups = {n: m.groups for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    layer_of = {s.name: key.removesuffix(".weight") for key, sites in skeleton.sites.items() for s in sites}
    for key, sites in skeleton.sites.items():
        array = arrays[key]
        for site in sites:
            value = initializers[site.name]
            value.const_value = ir.tensor(np.ascontiguousarray(array.T if site.transposed else array), name=site.name)
            value.shape = ir.Shape(value.const_value.shape)
    for node in filled.graph:
        weight = node.inputs[1].name if node.op_type == "Conv" and node.inputs[1] is not None else None
        if weight in layer_of and layer_of[weight] in groups:
            node.attributes["group"] = ir.AttrInt64("group", groups[layer_of[weight]])
    set_hidden_sizes_(filled.graph)
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
        raise UsageError(f"the model cannot be exported to ONNX: {_reason(error)}") from error
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
    if "data-dependent" in str(error):
        return "its forward branches on the values of a tensor; use torch.where there instead of if"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
    return f"{cause}; make its forward exportable by torch.onnx.export(dynamo=True) with a dynamic batch"


def _scrambled(model: nn.Module) -> nn.Module:
    scrambled = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*scrambled.parameters(), *scrambled.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.05)
    return scrambled


def strip(model: ir.Model) -> ir.Model:
    """Drop names of nodes, doc strings, metadata and inner shapes, in place: bytes that no runtime needs.

    Element types stay, because the quantizer leaves a tensor alone whose type it cannot infer; they are not serialized.
    """
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
                value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


def _find_sites(graph: ir.Graph, model: nn.Module) -> dict[str, tuple[Site, ...]]:
    """Match initializers to parameters: by name where the exporter kept it, else by value, straight or transposed."""
    arrays = _arrays(model)
    sites: dict[str, tuple[Site, ...]] = {}
    for name, value in graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        # a parameter that has a place already comes last: equal values mean a copy only where nothing else fits
        keys = [name] if name in arrays else sorted(arrays, key=sites.__contains__)
        for key in keys:
            if (transposed := _matches(arrays[key], array)) is not None:
                sites[key] = (*sites.get(key, ()), Site(name=name, transposed=transposed))
                break
    return sites


def _arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Every float parameter and buffer by name, and those of recurrent layers once more in the layout of ONNX."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    arrays = {key: t.detach().cpu().numpy() for key, t in state.items() if t.is_floating_point()}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            arrays |= {f"{name}:{key}": array for key, array in recurrent_arrays(module).items()}
    return arrays


def _matches(parameter: np.ndarray, array: np.ndarray) -> bool | None:
    """Whether `array` is the parameter transposed (True), as it is (False), or something else (None)."""
    if parameter.shape == array.shape and np.array_equal(parameter, array):
        return False
    if array.ndim == 2 and parameter.shape == array.T.shape and np.array_equal(parameter, array.T):
        return True
    return None
