"""The dense artifact as what trials are compared with: as a trial of its own, and how sure a difference from it is."""

from __future__ import annotations

import math

from autocompress.front.explain import is_share
from autocompress.front.hypervolume import Direction
from autocompress.plan import CompressionPlan
from autocompress.records import Baseline, Latency, Measurement, ModelFacts, TrialRecord, TrialState


def drop_noise(baseline: Baseline, samples: int, direction: Direction) -> float:
    """Standard deviation of a drop between two networks that mostly err on the same samples.

    That of a share of samples, or else what the metric's interval says; relative for an error, as its drop is.
    """
    if is_share(baseline.metric) or baseline.val_ci is None:
        share = min(max(baseline.val, 0.0), 1.0) if direction == "maximize" else 0.5
        error = math.sqrt(share * (1 - share) / max(1, samples))
    else:
        low, high = baseline.val_ci
        error = (high - low) / (2 * 1.96)
        error /= max(abs(baseline.val), 1e-12) if direction == "minimize" else 1.0
    return max(0.5 * math.sqrt(2) * error, 1e-4)


def baseline_trial(baseline: Baseline, facts: ModelFacts) -> TrialRecord:
    """Trial 0: the dense artifact, complete from the start."""
    return TrialRecord(
        trial=0,
        state=TrialState.COMPLETE,
        plan=CompressionPlan(),
        origin="baseline",
        measurement=Measurement(
            val=baseline.val,
            val_ci=baseline.val_ci,
            size_bytes=baseline.size_bytes,
            compressed_bytes=baseline.compressed_bytes,
            latency=Latency(latency_ms=baseline.latency_ms, ratio=1.0, ratio_ci=(1.0, 1.0), blocks=0),
            params=baseline.params,
            macs=baseline.macs,
        ),
        artifact=baseline.artifact,
        widths={g.name: g.channels for g in facts.groups},
    )
