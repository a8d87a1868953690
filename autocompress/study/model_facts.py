"""What a model is made of: its layers, groups and blocks, and what of it is left alone and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.config import StudyConfig
from autocompress.records import GroupFacts, LayerFacts, ModelFacts, Skip
from autocompress.space.blocks import find_blocks, with_groups
from autocompress.space.factors import find_factors
from autocompress.space.groups import find_groups, input_sources
from autocompress.space.layers import find_layers, output_positions
from autocompress.space.ranks import layers_to_factor


def find_facts(
    model: nn.Module, example: tuple[Tensor, ...], config: StudyConfig, notes: list[str], skips: Sequence[Skip] = ()
) -> ModelFacts:
    """Everything of a dense model that plans and tables need.

    Args:
        example: inputs for one small forward.
        notes: of the report.
        skips: what is known to be left alone already.
    """
    layers, unquantized = find_layers(model, skip=config.space.skip)
    groups, unpruned = find_groups(model, example, round_to=config.space.round_to, skip=config.space.skip)
    group_of = {layer: g for g in groups for layer in g.layers}
    sources, positions = input_sources(model, example, groups), output_positions(model, example)
    named = tuple(
        replace(
            layer,
            group=group_of[layer.name].name if layer.name in group_of else None,
            out_channels=_outputs(layer, group_of.get(layer.name)),
            sources=sources.get(layer.name, {}),
            positions=0 if layer.kind == "embedding" else positions.get(layer.name, 1),
        )
        for layer in layers
    )
    blocks = find_blocks(model, example, skip=config.space.skip) if config.space.remove_blocks else []
    factors, whole = find_factors(model, example, layers_to_factor(config.space.rank_ratio, named))
    return ModelFacts(
        layers=tuple(replace(layer, factors=factors.get(layer.name)) for layer in named),
        groups=tuple(groups),
        skips=(*unquantized, *skips, *unpruned, *_in_float(model), *whole),
        notes=tuple(notes),
        blocks=tuple(with_groups(model, example, blocks, groups)),
        batch_norms=any(isinstance(m, _BatchNorm) for m in model.modules()),
    )


def _in_float(model: nn.Module) -> list[Skip]:
    """Layers that the runtime computes in float whatever their weights are stored in."""
    kinds = (nn.GRU, nn.RNN)
    reason = "the runtime has no integer kernel for it: few bits make the file smaller, not faster"
    return [Skip(name=n, what="integers", reason=reason) for n, m in model.named_modules() if isinstance(m, kinds)]


def _outputs(layer: LayerFacts, group: GroupFacts | None) -> int:
    """Outputs of a layer; of an attention's joined projection, which holds each channel three times, a third."""
    is_attention = group is not None and group.name not in group.layers
    return group.channels if group is not None and is_attention else layer.out_channels
