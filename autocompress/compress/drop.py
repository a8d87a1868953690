"""Takes whole residual blocks out of a network: what came in goes on as it is.

Which blocks allow that is found in `space/blocks.py`; narrowing what stays is `prune.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from autocompress.space.layers import replace_module_


class Dropped(nn.Identity):
    """Stands where a block was and returns its first argument, whatever else the block was called with."""

    def forward(self, input: Tensor, *_: object, **__: object) -> Tensor:
        return input


def drop_blocks_(model: nn.Module, blocks: Iterable[str]) -> nn.Module:
    """Put a `Dropped` in the place of each named block, in place.

    Raises:
        ValueError: a name is not that of a module of the model.
    """
    modules = dict(model.named_modules())
    for name in blocks:
        if not name or name not in modules:
            raise ValueError(f"the plan removes {name!r}, which is not a block of the model; `show` lists those it has")
        replace_module_(model, name, Dropped())
    return model


def is_dropped(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a layer of this name went with a block: the innermost of its parents that is left is a `Dropped`.

    Args:
        modules: the network's own, by name.
    """
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return isinstance(modules[name], Dropped)
