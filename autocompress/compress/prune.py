"""Removes channels and blocks: from a plan's ratio per group to a network that is really narrower.

Which channels matter least is asked of `importance.py`; recovering the accuracy is not done here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.compress.compensate import Grams, compensate_, mark_channels_, read_marks
from autocompress.compress.drop import drop_blocks_
from autocompress.plan import CompressionPlan
from autocompress.records import GroupFacts
from autocompress.space.groups import build_graph, channel_blocks, full_group, has_blocks
from autocompress.space.search_space import width_after


def prune(
    model: nn.Module,
    plan: CompressionPlan,
    groups: Sequence[GroupFacts],
    scores: Mapping[str, Tensor],
    example: Sequence[Tensor],
    *,
    grams: Grams | None = None,
) -> nn.Module:
    """A copy of `model` with the plan's share of each group's channels removed, and its removed blocks left out.

    Args:
        model: in eval mode.
        groups: all groups of the model; one that the plan does not name keeps its channels.
        scores: importance per group, [channels]; the lowest go first.
        example: the inputs of one forward, each [batch, ...].
        grams: of the dense layers' inputs; with them the removed channels are folded into the kept ones.
    Raises:
        ValueError: the plan names a group or block that the model does not have.
    """
    known = {g.name: g for g in groups}
    if unknown := set(plan.prune_ratio) - set(known):
        raise ValueError(f"the plan prunes {sorted(unknown)[0]!r}, which is not a group; known are {', '.join(known)}")
    remove: dict[str, list[int]] = {}
    for name, ratio in plan.prune_ratio.items():
        group = known[name]
        if (count := group.channels - width_after(group, ratio)) > 0:
            remove[name] = _least_important(scores[name], count)
    pruned = copy.deepcopy(model)
    if not remove:
        return drop_blocks_(pruned, plan.removed_blocks)
    remove_channels_(pruned, example, remove)
    if grams is not None:
        marked = remove_channels_(mark_channels_(copy.deepcopy(model)), example, remove)
        compensate_(pruned, model, read_marks(marked, model), grams)
    return drop_blocks_(pruned, plan.removed_blocks)  # last: a group may be named after a layer inside of a block


def remove_channels_(model: nn.Module, example: Sequence[Tensor], remove: Mapping[str, Sequence[int]]) -> nn.Module:
    """Remove the listed output channels of each named layer, and of every layer coupled to it, in place."""
    graph = build_graph(model, example)
    modules = dict(model.named_modules())
    may_block = any(has_blocks(m) for m in modules.values())  # asking every group takes seconds in a large network
    for name, channels in remove.items():
        root = modules[name]
        pruner = graph.get_pruner_of_module(root)
        blocks = channel_blocks(full_group(graph, root)) if may_block else 1
        total = pruner.get_out_channels(root)
        indices = _repeat_in_blocks(channels, total, blocks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.get_pruning_group(root, pruner.prune_out_channels, indices).prune()
    for parameter in model.parameters():
        parameter.grad = None
    return model


def _least_important(scores: Tensor, count: int) -> list[int]:
    return sorted(torch.argsort(scores, stable=True)[:count].tolist())


def _repeat_in_blocks(channels: Sequence[int], total: int, blocks: int) -> list[int]:
    """Indices for a group that falls into equal blocks: the same places are taken from each.

    `channels` may come from anywhere in the group; as many places as they would fill are taken, by first occurrence.
    """
    if blocks == 1:
        return list(channels)
    size = total // blocks
    places = list(dict.fromkeys(c % size for c in channels))[: len(channels) // blocks]
    missing = len(channels) // blocks - len(places)
    places += [p for p in range(size) if p not in places][:missing]
    return sorted(block * size + place for block in range(blocks) for place in places)
