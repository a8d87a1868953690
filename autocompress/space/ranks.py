"""How many directions two factors keep of a layer, and what they then hold: arithmetic alone, for one layer or many.

A layer with weights [out, in, *kernel] becomes two, [rank, in, *first taps] and [out, rank, *second taps]. Per
direction they hold in x first taps + out x second taps weights, so they pay below the *even* rank, at which they hold
or multiply as much as the whole layer. A ratio counts from there: at 0.5 the factors save about half.

A linear layer with 64 inputs and 64 outputs is even at rank 32 (32 x 128 = 64 x 64) and gets 16 at a ratio of 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.plan import CompressionPlan
from autocompress.records import LayerFacts, ModelFacts

Floats = NDArray[np.float64]
_LARGE = 256  # inputs and outputs of a linear layer that is factored without being asked for
_WIDE, _STEP, _WIDE_STEP = 32, 4, 8  # ranks are multiples of 4, from 32 on of 8, as the widths of groups are


def kept_rank(outputs: Any, inputs: Any, *, taps: Any, first_taps: Any, places: Any, ratio: Any) -> Floats:
    """Directions that are kept, 0 where the layer stays whole: at a ratio of 0, and where factors would not pay.

    Args:
        outputs, inputs: of the layer as it is now; numbers or arrays, as all of the others.
        taps: of its kernel; `first_taps` of them are the first factor's, the second has the rest.
        places: at which the first factor is computed, per place of the layer's output; infinite: cannot be factored.
        ratio: share to save of the weights or multiplications, of which less is saved, 0 <= ratio < 1.
    """
    per_direction = inputs * (first_taps * np.maximum(places, 1.0)) + outputs * (taps / first_taps)
    even = outputs * inputs * taps / per_direction
    wanted = (1 - ratio) * even
    step = np.where(wanted >= _WIDE, _WIDE_STEP, _STEP)
    rank = np.maximum(step * np.floor(wanted / step + 0.5), step)
    kept: Floats = np.where((rank < even) & (np.asarray(ratio) > 0), rank, 0.0)
    return kept


def layers_to_factor(ratios: Sequence[float], layers: Sequence[LayerFacts]) -> list[LayerFacts]:
    """The layers of a model that a study wants to see factored, as far as they can be.

    Args:
        ratios: of the study file; none: wide linear layers where they hold most of the weights, since there a low rank
            loses less than fewer units of the same size.
        layers: all of the model's.
    """
    if ratios:
        return list(layers) if any(ratio > 0 for ratio in ratios) else []
    wide = [
        n for n in layers if n.kind == "linear" and n.positions == 1 and min(n.out_channels, n.in_channels) >= _LARGE
    ]
    return wide if 2 * sum(n.weights for n in wide) > sum(n.weights for n in layers) else []


def rank_of(layer: LayerFacts, outputs: float, inputs: float, ratio: float) -> int:
    """The same for one layer of the model; 0 also where it cannot be factored."""
    if layer.factors is None or ratio <= 0:
        return 0
    taps = taps_of(layer)
    rank = kept_rank(
        outputs, inputs, taps=taps, first_taps=layer.factors.taps, places=layer.factors.places, ratio=ratio
    )
    return int(rank)


def taps_of(layer: LayerFacts) -> float:
    """Places of its kernel; 3 for an attention's joined projection, which holds each channel three times."""
    return layer.weights / (layer.out_channels * layer.in_channels)


def inputs_left(layer: LayerFacts, facts: ModelFacts, widths: Mapping[str, int]) -> float:
    """Input channels that each output still sees when groups keep these widths; 0 for a group that is gone."""
    channels = {group.name: group.channels for group in facts.groups}
    gone = sum(
        per * (channels[group] - widths.get(group, channels[group]))
        for group, per in layer.sources.items()
        if group in channels and widths.get(group, 1)  # a group that went with its block was no source any more
    )
    return max(layer.in_channels - gone, 1.0)


def refuse_unknown(plan: CompressionPlan, facts: ModelFacts) -> None:
    """Check that a plan factors only what can be factored.

    Raises:
        ValueError: it names another layer.
    """
    known = [layer.name for layer in facts.layers if layer.factors is not None]
    for name, ratio in plan.rank_ratio.items():
        if ratio > 0 and name not in known:
            raise ValueError(f"the plan factors {name!r}, which cannot be; known are {', '.join(known) or 'none'}")
