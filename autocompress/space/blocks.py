"""Finds the residual blocks: submodules that a network still works without, because their input goes on as it is.

Told by what a module computes, not by its class: with all of its parameters at zero only the shortcut
is left, so a block whose output then equals its input can go. `compress/drop.py` takes it out.

A layer of a post-norm transformer, x -> norm(x + f(x)), has its norm behind the shortcut: with everything but its norms
at zero its output is its input, normalised. It can go as well, norm and all: what came in was normalised by the layer
before, or is by the next one. What the first of them, or the only one, is worth is for the search to find out.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.records import BlockFacts, GroupFacts
from autocompress.space.groups import build_graph, full_group, slice_group
from autocompress.space.layers import CONVS, replace_module_

_WEIGHTED = (*CONVS, nn.Linear)
_NORMS = (nn.LayerNorm, nn.RMSNorm)  # those that give the same for their own output


def find_blocks(model: nn.Module, example: Sequence[Tensor], *, skip: tuple[str, ...] = ()) -> list[BlockFacts]:
    """Blocks that can be left out, each alone and all together, in the order of the model; groups are not filled in.

    The innermost ones: of two residual blocks in a row each is a block, and the two together are not.

    Args:
        model: in eval mode; it is not changed.
        example: the inputs of one forward, each [batch, ...]; real samples, since a block that ends in a ReLU passes
            on only what is not negative, and whether its input can be negative is read off them.
        skip: names of layers that are left alone, and with them the blocks they are in.
    """
    model = copy.deepcopy(model).eval()
    shared = _shared_modules(model)
    calls = _watch(model, example, [n for n, m in model.named_modules() if n and _may_go(n, m, shared, skip)])
    found: list[BlockFacts] = []
    for name, call in reversed(calls.items()):  # the parts of a module come after it
        if any(block.name.startswith(f"{name}.") for block in found):
            continue
        if call.times == 1 and call.keeps_shape and _passes_on(model.get_submodule(name), call):
            found.insert(0, BlockFacts(name=name, layers=tuple(_layers_in(name, model.get_submodule(name)))))
    return _keep_what_works(model, example, found)


def with_groups(
    model: nn.Module, example: Sequence[Tensor], blocks: Sequence[BlockFacts], groups: Sequence[GroupFacts]
) -> list[BlockFacts]:
    """The blocks with the names of the groups that live entirely inside each.

    Not only all layers of such a group are in the block, but everything that shrinks with it: a block that reads an
    embedding may hold all layers of the stream that it adds to, and yet the stream goes on without it.

    Args:
        groups: as `find_groups` gives them.
    """
    inside = {b.name: [g for g in groups if set(g.layers) <= set(b.layers)] for b in blocks}
    if not any(inside.values()):
        return list(blocks)
    model = copy.deepcopy(model).eval()
    modules = dict(model.named_modules())
    sliced = {g.name: s for g in groups if (s := slice_group(model, g.name, example)) is not None}
    graph = build_graph(model, example) if len(sliced) < len(groups) else None
    names = {id(m): n for n, m in (*model.named_parameters(), *model.named_modules())}

    def stays(group: GroupFacts, block: BlockFacts) -> bool:
        if group.name in sliced:
            return all(s.module.startswith(f"{block.name}.") for s in sliced[group.name].slices)
        touched = (names.get(id(dep.target.module)) for dep, _ in full_group(graph, modules[group.name]))
        return all(name is None or name.startswith(f"{block.name}.") for name in touched)

    return [replace(b, groups=tuple(g.name for g in inside[b.name] if stays(g, b))) for b in blocks]


@dataclass(slots=True)
class _Call:
    """How a module was called: how often, and in the first call with which tensor and what else."""

    times: int = 0
    keeps_shape: bool = False
    input: Tensor = field(default_factory=lambda: torch.zeros(0))
    others: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)


def _watch(model: nn.Module, example: Sequence[Tensor], names: Sequence[str]) -> dict[str, _Call]:
    """One forward, and how each of the named modules was called in it; the order is that of `names`."""
    calls = {name: _Call() for name in names}
    handles = []
    for name, call in calls.items():
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(_before(call), with_kwargs=True))
        handles.append(module.register_forward_hook(_after(call)))
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _before(call: _Call) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        call.times += 1
        others = (*inputs[1:], *named.values())
        if call.times == 1 and inputs and _is_float(inputs[0]) and not any(isinstance(v, Tensor) for v in others):
            call.input, call.others, call.named = inputs[0].clone(), inputs[1:], dict(named)

    return hook


def _after(call: _Call) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        call.keeps_shape = _is_float(output) and output.numel() > 0 and output.shape == call.input.shape
        if not call.keeps_shape:
            call.input = torch.zeros(0)

    return hook


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _passes_on(module: nn.Module, call: _Call) -> bool:
    """Whether the module returns its input, or that normalised, once it is silent: the real one, and noise like it."""
    low, high = call.input.amin(), call.input.amax()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(call.input.shape, generator=generator, dtype=call.input.dtype)
    noise = low + noise * (high - low if high > low else 1.0)
    inputs = (call.input, noise)
    if (outputs := _silent_outputs(module, call, inputs, norms=False)) is None:
        return False
    if all(_equal(got, x) for got, x in zip(outputs, inputs, strict=True)):
        return True
    norm = next((m for m in module.modules() if isinstance(m, _NORMS)), None)
    if norm is None or (outputs := _silent_outputs(module, call, inputs, norms=True)) is None:
        return False
    with torch.no_grad():
        wanted = [_plain_(copy.deepcopy(norm))(x) for x in inputs]
    # A norm of a norm differs from one by its epsilon.
    return all(_equal(got, x, tolerance=1e-3) for got, x in zip(outputs, wanted, strict=True))


def _silent_outputs(module: nn.Module, call: _Call, inputs: Sequence[Tensor], *, norms: bool) -> list[Tensor] | None:
    """What a module makes of its inputs with all parameters at zero; those of its norms, if `norms`, as when new.

    None if it cannot do with that.
    """
    silent = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
        for norm in silent.modules() if norms else ():
            if isinstance(norm, _NORMS):
                _plain_(norm)
        try:
            return [silent(x.clone(), *call.others, **call.named) for x in inputs]
        except Exception:  # whatever cannot do with zeros is no block
            return None


def _plain_(norm: nn.Module) -> nn.Module:
    """A norm that scales nothing and shifts nothing."""
    for name, parameter in norm.named_parameters():
        parameter.fill_(1.0 if name == "weight" else 0.0)
    return norm


def _equal(got: Tensor, x: Tensor, *, tolerance: float = 1e-5) -> bool:
    # relative to the largest value: in an untrained network activations can be tiny, and zero is not close to them
    return got.shape == x.shape and torch.allclose(got, x, rtol=tolerance, atol=tolerance * x.abs().amax().item())


def _may_go(name: str, module: nn.Module, shared: set[nn.Module], skip: tuple[str, ...]) -> bool:
    layers = _layers_in(name, module)
    if isinstance(module, _WEIGHTED) or not layers or shared.intersection(module.modules()):
        return False
    return name not in skip and not set(layers).intersection(skip)


def _layers_in(name: str, module: nn.Module) -> list[str]:
    return [f"{name}.{n}" for n, m in module.named_modules() if isinstance(m, _WEIGHTED)]


def _shared_modules(model: nn.Module) -> set[nn.Module]:
    """Modules under two names, and those that hold a parameter that another place holds too."""
    places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    return {
        m for m in model.modules() if places[id(m)] > 1 or any(uses[id(p)] > 1 for p in m.parameters(recurse=False))
    }


def _keep_what_works(model: nn.Module, example: Sequence[Tensor], blocks: list[BlockFacts]) -> list[BlockFacts]:
    """Leave out one block after the other, and keep those without which the forward still gives as much.

    A forward may insist on a block's own parts: `nn.TransformerEncoder` reads attributes of its first layer.
    """
    from autocompress.compress.drop import drop_blocks_

    kept: list[BlockFacts] = []
    with torch.no_grad():
        shape = model(*example).shape
        for block in blocks:
            whole = model.get_submodule(block.name)
            drop_blocks_(model, [block.name])
            try:
                works = model(*example).shape == shape
            except Exception:
                works = False
            if works:
                kept.append(block)
            else:
                replace_module_(model, block.name, whole)
    return kept
