"""Opens a file in the runtime that will run it, with threads and spinning under control.

The one place that knows runtimes apart. Latency and quality are measured through the same session
options, so what is scored is what is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import DeviceError, first_line

Runner = Callable[[Sequence[np.ndarray]], np.ndarray]


def check_runtime(runtime: str) -> None:
    """Raise DeviceError, naming the extra to install, if the runtime is not there."""
    if runtime == "openvino" and importlib.util.find_spec("openvino") is None:
        raise DeviceError("the runtime openvino is not installed; pip install 'autocompress[openvino]'")


def open_artifact(path: Path | str, *, runtime: str, threads: int) -> Runner:
    """A function from inputs (in the order of the graph, each [n, ...]) to the first output.

    Raises:
        DeviceError: the runtime is not installed.
        ValueError: the runtime does not load the file.
    """
    check_runtime(runtime)
    try:
        return _openvino(str(path), threads) if runtime == "openvino" else _onnxruntime(str(path), threads)
    except Exception as error:
        raise ValueError(f"{runtime} cannot load {path}: {first_line(error)}") from error


def input_arrays(path: Path | str, batch: int) -> list[np.ndarray]:
    """Random inputs of the shapes and types that the file asks for, [batch, ...]."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options)
    generator = np.random.default_rng(0)
    arrays: list[np.ndarray] = []
    for entry in session.get_inputs():
        shape = [batch, *(d if isinstance(d, int) else 1 for d in entry.shape[1:])]
        if "float" in entry.type or "double" in entry.type:
            arrays.append(generator.standard_normal(shape).astype(_DTYPES[entry.type]))
        else:
            arrays.append(np.zeros(shape, _DTYPES[entry.type]))
    return arrays


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def _onnxruntime(path: str, threads: int) -> Runner:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    output = [session.get_outputs()[0].name]

    def run(inputs: Sequence[np.ndarray]) -> np.ndarray:
        if len(names) != len(inputs):
            raise ValueError(f"it has the inputs {', '.join(names)}, got {len(inputs)} arrays; give one for each")
        result: np.ndarray = session.run(output, dict(zip(names, inputs, strict=True)))[0]
        return result

    return run


def _openvino(path: str, threads: int) -> Runner:
    import openvino as ov

    core: Any = ov.Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(path), "CPU", hints).create_infer_request()

    def run(inputs: Sequence[np.ndarray]) -> np.ndarray:
        request.infer(list(inputs))
        return np.array(request.get_output_tensor(0).data)

    return run
