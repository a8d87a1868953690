"""Emits the file of a plan: fold, fill, quantize activations, pack. The one place that knows that order.

Emitting costs milliseconds because the network was traced once; an untrained network has the same
bytes and speed as a trained one, so a plan's size and latency are known before any training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from autocompress.compress.quantize import QuantizedWeight
from autocompress.errors import UsageError
from autocompress.export.activations import Ranges, calibrate, quantize_activations
from autocompress.export.fold import Pairs, find_pairs, fold
from autocompress.export.pack import PackedWeight, pack_float, pack_integer, tidy, to_bytes
from autocompress.export.to_onnx import Site, Skeleton, fill, input_names, strip, trace, trace_skeleton
from autocompress.plan import CompressionPlan

Widths = tuple[tuple[str, tuple[int, ...]], ...]  # shape of every parameter by its name
_MOST_RETRACED = 8
_MOST_CALIBRATION = 128  # more samples move the ranges by less than a step and cost most of the time
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """What all artifacts of a study share.

    Attributes:
        pairs: batch norms that fold into the layer before them.
        skeleton: of the dense network; it need not hold for every narrower one.
        samples: inputs for calibration and for comparing with torch, each [n, ...].
        ranges: activation ranges of the dense network, good enough for files that are only timed.
        retraced: by widths, what had to be traced anew; a trial asks twice for the same.
    """

    pairs: Pairs
    skeleton: Skeleton
    samples: tuple[Tensor, ...]
    ranges: Ranges
    retraced: dict[Widths, Skeleton] = field(default_factory=dict, repr=False)


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
    skeleton = trace_skeleton(folded, example)
    if not _computes(skeleton, folded, samples):  # a value of a parameter went into a constant: trace the real ones
        skeleton = trace(folded, example)
        if not _computes(skeleton, folded, samples):
            raise UsageError(
                "the model cannot be exported to ONNX: the exported graph computes something else than its forward; "
                "make sure that the forward in eval mode is deterministic and does not depend on the batch size"
            )
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
    packed = [_packed(site, q) for n, q in integers.items() for site in skeleton.sites.get(f"{n}.weight", ())]
    half_layers = [n for n, bits in plan.weight_bits.items() if bits == 16]
    half_sites = [site.name for n in half_layers for site in skeleton.sites.get(f"{n}.weight", ())]
    if plan.activations == "float":
        return to_bytes(tidy(pack_float(graph, packed, half_sites)))
    weights = {w.name: (w.scale, w.axis) for w in packed}
    keep_float = _name_nodes(graph, weights)
    proto = ir.to_proto(graph)
    known = not trained and skeleton is exporter.skeleton
    ranges = exporter.ranges if known else _calibrate(graph, exporter.samples)
    quantized_graph = ir.from_proto(quantize_activations(proto, ranges, weights, keep_float))
    initializers = quantized_graph.graph.initializers
    used = [w for w in packed if f"{w.name}_quantized" in initializers]
    left = [w for w in packed if f"{w.name}_quantized" not in initializers]
    pack_float(pack_integer(strip(quantized_graph), used), left, half_sites)
    return to_bytes(tidy(quantized_graph))


def _refuse_other_outputs(model: nn.Module, example: Sequence[Tensor]) -> None:
    with torch.no_grad():
        output = model(*example)
    if not isinstance(output, Tensor):
        raise UsageError(
            f"the model returns a {type(output).__name__}, one tensor was expected; "
            "wrap it in a module whose forward returns the logits alone"
        )


def _float_graph(exporter: Exporter, folded: nn.Module) -> tuple[ir.Model, Skeleton]:
    """A filled skeleton that computes what torch computes; traced from the network itself where none does."""
    # by name: their order depends on which layers were rounded
    widths = tuple(sorted((name, tuple(p.shape)) for name, p in folded.named_parameters()))
    for skeleton in (exporter.skeleton, exporter.retraced.get(widths)):
        if skeleton is not None and (graph := _filled(skeleton, folded, exporter.samples)):
            return graph, skeleton
    example = tuple(t[:2] for t in exporter.samples)
    skeleton = trace_skeleton(folded, example)
    if graph := _filled(skeleton, folded, exporter.samples):
        while len(exporter.retraced) >= _MOST_RETRACED:
            exporter.retraced.pop(next(iter(exporter.retraced)))
        exporter.retraced[widths] = skeleton
        return graph, skeleton
    skeleton = trace(folded, example)
    if graph := _filled(skeleton, folded, exporter.samples):
        return graph, skeleton
    raise ValueError("the exported graph computes something else than the network")


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
    step = 64
    starts = range(0, min(len(samples[0]), _MOST_CALIBRATION), step)
    return calibrate(proto, [_feed([t[s : s + step] for t in samples]) for s in starts])


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
