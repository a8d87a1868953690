"""Folds removed channels into the kept ones, without training.

What a removed channel carried is, to a good part, a linear mix of what the kept ones carry. Ridge
regression on the dense network's own activations finds that mix, and the next layer's weights absorb
it. Similar channels are merged this way too. Batch norms keep their statistics here; who judges
or trains the network next estimates them anew.

Source: the closed form of optimal brain surgeon on layer inputs, Hassibi and Stork 1993, with a ridge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.space.layers import CONVS
from autocompress.space.watch import watched

Grams = dict[str, Tensor]
Kept = dict[str, tuple[Tensor, Tensor]]
_RIDGE = 1e-2  # of the mean diagonal
_LARGEST = 4096  # inputs; beyond, the Gram matrix would take longer than the training it saves
_POSITIONS = 2**16
_EXACT = 2**24  # whole numbers that float32 holds exactly; more weights cannot be numbered


@torch.no_grad()
def input_grams(model: nn.Module, samples: Sequence[Tensor]) -> Grams:
    """E[h h^T] over samples and positions of every dense layer's input, [inputs, inputs] by layer name.

    Of a layer that is used several times it is the mean over its uses.

    Args:
        model: dense, in eval mode.
        samples: the inputs of one forward, each [n, ...].
    """
    grams: Grams = {}
    uses: Counter[str] = Counter()

    def keep(key: str, gram: Tensor) -> None:
        uses[key] += 1
        grams[key] = grams[key].lerp(gram, 1 / uses[key]) if key in grams else gram

    def add(name: str, module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        channels = inputs[0].movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
        channels = channels[:, :: max(1, channels.shape[1] // _POSITIONS)].float()
        keep(name, channels @ channels.T / channels.shape[1])

    def add_hidden(name: str, module: Any, _: tuple[Any, ...], result: Any) -> None:
        units = result[0].flatten(0, -2).float()  # [positions, directions * hidden], of its last layer
        for direction in range(units.shape[1] // module.hidden_size):
            own = units[:, direction * module.hidden_size :][:, : module.hidden_size]
            keep(hidden_key(name, direction), own.T @ own / len(own))

    with watched(model, _mixes_inputs, add), watched(model, lambda m: isinstance(m, nn.RNNBase), add_hidden):
        model(*samples)
    return grams


def hidden_key(name: str, direction: int) -> str:
    """Under which `input_grams` keeps what the hidden units of a recurrent layer say of each other."""
    return f"{name}:{direction}"


def mark_channels_(model: nn.Module) -> nn.Module:
    """Replace each dense layer's weights by their own (output, input) numbers, so that pruning shows what it kept."""
    module: Any
    for module in model.modules():
        if _mixes_inputs(module):
            outputs, inputs = module.weight.shape[:2]
            numbers = torch.arange(outputs * inputs, dtype=torch.float32).reshape(outputs, inputs)
            shape = (outputs, inputs, *[1] * (module.weight.ndim - 2))
            module.weight = nn.Parameter(numbers.reshape(shape).expand(module.weight.shape).clone())
    return model


def read_marks(marked: nn.Module, dense: nn.Module) -> Kept:
    """(kept outputs, kept inputs) of every dense layer of a marked network that was pruned."""
    kept: Kept = {}
    originals: dict[str, Any] = dict(dense.named_modules())
    module: Any
    for name, module in marked.named_modules():
        if _mixes_inputs(module):
            numbers = module.weight.detach().flatten(2)[..., 0] if module.weight.ndim > 2 else module.weight.detach()
            numbers = numbers.long()
            inputs = originals[name].weight.shape[1]
            kept[name] = (numbers[:, 0] // inputs, numbers[0] % inputs)
    return kept


@torch.no_grad()
def compensate_(pruned: nn.Module, dense: nn.Module, kept: Kept, grams: Mapping[str, Tensor]) -> nn.Module:
    """Give every layer that lost inputs the weights that best replace them, in place.

    With inputs h and kept inputs h_K the best linear guess of h is B h_K with
    B = G[:, K] (G[K, K] + ridge)^-1, so W h becomes (W B) h_K.

    Args:
        pruned, dense: the same architecture after and before pruning.
        kept: as `read_marks` gives it.
        grams: as `input_grams` gives them.
    """
    before, after = dict(dense.named_modules()), dict(pruned.named_modules())
    for name, (outputs, inputs) in kept.items():
        gram = grams.get(name)
        weight = before[name].weight
        assert isinstance(weight, Tensor)
        if gram is None or len(inputs) == weight.shape[1]:
            continue
        mix = _mix(gram, inputs)
        folded = torch.einsum("oi...,ik->ok...", weight[outputs].float(), mix)
        target = after[name].weight
        assert isinstance(target, Tensor)
        target.copy_(folded)
    return pruned


@torch.no_grad()
def compensate_hidden_(
    pruned: nn.Module, dense: nn.Module, name: str, kept: Sequence[int], grams: Mapping[str, Tensor]
) -> nn.Module:
    """The same for what a recurrent layer's units read of each other, in place; only its last layer's are known.

    Args:
        kept: the hidden units that `pruned` still has.
    """
    before: Any = dense.get_submodule(name)
    after: Any = pruned.get_submodule(name)
    units = torch.tensor(list(kept))
    gates = len(before.weight_hh_l0) // before.hidden_size
    rows = torch.cat([units + gate * before.hidden_size for gate in range(gates)])
    ends = (f"l{before.num_layers - 1}", f"l{before.num_layers - 1}_reverse")[: 2 if before.bidirectional else 1]
    for direction, end in enumerate(ends):
        if (gram := grams.get(hidden_key(name, direction))) is not None:
            weight = getattr(before, f"weight_hh_{end}")
            getattr(after, f"weight_hh_{end}").copy_(weight[rows].float() @ _mix(gram, units))
    return pruned


def _mix(gram: Tensor, kept: Tensor) -> Tensor:
    """What the kept inputs say of all of them, [all inputs, kept inputs]."""
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    inner = gram[kept][:, kept] + ridge * torch.eye(len(kept))
    mix: Tensor = torch.linalg.solve(inner, gram[kept]).T
    return mix


def _mixes_inputs(module: Any) -> bool:
    if not isinstance(module, (*CONVS, nn.Linear)) or getattr(module, "groups", 1) != 1:
        return False
    if not isinstance(module.weight, nn.Parameter):  # it is computed from others: what is copied there is lost
        return False
    outputs, inputs = module.weight.shape[:2]
    return inputs <= _LARGEST and outputs * inputs <= _EXACT
