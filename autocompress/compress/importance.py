"""Scores every channel of every group on the dense network: the lowest go first.

One pass over some training data is enough for all criteria, and the scores depend on no plan, so
they are computed once and shared by all trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.plan import Importance
from autocompress.records import GroupFacts
from autocompress.space.attention import HeadedAttention
from autocompress.space.groups import build_graph, channel_blocks, full_group, slice_group
from autocompress.space.layers import CONVS
from autocompress.space.slices import SliceGroup, slice_score
from autocompress.space.watch import watched

Saliency = dict[nn.Module, Tensor]


def score_channels(
    model: nn.Module,
    groups: Sequence[GroupFacts],
    criterion: Importance,
    batches: Sequence[tuple[tuple[Tensor, ...], Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Importance of every channel, [channels] per group, mean 1 over the group's layers.

    Args:
        model: dense, in eval mode; its parameters come back unchanged.
        criterion: "l1" and "l2" sum |w| and w^2; "taylor" sums |w dL/dw| and "fisher" (w dL/dw)^2 over
            batches; "activation" takes the mean absolute output; "bn_scale" the batch-norm factor;
            "random" is what the others must beat.
        batches: (inputs, targets); used by "taylor", "fisher" and "activation".
        loss: of (outputs, targets), averaged over the batch.
    Source: Molchanov et al. 2019, arXiv:1906.10771 (first-order Taylor, squared in their equation 8).
    """
    if not groups:
        return {}
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = {g.name: torch.rand(g.channels, generator=generator) for g in groups}
        attention = {name for name, module in model.named_modules() if isinstance(module, HeadedAttention)}
        heads = [g for g in groups if g.name in attention]
        return drawn | {g.name: drawn[g.name][:: g.granule].repeat_interleave(g.granule) for g in heads}
    example = tuple(t[:2] for t in batches[0][0])
    sliced = {g.name: s for g in groups if (s := slice_group(model, g.name, example)) is not None}
    scores: dict[str, Tensor] = {}
    if sliced:
        values = _slice_saliency(model, sliced.values(), criterion, batches, loss)
        scores |= {name: slice_score(group, values) for name, group in sliced.items()}
    if coupled := [g for g in groups if g.name not in sliced]:
        saliency = _saliency(model, criterion, batches, loss)
        graph = build_graph(model, example)
        modules = dict(model.named_modules())
        scores |= {g.name: _group_score(full_group(graph, modules[g.name]), saliency, g.channels) for g in coupled}
    return {g.name: scores[g.name] for g in groups}


def _slice_saliency(
    model: nn.Module, groups: Iterable[SliceGroup], criterion: Importance, batches: Any, loss: Any
) -> dict[tuple[str, str], Tensor]:
    """Per tensor the saliency of its elements; mean absolute inputs of what reads the channels for "activation"."""
    names = dict.fromkeys((s.module, s.tensor) for g in groups for s in g.slices)
    if criterion == "activation":
        return _read_activation(model, {s.module for g in groups for s in g.slices if s.reads}, batches)
    tensors = {(module, tensor): getattr(model.get_submodule(module), tensor) for module, tensor in names}
    if criterion not in ("taylor", "fisher"):  # a batch norm's factor says nothing of these
        return {name: t.detach().abs().pow(2 if criterion == "l2" else 1) for name, t in tensors.items()}
    total = {name: torch.zeros_like(t) for name, t in tensors.items()}
    for inputs, targets in batches:
        grads = torch.autograd.grad(loss(model(*inputs), targets), list(tensors.values()), allow_unused=True)
        for (name, tensor), grad in zip(tensors.items(), grads, strict=True):
            if grad is not None:
                total[name] += (tensor.detach() * grad).abs().pow(1 if criterion == "taylor" else 2)
    return total


def _read_activation(model: nn.Module, readers: set[str], batches: Any) -> dict[tuple[str, str], Tensor]:
    total: dict[tuple[str, str], Tensor] = {}
    targets = {model.get_submodule(name): name for name in readers}

    def add(_name: str, module: nn.Module, inputs: Any, _output: Any) -> None:
        if not isinstance(module, (nn.Linear, *CONVS)):  # a recurrent layer reads its own units, too
            return
        columns = inputs[0].movedim(-1 if isinstance(module, nn.Linear) else 1, -1).flatten(0, -2).abs().mean(0)
        key = (targets[module], "weight")
        total[key] = total.get(key, 0) + columns

    with watched(model, lambda m: m in targets, add), torch.no_grad():
        for inputs, _ in batches:
            model(*inputs)
    return total


def _saliency(model: nn.Module, criterion: Importance, batches: Any, loss: Any) -> Saliency:
    """Per module the saliency of its weights (shaped like them) or of its output channels ([out])."""
    if criterion == "activation":
        return _activation(model, batches)
    if criterion == "bn_scale":
        norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.affine)
        return {m: m.weight.detach().abs() for m in norms}
    layers = [m for m in model.modules() if isinstance(m, (*CONVS, nn.Linear))]
    if criterion in ("l1", "l2"):
        return {m: m.weight.detach().abs().pow(1 if criterion == "l1" else 2) for m in layers}
    power = 1 if criterion == "taylor" else 2
    total: Saliency = {m: torch.zeros_like(m.weight) for m in layers}
    for inputs, targets in batches:
        grads = torch.autograd.grad(loss(model(*inputs), targets), [m.weight for m in layers], allow_unused=True)
        for module, grad in zip(layers, grads, strict=True):
            if grad is not None:
                total[module] += (module.weight.detach() * grad).abs().pow(power)
    return total


def _activation(model: nn.Module, batches: Any) -> Saliency:
    total: Saliency = {}

    def add(_name: str, module: nn.Module, _inputs: Any, output: Tensor) -> None:
        channels = output.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
        total[module] = total.get(module, 0) + channels.flatten(1).abs().mean(1)

    # after the norm where there is one: what the next layer sees
    kinds = (nn.modules.batchnorm._NormBase, *CONVS, nn.Linear)
    with watched(model, lambda m: isinstance(m, kinds), add), torch.no_grad():
        for inputs, _ in batches:
            model(*inputs)
    return total


def _group_score(group: Any, saliency: Saliency, channels: int) -> Tensor:
    score = torch.zeros(channels)
    for item in group:
        module, handler = item.dep.target.module, item.dep.handler
        if module not in saliency:
            continue
        roots = item.root_idxs
        values = _per_channel(saliency[module].cpu(), into=_prunes_inputs(handler))
        if values is None or any(r is None for r in roots) or max(item.idxs) >= len(values):
            continue
        # after a flatten one channel has many inputs in the next layer: they count as one
        layer = torch.zeros(channels).scatter_add_(0, torch.as_tensor(roots), values[torch.as_tensor(item.idxs)])
        score += layer / layer.mean().clamp_min(1e-20)
    score = _share_in_blocks(score, channel_blocks(group))
    return score / score.mean().clamp_min(1e-20)


def _share_in_blocks(score: Tensor, blocks: int) -> Tensor:
    """The same score for the same place of every block: they go together. [1, 2, 3, 6] in 2 blocks is [2, 4, 2, 4]."""
    return score.reshape(blocks, -1).mean(0).repeat(blocks)


def _per_channel(saliency: Tensor, *, into: bool) -> Tensor | None:
    """Sum a weight's saliency over everything but its output (or input) channels; vectors are per output already."""
    if saliency.ndim == 1:
        return None if into else saliency
    return saliency.movedim(1, 0).flatten(1).sum(1) if into else saliency.flatten(1).sum(1)


def _prunes_inputs(handler: Any) -> bool:
    return "in_channels" in getattr(handler, "__name__", "")
