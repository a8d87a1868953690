"""Hidden units of LSTM, GRU and plain recurrent layers as groups that can be pruned.

What reads the units is found by watching: their outputs are disturbed, and a layer whose inputs change is a reader.
A group is only offered if taking a unit away is the same as letting nobody read it, which is tried.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import first_line
from autocompress.records import Skip
from autocompress.space.slices import Slice, SliceGroup, remove_slices_, silence_
from autocompress.space.watch import watched

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_CONVS = (nn.Conv1d, nn.Conv2d)
_READERS = (nn.Linear, nn.RNNBase, *_CONVS)
_MOST_READERS = 8


def find_hidden_groups(model: nn.Module, example: Sequence[Tensor]) -> tuple[list[SliceGroup], list[Skip]]:
    """A group for every recurrent layer whose hidden units can be pruned, and why others cannot.

    All layers and directions of one `nn.LSTM` share a hidden size, so they are one group.

    Args:
        model: in eval mode; it is not changed.
        example: the inputs of one forward, each [batch, ...].
    """
    groups: list[SliceGroup] = []
    skips: list[Skip] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.RNNBase):
            continue
        reason = "projections of recurrent layers are not pruned" if module.proj_size else ""
        try:
            group = None if reason else _group(model, name, module, example)
            if group is None:
                reason = (
                    reason or "something reads its hidden units that cannot be narrowed, such as a norm or the output"
                )
        except Exception as error:
            reason, group = f"its hidden units cannot be followed ({first_line(error)})", None
        if reason or group is None:
            skips.append(Skip(name=name, what="prune", reason=reason))
        else:
            groups.append(group)
    return groups, skips


def hidden_group(model: nn.Module, name: str, example: Sequence[Tensor]) -> SliceGroup | None:
    """The group of one recurrent layer, untried; None if something unknown reads its units."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.RNNBase)
    return _group(model, name, module, example)


def is_right(model: nn.Module, group: SliceGroup, example: Sequence[Tensor]) -> bool:
    """Whether a network without some channels computes what it does while nobody reads them."""
    gone = list(range(group.unit)) if group.unit > 1 else sorted({0, group.channels // 2})
    quiet = silence_(copy.deepcopy(model), group, gone)
    narrow = remove_slices_(copy.deepcopy(model), group, gone)
    with torch.no_grad():
        wanted, got = quiet(*example), narrow(*example)
        dense = model(*example)
    size = max(float(dense.abs().amax()), 1e-6)
    return got.shape == dense.shape and bool(torch.allclose(got, wanted, rtol=1e-4, atol=1e-5 * size))


def _group(model: nn.Module, name: str, module: nn.RNNBase, example: Sequence[Tensor]) -> SliceGroup | None:
    hidden, directions = module.hidden_size, 2 if module.bidirectional else 1
    units = torch.arange(hidden)
    rows = torch.stack([units + gate * hidden for gate in range(GATES[module.mode])], dim=1)
    slices: list[Slice] = []
    for layer in range(module.num_layers):
        for end in (f"l{layer}", f"l{layer}_reverse")[:directions]:
            slices.append(Slice(module=name, tensor=f"weight_ih_{end}", axis=0, places=rows))
            slices.append(Slice(module=name, tensor=f"weight_hh_{end}", axis=0, places=rows))
            slices.append(Slice(module=name, tensor=f"weight_hh_{end}", axis=1, places=units[:, None], reads=True))
            if module.bias:
                slices += [Slice(module=name, tensor=f"bias_{k}_{end}", axis=0, places=rows) for k in ("ih", "hh")]
            if layer > 0:
                both = torch.stack([units + d * hidden for d in range(directions)], dim=1)
                slices.append(Slice(module=name, tensor=f"weight_ih_{end}", axis=1, places=both, reads=True))
    sizes = [(name, "hidden_size", 1)]
    readers = _readers(model, name, hidden, example)
    if readers is None:
        return None
    for reader, starts in readers.items():
        places = units[:, None] + torch.tensor(starts)[None]
        target: Any = model.get_submodule(reader)
        if isinstance(target, nn.RNNBase):
            ends = ("l0", "l0_reverse")[: 2 if target.bidirectional else 1]
            slices += [Slice(module=reader, tensor=f"weight_ih_{e}", axis=1, places=places, reads=True) for e in ends]
            sizes.append((reader, "input_size", len(starts)))
        else:
            slices.append(Slice(module=reader, tensor="weight", axis=1, places=places, reads=True))
            sizes.append((reader, "in_channels" if isinstance(target, _CONVS) else "in_features", len(starts)))
    return SliceGroup(
        name=name, channels=hidden, unit=1, slices=tuple(slices), sizes=tuple(sizes), layers=(name,)
    )  # fmt: skip


def _readers(model: nn.Module, name: str, hidden: int, example: Sequence[Tensor]) -> dict[str, list[int]] | None:
    """The layers that read the hidden units, with the input that unit 0 is for each, by place; None: others do too."""
    found: dict[str, list[int]] = {}
    model = copy.deepcopy(model)
    while len(found) <= _MOST_READERS:
        plain, output = _inputs_of(model, example, None)
        other, disturbed = _inputs_of(model, example, (name, 0))
        new = next((n for n in plain if n not in found and n != name and not torch.equal(plain[n], other[n])), None)
        if new is None:
            return found if found and torch.equal(output, disturbed) else None
        changed = (plain[new] != other[new]).flatten(0, -2).any(0).nonzero().flatten().tolist()
        reader: Any = model.get_submodule(new)
        ends = [*changed[1:], plain[new].shape[-1]]  # all units of a copy stand before the next one
        if getattr(reader, "groups", 1) != 1 or any(e - s < hidden for s, e in zip(changed, ends, strict=True)):
            return None
        found[new] = changed
        with torch.no_grad():  # what it reads is found; what is disturbed after this comes another way
            for tensor in _input_weights(reader):
                tensor[:, changed] = 0.0
    return None


def _input_weights(reader: Any) -> list[Tensor]:
    names = ["weight"]
    if isinstance(reader, nn.RNNBase):
        names = ["weight_ih_l0", "weight_ih_l0_reverse"][: 2 if reader.bidirectional else 1]
    return [getattr(reader, name) for name in names]


def _inputs_of(
    model: nn.Module, example: Sequence[Tensor], disturb: tuple[str, int] | None
) -> tuple[dict[str, Tensor], Tensor]:
    """What goes into every possible reader, channels last, in the order in which they run; and the output."""
    seen: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            x = inputs[0].movedim(1, -1) if isinstance(module, _CONVS) else inputs[0]
            seen[name] = torch.cat([seen[name], x.flatten(0, -2)]) if name in seen else x.flatten(0, -2).clone()

    with _disturbed(model, disturb), watched(model, lambda m: isinstance(m, _READERS), see), torch.no_grad():
        output = model(*example)
    return seen, output


@contextmanager
def _disturbed(model: nn.Module, what: tuple[str, int] | None) -> Iterator[None]:
    """While the block runs, one unit of a recurrent layer gives something else than it would."""
    if what is None:
        yield
        return
    layer: Any = model.get_submodule(what[0])
    hidden = layer.hidden_size

    def change(_: nn.Module, __: Any, result: Any) -> Any:
        output, state = result
        mask = torch.arange(output.shape[-1]) % hidden == what[1]
        output = torch.where(mask, output + 1.0, output)
        states = [torch.where(torch.arange(hidden) == what[1], s + 1.0, s) for s in _states(state)]
        return output, tuple(states) if isinstance(state, tuple) else states[0]

    handle = layer.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def _states(state: Any) -> list[Tensor]:
    return list(state) if isinstance(state, tuple) else [state]
