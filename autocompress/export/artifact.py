"""Emits the file of a plan: fold, fill, quantize activations, pack. The one place that knows that order.

Emitting costs milliseconds because the network was traced once; an untrained network has the same
bytes and speed as a trained one, so a plan's size and latency are known before any training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from autocompress.compress.quantize import QuantizedWeight
from autocompress.export.activations import Ranges, calibrate, quantize_activations
from autocompress.export.fold import Pairs, find_pairs, fold
from autocompress.export.pack import PackedWeight, pack_float, pack_integer, tidy, to_bytes
from autocompress.export.to_onnx import Skeleton, fill, input_names, strip, trace, trace_skeleton
from autocompress.plan import CompressionPlan

_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """What all artifacts of a study share.

    Attributes:
        pairs: batch norms that fold into the layer before them.
        samples: inputs for calibration and for comparing with torch, each [n, ...].
        ranges: activation ranges of the dense network, good enough for files that are only timed.
    """

    pairs: Pairs
    skeleton: Skeleton
    samples: tuple[Tensor, ...]
    ranges: Ranges


def make_exporter(model: nn.Module, samples: Sequence[Tensor]) -> Exporter:
    """Trace `model` once.

    Args:
        model: dense, in eval mode.
        samples: calibration inputs, each [n, ...] with n at least 2.
    Raises:
        UsageError: the network cannot be exported.
    """
    example = tuple(t[:2] for t in samples)
    pairs = find_pairs(model, example)
    folded, _ = fold(model, pairs)
    skeleton = trace_skeleton(folded, example)
    ranges = _calibrate(fill(skeleton, folded), samples)
    return Exporter(pairs=pairs, skeleton=skeleton, samples=tuple(samples), ranges=ranges)


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
        model: pruned, in eval mode, its weights settled to the values of `quantized`.
        trained: False for a file that is only weighed and timed; its activation ranges are the dense network's.
    Raises:
        ValueError: the file would not compute what the network computes.
    """
    folded, integers = fold(model, exporter.pairs, quantized)
    graph, skeleton = _float_graph(exporter, folded)
    halves = [n for n, bits in plan.weight_bits.items() if bits == 16 and f"{n}.weight" in skeleton.sites]
    packed = {n: _packed(skeleton, n, q) for n, q in integers.items() if f"{n}.weight" in skeleton.sites}
    half_sites = [skeleton.sites[f"{n}.weight"].name for n in halves]
    if plan.activations == "float":
        return to_bytes(tidy(pack_float(graph, list(packed.values()), half_sites)))
    weights = {w.name: (w.scale, w.axis) for w in packed.values()}
    keep_float = _name_nodes(graph, weights)
    proto = ir.to_proto(graph)
    known = not trained and skeleton is exporter.skeleton
    ranges = exporter.ranges if known else _calibrate(graph, exporter.samples)
    quantized_graph = ir.from_proto(quantize_activations(proto, ranges, weights, keep_float))
    used = [w for w in packed.values() if f"{w.name}_quantized" in quantized_graph.graph.initializers]
    left = [w for w in packed.values() if w not in used]
    pack_float(pack_integer(strip(quantized_graph), used), left, half_sites)
    return to_bytes(tidy(quantized_graph))


def _float_graph(exporter: Exporter, folded: nn.Module) -> tuple[ir.Model, Skeleton]:
    """The filled skeleton if it computes what torch computes, else a graph traced from the network itself."""
    example = tuple(t[:16] for t in exporter.samples)
    with torch.no_grad():
        wanted = folded(*example).numpy()
    try:
        graph = fill(exporter.skeleton, folded)
        if _agrees(graph, example, wanted):
            return graph, exporter.skeleton
    except Exception:  # a shape that the skeleton holds as a constant: any kind of error can come of it
        pass
    skeleton = trace(folded, tuple(t[:2] for t in exporter.samples))
    graph = fill(skeleton, folded)
    if not _agrees(graph, example, wanted):
        raise ValueError("the exported graph computes something else than the network")
    return graph, skeleton


def _agrees(graph: ir.Model, example: Sequence[Tensor], wanted: np.ndarray) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), options)
    got = session.run(None, _feed(example))[0]
    tolerance = 1e-3 * max(1.0, float(np.abs(wanted).max()))
    return got.shape == wanted.shape and bool(np.allclose(got, wanted, rtol=1e-3, atol=tolerance, equal_nan=True))


def _calibrate(graph: ir.Model, samples: Sequence[Tensor]) -> Ranges:
    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(graph))
    step = 64
    starts = range(0, len(samples[0]), step)
    return calibrate(proto, [_feed([t[s : s + step] for t in samples]) for s in starts])


def _feed(inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in zip(input_names(len(inputs)), inputs, strict=True)}


def _packed(skeleton: Skeleton, layer: str, quantized: QuantizedWeight) -> PackedWeight:
    site = skeleton.sites[f"{layer}.weight"]
    integers = quantized.integers.numpy()
    return PackedWeight(
        name=site.name,
        integers=np.ascontiguousarray(integers.T) if site.transposed else integers,
        axis=1 if site.transposed else 0,
        scale=quantized.scale.numpy(),
        bits=quantized.bits,
    )


def _name_nodes(graph: ir.Model, weights: Mapping[str, object]) -> list[str]:
    """Name every node; return those that must stay float: layers without integers, products of two activations."""
    keep_float = []
    for index, node in enumerate(graph.graph):
        node.name = f"n{index}"
        if node.op_type in _WEIGHTED:
            weight = node.inputs[1].name if node.inputs[1] is not None else None
            if weight not in weights:
                keep_float.append(node.name)
    return keep_float
