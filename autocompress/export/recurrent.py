"""What ONNX's recurrent nodes need: torch's matrices in their layout, and no sizes that pruning would change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from autocompress.compress.quantize import QuantizedWeight
from autocompress.export.pack import PackedWeight

RECURRENT = ("LSTM", "GRU", "RNN")
# Where the gates of torch stand in ONNX's order: LSTM i f g o to i o f c, GRU r z n to z r h.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def recurrent_arrays(module: nn.RNNBase) -> dict[str, np.ndarray]:
    """Weights [directions, gates * hidden, in] and both biases joined [directions, 2 * gates * hidden], per layer."""

    def part(kind: str, end: str) -> np.ndarray:
        return _in_onnx_order(getattr(module, f"{kind}_{end}").detach().cpu().numpy(), module.mode)

    found: dict[str, np.ndarray] = {}
    for layer in range(module.num_layers):
        ends = _ends(module, layer)
        for kind in ("weight_ih", "weight_hh"):
            found[f"{kind}_l{layer}"] = np.stack([part(kind, e) for e in ends])
        if module.bias:
            joined = [np.concatenate([part("bias_ih", e), part("bias_hh", e)]) for e in ends]
            found[f"bias_l{layer}"] = np.stack(joined)
    return found


def recurrent_weights(
    model: nn.Module, integers: Mapping[str, QuantizedWeight], sites: Mapping[str, Sequence[Any]]
) -> list[PackedWeight]:
    """The integers of all recurrent layers as they stand in the graph, both directions joined.

    Args:
        integers: by "<layer>.<parameter>", as `settle_weights_` gives them.
        sites: of the skeleton; the joined matrices are under "<layer>:<parameter>".
    """
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.RNNBase) or f"{name}.weight_ih_l0" not in integers:
            continue
        for layer in range(module.num_layers):
            for kind in ("weight_ih", "weight_hh"):
                parts = [integers[f"{name}.{kind}_{end}"] for end in _ends(module, layer)]
                whole = np.stack([_in_onnx_order(p.integers.numpy(), module.mode) for p in parts])
                scale = np.stack([_in_onnx_order(p.scale.numpy(), module.mode) for p in parts])
                found += [
                    PackedWeight(
                        name=site.name, integers=whole, axis=1, scale=scale[..., None], bits=parts[0].bits
                    )
                    for site in sites.get(f"{name}:{kind}_l{layer}", ())
                ]  # fmt: skip
    return found


def _ends(module: nn.RNNBase, layer: int) -> tuple[str, ...]:
    return (f"l{layer}", f"l{layer}_reverse")[: 2 if module.bidirectional else 1]


def _in_onnx_order(array: np.ndarray, mode: str) -> np.ndarray:
    """Rows [gates * hidden, ...] with the gates in the order of ONNX."""
    order = _GATES.get(mode, (0,))
    blocks = np.split(array, len(order))
    return np.concatenate([blocks[i] for i in order])


def start_from_zero_(graph: ir.Graph) -> None:
    """Drop initial states of zeros, in place: ONNX starts from zero by itself, and they hold the hidden size."""
    for node in graph:
        if node.op_type not in RECURRENT:
            continue
        for index in (5, 6):
            if index < len(node.inputs) and _is_zero(node.inputs[index]):
                node.replace_input_with(index, None)
        last = max(i for i, value in enumerate(node.inputs) if value is not None)
        node.resize_inputs(last + 1)


def _is_zero(value: ir.Value | None) -> bool:
    """Whether a value is zero whatever the input: an expanded or sliced constant of zeros."""
    while value is not None:
        if value.const_value is not None:
            return not value.const_value.numpy().any()
        node = value.producer()
        if node is None or node.op_type not in ("Expand", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Identity"):
            return False
        value = node.inputs[0]
    return False


def set_hidden_sizes_(graph: ir.Graph) -> None:
    """Make `hidden_size` that of the weights, in place."""
    for node in graph:
        recurrence = node.inputs[2] if node.op_type in RECURRENT else None  # [directions, gates * hidden, hidden]
        if recurrence is not None and recurrence.const_value is not None:
            node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", recurrence.const_value.shape[2])
