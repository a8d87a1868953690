"""Tables of values for weights of few bits: learned by k-means, or powers of two.

One table per layer, shared by its channels, each of which has its own scale. Tables are symmetric about
zero, so that a negative batch-norm factor flips signs and nothing else, and hold whole numbers up to 127,
so that the same integer kernels run as for evenly spaced values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.plan import Levels

_TOP = 127
_ROUNDS = 12
_TABLE_BITS = range(2, 7)
_FITS = 2  # of the table to the scales, and of the scales to the table
_SMALLEST = 1e-18  # size of a channel's weights; what is below holds only zeros
_NOTHING = 1e-12  # scale of such a channel where no value of the table is zero
_NEAR, _FAR = torch.linspace(0.76, 1.24, 9), torch.linspace(0.5, 4.0, 36)


def has_table(bits: int, levels: Levels) -> bool:
    """Whether weights of so many bits take the values of a table: at 1 bit always, at 8 never."""
    return bits == 1 or (bits in _TABLE_BITS and levels != "uniform" and (levels == "codebook" or bits in (3, 4)))


def fit_levels(weight: Tensor, bits: int, levels: Levels, *, zero: bool = False) -> tuple[Tensor, Tensor]:
    """(magnitudes [n] rising from 0 or above to 127, scale per output channel [out]).

    A codebook uses all 2^bits values and has no zero, unless it must; powers of two are 0, 1, 2, 4, ... .
    At 1 bit the values are -1 and 1 and the scale is the mean magnitude, which is best for them. A channel of zeros
    stays next to zero also where the table has none.

    Args:
        weight: [out, ...].
    Source: Han et al. 2016, arXiv:1510.00149 (weights shared by k-means); Rastegari et al. 2016, arXiv:1603.05279,
        section 3.1 (the best scale of binary weights).
    """
    flat = weight.detach().float().flatten(1)
    mean = flat.abs().mean(1)
    empty = mean <= _SMALLEST
    if bits == 1:
        return flat.new_ones(1), mean.masked_fill(empty, _NOTHING)
    size = flat.square().mean(1).sqrt().masked_fill(empty, 1.0)
    if levels == "power_of_two":
        magnitudes = flat.new_tensor([0.0, *(2.0**i for i in range(2 ** (bits - 1) - 1))])
        return magnitudes, _search_scale(flat, size / magnitudes[-1], magnitudes, _FAR)
    for _ in range(_FITS):
        centres = _kmeans((flat / size[:, None]).abs().flatten(), 2 ** (bits - 1), zero=zero)
        size = _search_scale(flat, size, centres, _NEAR)
    magnitudes, scale = _whole(centres / centres[-1] * _TOP), size * float(centres[-1]) / _TOP
    return magnitudes, scale if magnitudes[0] == 0 else scale.masked_fill(empty, _NOTHING)


def nearest(steps: Tensor, magnitudes: Tensor) -> Tensor:
    """The value of the table next to each step; 0 counts as positive where the table has no zero."""
    size, borders = steps.abs(), ((magnitudes[1:] + magnitudes[:-1]) / 2).tolist()
    found = torch.full_like(size, float(magnitudes[0]))
    for border, rise in zip(borders, magnitudes.diff().tolist(), strict=True):
        found.add_((size > border).to(size.dtype), alpha=rise)  # a search in the table takes ten times as long
    return torch.where(steps < 0, -found, found)


def refit(steps: Tensor, magnitudes: Tensor) -> Tensor:
    """The table after one more round of k-means over the weights as they are now; the largest value stays."""
    size = steps.abs().flatten()
    place = torch.bucketize(size, (magnitudes[1:] + magnitudes[:-1]) / 2)
    count = torch.bincount(place, minlength=len(magnitudes))
    total = torch.zeros_like(magnitudes).index_add_(0, place, size.to(magnitudes.dtype))
    moved = torch.where(count > 0, total / count.clamp_min(1), magnitudes)
    moved[-1] = magnitudes[-1]
    if magnitudes[0] == 0:
        moved[0] = 0
    whole = _whole(moved)
    return whole if len(whole) == len(magnitudes) else magnitudes


def table_of(magnitudes: Tensor) -> Tensor:
    """All values, int8, rising: of magnitudes [0, 3, 127] they are -127, -3, 0, 3, 127."""
    values: Tensor = torch.unique(torch.cat([-magnitudes, magnitudes]))
    return values.to(torch.int8)


def _kmeans(sizes: Tensor, count: int, *, zero: bool) -> Tensor:
    """Centres of non-negative numbers, rising; the first one is 0 if it must be. In one dimension sorting is enough."""
    ordered = sizes.sort().values.double()
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centres = ordered[((torch.arange(count, device=ordered.device) + 0.5) / count * len(ordered)).long()]
    for _ in range(_ROUNDS):
        if zero:
            centres[0] = 0
        ends = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(ordered))])
        number = ends.diff()
        means = sums[ends].diff() / number.clamp_min(1)
        centres = torch.where(number > 0, means, centres)
    if zero:
        centres[0] = 0
    return (centres if centres[-1] > 0 else centres.new_ones(1)).float()


def _search_scale(flat: Tensor, size: Tensor, magnitudes: Tensor, factors: Tensor) -> Tensor:
    """Of a few multiples of each channel's size, the scale with the least squared error, [out]."""
    best, least = size, torch.full_like(size, torch.inf)
    for factor in factors:
        scale = size * factor
        error = (nearest(flat / scale[:, None], magnitudes) * scale[:, None] - flat).square().sum(1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _whole(magnitudes: Tensor) -> Tensor:
    """Rounded to whole numbers, equal ones merged; 0 only where it is asked for exactly."""
    rounded = torch.where(magnitudes > 0, magnitudes.round().clamp(1, _TOP), torch.zeros_like(magnitudes))
    distinct: Tensor = torch.unique(rounded)
    return distinct
