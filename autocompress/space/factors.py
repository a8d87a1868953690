"""Two smaller layers in the place of one: what they are, and which layers of a model allow it.

A linear layer and a convolution with 1x1 kernels become a narrow layer with the inputs and another with the outputs.
A larger kernel is split in space: k x 1 first, then 1 x k. How the factors get their values is in `compress/factor.py`,
how narrow they are in `ranks.py`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.records import FactorFacts, LayerFacts, Skip
from autocompress.space.layers import CONVS, replace_module_
from autocompress.space.ranks import kept_rank, taps_of
from autocompress.space.watch import watched

_MOST_SAVED = 0.99  # the ratio that pays where any does
_TRIED = 4  # rank with which it is tried whether a network bears factors


class Factored(nn.Sequential):
    """A layer of a rank: `first` without a bias and few outputs, `second` with the layer's own bias and outputs."""

    first: Any
    second: Any

    def __init__(self, layer: Any, rank: int) -> None:
        """With arbitrary weights, for a linear layer or convolution like this one, on its device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first, second = _linears(layer, rank) if isinstance(layer, nn.Linear) else _convs(layer, rank)
        super().__init__(OrderedDict(first=first, second=second))
        self.to(layer.weight.device).train(layer.training)
        if layer.bias is not None:
            second.bias = nn.Parameter(layer.bias.detach().clone())

    @property
    def rank(self) -> int:
        """Directions that are kept."""
        return len(self.first.weight)


def splits_last(layer: Any) -> bool:
    """Whether the second factor has the last axis of the kernel; else the first has all of it."""
    return isinstance(layer, CONVS) and bool(layer.kernel_size[-1] > 1)


def first_taps(layer: Any) -> int:
    """Places of the first factor's kernel."""
    kernel = getattr(layer, "kernel_size", ())
    count = 1
    for size in kernel[:-1] if splits_last(layer) else kernel:
        count *= size
    return count


def as_matrix(weight: Tensor, *, last: bool) -> Tensor:
    """[out, in, *kernel] as the product that factors make of it: [out, in x taps], or [out x k, in x other taps]."""
    return weight.movedim(-1, 1).flatten(2).flatten(0, 1) if last else weight.flatten(1)


def merged_weight(first: Tensor, second: Tensor) -> Tensor:
    """The weight [out, in, *kernel] of the one layer that computes what both factors compute in a row."""
    last = second.ndim > 2 and second.shape[-1] > 1
    product = as_matrix(second, last=last) @ first.flatten(1)
    if not last:
        return product.reshape(len(second), *first.shape[1:])
    parts = product.reshape(len(second), second.shape[-1], *first.shape[1:-1])
    return parts.movedim(1, -1).contiguous()


def layers_for(modules: Mapping[str, nn.Module], name: str) -> tuple[str, ...]:
    """The layers that a layer of the plan became: itself, or its two factors.

    Args:
        modules: the network's own, by name.
    """
    return (f"{name}.first", f"{name}.second") if isinstance(modules.get(name), Factored) else (name,)


def factored_names(model: nn.Module) -> tuple[str, ...]:
    """Layers that are two factors, in the order of the model."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, Factored))


def find_factors(
    model: nn.Module, example: Sequence[Tensor], layers: Sequence[LayerFacts]
) -> tuple[dict[str, FactorFacts], list[Skip]]:
    """How each layer can be factored, and what cannot be with the reason.

    That the network bears it is tried: some read a layer's weight themselves.

    Args:
        model: in eval mode; it is not changed.
        example: the inputs of one forward, each [batch, ...].
        layers: to look at, as the facts of the model name them.
    """
    if not layers:
        return {}, []
    places = _places(model, example)
    found: dict[str, FactorFacts] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        module: Any = model.get_submodule(layer.name)
        if reason := _reason_to_skip(module):
            reasons[layer.name] = reason
        elif layer.name not in places:
            reasons[layer.name] = "it is not used, or with inputs of several sizes"
        else:
            facts = FactorFacts(taps=first_taps(module), places=places[layer.name])
            if _pays(layer, facts):
                found[layer.name] = facts
            else:
                reasons[layer.name] = "it is so small that factors would hold or multiply as much"
    working = _what_works(model, example, list(found))
    reasons |= dict.fromkeys(found.keys() - working, "the network reads its weight in a way of its own")
    skips = [Skip(name=n.name, what="factor", reason=reasons[n.name]) for n in layers if n.name in reasons]
    return {name: facts for name, facts in found.items() if name in working}, skips


def _pays(layer: LayerFacts, facts: FactorFacts) -> bool:
    rank = kept_rank(
        layer.out_channels, layer.in_channels, taps=taps_of(layer), first_taps=facts.taps, places=facts.places,
        ratio=_MOST_SAVED,
    )  # fmt: skip
    return bool(rank > 0)


def _reason_to_skip(layer: Any) -> str:
    if not isinstance(layer, (*CONVS, nn.Linear)):
        return "only linear layers and convolutions are factored"
    if getattr(layer, "groups", 1) > 1:
        return "its channels are in groups, which are factors already"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return "it pads with something else than zeros"
    return ""


def _places(model: nn.Module, example: Sequence[Tensor]) -> dict[str, float]:
    """By layer, at how many places its first factor is computed per place of its output: the stride of the last axis.

    Layers that are used with several sizes are left out.
    """
    found: dict[str, set[float]] = {}

    def see(name: str, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ratio = inputs[0].shape[-1] / output.shape[-1] if splits_last(layer) else 1.0
        found.setdefault(name, set()).add(ratio)

    with watched(model, lambda m: isinstance(m, (*CONVS, nn.Linear)), see), torch.no_grad():
        model(*example)
    return {name: next(iter(ratios)) for name, ratios in found.items() if len(ratios) == 1}


def _what_works(model: nn.Module, example: Sequence[Tensor], names: list[str]) -> set[str]:
    """Layers in whose place the network takes factors: all at once if it can be, else one by one."""
    if not names or _works(model, example, names):
        return set(names)
    return {name for name in names if _works(model, example, [name])}


@torch.no_grad()
def _works(model: nn.Module, example: Sequence[Tensor], names: Sequence[str]) -> bool:
    """Whether factors compute the same as whole layers with their product as the weight."""
    factored, whole = copy.deepcopy(model), copy.deepcopy(model)
    for name in names:
        layer: Any = whole.get_submodule(name)
        factors = Factored(layer, _TRIED)
        layer.weight.copy_(merged_weight(factors.first.weight, factors.second.weight))
        replace_module_(factored, name, factors)
    wanted = whole(*example)
    try:
        got = factored(*example)
    except Exception:  # the network asks its layer for something that factors do not have: any kind of error
        return False
    return torch.allclose(got, wanted, rtol=1e-3, atol=1e-4 * max(1.0, float(wanted.abs().amax())))


def _linears(layer: nn.Linear, rank: int) -> tuple[nn.Module, nn.Module]:
    first = nn.Linear(layer.in_features, rank, bias=False)
    return first, nn.Linear(rank, layer.out_features, bias=layer.bias is not None)


def _convs(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    axes = len(layer.kernel_size)
    in_second = [splits_last(layer) and axis == axes - 1 for axis in range(axes)]
    kind: Any = next(k for k in CONVS if isinstance(layer, k))
    padding = layer.padding if isinstance(layer.padding, str) else None

    def part(inputs: int, outputs: int, mine: list[bool], *, bias: bool) -> nn.Module:
        def own(values: Sequence[int], other: int) -> tuple[int, ...]:
            return tuple(v if m else other for v, m in zip(values, mine, strict=True))

        made: nn.Module = kind(
            inputs, outputs, own(layer.kernel_size, 1), stride=own(layer.stride, 1), bias=bias,
            padding=padding or own(layer.padding, 0), dilation=own(layer.dilation, 1),
        )  # fmt: skip
        return made

    first = part(layer.in_channels, rank, [not m for m in in_second], bias=False)
    return first, part(rank, layer.out_channels, in_second, bias=layer.bias is not None)
