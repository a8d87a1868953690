"""Strided convolutions of single pixels in two steps: the pixels first, then a convolution that takes them all.

oneDNN computes the gradient of such weights in one go, and with channels last and fewer channels than its vectors
hold it writes past its memory: wrong gradients, a crash, or a training that never ends (oneDNN issue 6035, in
torch 2.14 on processors whose widest vectors are AVX2). Shortcuts of pruned residual networks are such layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_VECTOR = 16  # floats in the widest vectors that processors have


@contextmanager
def strides_apart(model: nn.Module) -> Iterator[None]:
    """Inside, the layers in question stride before they multiply; outputs and gradients are the same."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and _takes_single_pixels(m)]
    strides = [layer.stride for layer in layers]
    handles = [layer.register_forward_pre_hook(_Strided(layer.stride)) for layer in layers]
    for layer in layers:
        layer.stride = (1, 1)
    try:
        yield
    finally:
        for layer, stride, handle in zip(layers, strides, handles, strict=True):
            layer.stride = stride
            handle.remove()


class _Strided:
    """A hook that hands a layer every so many pixels of its input."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        self._rows, self._columns = stride

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *rest = inputs
        return (images[..., :: self._rows, :: self._columns], *rest)


def _takes_single_pixels(layer: nn.Conv2d) -> bool:
    few = layer.in_channels // layer.groups < _VECTOR
    return few and max(layer.kernel_size) == 1 < max(layer.stride) and layer.padding in ((0, 0), "valid")
