"""What each layer of a trial's network costs, beside the dense one's: bytes, multiply-accumulates, milliseconds.

Bytes are those of the weights as they are stored, with their biases and scales; the graph's own bytes belong to
no layer. Milliseconds cannot be measured per layer in a file that runs as a whole: they are what the timed files of
the study say together, and None where too few were timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.config import SpaceConfig
from autocompress.front.summary import LayerRow, layer_rows
from autocompress.plan import ACTIVATIONS, CompressionPlan
from autocompress.records import LayerFacts, ModelFacts, TrialRecord
from autocompress.search.cost import LatencyModel, layer_work, stored_bytes
from autocompress.search.options import Options
from autocompress.space.ranks import inputs_left, taps_of
from autocompress.space.search_space import SearchSpace

_LEAST_FILES = 6  # of different structure, before layers are told apart
_MOST_FILES = 300  # the latest
_ANYTHING = SpaceConfig(
    max_prune_ratio=0.99,
    round_to=1,
    weight_bits=(2, 3, 4, 8, 16, 32),
    rank_ratio=tuple(percent / 100 for percent in range(100)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One layer: what became of it, and its costs. `latency_ms` is inferred; None where it is not known."""

    row: LayerRow
    inputs: int
    size_bytes: int
    macs: int
    latency_ms: float | None


def layer_costs(facts: ModelFacts, trial: TrialRecord, latencies_ms: Sequence[float] | None = None) -> list[LayerCost]:
    """Costs of every layer with weights, in the order of the model."""
    known = latencies_ms if latencies_ms is not None else [None] * len(facts.layers)
    rows = layer_rows(facts, trial)
    return [
        _cost(layer, row, facts, trial, latency_ms)
        for layer, row, latency_ms in zip(facts.layers, rows, known, strict=True)
    ]


def dense(trial: TrialRecord) -> TrialRecord:
    """The same trial as if nothing had been done to its network."""
    return replace(trial, plan=CompressionPlan(), widths={})


class LayerLatencies:
    """Milliseconds per layer, learned from the files of a study that were timed as a whole.

    Args:
        facts: the model's.
        trials: of the study; those with a timing count.
        baseline_ms: of the dense file.
    """

    def __init__(self, facts: ModelFacts, trials: Sequence[TrialRecord], *, baseline_ms: float) -> None:
        self._options = Options(SearchSpace(config=_ANYTHING, facts=facts))
        self._model = LatencyModel(self._options)
        self._baseline_ms = baseline_ms
        timed: dict[str, TrialRecord] = {
            t.plan.structure_key(): t for t in trials if t.measurement and t.cascade is None
        }
        chosen = list(timed.values())[-_MOST_FILES:]
        self.files = len(chosen)
        ratios = np.array([t.measurement.latency.ratio for t in chosen if t.measurement])
        if chosen:
            self._model.observe(self._options.encode([t.plan for t in chosen]), ratios)

    @property
    def known(self) -> bool:
        """Whether enough files were timed to tell layers apart."""
        return self.files >= _LEAST_FILES

    def of(self, plan: CompressionPlan) -> list[float] | None:
        """Milliseconds of each layer under a plan; None where too little is known.

        Layers never take longer together than the file is believed to: what is learned of a single one is uncertain.
        """
        if not self.known:
            return None
        at = self._options.encode([plan])
        multiplying, moving = self._model.layer_shares(ACTIVATIONS.index(plan.activations))
        products, elements = layer_work(self._options, at, lanes=self._model.lanes)
        per_layer = multiplying * products[0] + moving * elements[0]
        left = self._options.layers_left(at.removed)[0]
        ratios = per_layer * left
        whole = float(self._model.predict(at)[0])
        ratios *= min(1.0, whole / max(float(ratios.sum()), 1e-12))
        return [float(ms) for ms in ratios * self._baseline_ms]


def _cost(
    layer: LayerFacts, row: LayerRow, facts: ModelFacts, trial: TrialRecord, latency_ms: float | None
) -> LayerCost:
    inputs, taps = inputs_left(layer, facts, trial.widths), taps_of(layer)
    if row.block:
        return LayerCost(row=row, inputs=0, size_bytes=0, macs=0, latency_ms=0.0 if latency_ms is not None else None)
    parts = [(row.kept * inputs * taps, 1.0)]
    if row.rank and layer.factors:
        first = (row.rank * inputs * layer.factors.taps, layer.factors.places)
        parts = [first, (row.rank * row.kept * taps / layer.factors.taps, 1.0)]
    scales = row.kept + row.rank if row.bits <= 8 else 0  # one for integers per output, of both factors
    stored = stored_bytes(np.array([weights for weights, _ in parts]), np.array([row.bits])).sum()
    return LayerCost(
        row=row,
        inputs=round(inputs),
        size_bytes=round(float(stored)) + 4 * (row.kept + scales),  # and a bias
        macs=round(sum(weights * places for weights, places in parts) * layer.positions),
        latency_ms=latency_ms,
    )
