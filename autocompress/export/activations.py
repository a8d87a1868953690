"""Quantizes activations to uint8 with ONNX Runtime's own quantizer, keeping our integers for the weights.

The ranges come from running calibration samples through the float graph. Weights are given to the
quantizer with the scales they were trained with, so it arrives at the same integers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import MinMaxCalibrater, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

Ranges = dict[str, tuple[float, float]]
# Everything that stands between convolutions; layers of other kinds stay float.
OPS = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
    "ReduceMean", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Flatten", "Slice", "Gather", "Resize",
    "Pad",
)  # fmt: skip

_MASKED = 1e4  # as a mask adds: 256 steps up to it would leave nothing of the scores beside it


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Any:
        return next(self._batches, None)


def calibrate(model: onnx.ModelProto, batches: Sequence[Mapping[str, np.ndarray]]) -> Ranges:
    """Smallest and largest value of every activation over the calibration batches.

    Args:
        model: float graph.
        batches: inputs by name, each [batch, ...].
    """
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        path = Path(folder) / "float.onnx"
        onnx.save(model, path)
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator = MinMaxCalibrater(path, list(OPS), augmented_model_path=augmented)
        calibrator.augment_graph()
        # the calibrator's own session is not optimized and takes three times as long
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        calibrator.infer_session = ort.InferenceSession(augmented, options)
        calibrator.collect_data(_Samples(batches))
        data = calibrator.compute_data()
    return {name: (float(np.min(t.range_value[0])), float(np.max(t.range_value[1]))) for name, t in data.items()}


def masking_nodes(model: onnx.ModelProto, ranges: Ranges, weights: Collection[str]) -> list[str]:
    """Names of nodes that see values as large as those of a mask, and have no weights: they are better left float.

    Args:
        ranges: of the dense network, so that the untrained file and the trained one are the same graph.
        weights: names of initializers that layers are computed with.
    """
    masked = {name for name, (low, high) in ranges.items() if not max(-low, high) < _MASKED}
    touched = ((node.name, {*node.input, *node.output}) for node in model.graph.node)
    return [name for name, tensors in touched if masked & tensors and not tensors & set(weights)]


def quantize_activations(
    model: onnx.ModelProto,
    ranges: Ranges,
    scales: Mapping[str, tuple[np.ndarray, int]],
    keep_float: Sequence[str],
) -> onnx.ModelProto:
    """QDQ graph: uint8 activations with a zero point, int8 weights per output channel.

    Args:
        model: float graph; it is changed.
        ranges: as `calibrate` gives them.
        scales: initializer name to (scale [out], axis of the output channels).
        keep_float: names of nodes that are left alone; what they alone touch needs no range.
    """
    model = onnx.shape_inference.infer_shapes(model)
    overrides = {
        name: [
            {"axis": axis, "quant_type": QuantType.QInt8, "scale": s, "zero_point": np.int8(0)}
            for s in scale.astype(np.float32)
        ]
        for name, (scale, axis) in scales.items()
    }
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
        if np.isfinite([low, high]).all()
    }
    with _quiet_root_logger():
        return _quantize(model, data, overrides, keep_float)


def _quantize(
    model: onnx.ModelProto, data: Mapping[str, TensorData], overrides: Mapping[str, Any], keep_float: Sequence[str]
) -> onnx.ModelProto:
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, dict(data)),
        nodes_to_quantize=[],
        nodes_to_exclude=list(keep_float),
        op_types_to_quantize=list(OPS),
        extra_options={
            "TensorQuantOverrides": dict(overrides),
            "QuantizeBias": False,
            "QDQDisableWeightAdjustForInt32Bias": True,
        },
    )
    quantizer.quantize_model()
    return quantizer.model.model


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Keep the quantizer's remarks off the root logger; logging to it without a handler would install one for good."""
    root, silent = logging.getLogger(), logging.NullHandler()

    def refuse(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    root.addHandler(silent)
    root.addFilter(refuse)
    try:
        yield
    finally:
        root.removeFilter(refuse)
        root.removeHandler(silent)
