"""Refuses a file that is not valid, not finite, or not the network it was made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from autocompress.export.to_onnx import input_names

_FLOAT_TOLERANCE = 1e-2
_UINT8_TOLERANCE = 1.0


def check_artifact(artifact: bytes, model: nn.Module, inputs: Sequence[Tensor], *, exact: bool) -> float:
    """How far the file is from torch: RMS difference over RMS of torch's outputs.

    Args:
        artifact: the bytes that ship.
        model: what they were made from, in eval mode, weights settled.
        inputs: each [n, ...].
        exact: True for float activations, where only the order of additions differs. With uint8 activations
            rounding is part of the plan, and only a file that lost the signal altogether is refused.
    Raises:
        ValueError: the file is invalid, gives values that are not finite, or is too far from torch.
    """
    proto = onnx.load_from_string(artifact)
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(artifact, options)
    got = session.run(None, {n: t.numpy() for n, t in zip(input_names(len(inputs)), inputs, strict=True)})[0]
    with torch.no_grad():
        wanted = model(*inputs).numpy()
    if not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        raise ValueError("its outputs are not finite; training diverged")
    if got.shape != wanted.shape:
        raise ValueError(f"its outputs have shape {got.shape}, torch gives {wanted.shape}")
    distance = float(np.sqrt(np.mean((got - wanted) ** 2)) / max(1e-6, np.sqrt(np.mean(wanted**2))))
    if distance > (_FLOAT_TOLERANCE if exact else _UINT8_TOLERANCE):
        raise ValueError(f"its outputs are off by {distance:.1%} of torch's")
    return distance
