"""What was believed against what came out."""

from __future__ import annotations

import pytest

from autocompress.front.beliefs import belief_facts, rank_correlation, why
from autocompress.plan import CompressionPlan
from autocompress.records import Baseline, Latency, Measurement, TrialRecord, TrialState

BASELINE = Baseline(
    metric="accuracy", val=0.95, test=None, size_bytes=1000, latency_ms=1.0, params=1, macs=1, artifact="b"
)


def proposed(number: int, believed: float, val: float | None, size: int = 100) -> TrialRecord:
    measured = Measurement(
        val=val, size_bytes=size, compressed_bytes=size, params=1, macs=1,
        latency=Latency(latency_ms=0.5, ratio=0.5, ratio_ci=(0.4, 0.6), blocks=20),
    )  # fmt: skip
    return TrialRecord(
        trial=number, plan=CompressionPlan(), measurement=measured,
        state=TrialState.COMPLETE if val is not None else TrialState.STOPPED,
        belief={
            "drop": believed, "sd": 0.01, "size_ratio": 0.11, "latency_ratio": 0.5, "gain": 0.02, "source": "solver",
        },
    )  # fmt: skip


def test_rank_correlation_by_hand():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_beliefs_are_compared_with_what_was_measured():
    trials = [
        proposed(3, 0.01, 0.945), proposed(4, 0.02, 0.92), proposed(5, 0.03, 0.91), proposed(6, 0.0, None, size=110),
        TrialRecord(trial=1, state=TrialState.COMPLETE, plan=CompressionPlan()),
    ]  # fmt: skip
    found = belief_facts(trials, BASELINE, direction="maximize")
    assert [row.trial for row in found.rows] == [3, 4, 5, 6]
    assert found.rank_correlation == pytest.approx(1)
    assert found.within == 1
    assert found.size_error == pytest.approx(0.1)
    assert found.latency_error == 0
    assert found.rows[0].drop == pytest.approx(0.005)
    assert found.rows[3].drop is None


def test_a_study_without_beliefs_has_nothing_to_compare():
    found = belief_facts(
        [TrialRecord(trial=1, state=TrialState.COMPLETE, plan=CompressionPlan())], BASELINE, direction="maximize"
    )
    assert found.rows == ()
    assert found.rank_correlation is None


def test_why_says_what_was_expected_in_words():
    text = why(proposed(1, 0.012, 0.94))
    assert text.startswith("best at one price of bytes and time: believed to lose 1.2 points")
    assert "9.1x smaller and 2.0x faster" in text
    assert why(TrialRecord(trial=1, state=TrialState.COMPLETE, plan=CompressionPlan())) == ""
