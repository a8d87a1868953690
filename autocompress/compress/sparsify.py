"""Zeroes single weights: gradually while a network is trained, or at once.

Zeros take as many bytes in a plain file and as long to multiply as any other number; they make the zipped
file smaller, and a runtime that knows an N:M pattern faster. Removing whole channels is `prune.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.compress.drop import is_dropped
from autocompress.plan import SparsityKind, kept_of
from autocompress.space.factors import layers_for

_END = 0.5  # share of the training after which no more weights go
_EVERY = 8  # steps between two choices
_DECAY = 0.8  # of the squared gradients, from one choice to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """What to zero: a share in [0, 1) of all weights of these layers together, chosen by `kind`."""

    share: float
    kind: SparsityKind
    layers: tuple[str, ...]


class Mask(nn.Module):
    """Parametrization that zeroes the weights that were chosen; gradients reach the others alone."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", (weight.detach() != 0).to(weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Sparsifier:
    """Chooses weights anew every few steps, more each time, until the share is reached.

    The share follows s + (s0 - s)(1 - t)^3, from the zeros s0 that are there to s, with t from 0 to 1 in the first
    half of the training.

    Args:
        model: gets a `Mask` on each layer, in place; layers of dropped blocks are passed over.
    Source: Zhu and Gupta 2017, arXiv:1710.01878 (the cubic schedule).
    """

    def __init__(self, model: nn.Module, sparsity: Sparsity) -> None:
        self._sparsity, self._steps = sparsity, 0
        modules: dict[str, Any] = dict(model.named_modules())
        names = [n for n in sparsity.layers if not is_dropped(modules, n)]
        self._layers = [modules[part] for n in names for part in layers_for(modules, n)]
        for layer in self._layers:
            if not any(isinstance(p, Mask) for p in _chain(layer)):
                parametrize.register_parametrization(layer, "weight", Mask(layer.weight))
        self._start = zeros_share([_mask(layer).mask for layer in self._layers])
        self._squares: list[Tensor] | None = None

    def step(self, share: float) -> None:
        """Called before each step with the share of the training that is done."""
        if self._sparsity.kind == "fisher" and self._steps % _EVERY == 0:
            self._add_squares()
        if share < _END + 0.1 and self._steps % _EVERY == 0:
            self.choose_(share)
        self._steps += 1

    @torch.no_grad()
    def choose_(self, share: float = 1.0) -> None:
        """Set the masks to those for this share of the training."""
        weights = [_original(layer) for layer in self._layers]
        kind = self._sparsity.kind
        if ":" in kind:
            masks = [keep_pattern(w, *kept_of(kind)) for w in weights]
        else:
            left = (1 - min(1.0, share / _END)) ** 3
            wanted = self._sparsity.share + min(0.0, self._start - self._sparsity.share) * left
            masks = keep_largest(self._scores(weights), wanted)
        for layer, mask in zip(self._layers, masks, strict=True):
            _mask(layer).mask.copy_(mask)

    def _scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        if self._sparsity.kind == "fisher" and self._squares is not None:
            return [w.square() * s for w, s in zip(weights, self._squares, strict=True)]
        return [layer_adaptive(w) for w in weights]

    def _add_squares(self) -> None:
        gradients = [_original(layer).grad for layer in self._layers]
        if any(g is None for g in gradients):
            return
        squares = [g.square() for g in gradients if g is not None]
        if self._squares is None:
            self._squares = squares
        for known, new in zip(self._squares, squares, strict=True):
            known.lerp_(new, 1 - _DECAY)


def sparsify_(model: nn.Module, sparsity: Sparsity | None) -> nn.Module:
    """Zero at once, by magnitude where gradients would be needed, in place; None leaves the network alone."""
    if sparsity is not None:
        Sparsifier(model, sparsity).choose_()
    return model


def layer_adaptive(weight: Tensor) -> Tensor:
    """w^2 over the sum of all that are at least as large in the layer: comparable between layers, the largest has 1.

    Source: Lee et al. 2021, arXiv:2010.07611 (LAMP).
    """
    squares, order = weight.detach().float().square().flatten().sort()
    above = squares.flip(0).cumsum(0).flip(0).clamp_min(1e-30)
    scores = torch.empty_like(squares)
    scores[order] = squares / above
    return scores.reshape(weight.shape)


def keep_largest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """1 for what stays and 0 for the `share` of lowest scores, over all tensors together; each keeps its largest."""
    together = torch.cat([s.flatten() for s in scores])
    count = round(share * len(together))
    if count == 0:
        return [torch.ones_like(s) for s in scores]
    border = together.kthvalue(count).values
    return [((s > border) | (s == s.max())).to(s.dtype) for s in scores]


def keep_pattern(weight: Tensor, kept: int, of: int) -> Tensor:
    """1 for the `kept` largest of every `of` inputs that follow each other, [out, in, *kernel].

    A layer whose inputs do not divide by `of` keeps all.
    """
    inputs = weight.shape[1]
    if inputs % of:
        return torch.ones_like(weight)
    last = weight.detach().abs().movedim(1, -1)
    places = last.reshape(*last.shape[:-1], inputs // of, of)
    largest = places.topk(kept, dim=-1).indices
    mask = torch.zeros_like(places).scatter_(-1, largest, 1.0)
    return mask.reshape(last.shape).movedim(-1, 1).contiguous()


def zeros_share(tensors: Sequence[Tensor]) -> float:
    """Share of exact zeros over all tensors together; 0 for none at all."""
    total = sum(t.numel() for t in tensors)
    return float(sum(int((t == 0).sum()) for t in tensors)) / total if total else 0.0


def _chain(layer: Any) -> list[nn.Module]:
    return list(layer.parametrizations.weight) if parametrize.is_parametrized(layer, "weight") else []


def _mask(layer: Any) -> Mask:
    return next(p for p in _chain(layer) if isinstance(p, Mask))


def _original(layer: Any) -> Tensor:
    original: Tensor = layer.parametrizations.weight.original
    return original
