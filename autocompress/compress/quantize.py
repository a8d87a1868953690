"""Rounds weights to a few bits: symmetric integers with one scale per output channel.

The integers are evenly spaced, or those of a table that the layer's channels share (`compress/levels.py`).

Works as a parametrization on any Conv, Linear, Embedding or recurrent layer, so nothing is traced and training goes
on through the rounding. What the integers become in a file is decided in `export/`; activations are
quantized there too, by the runtime's own tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.compress.drop import is_dropped
from autocompress.compress.levels import fit_levels, has_table, nearest, refit, table_of
from autocompress.compress.sparsify import Mask
from autocompress.plan import Levels
from autocompress.space.factors import layers_for
from autocompress.space.layers import weight_names

_SMALLEST = 1e-18
_REFRESH = 16  # steps of the training between two fits of a codebook
_OF_PARAMETRIZATION = re.compile(r"parametrizations\.\w+\.\d+\.")
_ORIGINAL = re.compile(r"parametrizations\.(\w+)\.original$")
_CLIP_SHARES = torch.linspace(0.3, 1.0, 36)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """The integers of one layer's weight and what to multiply them by.

    Attributes:
        integers: int8, shaped like the weight [out, in / groups, *kernel], in [-limit, limit], or of the table.
        scale: float32 [out], above 0.
        bits: 1 to 6, or 8.
        table: int8, the at most 2^bits values that occur, rising and symmetric about 0; None: all in [-limit, limit].
    """

    integers: Tensor
    scale: Tensor
    bits: int
    table: Tensor | None = None

    def dequantize(self) -> Tensor:
        """The float weight that the integers stand for."""
        return self.integers.to(torch.float32) * _as_column(self.scale, self.integers.ndim)


def limit_for(bits: int) -> int:
    """Largest magnitude at `bits`: 2^(bits-1) - 1, so that zero is exact and both signs reach as far."""
    return (1 << bits - 1) - 1


def search_scale(weight: Tensor, bits: int) -> Tensor:
    """The scale per output channel with the least squared rounding error, [out].

    A grid of clip points from 0.3 to 1.0 of the channel's largest magnitude is tried; a channel of
    zeros, or of less than 1e-18, gets scale 1.

    Args:
        weight: [out, ...].
    """
    flat = weight.detach().float().flatten(1)
    limit = limit_for(bits)
    peak = flat.abs().amax(1)
    # below _SMALLEST the squares of the errors and the scale itself would underflow
    empty = peak <= _SMALLEST
    peak = torch.where(empty, torch.full_like(peak, limit), peak)
    best, best_error = peak / limit, torch.where(empty, 0.0, torch.inf)
    for share in _CLIP_SHARES:
        scale = peak * share / limit
        rounded = (flat / scale[:, None]).round().clamp(-limit, limit) * scale[:, None]
        error = (rounded - flat).pow(2).sum(1)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return best


class FakeQuantize(nn.Module):
    """Parametrization that rounds a weight and lets gradients through, to the weight and to the scale.

    Args:
        weight: the float weight the scale is searched for.
        bits: 1 to 6, or 8.
        levels: evenly spaced, or the kind of table.
        zero: whether zero must be among the values of a table; it always is among evenly spaced ones.
    Source: Esser et al. 2020, arXiv:1902.08153 (learned step size); the scale is kept as a logarithm,
        which stays positive and trains with the weights' own learning rate.
    """

    magnitudes: Tensor | None

    def __init__(self, weight: Tensor, bits: int, levels: Levels = "uniform", *, zero: bool = False) -> None:
        super().__init__()
        self.bits, self.levels, self._count = bits, levels, 0
        magnitudes, scale = None, None
        if has_table(bits, levels):
            magnitudes, scale = fit_levels(weight, bits, levels, zero=zero)
        self.register_buffer("magnitudes", magnitudes)
        self.log_scale = nn.Parameter((search_scale(weight, bits) if scale is None else scale).log())

    def forward(self, weight: Tensor) -> Tensor:
        scale = _as_column(self.log_scale.exp(), weight.ndim)
        limit = float(limit_for(self.bits) if self.magnitudes is None else self.magnitudes[-1])
        steps = (weight / scale).clamp(-limit, limit)
        if self.training and self.levels == "codebook" and self.magnitudes is not None:
            self._count += 1
            if self._count % _REFRESH == 0:
                self.magnitudes = refit(steps.detach(), self.magnitudes)
        return (steps + (self._round(steps.detach()) - steps).detach()) * scale

    def round_steps(self, steps: Tensor) -> Tensor:
        """What weights, in units of their scales, are rounded to; in the same units."""
        limit = float(limit_for(self.bits) if self.magnitudes is None else self.magnitudes[-1])
        return self._round(steps.clamp(-limit, limit))

    def _round(self, steps: Tensor) -> Tensor:
        return steps.round() if self.magnitudes is None else nearest(steps, self.magnitudes)

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """The integers and scale that `forward` stands for."""
        scale = self.log_scale.detach().exp().float()
        steps = weight.float() / _as_column(scale, weight.ndim)
        if self.magnitudes is None:
            limit = limit_for(self.bits)
            steps = steps.clamp(-limit, limit)
        table = None if self.magnitudes is None else table_of(self.magnitudes)
        return QuantizedWeight(integers=self._round(steps).to(torch.int8), scale=scale, bits=self.bits, table=table)


def quantize_weights_(model: nn.Module, weight_bits: Mapping[str, int], levels: Levels = "uniform") -> nn.Module:
    """Put a `FakeQuantize` on every layer with at most 8 bits, in place; layers of dropped blocks are passed over.

    Of a layer that was factored, both factors get its bits.

    Raises:
        ValueError: a layer is not in the model, or its weight is not finite.
    """
    modules = dict(model.named_modules())
    for name, bits in weight_bits.items():
        if is_dropped(modules, name):
            continue
        if name not in modules:
            raise ValueError(f"weight_bits names {name!r}, which is not a layer of the model")
        if bits <= 8:
            for part in layers_for(modules, name):
                _quantize_layer_(part, modules[part], bits, levels)
    return model


def _quantize_layer_(name: str, layer: Any, bits: int, levels: Levels) -> None:
    for tensor in weight_names(layer):
        weight = getattr(layer, tensor)
        _refuse_infinite(name, weight)
        if tensor == "weight":
            fake = FakeQuantize(weight, bits, levels, zero=_has_mask(layer))
        else:  # both directions of a recurrent layer are stored as one matrix, which has no room for two tables
            fake = FakeQuantize(weight, max(2, bits))
        parametrize.register_parametrization(layer, tensor, fake)
    if isinstance(layer, nn.RNNBase):
        layer.register_forward_pre_hook(_read_rounded_)
        layer.register_forward_hook(_read_nothing_)


def _read_rounded_(layer: Any, _: object) -> None:
    """A recurrent layer's forward reads a list of its own, which parametrizations do not reach."""
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def _read_nothing_(layer: Any, _: object, __: object) -> None:
    layer._flat_weights = []  # results of a graph: a network that holds them cannot be copied


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under their plain names, with the float weights behind any rounding; zeros are zeros."""
    state = {}
    for name, tensor in model.state_dict().items():
        if _OF_PARAMETRIZATION.search(name):
            continue
        state[_ORIGINAL.sub(r"\1", name)] = tensor.detach().contiguous().clone()
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            for step in _masks(module):
                state[f"{name}.weight" if name else "weight"].mul_(step.mask)
    return state


def rounding_state(model: nn.Module) -> dict[str, Tensor]:
    """What the rounding has learned beside the weights, under its own names; `load_state_dict` takes it back."""
    state = model.state_dict()
    return {n: t.detach().contiguous().clone() for n, t in state.items() if _OF_PARAMETRIZATION.search(n)}


def settle_weights_(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Replace every quantized or masked weight by the values it stands for, in place, and return the integers.

    They are under the layer's name, those of a recurrent layer under "<layer>.<parameter>".

    Raises:
        ValueError: a weight is not finite.
    """
    settled: dict[str, QuantizedWeight] = {}
    module: Any
    for name, module in list(model.named_modules()):
        if not parametrize.is_parametrized(module):
            continue
        for tensor in list(module.parametrizations):
            _settle_(name, module, tensor, settled)
        if isinstance(module, nn.RNNBase):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [k for k, hook in hooks.items() if hook in (_read_rounded_, _read_nothing_)]:
                    del hooks[key]
            module._init_flat_weights()
    return settled


def _masks(module: Any) -> list[Mask]:
    chain = module.parametrizations.weight if parametrize.is_parametrized(module, "weight") else ()
    return [step for step in chain if isinstance(step, Mask)]


def _has_mask(module: Any) -> bool:
    return bool(_masks(module))


def _settle_(name: str, module: Any, tensor: str, settled: dict[str, QuantizedWeight]) -> None:
    """The same for one parameter."""
    chain: Any = module.parametrizations[tensor]
    masks = [step for step in chain if isinstance(step, Mask)]
    fake = next((step for step in chain if isinstance(step, FakeQuantize)), None)
    if fake is None and not masks:
        return
    _refuse_infinite(name, chain.original)
    value = chain.original.detach()
    for step in masks:
        value = value * step.mask
    if fake is not None:
        key = name if tensor == "weight" else f"{name}.{tensor}"
        settled[key] = fake.quantize(value)
        _refuse_infinite(name, settled[key].scale)
        value = settled[key].dequantize()
    parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    with torch.no_grad():
        getattr(module, tensor).copy_(value)


def _refuse_infinite(name: str, values: object) -> None:
    if isinstance(values, Tensor) and not values.isfinite().all():
        raise ValueError(
            f"the weight of {name!r} is not finite, so it cannot be rounded; a lower learning_rate may help"
        )


def _as_column(values: Tensor, ndim: int) -> Tensor:
    return values.reshape(-1, *[1] * (ndim - 1))
