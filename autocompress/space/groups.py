"""Finds the groups: layers whose channels must shrink together.

Torch-Pruning follows the forward once and says which layers are coupled; this module names each
group after its first layer, sets the widths a group may have, and leaves out, with the reason,
what cannot be pruned. Hidden units of recurrent layers and heads of attention, which it cannot follow, are groups
of slices, named after their module. It does not prune; `compress/prune.py` does.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from autocompress.errors import first_line
from autocompress.records import GroupFacts, Skip
from autocompress.space.attention import HeadedAttention, find_head_groups
from autocompress.space.hidden import find_hidden_groups, hidden_group, is_right
from autocompress.space.layers import CONVS
from autocompress.space.slices import SliceGroup

Sources = dict[str, dict[str, float]]
ROOT_TYPES = (*CONVS, nn.Linear)
_MOST_TRIES = 32  # each costs a copy, an analysis and two forwards


def build_graph(model: nn.Module, example: Sequence[Tensor]) -> Any:
    """Torch-Pruning's dependency graph of `model`, which must be in eval mode.

    Args:
        example: the inputs of one forward, each [batch, ...].
    Raises:
        ValueError: the forward cannot be followed; the text says why.
    """
    was = [p.requires_grad for p in model.parameters()]
    try:
        for parameter in model.parameters():  # the graph is read off autograd's
            parameter.requires_grad_(True)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                model, example_inputs=tuple(example), forward_fn=lambda m, inputs: m(*inputs)
            )
    except Exception as error:
        raise ValueError(f"the dependency analysis cannot follow its forward ({first_line(error)})") from error
    finally:
        for parameter, grad in zip(model.parameters(), was, strict=True):
            parameter.requires_grad_(grad)


def full_group(graph: Any, root: nn.Module) -> Any:
    """All channels of the group that starts at `root`: pairs of dependency and channel indices."""
    pruner = graph.get_pruner_of_module(root)
    return graph.get_pruning_group(root, pruner.prune_out_channels, list(range(pruner.get_out_channels(root))))


def channel_blocks(group: Any) -> int:
    """Into how many equal blocks a group's channels fall that must each lose the same channels.

    More than 1 with grouped convolutions and group norms: with 8 channels in 2 blocks, removing
    channel 1 means removing 1 and 5.
    """
    modules = [dep.target.module for dep, _ in group]
    counts = [m.groups if isinstance(m, CONVS) else m.num_groups for m in modules if has_blocks(m)]
    return math.lcm(1, *counts)


def has_blocks(module: object) -> bool:
    """Whether the channels of a module fall into blocks; those of a depthwise convolution go one by one."""
    if isinstance(module, CONVS):
        return 1 < module.groups < module.out_channels
    return isinstance(module, nn.GroupNorm)


def granule_for(channels: int, round_to: int, blocks: int = 1) -> int:
    """Step of the widths a group may have: a divisor of `channels` and a multiple of `blocks`.

    It is `round_to` for wide groups and its half, quarter and so on where that would leave fewer than four
    widths: 64 channels go in steps of 8, 24 and 16 in steps of 4.
    """
    step = round_to
    while step > 1 and (4 * step > channels or channels % step or step % blocks):
        step //= 2
    return step if step % blocks == 0 else blocks


def find_groups(
    model: nn.Module, example: Sequence[Tensor], *, round_to: int = 8, skip: tuple[str, ...] = ()
) -> tuple[list[GroupFacts], list[Skip]]:
    """Groups in the order of the model, and what cannot be pruned with the reason.

    Args:
        model: in eval mode; it is not changed.
        example: the inputs of one forward, each [batch, ...].
        round_to: widths are multiples of this where a group has at least four times as many channels.
        skip: names of layers whose groups are left alone.
    """
    model = copy.deepcopy(model).eval()
    order = [name for name, _ in model.named_modules()]
    sliced, slice_skips = _slice_groups(model, example, round_to, skip)
    owned = {layer for g in sliced for layer in g.layers} | {s.name for s in slice_skips}
    groups, skips = _coupled_groups(model, example, round_to, skip, owned)
    groups = sorted([*groups, *sliced], key=lambda g: order.index(g.name))
    return _keep_what_works(model, example, groups, [*slice_skips, *skips])


def slice_group(model: nn.Module, name: str, example: Sequence[Tensor]) -> SliceGroup | None:
    """The group of slices that a module of this name has, or None if it is a layer that the graph follows.

    It is not tried again whether it is right; `find_groups` has done that on the dense network.
    """
    module = model.get_submodule(name)
    if isinstance(module, HeadedAttention):
        return next(g for g in find_head_groups(model) if g.name == name)
    if isinstance(module, nn.RNNBase):
        found = hidden_group(model, name, example)
        if found is None:
            raise ValueError(f"the hidden units of {name!r} cannot be followed any more")
        return found
    return None


def _slice_groups(
    model: nn.Module, example: Sequence[Tensor], round_to: int, skip: tuple[str, ...]
) -> tuple[list[GroupFacts], list[Skip]]:
    hidden, skips = find_hidden_groups(model, example)
    tied = {name for name, module in model.named_modules() if module in _tied_modules(model)}
    groups: list[GroupFacts] = []
    for group in (*hidden, *find_head_groups(model)):
        granule = granule_for(group.channels, round_to) if group.unit == 1 else group.unit
        reason = ""
        if any(s.module in tied for s in group.slices):
            reason = "a weight in it is shared between layers"
        elif group.name in skip or set(group.layers) & set(skip):
            reason = "listed under skip in the study file"
        elif group.channels < 2 * granule:
            reason = f"{group.channels} channels are too few to remove any"
        elif not is_right(model, group, example):
            reason = "without some of its channels the network computes something else"
        if reason:
            skips.append(Skip(name=group.name, what="prune", reason=reason))
        else:
            groups.append(
                GroupFacts(name=group.name, channels=group.channels, granule=granule, layers=group.layers)
            )  # fmt: skip
    return groups, skips


def _coupled_groups(
    model: nn.Module, example: Sequence[Tensor], round_to: int, skip: tuple[str, ...], owned: set[str]
) -> tuple[list[GroupFacts], list[Skip]]:
    """Groups of the dependency graph; those that hold a layer of `owned` are left to the slices."""
    try:
        graph = build_graph(model, example)
    except ValueError as error:
        return [], [Skip(name="(whole model)", what="prune", reason=str(error))]
    names = {module: name for name, module in model.named_modules()}
    tied = _tied_modules(model)
    order = list(names.values())
    outputs = _output_layers(graph)
    groups: list[GroupFacts] = []
    skips: list[Skip] = []
    for group in graph.get_all_groups(root_module_types=list(ROOT_TYPES)):
        roots = [d.target.module for d, _ in group if graph.is_out_channel_pruning_fn(d.handler)]
        layers = tuple(sorted({names[m] for m in roots if isinstance(m, ROOT_TYPES)}, key=order.index))
        if owned.intersection(layers):
            continue
        name = min(layers, key=order.index)
        channels = len(group[0].idxs)
        blocks = channel_blocks(group)
        granule = granule_for(channels, round_to, blocks)
        reason = ""
        if any(d.target.module in tied for d, _ in group):
            reason = "a weight in it is shared between layers"
        elif any(m in outputs for m in roots):
            reason = "its channels are the outputs of the network"
        elif any(layer in skip for layer in layers):
            reason = "listed under skip in the study file"
        elif channels % blocks:
            reason = f"its {channels} channels are only a part of those that a grouped layer after it divides"
        elif channels < 2 * granule:
            reason = f"{channels} channels are too few to remove any"
        if reason:
            skips.append(Skip(name=name, what="prune", reason=reason))
        else:
            groups.append(GroupFacts(name=name, channels=channels, granule=granule, layers=layers))
    return groups, skips


def input_sources(model: nn.Module, example: Sequence[Tensor], groups: Sequence[GroupFacts]) -> Sources:
    """By layer and group: how many of the layer's input channels go when one of the group's channels goes.

    1 for a plain chain; 49 for a linear layer behind 7x7 images that were flattened.
    """
    found: Sources = {}
    sliced = {g.name: s for g in groups if (s := slice_group(model, g.name, example)) is not None}
    for name, slices in sliced.items():
        for reader, times in slices.readers().items():
            of_layer = found.setdefault(reader, {})
            both = getattr(model.get_submodule(reader), "bidirectional", False)  # each direction has its own columns
            of_layer[name] = of_layer.get(name, 0.0) + times / (2 if both else 1)
    if len(sliced) == len(groups):
        return found
    graph = build_graph(model, example)
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    for group in groups:
        if group.name in sliced:
            continue
        for dep, indices in full_group(graph, modules[group.name]):
            module = dep.target.module
            if isinstance(module, nn.Embedding):  # its outputs are the columns of its table
                found.setdefault(names[module], {})[group.name] = len(indices) / group.channels
            if not isinstance(module, ROOT_TYPES) or not graph.is_in_channel_pruning_fn(dep.handler):
                continue
            if getattr(module, "groups", 1) == 1:
                of_layer = found.setdefault(names[module], {})
                of_layer[group.name] = of_layer.get(group.name, 0.0) + len(indices) / group.channels
    return found


def _output_layers(graph: Any) -> set[nn.Module]:
    """Layers that nothing with weights follows: walk back from the ends of the graph to the first layers."""
    found: set[nn.Module] = set()
    pending = [n for n in graph.module2node.values() if not n.outputs]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if isinstance(node.module, ROOT_TYPES):
            found.add(node.module)
            continue
        for before in node.inputs:
            if before not in seen:
                seen.add(before)
                pending.append(before)
    return found


def _tied_modules(model: nn.Module) -> set[nn.Module]:
    """Modules that hold the same parameter as another one: narrowing one of them would tear the two apart."""
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    return {m for m in model.modules() if any(uses[id(p)] > 1 for p in m.parameters(recurse=False))}


def _keep_what_works(
    model: nn.Module, example: Sequence[Tensor], groups: list[GroupFacts], skips: list[Skip]
) -> tuple[list[GroupFacts], list[Skip]]:
    """Prune for a try: all groups at once, and by halves if that breaks the forward."""
    tries = 0

    def working(part: list[GroupFacts]) -> list[GroupFacts]:
        nonlocal tries
        tries += 1
        if tries > _MOST_TRIES:
            reason: str | None = f"the forward fails once channels are removed, and {_MOST_TRIES} tries found no cause"
            skips.extend(Skip(name=g.name, what="prune", reason=str(reason)) for g in part)
            return []
        if not part or (reason := _breaks(model, example, part)) is None:
            return part
        if len(part) == 1:
            skips.append(Skip(name=part[0].name, what="prune", reason=reason))
            return []
        middle = len(part) // 2
        return working(part[:middle]) + working(part[middle:])

    kept = working(groups)
    if len(kept) < len(groups) and (reason := _breaks(model, example, kept)):  # each half works, both together do not
        skips.extend(Skip(name=g.name, what="prune", reason=f"not together with others: {reason}") for g in kept)
        kept = []
    return kept, skips


def _breaks(model: nn.Module, example: Sequence[Tensor], groups: list[GroupFacts]) -> str | None:
    """Why removing one granule from each group does not leave a working network of the promised widths."""
    from autocompress.compress.prune import remove_channels_

    trial = copy.deepcopy(model)
    remove = {g.name: list(range(g.granule)) for g in groups}
    try:
        with torch.no_grad():
            before = trial(*example).shape
            remove_channels_(trial, example, remove)
            after = trial(*example).shape
    except Exception as error:
        return f"the forward fails once channels are removed ({first_line(error)})"
    for group in groups:
        for layer in group.layers:
            dense, width = _width(model.get_submodule(layer)), _width(trial.get_submodule(layer))
            promised = dense - group.granule * (dense // group.channels)  # a joined projection has each channel thrice
            if width != promised:
                return f"{layer} keeps {width} channels where {promised} were asked for"
    return None if before == after else f"the output changes from {tuple(before)} to {tuple(after)}"


def _width(layer: Any) -> int:
    if isinstance(layer, nn.RNNBase):
        return layer.hidden_size
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
