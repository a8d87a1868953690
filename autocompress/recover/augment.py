"""Training data that is changed on purpose: afresh in every batch, or in fixed views that a teacher answers once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.recover.read import Split

Augment = Literal["none", "hflip", "shift", "hflip+shift"]

VIEWS = 8
_UNMIXED = 2  # of them, the first


def augment(inputs: Tensor, kind: Augment, generator: torch.Generator) -> Tensor:
    """Randomly changed copies of images; every image draws its own change.

    Args:
        inputs: [batch, channels, height, width].
        kind: "hflip" mirrors left and right with probability 1/2; "shift" pads an eighth of each side with zeros
            (4 of 32, 3 of 28, 1 of 8) and cuts a random window of the old size.
        generator: on the CPU; the only source of randomness.
    Raises:
        ValueError: an unknown kind, or inputs that are no images.
    """
    kinds = _kinds(inputs, kind)
    if "hflip" in kinds:
        flip = torch.rand(len(inputs), generator=generator) < 0.5
        inputs = _mirror(inputs, flip)
    if "shift" in kinds:
        inputs = _cut(inputs, _corners(len(inputs), inputs, generator))
    return inputs


class Views:
    """Fixed changed copies of training data, made when they are asked for.

    View 0 is the data as it is, view 1 the data augmented. In the others, which are mirrored in turn and shifted, each
    sample is mixed with another one, of which it gets less than half. Mixed are inputs and real-valued targets;
    labels stay those of the larger part. Integers, as tokens are, are not mixed.

    Args:
        split: the data; one input of images if `kind` is not "none".
        kind: of the augmentation, as in `augment`.
        generator: on the CPU; the only source of randomness.
    Attributes:
        count: of the views; 1 where neither augmenting nor mixing changes anything.
    Source: mixtures as in Zhang et al. 2017, arXiv:1710.09412; answered by the teacher, as in Beyer et al. 2021,
        arXiv:2106.05237.
    """

    def __init__(self, split: Split, kind: Augment, generator: torch.Generator) -> None:
        self._split, self._kind = split, kind
        mixes = all(torch.is_floating_point(t) for t in split.inputs)
        self.count = VIEWS if mixes or kind != "none" else 1
        size = (self.count, len(split))
        self._own = torch.ones(size)  # share of the sample itself
        if mixes:
            self._own[_UNMIXED:] = 1 - torch.rand(self.count - _UNMIXED, len(split), generator=generator) / 2
        self._other = torch.randint(len(split), size, generator=generator)
        self._corners: Tensor | None = None
        if "shift" in _kinds(split.inputs[0], kind):
            self._corners = _corners(self.count * len(split), split.inputs[0], generator).view(*size, 2)

    def take(self, view: Tensor, index: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """(inputs, targets) of samples, each in its view; both [batch]."""
        own, other = self._own[view, index], self._other[view, index]
        inputs, targets = self._augmented(view, index), self._split.targets[index]
        if bool((own == 1).all()):
            return inputs, targets
        pairs = zip(inputs, self._augmented(view, other), strict=True)
        if torch.is_floating_point(targets):
            targets = _mix(targets, self._split.targets[other], own)
        return tuple(_mix(one, another, own) for one, another in pairs), targets

    def _augmented(self, view: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(t[index] for t in self._split.inputs)
        if self._kind == "none":
            return inputs
        (images,) = inputs
        if "hflip" in _kinds(images, self._kind):
            images = _mirror(images, view % 2 == 1)
        if self._corners is not None:
            moved = view > 0
            images[moved] = _cut(images[moved], self._corners[view[moved], index[moved]])
        return (images,)


def _mix(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """`share` [batch] of `one`, and the rest of `other`."""
    return torch.lerp(other, one, share.to(one.dtype).view(-1, *[1] * (one.ndim - 1)))


def _kinds(inputs: Tensor, kind: Augment) -> set[str]:
    kinds = set(kind.split("+")) - {"none"}
    if kinds and (kinds - {"hflip", "shift"} or inputs.ndim != 4):
        raise ValueError(
            f"augment takes none, hflip, shift or hflip+shift and images [batch, channels, height, width], "
            f"got {kind!r} and {list(inputs.shape)}"
        )
    return kinds


def _mirror(inputs: Tensor, which: Tensor) -> Tensor:
    return torch.where(which.to(inputs.device).view(-1, 1, 1, 1), inputs.flip(3), inputs)


def _margins(inputs: Tensor) -> tuple[int, int]:
    """Rows and columns of zeros that are added on each side before a window is cut."""
    return max(1, inputs.shape[2] // 8), max(1, inputs.shape[3] // 8)


def _corners(count: int, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Random upper left corners of windows, [count, 2]."""
    rows, columns = _margins(inputs)
    down = torch.randint(2 * rows + 1, (count,), generator=generator)
    return torch.stack([down, torch.randint(2 * columns + 1, (count,), generator=generator)], dim=1)


def _cut(inputs: Tensor, corners: Tensor) -> Tensor:
    """The windows of the padded images at those corners."""
    batch, _, height, width = inputs.shape
    rows, columns = _margins(inputs)
    padded = functional.pad(inputs, (columns, columns, rows, rows))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [b, c, 2 rows + 1, 2 columns + 1, h, w], a view
    down, right = corners.to(inputs.device).unbind(1)
    return windows[torch.arange(batch, device=inputs.device), :, down, right]
