"""Emits the file of a plan: fold, fill, quantize activations, pack. The one place that knows that order.

Emitting costs milliseconds because the network was traced once, also for plans that leave blocks out;
an untrained network has the same bytes and speed as a trained one, so a plan's size and latency are
known before any training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from autocompress.compress.drop import drop_blocks_
from autocompress.compress.fold import Pairs, find_pairs, fold
from autocompress.compress.quantize import QuantizedWeight
from autocompress.errors import UsageError
from autocompress.export.activations import Ranges, calibrate, masking_nodes, quantize_activations
from autocompress.export.dynamic import quantize_dynamically
from autocompress.export.factored import with_factors
from autocompress.export.pack import PackedWeight, pack_float, pack_integer, scales_outputs, tidy, to_bytes
from autocompress.export.recurrent import recurrent_weights
from autocompress.export.to_onnx import Site, Skeleton, fill, input_names, strip, trace, trace_skeleton, without_blocks
from autocompress.plan import CompressionPlan
from autocompress.space.factors import factored_names, layers_for
from autocompress.space.layers import weight_names

Widths = tuple[tuple[str, tuple[int, ...]], ...]  # shape of every parameter by its name
Blocks = tuple[str, ...]
_Key = TypeVar("_Key")
_Kept = TypeVar("_Kept")
_MOST_KEPT = 8  # skeletons, of each kind
_CALIBRATED = 64  # samples, at most; files of twice as many are as accurate and cost a tenth of a second more
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """What all artifacts of a study share.

    Attributes:
        dense: the network with its batch norms folded.
        pairs: batch norms that fold into the layer before them.
        skeleton: of the dense network; it need not hold for every narrower one.
        samples: inputs for calibration and for comparing with torch, each [n, ...].
        ranges: activation ranges of the dense network, good enough for files that are only timed.
        shorter: by the blocks that are left out, what stands for skeleton and ranges; it is filled for any widths.
        retraced: by widths, what had to be traced anew and its ranges then; a trial asks twice for the same.
    """

    dense: nn.Module
    pairs: Pairs
    skeleton: Skeleton
    samples: tuple[Tensor, ...]
    ranges: Ranges
    shorter: dict[Blocks, tuple[Skeleton, Ranges]] = field(default_factory=dict, repr=False)
    retraced: dict[Widths, tuple[Skeleton, Ranges]] = field(default_factory=dict, repr=False)


def make_exporter(model: nn.Module, samples: Sequence[Tensor]) -> Exporter:
    """Trace `model` once.

    Args:
        model: dense, in eval mode.
        samples: calibration inputs, each [n, ...] with n at least 2.
    Raises:
        UsageError: the network cannot be exported.
    """
    example = tuple(t[:2] for t in samples)
    _refuse_other_outputs(model, example)
    pairs = find_pairs(model, example)
    folded, _ = fold(model, pairs)
    skeleton = _traced(folded, samples)
    if skeleton is None:
        raise UsageError(
            "the model cannot be exported to ONNX: the exported graph computes something else than its forward; "
            "make sure that the forward in eval mode is deterministic and does not depend on the batch size"
        )
    ranges = _calibrate(fill(skeleton, folded), samples)
    return Exporter(dense=folded, pairs=pairs, skeleton=skeleton, samples=tuple(samples), ranges=ranges)


def emit(
    exporter: Exporter,
    model: nn.Module,
    plan: CompressionPlan,
    quantized: Mapping[str, QuantizedWeight],
    *,
    trained: bool,
) -> bytes:
    """The bytes of the artifact.

    Args:
        model: pruned, the plan's blocks left out, in eval mode, its weights settled to the values of `quantized`.
        trained: False for a file that is only weighed and timed; its activation ranges are the dense network's.
    Raises:
        ValueError: the file would not compute what the network computes.
    """
    folded, integers = fold(model, exporter.pairs, quantized)
    graph, skeleton, known = _float_graph(exporter, folded, plan.removed_blocks)
    packed = [_packed(site, q) for n, q in integers.items() for site in skeleton.sites.get(_weight_key(n), ())]
    packed += recurrent_weights(folded, integers, skeleton.sites)
    half_sites = _half_sites(folded, plan, skeleton)
    if plan.activations == "float":
        return to_bytes(tidy(pack_float(graph, packed, half_sites)))
    if plan.activations == "dynamic":
        left = quantize_dynamically(graph, packed)
        return to_bytes(tidy(pack_float(graph, left, half_sites)))
    weights = {w.name: (w.scale, w.axis) for w in packed if _is_multiplied(graph, w)}
    keep_float = _name_nodes(graph, weights)
    proto = ir.to_proto(graph)
    factored = bool(factored_names(folded))  # what goes between two factors has no dense range
    ranges = known if known is not None and not (trained or factored) else _calibrate(graph, exporter.samples)
    keep_float += masking_nodes(proto, known or ranges, weights)
    quantized_graph = ir.from_proto(quantize_activations(proto, ranges, weights, keep_float))
    initializers = quantized_graph.graph.initializers
    used = [w for w in packed if f"{w.name}_quantized" in initializers]
    left = [w for w in packed if f"{w.name}_quantized" not in initializers]
    pack_float(pack_integer(strip(quantized_graph), used), left, half_sites)
    return to_bytes(tidy(quantized_graph))


def _half_sites(folded: nn.Module, plan: CompressionPlan, skeleton: Skeleton) -> list[str]:
    modules = dict(folded.named_modules())
    keys = [
        key
        for planned, bits in plan.weight_bits.items()
        if bits == 16
        for name in layers_for(modules, planned)
        if name in modules
        for key in (
            [f"{name}:{w}" for w in weight_names(modules[name])]
            if isinstance(modules[name], nn.RNNBase)
            else [_weight_key(name)]
        )
    ]
    return [site.name for key in keys for site in skeleton.sites.get(key, ())]


def _weight_key(layer: str) -> str:
    """Name of a layer's weight; the model itself may be the layer."""
    return f"{layer}.weight" if layer else "weight"


def _is_multiplied(graph: ir.Model, weight: PackedWeight) -> bool:
    """Whether a weight goes into products that the runtime has an integer kernel for, and nowhere else."""
    return all(scales_outputs(weight, use.node, use.idx) for use in graph.graph.initializers[weight.name].uses())


def _refuse_other_outputs(model: nn.Module, example: Sequence[Tensor]) -> None:
    with torch.no_grad():
        output = model(*example)
    if not isinstance(output, Tensor):
        raise UsageError(
            f"the model returns a {type(output).__name__}, one tensor was expected; "
            "wrap it in a module whose forward returns the logits alone"
        )


def _float_graph(exporter: Exporter, folded: nn.Module, blocks: Blocks) -> tuple[ir.Model, Skeleton, Ranges | None]:
    """A filled skeleton that computes what torch computes, and the ranges that are known of it.

    They are those of the dense network, or where none but the network itself could be traced those of the first
    network of its widths; for what is traced with its values there are none.
    """
    skeleton, ranges = _dense_skeleton(exporter, blocks)
    factored = factored_names(folded)
    cut = with_factors(skeleton, factored) if factored else skeleton
    if cut is not None and (graph := _filled(cut, folded, exporter.samples)):
        return graph, cut, ranges
    # by name: their order depends on which layers were rounded
    widths = tuple(sorted((name, tuple(p.shape)) for name, p in folded.named_parameters()))
    known = exporter.retraced.get(widths)
    if known is not None and (graph := _filled(known[0], folded, exporter.samples)):
        return graph, *known
    example = tuple(t[:2] for t in exporter.samples)
    skeleton = trace_skeleton(folded, example)
    if graph := _filled(skeleton, folded, exporter.samples):
        ranges = _calibrate(graph, exporter.samples)
        _keep(exporter.retraced, widths, (skeleton, ranges))
        return graph, skeleton, ranges
    skeleton = trace(folded, example)
    if graph := _filled(skeleton, folded, exporter.samples):
        return graph, skeleton, None
    raise ValueError("the exported graph computes something else than the network")


def _dense_skeleton(exporter: Exporter, blocks: Blocks) -> tuple[Skeleton, Ranges]:
    """Skeleton and ranges of the dense network without these blocks: cut from the whole one, or else traced once."""
    if not blocks:
        return exporter.skeleton, exporter.ranges
    if blocks not in exporter.shorter:
        dense = drop_blocks_(copy.deepcopy(exporter.dense), blocks)
        skeleton, ranges = without_blocks(exporter.skeleton, blocks), exporter.ranges
        if skeleton is None or not _computes(skeleton, dense, exporter.samples):
            skeleton = _traced(dense, exporter.samples)
            if skeleton is None:
                raise ValueError("the exported graph computes something else than the network without its blocks")
            ranges = _calibrate(fill(skeleton, dense), exporter.samples)
        _keep(exporter.shorter, blocks, (skeleton, ranges))
    return exporter.shorter[blocks]


def _keep(cache: dict[_Key, _Kept], key: _Key, value: _Kept) -> None:
    """Remember a value; the oldest ones go."""
    while len(cache) >= _MOST_KEPT:
        cache.pop(next(iter(cache)))
    cache[key] = value


def _traced(folded: nn.Module, samples: Sequence[Tensor]) -> Skeleton | None:
    """A skeleton that computes what `folded` computes, or None.

    Where a value of a parameter went into a constant, it is traced with the real ones.
    """
    example = tuple(t[:2] for t in samples)
    for how in (trace_skeleton, trace):
        skeleton = how(folded, example)
        if _computes(skeleton, folded, samples):
            return skeleton
    return None


def _filled(skeleton: Skeleton, folded: nn.Module, samples: Sequence[Tensor]) -> ir.Model | None:
    """The skeleton with the parameters of `folded`, if that computes the same as `folded`."""
    example = tuple(t[:16] for t in samples)
    with torch.no_grad():
        wanted = folded(*example).numpy()
    try:
        graph = fill(skeleton, folded)
        return graph if _agrees(graph, example, wanted) else None
    except Exception:  # a shape that the skeleton holds as a constant: any kind of error can come of it
        return None


def _computes(skeleton: Skeleton, folded: nn.Module, samples: Sequence[Tensor]) -> bool:
    return _filled(skeleton, folded, samples) is not None


def _agrees(graph: ir.Model, example: Sequence[Tensor], wanted: np.ndarray) -> bool:
    options, run = ort.SessionOptions(), ort.RunOptions()
    options.log_severity_level = run.log_severity_level = 4  # failing is an answer here
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), options)
    got = session.run(None, _feed(example), run)[0]
    tolerance = 1e-3 * max(1.0, float(np.abs(wanted).max()))
    return got.shape == wanted.shape and bool(np.allclose(got, wanted, rtol=1e-3, atol=tolerance, equal_nan=True))


def _calibrate(graph: ir.Model, samples: Sequence[Tensor]) -> Ranges:
    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(graph))
    step = -(-len(samples[0]) // _CALIBRATED)  # all over the data, which may be sorted
    return calibrate(proto, [_feed([t[::step].contiguous() for t in samples])])


def _feed(inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in zip(input_names(len(inputs)), inputs, strict=True)}


def _packed(site: Site, quantized: QuantizedWeight) -> PackedWeight:
    integers = quantized.integers.numpy()
    return PackedWeight(
        name=site.name,
        integers=np.ascontiguousarray(integers.T) if site.transposed else integers,
        axis=1 if site.transposed else 0,
        scale=quantized.scale.numpy(),
        bits=quantized.bits,
        table=None if quantized.table is None else quantized.table.numpy(),
    )


def _name_nodes(graph: ir.Model, weights: Mapping[str, object]) -> list[str]:
    """Name every node; return those that must stay float: layers without integers, products of two activations."""
    keep_float = []
    initializers = graph.graph.initializers
    for index, node in enumerate(graph.graph):
        node.name = f"n{index}"
        if node.op_type in _WEIGHTED:
            weight = node.inputs[1].name if node.inputs[1] is not None else None
            if weight not in weights:
                keep_float.append(node.name)
        elif node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].name in initializers:
            keep_float.append(node.name)  # an embedding: its table is rounded by us or not at all
    return keep_float
