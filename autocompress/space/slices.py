"""Groups that the dependency analysis cannot follow, told by where their channels stand in each tensor.

Hidden units of recurrent layers (`space/hidden.py`) and heads of attention (`space/attention.py`) are such groups.
A unit with gates has several rows in one matrix, and a head a whole block of them; what reads a channel has it as
a column. Taking a channel away is then taking the same rows and columns everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """Where the channels of a group stand in one tensor.

    Attributes:
        module, tensor: the module's name and the parameter or buffer in it.
        axis: of the tensor.
        places: [channels, times] indices along `axis`; an LSTM's unit c has the rows c, H + c, 2 H + c and 3 H + c.
        reads: True where the tensor takes the channel in; with these at zero the channel has no effect.
    """

    module: str
    tensor: str
    axis: int
    places: Tensor
    reads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceGroup:
    """A group of channels that go together, in steps of `unit`.

    Attributes:
        name: of the module that the channels are of.
        unit: channels that go at once; those of a head.
        slices: everything that holds them.
        sizes: (module, attribute, how much less it is for each channel that goes), as whole numbers per unit.
        layers: the layers whose outputs the channels are.
    """

    name: str
    channels: int
    unit: int
    slices: tuple[Slice, ...]
    sizes: tuple[tuple[str, str, int], ...]
    layers: tuple[str, ...]

    def readers(self) -> dict[str, int]:
        """By layer that takes the channels in: how many columns of its tensors go with one of them."""
        found: dict[str, int] = {}
        for s in self.slices:
            if s.reads:
                found[s.module] = found.get(s.module, 0) + s.places.shape[1]
        return found


@torch.no_grad()
def remove_slices_(model: nn.Module, group: SliceGroup, channels: Iterable[int]) -> nn.Module:
    """Take channels out of every tensor that holds them, in place; they are whole units of the group."""
    gone = torch.tensor(sorted(channels), dtype=torch.long)
    modules: dict[str, Any] = dict(model.named_modules())
    for s in group.slices:
        module = modules[s.module]
        old = getattr(module, s.tensor)
        stays = torch.ones(old.shape[s.axis], dtype=torch.bool)
        stays[s.places[gone].flatten()] = False
        kept = old.detach()[(slice(None),) * s.axis + (stays,)].clone()
        setattr(module, s.tensor, nn.Parameter(kept, old.requires_grad) if isinstance(old, nn.Parameter) else kept)
    for name, attribute, per_unit in group.sizes:
        before = getattr(modules[name], attribute)
        setattr(modules[name], attribute, before - per_unit * len(gone) // group.unit)
    for name in {s.module for s in group.slices}:
        if isinstance(modules[name], nn.RNNBase):
            modules[name]._init_flat_weights()  # what its forward really reads
    return model


@torch.no_grad()
def silence_(model: nn.Module, group: SliceGroup, channels: Sequence[int]) -> nn.Module:
    """Let nothing read these channels any more, in place; shapes stay."""
    modules = dict(model.named_modules())
    for s in group.slices:
        if s.reads:
            tensor = getattr(modules[s.module], s.tensor)
            tensor[(slice(None),) * s.axis + (s.places[list(channels)].flatten(),)] = 0.0
    return model


def slice_score(group: SliceGroup, saliency: Mapping[tuple[str, str], Tensor]) -> Tensor:
    """Importance of every channel, [channels] with mean 1, the same for all channels of a unit.

    Every tensor counts alike, however large it is.

    Args:
        saliency: shaped like the tensors, by (module, tensor); what is missing counts for nothing.
    """
    score = torch.zeros(group.channels)
    for s in group.slices:
        if (found := saliency.get((s.module, s.tensor))) is not None:
            per_place = found.movedim(s.axis, 0).flatten(1).sum(1) if found.ndim > 1 else found
            own = per_place[s.places].sum(1)
            score += own / own.mean().clamp_min(1e-20)
    score = score.reshape(-1, group.unit).mean(1).repeat_interleave(group.unit)
    return score / score.mean().clamp_min(1e-20)


def kept_channels(group: SliceGroup, removed: Iterable[int]) -> list[int]:
    """The channels that stay, in their order."""
    gone = set(removed)
    return [c for c in range(group.channels) if c not in gone]


def whole_units(group: SliceGroup, channels: Sequence[int]) -> list[int]:
    """As many whole units as the channels would fill, those that most of them are of first."""
    counts = torch.bincount(torch.tensor(list(channels)) // group.unit, minlength=group.channels // group.unit)
    chosen = sorted(torch.argsort(counts, descending=True, stable=True)[: len(channels) // group.unit].tolist())
    return [unit * group.unit + i for unit in chosen for i in range(group.unit)]
