"""How much the network suffers from each change alone, before any training: what the search starts from.

Plain numbers; `profile.py` measures them, the sampler turns them into tables over its options.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from autocompress.plan import ACTIVATIONS
from autocompress.records import Record
from autocompress.search.options import Floats, Options

# Nats: a group, 4 bits, 8-bit activations, a block, and factors that would save all of a layer.
_GUESS = {"width": 1.0, "bits": 0.02, "activations": 0.002, "block": 0.5, "rank": 0.1}
_STEEP = 4.0  # the power of the removed share with which the damage grows


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity(Record):
    """Damage in nats: the divergence of the outputs from the teacher's, with a single change and no training.

    Attributes:
        width: by group, of keeping so many channels (as text, for JSON).
        bits: by layer, of so many bits (as text).
        blocks: by block, of leaving it out.
        ranks: by layer, of factors that save such a share (as text).
        seconds: that it took to measure.
        samples: that it was measured on.
        complete: whether all was measured that was asked for; if not, the time was over.
    """

    width: dict[str, dict[str, float]] = field(default_factory=dict)
    bits: dict[str, dict[str, float]] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    samples: int = 0
    complete: bool = False

    def tables(self, options: Options) -> dict[str, Floats]:
        """Damage per option: `width` [groups, options], `bits`, `rank` [layers, options], `blocks`, `activations`."""
        width = np.array([self._of_group(options, i) for i in range(len(options.channels))])
        bits = np.array([self._of_layer(options, i) for i in range(len(options.taps))])
        kinds = np.array([0.0 if kind == "float" else _GUESS["activations"] for kind in ACTIVATIONS])
        return {
            "width": width.reshape(options.widths.shape),
            "bits": bits.reshape(len(options.taps), len(options.bits)),
            "blocks": np.array([self.blocks.get(name, _GUESS["block"]) for name in options.blocks], float),
            "activations": kinds,
            "rank": self._of_ranks(options),
        }

    def _of_ranks(self, options: Options) -> Floats:
        """Through the measured shares, in proportion below and beyond; a layer that stays whole loses nothing."""
        table = np.zeros((len(options.facts.layers), len(options.ratios)))
        for row, layer in enumerate(options.facts.layers):
            if layer.factors is not None:
                measured = self.ranks.get(layer.name, {"1": _GUESS["rank"]})
                known = sorted((float(share), max(damage, 1e-6)) for share, damage in measured.items())
                shares, damages = np.array([(0.0, 0.0), *known]).T
                within = np.interp(options.ratios, shares, np.maximum.accumulate(damages))
                table[row] = within * np.maximum(1.0, options.ratios / shares[-1])
        return table

    def _of_group(self, options: Options, index: int) -> Floats:
        """Through the measured widths; beyond them a power law."""
        group = options.facts.groups[index]
        removed = 1 - options.widths[index] / group.channels
        measured = {int(w): d for w, d in self.width.get(group.name, {}).items() if int(w) < group.channels}
        known = {1 - w / group.channels: d for w, d in measured.items()}
        if not known:
            guessed: Floats = _GUESS["width"] * removed**_STEEP
            return guessed
        shares = np.array(sorted(known))
        damages = np.maximum.accumulate(np.array([max(known[s], 1e-6) for s in shares]))
        below = damages[0] * (removed / shares[0]) ** _STEEP
        above = damages[-1] * (removed / shares[-1]) ** _STEEP
        between = np.exp(np.interp(np.log(np.maximum(removed, 1e-9)), np.log(shares), np.log(damages)))
        chosen: Floats = np.where(removed < shares[0], below, np.where(removed > shares[-1], above, between))
        return chosen

    def _of_layer(self, options: Options, index: int) -> Floats:
        """Rounding noise quadruples with every bit that is taken."""
        known = {int(b): d for b, d in self.bits.get(options.facts.layers[index].name, {}).items()}
        if not known:
            known = {4: _GUESS["bits"]}
        lowest, highest = min(known), max(known)
        row = []
        for bits in options.bits.tolist():
            near = known.get(bits)
            if near is None:
                anchor = highest if bits > highest else lowest
                near = known[anchor] * 4.0 ** (anchor - bits)
            row.append(max(near, 0.0) if bits < 16 else 0.0)
        return np.array(row)
