"""Whether products of 8-bit integers are added exactly on this processor.

Without integer dot products (VNNI) ONNX Runtime adds them in pairs, in 16 bits that end at 32,767. Large activations
and weights of 8 bits then give another sum than elsewhere; weights of up to 7 bits cannot.
"""

from __future__ import annotations

from functools import cache

import numpy as np

INEXACT = (
    "this processor adds 8-bit products in 16 bits: a file with integer activations and weights of 8 bits may answer "
    "differently on one with integer dot products (VNNI)"
)
_LARGEST = (255, 127)  # activation, weight


@cache
def saturates() -> bool:
    """Whether the runtime's sum of two of the largest products, 64,770, comes out smaller."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    weights = onnx.numpy_helper.from_array(np.full((2, 1), _LARGEST[1], np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["values", "weights"], ["sum"])],
        "saturation",
        [helper.make_tensor_value_info("values", TensorProto.UINT8, [1, 2])],
        [helper.make_tensor_value_info("sum", TensorProto.INT32, [1, 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    found = session.run(None, {"values": np.full((1, 2), _LARGEST[0], np.uint8)})[0]
    return int(found.item()) < 2 * _LARGEST[0] * _LARGEST[1]
