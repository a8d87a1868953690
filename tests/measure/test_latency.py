"""The stopwatch, with fake runners and a fake clock: order, ratio, interval, contention and repeats."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from autocompress.measure import latency
from autocompress.measure.latency import MIN_BLOCKS, RatioTiming, bootstrap_median, time_against


class FakeTime:
    """A clock that only the fake networks move; `log` holds the order of their runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.log = 0.0, []
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def runner(self, name: str, took):
        """A network that takes `took` seconds, or `took(now)` seconds."""

        def run(_inputs):
            self.log.append(name)
            self.now += took(self.now) if callable(took) else took
            return np.zeros(1)

        return run


@pytest.fixture
def fake(monkeypatch):
    return FakeTime(monkeypatch)


def test_steady_networks_give_their_exact_ratio_and_no_width(fake):
    timing = time_against(fake.runner("b", 0.004), fake.runner("c", 0.001), [], seconds=0.5)
    assert timing.ratio == pytest.approx(0.25)
    assert timing.ratio_ci == pytest.approx((0.25, 0.25))
    assert timing.baseline_ms == pytest.approx(4.0)
    assert not timing.contended
    assert timing.blocks == MIN_BLOCKS or timing.blocks * 0.010 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("took", "runs"), [(0.001, 10), (0.01, 2), (0.1, 1)])
def test_a_block_has_more_runs_of_a_faster_network(fake, took, runs):
    timing = time_against(fake.runner("b", took), fake.runner("c", took), [], seconds=0.0)
    assert timing.blocks == MIN_BLOCKS, "at least so many, however little time there is"
    assert timing.baseline_ms == pytest.approx(1e3 * took)
    measured = "".join(fake.log)[-2 * runs * MIN_BLOCKS :]
    pair = "c" * runs + "b" * runs + "b" * runs + "c" * runs
    assert measured == pair * (MIN_BLOCKS // 2), "who is first changes from block to block"


def test_a_machine_that_slows_down_slows_both_and_the_ratio_stays(fake):
    def slowing(base: float):
        return lambda now: base * (1 + now / 10)

    timing = time_against(fake.runner("b", slowing(0.004)), fake.runner("c", slowing(0.002)), [], seconds=0.5)
    assert timing.ratio == pytest.approx(0.5, rel=0.02)


def test_runs_that_lost_their_core_do_not_count(fake, monkeypatch):
    """Another process takes 3 ms in every third run of the baseline, which is long, and in none of the candidate's."""
    lost = Preempted(monkeypatch, lambda runs: runs % 3 == 0)
    timing = time_against(lost.runner(fake, "b", 0.001), fake.runner("c", 0.0005), [], seconds=0.5)
    assert lost.count > 0
    assert timing.ratio == pytest.approx(0.5)
    assert timing.ratio_ci == pytest.approx((0.5, 0.5))
    assert timing.baseline_ms == pytest.approx(1.0)
    assert not timing.contended


def test_where_no_run_had_the_core_alone_all_count(fake, monkeypatch):
    lost = Preempted(monkeypatch, lambda runs: True)
    timing = time_against(lost.runner(fake, "b", 0.001), fake.runner("c", 0.0005), [], seconds=0.5)
    assert timing.ratio == pytest.approx(0.5 / 4)


class Preempted:
    """Counts how often runs lost their core to a process that then keeps it for 3 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when) -> None:
        self.count, self.runs, self.when = 0, 0, when
        monkeypatch.setattr(latency, "_preemptions", lambda: self.count)

    def runner(self, fake: FakeTime, name: str, took: float):
        def time_taken(_now: float) -> float:
            self.runs += 1
            lost = self.when(self.runs)
            self.count += lost
            return took + 0.003 * lost

        return fake.runner(name, time_taken)


def test_a_contended_core_is_measured_once_more_and_said_so_if_it_stays(fake):
    def noisy(base: float):
        return lambda now: base * (3 if len(fake.log) // 20 % 4 else 1)

    timing = time_against(fake.runner("b", noisy(0.001)), fake.runner("c", 0.001), [], seconds=0.5)
    assert timing.contended


def attempts(monkeypatch: pytest.MonkeyPatch, *found: RatioTiming, of: str = "_attempt") -> list[int]:
    asked: list[int] = []

    def attempt(*_arguments):
        asked.append(1)
        return found[len(asked) - 1]

    monkeypatch.setattr(latency, of, attempt)
    return asked


def timing_of(width: float, *, contended: bool) -> RatioTiming:
    return RatioTiming(ratio=0.5, ratio_ci=(0.5 - width, 0.5 + width), baseline_ms=1.0, blocks=20, contended=contended)


def test_a_quiet_first_attempt_is_enough(fake, monkeypatch):
    quiet = timing_of(0.1, contended=False)
    asked = attempts(monkeypatch, quiet)
    assert time_against(fake.runner("b", 0.001), fake.runner("c", 0.001), []) is quiet
    assert len(asked) == 1


def test_of_two_attempts_the_quiet_one_wins_else_the_narrower(fake, monkeypatch):
    noisy, quiet, narrow = (timing_of(w, contended=c) for w, c in ((0.01, True), (0.2, False), (0.005, True)))
    for second in (quiet, narrow):
        asked = attempts(monkeypatch, noisy, second)
        assert time_against(fake.runner("b", 0.001), fake.runner("c", 0.001), []) is second
        assert len(asked) == 2
    assert attempts(monkeypatch, narrow, noisy) == []
    assert time_against(fake.runner("b", 0.001), fake.runner("c", 0.001), []) is narrow


def test_the_interval_of_equal_values_is_that_value():
    assert bootstrap_median(np.full(20, 0.3)) == (0.3, 0.3)


def test_the_interval_of_known_data_is_that_of_the_order_statistics():
    """For 25 values the ranks 8 and 18 enclose the median with 95.7 %; resampling gives about the same."""
    values = np.arange(1.0, 26.0)
    low, high = bootstrap_median(np.random.default_rng(0).permutation(values))
    assert 7 <= low <= 9
    assert 17 <= high <= 19
    assert bootstrap_median(values) == bootstrap_median(values), "the same data, the same interval"


def test_the_interval_holds_the_true_median_about_nineteen_times_in_twenty():
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_median(generator.lognormal(0.0, 0.3, 25), seed=seed)
        hits += low <= 1.0 <= high
    assert 180 <= hits <= 200


def test_one_outlier_moves_neither_the_ratio_nor_the_interval():
    values = np.full(31, 0.5)
    values[3] = 100.0
    assert bootstrap_median(values) == (0.5, 0.5)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no pinning here")
def test_pinning_takes_the_last_cores():
    code = (
        "import os; from autocompress.measure.latency import pin\n"
        "before = sorted(os.sched_getaffinity(0)); pin(1); print(sorted(os.sched_getaffinity(0)) == before[-1:])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_process_answers_a_wrong_request_and_goes_on():
    requests = [
        {"baseline": "no.onnx", "candidate": "no.onnx", "runtime": "onnxruntime", "threads": 1, "batch": 1},
        {"nothing": 1},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "autocompress.measure.latency"],
        input="".join(json.dumps(r) + "\n" for r in requests), capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = [json.loads(line)["error"] for line in done.stdout.splitlines()]
    assert len(answers) == 2
    assert "no.onnx" in answers[0]
    assert answers[1].startswith("KeyError")


class Streamed(FakeTime):
    """Networks whose time is in their input: a sample is the milliseconds that the candidate takes."""

    def candidate(self):
        def run(inputs):
            self.now += 1e-3 * float(inputs[0][0])
            return np.zeros(1)

        return run


@pytest.fixture
def streamed(monkeypatch):
    monkeypatch.setattr(latency, "_preemptions", lambda: 0)
    return Streamed(monkeypatch)


def test_over_a_stream_the_mean_counts_and_its_interval_is_over_samples(streamed):
    """Three of four samples take 1 ms, one takes 9: a mean of 3 against 4, where the median would be 0.25."""
    stream = [np.tile([1.0, 1.0, 1.0, 9.0], 100)]
    timing = latency.time_over(streamed.runner("b", 0.004), streamed.candidate(), stream, seconds=9.0)
    assert timing.ratio == pytest.approx(0.75)
    assert timing.baseline_ms == pytest.approx(4.0)
    assert timing.ratio_ci[0] < 0.75 < timing.ratio_ci[1] < 1.0
    assert not timing.contended
    same = latency.time_over(streamed.runner("b", 0.004), streamed.candidate(), [np.ones(100)], seconds=1.0)
    assert same.ratio_ci == pytest.approx((0.25, 0.25))


def test_over_a_stream_every_sample_is_timed_as_often(streamed):
    seen: list[float] = []
    candidate = streamed.candidate()

    def counted(inputs):
        seen.append(float(inputs[0][0]))
        return candidate(inputs)

    stream = [np.arange(1.0, 201.0) / 100]
    timing = latency.time_over(streamed.runner("b", 0.001), counted, stream, seconds=1.3)
    rounds, warm = timing.blocks // 20, MIN_BLOCKS + 10
    assert rounds >= 3
    assert len(seen) == warm + 200 * rounds
    assert {seen[warm:].count(value) for value in seen} == {rounds}
    assert timing.ratio == pytest.approx(float(stream[0].mean()))


def test_a_stream_is_cut_where_the_network_is_slow(streamed):
    stream = [np.full(1000, 100.0)]
    timing = latency.time_over(streamed.runner("b", 0.1), streamed.candidate(), stream, seconds=1.0)
    assert timing.blocks == 3 * MIN_BLOCKS, "one sample each: three rounds of as few as there may be"


def test_one_disturbed_round_does_not_move_the_mean(streamed):
    """The third round through the stream takes three times as long for the candidate alone."""
    runs = 0

    def candidate(_inputs):
        nonlocal runs
        runs += 1
        warm, round_of = MIN_BLOCKS + 10, (runs - MIN_BLOCKS - 11) // 100
        streamed.now += 0.003 if runs > warm and round_of == 2 else 0.001
        return np.zeros(1)

    timing = latency.time_over(streamed.runner("b", 0.001), candidate, [np.ones(100)], seconds=1.2)
    assert timing.blocks >= 50
    assert timing.ratio == pytest.approx(1.0)


@pytest.mark.parametrize("turn", [0, 1])
def test_a_stretch_that_lost_the_core_is_run_again_with_its_rival(streamed, monkeypatch, turn):
    """The baseline loses 3 ms in the first of its runs; the second pair of stretches is undisturbed."""
    lost = Preempted(monkeypatch, lambda runs: runs == 1)
    samples = [[np.ones(1)]] * 10
    took = latency._pair_s(lost.runner(streamed, "b", 0.002), streamed.candidate(), samples, turn)
    assert took == pytest.approx((0.020, 0.010))
    assert lost.runs == 20


def test_a_stretch_that_loses_the_core_every_time_counts_as_it_was_the_third_time(streamed, monkeypatch):
    lost = Preempted(monkeypatch, lambda runs: True)
    took = latency._pair_s(lost.runner(streamed, "b", 0.002), streamed.candidate(), [[np.ones(1)]] * 10, 1)
    assert took == pytest.approx((0.050, 0.010))
    assert lost.runs == 30


def test_a_contended_stream_is_timed_once_more(streamed, monkeypatch):
    noisy, quiet = timing_of(0.01, contended=True), timing_of(0.2, contended=False)
    asked = attempts(monkeypatch, noisy, quiet, of="_rounds")
    assert latency.time_over(streamed.runner("b", 0.001), streamed.candidate(), [np.ones(50)]) is quiet
    assert len(asked) == 2
