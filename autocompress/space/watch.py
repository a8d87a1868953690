"""Looks at what goes through the layers of a network while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

See = Callable[[str, Any, tuple[Any, ...], Any], None]


@contextmanager
def watched(model: nn.Module, wanted: Callable[[nn.Module], bool], see: See) -> Iterator[None]:
    """While the block runs, `see(name, module, inputs, output)` is called after every forward of a wanted module.

    A module that is used twice is seen twice; one that hangs in two places, under its first name.
    """

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: see(name, module, inputs, output)

    handles: list[RemovableHandle] = []
    try:
        for name, module in model.named_modules():
            if wanted(module):
                handles.append(module.register_forward_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
