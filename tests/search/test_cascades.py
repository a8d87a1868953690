"""Which two results make a cascade: outcomes that follow from outputs with known confidences."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.search.cascades import Stage, choose_pair, joined_outputs, pairs, stream_rows
from autocompress.search.stopping import Constraints

N = 100
TARGETS = np.arange(N) % 2
BASELINE_MS = 2.0


def stage(trial: int, latency: float, *, wrong: list[int], size: float = 0.1) -> Stage:
    """Right but for `wrong`; its confidence rises with the number of the sample, from 0.5 on."""
    margin = np.linspace(0.01, 5.0, N)
    predicted = TARGETS.copy()
    predicted[wrong] = 1 - predicted[wrong]
    outputs = np.where(predicted[:, None] == np.arange(2), margin[:, None], 0.0).astype(np.float32)
    return Stage(
        trial=trial, size_bytes=int(size * 1000), size_ratio=size, latency_ratio=latency, outputs=outputs,
        confidence=(1 / (1 + np.exp(-margin))).astype(np.float32),
    )  # fmt: skip


def drop_of(outputs: np.ndarray) -> float:
    return 1.0 - float(np.mean(outputs.argmax(1) == TARGETS))


def chosen(*stages: Stage, bounds: Constraints | None = None):
    front = np.array([(drop_of(s.outputs), s.size_ratio, s.latency_ratio) for s in stages])
    possible = list(pairs(stages, drop_of))
    return choose_pair(possible, front=front, constraints=bounds or Constraints(), baseline_ms=BASELINE_MS)


SMALL = stage(1, 0.1, wrong=[0, 2, 4, 5])  # errs only where it is least sure
LARGE = stage(2, 1.0, wrong=[])


def test_the_threshold_lies_just_above_the_samples_that_are_wrong():
    pair, _ = chosen(SMALL, LARGE)
    assert pair is not None
    assert (pair.first, pair.second, pair.drop) == (1, 2, 0.0)
    assert pair.passed_on == 0.08, "0.05 leaves an error, 0.12 asks for nothing more"
    assert SMALL.confidence[7] < pair.threshold < SMALL.confidence[8]
    assert pair.latency_ratio == pytest.approx(0.1 + 0.02 + 0.08 * 1.0)
    assert pair.size_ratio == pytest.approx(0.2)


def test_what_is_answered_together_is_who_is_asked():
    pair, _ = chosen(SMALL, LARGE)
    assert pair is not None
    outputs = joined_outputs(SMALL, LARGE, pair.threshold)
    assert np.array_equal(outputs[:8], LARGE.outputs[:8])
    assert np.array_equal(outputs[8:], SMALL.outputs[8:])


def test_the_faster_network_is_asked_first():
    assert {(p.first, p.second) for p in pairs([LARGE, SMALL], drop_of)} == {(1, 2)}


def test_two_equally_fast_networks_make_no_pair():
    pair, reason = chosen(SMALL, stage(3, 0.1, wrong=[]))
    assert pair is None
    assert reason == "there are no two results of which one is faster than the other"


def test_the_bounds_of_the_study_hold_for_both_together():
    for bounds in (Constraints(max_size=199), Constraints(max_latency=0.2), Constraints(max_drop=-0.01)):
        pair, reason = chosen(SMALL, LARGE, bounds=bounds)
        assert pair is None
        assert "keeps the bounds" in reason
    pair, _ = chosen(SMALL, LARGE, bounds=Constraints(max_size=200, max_latency=0.41, max_drop=0.0))
    assert pair is not None
    assert pair.latency_ratio * BASELINE_MS <= 0.41


def test_a_network_that_is_wrong_where_it_is_sure_gains_nothing_from_being_asked_first():
    pair, reason = chosen(stage(1, 0.5, wrong=list(range(90, 100))), stage(2, 0.6, wrong=[]))
    assert pair is None
    assert "is expected to enter the front" in reason


@pytest.mark.parametrize("count", [40, 77, 100, 500])
def test_every_part_of_the_stream_passes_on_the_share_that_all_samples_do(count):
    confidence = np.random.default_rng(0).permutation(np.linspace(0.5, 1.0, 100)).astype(np.float32)
    rows = stream_rows(confidence, count)
    assert len(rows) == min(count, 100)
    for length in (20, len(rows)):
        for threshold in (0.6, 0.75, 0.9):
            share = np.mean(confidence[rows[:length]] < threshold)
            assert share == pytest.approx(np.mean(confidence < threshold), abs=2 / length)
