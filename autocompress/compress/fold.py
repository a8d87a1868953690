"""Folds batch norms into the layers before them, float weights and integers alike, and puts them back.

Multiplying an output channel by a constant leaves its integers as they are: only the scale
changes, and a negative constant flips their signs. So rounding survives the fold exactly. A norm that is put back
changes nothing, but holds the statistics of what passes through it, so that they can be estimated anew when the
network is narrowed.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from autocompress.compress.drop import is_dropped
from autocompress.compress.quantize import QuantizedWeight
from autocompress.space.factors import layers_for
from autocompress.space.layers import CONVS, replace_module_
from autocompress.space.watch import watched

_NOTHING = 1e-12  # scale of a channel that is multiplied by zero

Pairs = tuple[tuple[str, str], ...]


def find_pairs(model: nn.Module, example: Sequence[Tensor]) -> Pairs:
    """(layer, batch norm) wherever one forward hands a layer's output straight to a batch norm.

    A pair is kept only if each of the two runs once and the folded network computes the same. That is tried
    with arbitrary statistics: those of an untrained network (mean 0, variance 1) would hide a difference.

    Args:
        model: in eval mode.
        example: the inputs of one forward, each [batch, ...].
    """
    probe = _with_arbitrary_statistics(model)
    candidates = _observe(probe, example)
    with torch.no_grad():
        wanted = probe(*example)

        def holds(pairs: Pairs) -> bool:
            try:
                return _same(fold(probe, pairs)[0](*example), wanted)
            except Exception:  # a pair of a kind that torch cannot fuse is none
                return False

        def working(pairs: Pairs) -> Pairs:
            if not pairs or holds(pairs):
                return pairs
            middle = len(pairs) // 2
            return working(pairs[:middle]) + working(pairs[middle:]) if middle else ()

        return working(candidates)


def _with_arbitrary_statistics(model: nn.Module) -> nn.Module:
    probe = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in probe.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean += norm.running_var.sqrt() * torch.rand(len(norm.running_mean), generator=generator)
                norm.running_var *= 0.8 + 0.4 * torch.rand(len(norm.running_var), generator=generator)
    return probe


def fold(
    model: nn.Module, pairs: Pairs, quantized: Mapping[str, QuantizedWeight] | None = None
) -> tuple[nn.Module, dict[str, QuantizedWeight]]:
    """A copy of `model` without the paired batch norms, and the integers under their new scales.

    Pairs that went with a dropped block are passed over.

    Args:
        model: in eval mode, weights settled (no parametrizations).
        quantized: integers per layer, as `settle_weights_` gives them.
    """
    folded = copy.deepcopy(model)
    integers = dict(quantized or {})
    for gone in fold_(folded, pairs):
        if gone.layer in integers:
            integers[gone.layer] = _rescale(integers[gone.layer], gone.norm)
            _fill_gone_(folded.get_submodule(gone.layer), integers[gone.layer])
    return folded, integers


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedNorm:
    """A batch norm that was folded away.

    Attributes:
        layer: name of the layer that it was folded into.
        name: of the place where it was.
        norm: the module itself.
        biased: whether the layer had a bias of its own.
    """

    layer: str
    name: str
    norm: Any
    biased: bool


def fold_(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> list[FoldedNorm]:
    """The same in place, for float weights; what it returns goes to `unfold_`.

    Args:
        model: in eval mode, weights settled.
    """
    gone = []
    modules = dict(model.named_modules())
    for planned, name in pairs:
        if is_dropped(modules, planned) or is_dropped(modules, name):
            continue
        layer_name = layers_for(modules, planned)[-1]  # of two factors, the one with the outputs
        layer, norm = modules[layer_name], modules[name]
        gone.append(FoldedNorm(layer=layer_name, name=name, norm=norm, biased=layer.bias is not None))
        _fold_pair_(layer, norm)
        replace_module_(model, name, nn.Identity())
    return gone


@torch.no_grad()
def unfold_(model: nn.Module, gone: Sequence[FoldedNorm], samples: Sequence[Tensor]) -> None:
    """Put batch norms back, in place, so that the network has its own parameters again and computes what it did.

    Args:
        model: as `fold_` left it, in eval mode, trained since, its weights rounded or not.
        gone: norms with a scale and a shift of their own.
        samples: inputs, each [n, ...], for the statistics.
    """
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {model.get_submodule(folded.layer) for folded in gone}

    def see(name: str, _: nn.Module, __: object, output: Tensor) -> None:
        but_channels = [axis for axis in range(output.ndim) if axis != 1]
        moments[name] = output.mean(but_channels), output.var(but_channels, correction=0)

    with watched(model, layers.__contains__, see):
        model(*samples)
    for folded in gone:
        layer: Any = model.get_submodule(folded.layer)
        mean, variance = moments[folded.layer]
        folded.norm.bias.copy_(mean)
        if not folded.biased:
            mean = mean - layer.bias
            layer.bias = None
        folded.norm.weight.copy_((variance + folded.norm.eps).sqrt())
        folded.norm.running_mean.copy_(mean)
        folded.norm.running_var.copy_(variance)
        replace_module_(model, folded.name, folded.norm.eval())


def _fold_pair_(layer: Any, norm: Any) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    layer.bias.requires_grad_(layer.weight.requires_grad)  # one that is new would not be trained


def _rescale(quantized: QuantizedWeight, norm: Any) -> QuantizedWeight:
    with torch.no_grad():
        gain = (norm.running_var + norm.eps).rsqrt()
        factor = gain if norm.weight is None else gain * norm.weight
        sign = factor.sign().to(torch.int8).reshape(-1, *[1] * (quantized.integers.ndim - 1))
        gone = factor == 0
        if quantized.table is None:
            scale = torch.where(gone, torch.ones_like(factor), quantized.scale * factor.abs())
        else:  # the table may have no zero
            sign = torch.where(sign == 0, torch.ones_like(sign), sign)
            scale = torch.where(gone, torch.full_like(factor, _NOTHING), quantized.scale * factor.abs())
        return replace(quantized, integers=quantized.integers * sign, scale=scale)


@torch.no_grad()
def _fill_gone_(layer: Any, quantized: QuantizedWeight) -> None:
    """Channels that were multiplied by zero get what their integers say, which is next to nothing."""
    gone = quantized.scale == _NOTHING
    if quantized.table is not None and gone.any():
        layer.weight[gone] = quantized.dequantize()[gone]


def _observe(model: nn.Module, example: Sequence[Tensor]) -> Pairs:
    produced: dict[tuple[int, int], str] = {}  # by identity and version: an in-place activation makes another tensor
    kept: list[Tensor] = []  # ids stay unique only while the tensors live
    runs: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def see(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[name] += 1
        if isinstance(module, _BatchNorm):
            before = produced.get((id(inputs[0]), inputs[0]._version))
            if before is not None and module.running_mean is not None and not _is_per_place(model, before, inputs[0]):
                pairs.append((before, name))
        elif isinstance(output, Tensor):
            produced[id(output), output._version] = name
            kept.append(output)

    with watched(model, lambda m: isinstance(m, (*CONVS, nn.Linear, _BatchNorm)), see), torch.no_grad():
        model(*example)
    layers = Counter(layer for layer, _ in pairs)  # a layer that feeds two norms can be folded into neither
    return tuple(p for p in pairs if runs[p[0]] == runs[p[1]] == layers[p[0]] == 1)


def _is_per_place(model: nn.Module, layer: str, output: Tensor) -> bool:
    """Whether a layer's channels are not those of a norm: of a linear layer's [n, places, out] they are the places."""
    return isinstance(model.get_submodule(layer), nn.Linear) and output.ndim != 2


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * max(1.0, b.abs().max().item())))
