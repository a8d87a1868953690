"""Measures how much the network suffers from each change alone: one group narrowed, or one layer rounded.

Nothing is trained. Where channels are gone they are folded into the kept ones and batch norms estimated
anew, also where a block is left out or a layer is factored; a rounded layer is looked at as it is. The
outputs are compared with the teacher's on a few hundred training samples.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from autocompress.compress.compensate import input_grams
from autocompress.compress.drop import drop_blocks_
from autocompress.compress.factor import factor_
from autocompress.compress.quantize import quantize_weights_
from autocompress.plan import CompressionPlan
from autocompress.records import GroupFacts, ModelFacts
from autocompress.recover.damage import divergence, reestimate_
from autocompress.recover.data import Task
from autocompress.search.sensitivity import Sensitivity

Narrow = Callable[[dict[str, int]], nn.Module]
_SHARES = (0.5, 0.75)  # of a group removed, the most telling first


def measure_sensitivity(
    model: nn.Module,
    facts: ModelFacts,
    samples: Sequence[Tensor],
    narrow: Narrow,
    *,
    low_bits: Sequence[int],
    ratios: Sequence[float] = (),
    seconds: float,
    report: Callable[[str], None],
    task: Task = "classification",
) -> Sensitivity:
    """Damage of every group and layer, as much of it as fits into the time.

    Args:
        model: the teacher, in eval mode.
        samples: inputs, each [n, ...].
        narrow: makes the network whose groups keep the given widths.
        low_bits: bits to try on each layer, the most telling first.
        ratios: shares for factors to save of each layer that may be factored.
        seconds: after which it stops; what is missing is guessed by its neighbours.
        task: what the outputs are.
    """
    start = time.monotonic()
    with torch.no_grad():
        wanted = model(*samples).float()
    width: dict[str, dict[str, float]] = {}
    bits: dict[str, dict[str, float]] = {}
    blocks: dict[str, float] = {}
    ranks: dict[str, dict[str, float]] = {}
    grams = input_grams(model, samples) if ratios else None
    complete = True
    for what, name, value in _tasks(facts, low_bits, ratios):
        if time.monotonic() - start > seconds:
            complete = False
            break
        report(f"measuring how much {name} matters")
        if what == "width":
            network = reestimate_(narrow({name: int(value)}), samples)
            width.setdefault(name, {})[str(value)] = divergence(network, samples, wanted, task)
        elif what == "block":
            network = reestimate_(drop_blocks_(copy.deepcopy(model), [name]), samples)
            blocks[name] = divergence(network, samples, wanted, task)
        elif what == "rank":
            network = factor_(copy.deepcopy(model), CompressionPlan(rank_ratio={name: value}), facts, grams)
            ranks.setdefault(name, {})[str(value)] = divergence(reestimate_(network, samples), samples, wanted, task)
        else:
            network = quantize_weights_(copy.deepcopy(model), {name: int(value)})
            bits.setdefault(name, {})[str(value)] = divergence(network, samples, wanted, task)
    return Sensitivity(
        width=width, bits=bits, blocks=blocks, ranks=ranks, seconds=time.monotonic() - start, samples=len(samples[0]),
        complete=complete,
    )  # fmt: skip


def _tasks(facts: ModelFacts, low_bits: Sequence[int], ratios: Sequence[float]) -> Iterator[tuple[str, str, float]]:
    """What to measure, round by round, so that every group and layer is known a little before any is known well."""
    seen = set()
    for block in facts.blocks:
        yield "block", block.name, 0
    for turn, share in enumerate(_SHARES):
        for group in facts.groups:
            width = _nearest(group, share)
            if width < group.channels and (group.name, width) not in seen:
                seen.add((group.name, width))
                yield "width", group.name, width
        if turn < len(low_bits):
            for layer in facts.layers:
                yield "bits", layer.name, low_bits[turn]
        for layer in facts.layers:
            if ratios and layer.factors is not None:
                yield "rank", layer.name, ratios[0]
        ratios = ratios[1:]


def _nearest(group: GroupFacts, share: float) -> int:
    steps = max(1, round(group.channels * (1 - share) / group.granule))
    return min(group.channels, steps * group.granule)
