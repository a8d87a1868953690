"""Rounds weights so that each layer goes on saying what it says in float, as a few samples show; nothing is trained.

Rounding to the nearest treats every weight alone. What counts is the output, so a layer first aims at the float
network's outputs from the inputs that it gets now, which the layers before it have changed; then its weights are
rounded one input after the other, each making up for the errors of those before; and the mean error that is left
goes into the bias. All of it takes one forward of each network: a layer is rounded just before it runs.

Embeddings are left alone (each of their inputs comes alone, so nearest is best), and so are layers with very many
inputs. Of recurrent layers the first reads the samples' inputs and the last one's states are known; matrices between
layers are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.quantize import FakeQuantize
from autocompress.compress.sparsify import Mask
from autocompress.space.watch import watched

_RIDGE = 0.1  # of the mean diagonal: 128 samples say less of a layer than it has inputs
_PLACES = 2**13  # of a layer's output that are looked at
_UNFOLDED = 2**16  # places that are unfolded for that
_LARGEST = 1536  # inputs, taps counted: the time grows with their cube
_BLOCK = 32  # columns whose errors reach the later ones together
_INSIDE = 0.45  # steps from its value that a weight may stay: it rounds to it, and training moves it on from there
_RoundColumn = Callable[[Tensor, int], Tensor]


@torch.no_grad()
def round_with_feedback_(rounded: nn.Module, dense: nn.Module, samples: Sequence[Tensor]) -> nn.Module:
    """Move the weights behind every `FakeQuantize`, and biases, to where they round to better values, in place.

    Args:
        rounded: `dense` with its weights rounded to the nearest; in eval mode, as `dense`.
        samples: the inputs of one forward, each [n, ...].
    Source: Frantar et al. 2023, arXiv:2210.17323 (GPTQ, its Cholesky form); Nagel et al. 2019, arXiv:1906.04721,
        section 4.2 (bias correction).
    """
    modules = dict(rounded.named_modules())
    inputs: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    states: dict[str, Tensor] = {}

    def see(name: str, layer: Any, seen: tuple[Any, ...], output: Any) -> None:
        if name in inputs or not _is_rounded(modules[name]) or not isinstance(seen[0], Tensor):
            return
        inputs[name] = _places(layer, seen[0])
        if isinstance(layer, nn.RNNBase):
            states[name] = output[0]
        else:
            means[name] = _mean(layer, output)

    with watched(dense, _can_be_fed, see):
        dense(*samples)
    handles = []
    for name, wanted in inputs.items():
        layer = modules[name]
        if isinstance(layer, nn.RNNBase):
            before = partial(_round_recurrent_, wanted=dense.get_submodule(name), states=states[name])
            handles.append(layer.register_forward_pre_hook(_once(before), prepend=True))
        else:
            handles.append(layer.register_forward_pre_hook(_once(partial(_round_layer_, wanted=wanted))))
            handles.append(layer.register_forward_hook(_once(partial(_correct_bias_, wanted=means[name]))))
    try:
        rounded(*samples)
    finally:
        for handle in handles:
            handle.remove()
    return rounded


def feedback_rounded(weight: Tensor, gram: Tensor, round_column: _RoundColumn) -> Tensor:
    """Weights rounded column by column, the error of each spread over the columns that follow.

    With two equal inputs of weight 0.4 and whole numbers, 0.4 becomes 0, the other one 0.8 and so 1.

    Args:
        weight: [groups, out, inputs].
        gram: E[h h^T] of the inputs, [groups, inputs, inputs].
        round_column: of the values [groups, out] of one column and its number.
    """
    count = gram.shape[-1]
    inverse = torch.linalg.inv(gram.double() + _ridge(gram).double())
    spread = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    left, rounded = weight.clone(), torch.empty_like(weight)
    for start in range(0, count, _BLOCK):
        end = min(count, start + _BLOCK)
        errors = torch.empty_like(weight[..., start:end])
        for i in range(start, end):
            rounded[..., i] = round_column(left[..., i], i)
            error = (left[..., i] - rounded[..., i]) / spread[:, None, i, i]
            left[..., i:end] -= error[..., None] * spread[:, None, i, i:end]
            errors[..., i - start] = error
        left[..., end:] -= errors @ spread[:, start:end, end:]
    return rounded


def aimed(weight: Tensor, wanted: Tensor, given: Tensor) -> Tensor:
    """Weights that say of `given` what these say of `wanted`, as nearly as a linear map can, [groups, out, inputs].

    Args:
        wanted, given: inputs of the float network and of the rounded one at the same places, [groups, places, inputs].
    """
    gram, cross = _gram(given, given), _gram(wanted, given)
    ridge = _ridge(gram)
    solved: Tensor = torch.linalg.solve(gram + ridge, (weight @ (cross + ridge)).mT).mT
    return solved


def _round_layer_(layer: Any, seen: tuple[Any, ...], *, wanted: Tensor) -> None:
    given = _places(layer, seen[0])
    chain = layer.parametrizations.weight
    mask = next((step.mask for step in chain if isinstance(step, Mask)), None)
    weight = chain.original if mask is None else chain.original * mask
    flat = weight.reshape(len(given), -1, given.shape[-1])
    kept = None if mask is None else mask.reshape(flat.shape)
    _settle_(chain, aimed(flat, wanted, given), _gram(given, given), kept)


def _round_recurrent_(layer: Any, seen: tuple[Any, ...], *, wanted: Any, states: Tensor) -> None:
    """The matrices of a recurrent layer whose inputs are known, and the biases beside them."""
    last = f"l{layer.num_layers - 1}"
    for name in list(layer.parametrizations):
        kind, end, *back = name.removeprefix("weight_").split("_")
        if kind == "ih" and end == "l0":
            given = _places(layer, seen[0])
        elif kind == "hh" and end == last:
            own = states[..., layer.hidden_size :] if back else states[..., : layer.hidden_size]
            given = _thinned(own.reshape(1, -1, own.shape[-1]).float())
        else:
            continue
        chain = layer.parametrizations[name]
        _settle_(chain, chain.original[None].clone(), _gram(given, given), None)
        if layer.bias:
            change = getattr(wanted, name) - getattr(layer, name)
            getattr(layer, name.replace("weight", "bias")).add_(change @ given[0].mean(0))


def _correct_bias_(layer: Any, _: object, output: Tensor, *, wanted: Tensor) -> Tensor | None:
    """Add what the mean output lacks to the bias, and to this output: the layers that follow see it."""
    if layer.bias is None:
        return None
    lacking = wanted - _mean(layer, output)
    layer.bias.add_(lacking)
    return output + (lacking if isinstance(layer, nn.Linear) else lacking.reshape(-1, *[1] * (output.ndim - 2)))


def _settle_(chain: Any, weight: Tensor, gram: Tensor, kept: Tensor | None) -> None:
    """Move the float weights of one chain of parametrizations so that they round to what feedback finds."""
    fake: FakeQuantize = next(step for step in chain if isinstance(step, FakeQuantize))
    original = chain.original
    scale = fake.log_scale.exp().reshape(weight.shape[:2])

    def round_column(column: Tensor, number: int) -> Tensor:
        value = fake.round_steps(column / scale) * scale
        return value if kept is None else value * kept[..., number]

    rounded = feedback_rounded(weight, gram, round_column)
    if fake.magnitudes is None:  # evenly spaced: as near to where training left them as rounds to the same
        centre, reach = rounded, _INSIDE * scale[..., None]
        rounded = torch.minimum(torch.maximum(original.reshape(weight.shape), centre - reach), centre + reach)
    original.copy_(rounded.reshape(original.shape))


def _places(layer: Any, x: Tensor) -> Tensor:
    """What single outputs of a layer are computed from, [groups, places, inputs] in the order of its weight."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return _thinned(x.reshape(1, -1, x.shape[-1]).float())
    x = x.float()
    sizes: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    x = x[:: max(1, round(x.numel() / x.shape[1] / _UNFOLDED))]
    if isinstance(layer, nn.Conv1d):
        x = x[:, :, None]
        sizes = tuple((neutral, size[0]) for neutral, size in zip((1, 1, 0, 1), sizes, strict=True))
    columns = F.unfold(x, *sizes)  # [n, groups * inputs, places]
    grouped = columns.reshape(len(x), layer.groups, -1, columns.shape[-1])
    return _thinned(grouped.permute(1, 0, 3, 2).flatten(1, 2))


def _thinned(places: Tensor) -> Tensor:
    return places[:, :: max(1, places.shape[1] // _PLACES)]


def _gram(a: Tensor, b: Tensor) -> Tensor:
    return a.mT @ b / a.shape[1]


def _ridge(gram: Tensor) -> Tensor:
    size = _RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
    return size[:, None, None] * torch.eye(gram.shape[-1], device=gram.device)


def _mean(layer: nn.Module, output: Tensor) -> Tensor:
    """Over everything but the channels, [out]."""
    channels = output.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
    return channels.flatten(1).float().mean(1)


def _once(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook at the first of its calls: a layer that is used twice is rounded for its first use."""
    called = False

    def first(*args: Any) -> Any:
        nonlocal called
        if called:
            return None
        called = True
        return hook(*args)

    return first


def _can_be_fed(layer: Any) -> bool:
    if isinstance(layer, nn.RNNBase):
        return True
    if isinstance(layer, nn.Linear):
        return layer.in_features <= _LARGEST
    plain = isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode == "zeros"
    return plain and not isinstance(layer.padding, str) and layer.weight[0].numel() <= _LARGEST


def _is_rounded(layer: Any) -> bool:
    chains = getattr(layer, "parametrizations", {}).values()
    return any(isinstance(step, FakeQuantize) for chain in chains for step in chain)
