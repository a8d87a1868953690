"""Removes channels: from a width per group to a network that is really narrower.

Which channels matter least is asked of `importance.py`; recovering the accuracy is not done here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.compress.compensate import (
    Grams,
    compensate_,
    compensate_hidden_,
    input_grams,
    mark_channels_,
    read_marks,
)
from autocompress.compress.drop import drop_blocks_
from autocompress.compress.factor import factor_
from autocompress.plan import CompressionPlan
from autocompress.records import ModelFacts
from autocompress.space.groups import build_graph, channel_blocks, full_group, has_blocks, slice_group
from autocompress.space.search_space import kept_widths
from autocompress.space.slices import kept_channels, remove_slices_, whole_units


def prune(
    model: nn.Module,
    widths: Mapping[str, int],
    scores: Mapping[str, Tensor],
    example: Sequence[Tensor],
    *,
    grams: Grams | None = None,
) -> nn.Module:
    """A copy of `model` in which each named group keeps so many channels.

    Args:
        model: in eval mode; dense, or pruned before.
        widths: channels to keep by group; a group that is not named keeps all it has.
        scores: importance of the channels that `model` still has, [channels] by group; the lowest go first.
        example: the inputs of one forward, each [batch, ...].
        grams: of the inputs of `model`'s layers; with them the removed channels are folded into the kept ones.
    Raises:
        ValueError: a group that the model does not have, or more channels than it has.
    """
    remove: dict[str, list[int]] = {}
    for name, width in widths.items():
        if name not in scores:
            raise ValueError(f"the plan prunes {name!r}, which is not a group; known are {', '.join(scores)}")
        if width > len(scores[name]):
            raise ValueError(f"{name!r} has {len(scores[name])} channels left and cannot keep {width}")
        if width < len(scores[name]):
            remove[name] = _least_important(scores[name], len(scores[name]) - width)
    pruned = copy.deepcopy(model)
    if not remove:
        return pruned
    if grams is None:
        return remove_channels_(pruned, example, remove)
    marked = mark_channels_(copy.deepcopy(model))
    remove_channels_(pruned, example, remove, twins=(marked,))
    compensate_(pruned, model, read_marks(marked, model), grams)
    for name, channels in remove.items():
        if isinstance(model.get_submodule(name), nn.RNNBase):
            group = slice_group(model, name, example)
            assert group is not None
            compensate_hidden_(pruned, model, name, kept_channels(group, channels), grams)
    return pruned


def prune_to_plan(
    model: nn.Module,
    plan: CompressionPlan,
    facts: ModelFacts,
    scores: Mapping[str, Tensor],
    example: Sequence[Tensor],
    *,
    grams: Grams | None = None,
    samples: Sequence[Tensor] = (),
) -> nn.Module:
    """A copy of `model` pruned, its removed blocks left out, and factored as the plan says.

    Args:
        model, scores, example, grams: as `prune` takes them; `scores` may hold groups of removed blocks.
        samples: inputs, each [n, ...], for whose sake factors are chosen; without them all inputs of a layer are equal.
    Raises:
        ValueError: the plan names a group, block or layer that the model does not have.
    """
    widths = {name: width for name, width in kept_widths(facts, plan).items() if width}
    pruned = prune(model, widths, scores, example, grams=grams)
    drop_blocks_(pruned, plan.removed_blocks)  # now: a group may be named after a layer inside of a block
    if not any(ratio > 0 for ratio in plan.rank_ratio.values()):
        return pruned
    return factor_(pruned, plan, facts, input_grams(pruned, samples) if samples else None)


def kept_scores(scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Scores of the channels that are left after pruning to `widths`, in their order, [width] by group.

    [3, 1, 2] at a width of 2 leaves [3, 2].
    """
    left = {}
    for name, score in scores.items():
        gone = _least_important(score, len(score) - widths.get(name, len(score)))
        stays = torch.ones(len(score), dtype=torch.bool)
        stays[gone] = False
        left[name] = score[stays]
    return left


def remove_channels_(
    model: nn.Module,
    example: Sequence[Tensor],
    remove: Mapping[str, Sequence[int]],
    *,
    twins: Sequence[nn.Module] = (),
) -> nn.Module:
    """Remove the listed output channels of each named layer, and of every layer coupled to it, in place.

    Of heads, whole ones go: as many as the channels would fill.

    Args:
        twins: networks of the same layers that lose the same. Who reads a group of slices is asked of `model` alone:
            with other weights its forward may overflow, and then nobody can be told from anybody else.
    """
    networks = (model, *twins)
    coupled: dict[str, Sequence[int]] = {}
    for name, channels in remove.items():
        if (group := slice_group(model, name, example)) is None:
            coupled[name] = channels
            continue
        for network in networks:
            remove_slices_(network, group, whole_units(group, channels))
    if coupled:
        for network in networks:
            _remove_coupled_(network, example, coupled)
    return model


def _remove_coupled_(model: nn.Module, example: Sequence[Tensor], coupled: Mapping[str, Sequence[int]]) -> None:
    """The same for layers that the dependency graph follows."""
    graph = build_graph(model, example)
    modules = dict(model.named_modules())
    may_block = any(has_blocks(m) for m in modules.values())  # asking every group takes seconds in a large network
    for name, channels in coupled.items():
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
