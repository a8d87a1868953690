"""Finds the layers whose weights can be quantized, and says why the others are left alone.

Looks at modules only; nothing is traced, so a forward with control flow is no obstacle here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.records import LayerFacts, Skip
from autocompress.space.watch import watched

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
QUANTIZED = (*CONVS, nn.Linear, nn.RNNBase, nn.Embedding)


def find_layers(model: nn.Module, *, skip: tuple[str, ...] = ()) -> tuple[list[LayerFacts], list[Skip]]:
    """Layers in the order of the model, and what cannot be quantized with the reason.

    Args:
        model: any module; layers are `nn.Conv*d`, `nn.Linear`, `nn.Embedding` and recurrent ones, subclasses included.
        skip: names of layers the user wants left alone.
    """
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    layers: list[LayerFacts] = []
    skips: list[Skip] = []
    for name, module in model.named_modules():
        if reason := _reason_to_skip(name, module, uses, skip):
            skips.append(Skip(name=name, what="quantize", reason=reason))
        elif isinstance(module, QUANTIZED):
            layers.append(_facts(name, module))
    return layers, skips


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters whose bits are chosen together: `weight`, or all matrices of a recurrent layer."""
    if isinstance(module, nn.RNNBase):
        return tuple(n for n in module._flat_weights_names if n.startswith("weight_"))
    return ("weight",)


def layer_kind(module: Any) -> str:
    """ "depthwise", "conv", "linear", "recurrent" or "embedding"."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.RNNBase):
        return "recurrent"
    if isinstance(module, nn.Embedding):
        return "embedding"
    depthwise = module.groups > 1 and module.groups == module.in_channels
    return "depthwise" if depthwise else "conv"


def _facts(name: str, module: Any) -> LayerFacts:
    if isinstance(module, nn.RNNBase):
        return _recurrent_facts(name, module)
    weight = module.weight
    return LayerFacts(  # weight: [out, in / groups, *kernel]
        name=name,
        kind=layer_kind(module),
        weights=weight.numel(),
        out_channels=weight.shape[0],
        in_channels=weight.shape[1],
    )


def _recurrent_facts(name: str, module: Any) -> LayerFacts:
    """Outputs are the hidden units of one direction; each sees what all of the layer's matrices have as columns."""
    weights = sum(getattr(module, n).numel() for n in weight_names(module))
    blocks = len(module.weight_hh_l0) * (2 if module.bidirectional else 1)  # rows of gates, of every direction
    return LayerFacts(
        name=name, kind="recurrent", weights=weights, out_channels=module.hidden_size, in_channels=weights // blocks
    )


def _reason_to_skip(name: str, module: nn.Module, uses: Counter[int], skip: tuple[str, ...]) -> str:
    if isinstance(module, TRANSPOSED):
        return "transposed convolutions stay float"
    if isinstance(module, nn.RNNCellBase):
        return "cells of recurrent layers stay float"
    if isinstance(module, nn.RNNBase) and module.proj_size:
        return "recurrent layers with a projection stay float"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding that is renormalised while it runs stays float"
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return "the joined query, key and value projection of nn.MultiheadAttention stays float"
    if not isinstance(module, QUANTIZED):
        return ""
    if name in skip:
        return "listed under skip in the study file"
    weights = [getattr(module, n) for n in weight_names(module)]
    if not all(isinstance(w, nn.Parameter) for w in weights):
        return "its weight is computed by a parametrization of its own"
    if any(uses[id(w)] > 1 for w in weights):
        return "its weight is shared with another layer"
    return ""


def replace_module_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the model has the submodule of this name, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def count_macs(model: nn.Module, example: Sequence[Tensor]) -> int:
    """Multiply-accumulates of all Conv, Linear and recurrent layers for one sample.

    Args:
        example: the inputs of one forward, each [batch, ...]; the count is divided by the batch.
    """
    modules = dict(model.named_modules())
    return sum(count * _weights_per_position(modules[n]) for n, count in output_positions(model, example).items())


def output_positions(model: nn.Module, example: Sequence[Tensor]) -> dict[str, int]:
    """Places or steps at which each Conv, Linear and recurrent layer is computed for one sample, all its uses together.

    Embeddings multiply nothing and are left out.

    Args:
        example: the inputs of one forward, each [batch, ...].
    """
    found: dict[str, int] = {}

    def count(name: str, module: Any, _: object, output: Any) -> None:
        if isinstance(module, nn.RNNBase):
            places = output[0].numel() // output[0].shape[-1]
        else:
            places = output.numel() // module.weight.shape[0]
        found[name] = found.get(name, 0) + places // len(example[0])

    with watched(model, lambda m: isinstance(m, (*CONVS, nn.Linear, nn.RNNBase)), count), torch.no_grad():
        model(*example)
    return found


def _weights_per_position(layer: Any) -> int:
    # [out, in / groups, *kernel] or [gates * hidden, in]: each weight is used once per place
    return sum(int(getattr(layer, name).numel()) for name in weight_names(layer))
