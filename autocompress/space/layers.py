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
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def find_layers(model: nn.Module, *, skip: tuple[str, ...] = ()) -> tuple[list[LayerFacts], list[Skip]]:
    """Layers in the order of the model, and what cannot be quantized with the reason.

    Args:
        model: any module; layers are `nn.Conv*d` and `nn.Linear`, subclasses included.
        skip: names of layers the user wants left alone.
    """
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    layers: list[LayerFacts] = []
    skips: list[Skip] = []
    for name, module in model.named_modules():
        if reason := _reason_to_skip(name, module, uses, skip):
            skips.append(Skip(name=name, what="quantize", reason=reason))
        elif isinstance(module, (*CONVS, nn.Linear)):
            layers.append(_facts(name, module))
    return layers, skips


def layer_kind(module: Any) -> str:
    """ "depthwise", "conv" or "linear"."""
    if isinstance(module, nn.Linear):
        return "linear"
    depthwise = module.groups > 1 and module.groups == module.in_channels
    return "depthwise" if depthwise else "conv"


def _facts(name: str, module: Any) -> LayerFacts:
    weight = module.weight
    return LayerFacts(  # weight: [out, in / groups, *kernel]
        name=name,
        kind=layer_kind(module),
        weights=weight.numel(),
        out_channels=weight.shape[0],
        in_channels=weight.shape[1],
    )


def _reason_to_skip(name: str, module: nn.Module, uses: Counter[int], skip: tuple[str, ...]) -> str:
    if isinstance(module, TRANSPOSED):
        return "transposed convolutions stay float"
    if isinstance(module, RECURRENT):
        return "recurrent layers stay float"
    if isinstance(module, nn.Embedding):
        return "embeddings stay float"
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return "the joined query, key and value projection of nn.MultiheadAttention stays float"
    if not isinstance(module, (*CONVS, nn.Linear)):
        return ""
    if name in skip:
        return "listed under skip in the study file"
    if not isinstance(module.weight, nn.Parameter):
        return "its weight is computed by a parametrization of its own"
    if uses[id(module.weight)] > 1:
        return "its weight is shared with another layer"
    return ""


def count_macs(model: nn.Module, example: Sequence[Tensor]) -> int:
    """Multiply-accumulates of all Conv and Linear layers for one sample.

    Args:
        example: the inputs of one forward, each [batch, ...]; the count is divided by the batch.
    """
    modules = dict(model.named_modules())
    return sum(count * _weights_per_position(modules[n]) for n, count in output_positions(model, example).items())


def output_positions(model: nn.Module, example: Sequence[Tensor]) -> dict[str, int]:
    """Places at which each Conv and Linear layer is computed for one sample, all its uses together.

    Args:
        example: the inputs of one forward, each [batch, ...].
    """
    found: dict[str, int] = {}

    def count(name: str, module: Any, _: object, output: Tensor) -> None:
        found[name] = found.get(name, 0) + output.numel() // (len(example[0]) * module.weight.shape[0])

    with watched(model, lambda m: isinstance(m, (*CONVS, nn.Linear)), count), torch.no_grad():
        model(*example)
    return found


def _weights_per_position(layer: Any) -> int:
    return int(layer.weight.numel())  # [out, in / groups, *kernel]: each weight is used once per place
