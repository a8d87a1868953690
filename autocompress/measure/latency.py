"""Times a candidate against the baseline in a process of its own, pinned and without spinning.

Run as `python -m autocompress.measure.latency`: one JSON request a line on stdin, one JSON answer a
line on stdout. The two files are run in turn, block by block, so whatever slows the machine slows
both; the result is the median over blocks of their ratio, with a bootstrap interval. A run during which another process
had the core does not count: that happens to the slower file more often. A file whose time depends on its input is run
on a stream of samples instead of one: the result is then the mean over the stream, of which stretches during which
another process had the core are run again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from autocompress.measure.runtime import Runner, input_arrays, open_artifact

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

SECONDS = 0.3
MIN_BLOCKS = 20
_WARM_UP_S = 0.05
_CONTENDED = 1.15  # median over 10th percentile of the baseline's blocks; a quiet pinned core stays below 1.05
_ATTEMPTS = 2
_RESAMPLES = 1000
_Loaded = tuple[Runner, Sequence[np.ndarray]]  # and what it is run on
_Samples = Sequence[Sequence[np.ndarray]]  # of each its inputs, [1, ...]
_LEAST_ROUNDS = 3  # through the stream: the median of two is no better than either
_TRIES = 3  # of a stretch of it, while another process has the core


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTiming:
    """Candidate over baseline: the ratio, its 95 % interval, and the baseline's own milliseconds.

    They are medians over blocks, or means over a stream of samples.
    """

    ratio: float
    ratio_ci: tuple[float, float]
    baseline_ms: float
    blocks: int
    contended: bool


def time_against(
    baseline: Runner, candidate: Runner, inputs: Sequence[np.ndarray], *, seconds: float = SECONDS
) -> RatioTiming:
    """Interleave the two for about `seconds`; once more if the core was contended.

    Args:
        inputs: what both are run on, each [batch, ...].
    """
    block = _runs_per_block(baseline, inputs)
    for runner in (baseline, candidate):
        _warm_up(runner, inputs)
    return _quietest(lambda: _attempt(baseline, candidate, inputs, block, seconds))


def time_over(
    baseline: Runner, candidate: Runner, stream: Sequence[np.ndarray], *, seconds: float = SECONDS
) -> RatioTiming:
    """Mean latency over a stream of samples, one at a time, against the baseline's; once more if there was contention.

    The stream is cut into stretches of as many samples as a block has runs. It is gone through again and again for
    about `seconds`; of each stretch the median over the rounds counts, and of these the mean. The interval is over
    stretches, so it holds what other samples of their kind could have given.

    Args:
        stream: [samples, ...] per input. Where there is too little time for all, the first ones are taken, at least
            `MIN_BLOCKS` stretches or all there are.
    """
    samples = [[array[i : i + 1] for array in stream] for i in range(len(stream[0]))]
    block = _runs_per_block(baseline, samples[0])
    _warm_up(baseline, samples[0])
    _stretch_s(candidate, samples[:MIN_BLOCKS])  # not one sample alone: each takes its own way through the file
    stretches = [samples[i : i + block] for i in range(0, len(samples), block)]
    took = _stretch_s(baseline, stretches[0]) + _stretch_s(candidate, stretches[0])
    stretches = stretches[: max(MIN_BLOCKS, int(seconds / (_LEAST_ROUNDS * max(took, 1e-9))))]
    return _quietest(lambda: _rounds(baseline, candidate, stretches, seconds))


def _quietest(attempt: Callable[[], RatioTiming]) -> RatioTiming:
    """The first timing without contention; of those that all had it, the one with the narrowest interval."""
    attempts = []
    for _ in range(_ATTEMPTS):
        attempts.append(attempt())
        if not attempts[-1].contended:
            break
    return min(attempts, key=lambda t: (t.contended, t.ratio_ci[1] - t.ratio_ci[0]))


def _rounds(baseline: Runner, candidate: Runner, stretches: Sequence[_Samples], seconds: float) -> RatioTiming:
    """Go through all stretches for about `seconds`."""
    rounds: list[list[tuple[float, float]]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < _LEAST_ROUNDS or time.perf_counter() < end:
        rounds.append([_pair_s(baseline, candidate, s, (i + len(rounds)) % 2) for i, s in enumerate(stretches)])
    return _mean_over(np.array(rounds), np.array([len(s) for s in stretches]))


def _mean_over(seconds: np.ndarray, samples: np.ndarray) -> RatioTiming:
    """From seconds [rounds, stretches, (baseline, candidate)] and the samples of each stretch."""
    own = np.median(seconds[:, :, 0], axis=0)
    ratios = np.median(seconds[:, :, 1] / seconds[:, :, 0], axis=0)
    each = seconds[:, :, 0] / samples
    return RatioTiming(
        ratio=float(np.average(ratios, weights=own)),
        ratio_ci=_bootstrap_mean(ratios, own),
        baseline_ms=float(own.sum() / samples.sum()) * 1e3,
        blocks=seconds.shape[0] * seconds.shape[1],
        contended=bool(np.median(each) / np.percentile(each, 10) > _CONTENDED),
    )


def _bootstrap_mean(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """95 % interval of the weighted mean of `values` [n] by resampling."""
    chosen = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    means = (values[chosen] * weights[chosen]).sum(axis=1) / weights[chosen].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _pair_s(baseline: Runner, candidate: Runner, samples: _Samples, turn: int) -> tuple[float, float]:
    """Seconds of the baseline and of the candidate for a stretch; on odd turns the baseline goes first.

    Where another process had the core they are taken again; the last ones count if it always had.
    """
    pair = (baseline, candidate) if turn else (candidate, baseline)
    for _ in range(_TRIES):
        before = _preemptions()
        took = [_stretch_s(runner, samples) for runner in pair]
        if _preemptions() == before:
            break
    return (took[0], took[1]) if turn else (took[1], took[0])


def _stretch_s(runner: Runner, samples: _Samples) -> float:
    start = time.perf_counter()
    for sample in samples:
        runner(sample)
    return time.perf_counter() - start


def bootstrap_median(values: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the median of `values` [n] by resampling."""
    generator = np.random.default_rng(seed)
    samples = generator.choice(values, (_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _attempt(
    baseline: Runner, candidate: Runner, inputs: Sequence[np.ndarray], block: int, seconds: float
) -> RatioTiming:
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_BLOCKS or time.perf_counter() < end:
        pair = (baseline, candidate) if len(times) % 2 else (candidate, baseline)
        took = [_run_s(runner, inputs, block) for runner in pair]
        times.append((took[0], took[1]) if len(times) % 2 else (took[1], took[0]))
    seconds_each = np.array(times)  # [blocks, (baseline, candidate)]
    ratios = seconds_each[:, 1] / seconds_each[:, 0]
    own = seconds_each[:, 0]
    return RatioTiming(
        ratio=float(np.median(ratios)),
        ratio_ci=bootstrap_median(ratios),
        baseline_ms=float(np.median(own)) * 1e3,
        blocks=len(times),
        contended=bool(np.median(own) / np.percentile(own, 10) > _CONTENDED),
    )


def _run_s(runner: Runner, inputs: Sequence[np.ndarray], block: int) -> float:
    """Mean seconds of a run over a block: of those that had the core to themselves, or of all if none had."""
    every, alone = [], []
    before = _preemptions()
    for _ in range(block):
        start = time.perf_counter()
        runner(inputs)
        every.append(time.perf_counter() - start)
        now = _preemptions()
        if now == before:
            alone.append(every[-1])
        before = now
    return fmean(alone or every)


def _preemptions() -> int:
    """How often this process has lost its core to another one; 0 where the system does not tell."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def _warm_up(runner: Runner, inputs: Sequence[np.ndarray]) -> None:
    end = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < end:
        runner(inputs)


def _runs_per_block(runner: Runner, inputs: Sequence[np.ndarray]) -> int:
    runner(inputs)
    took = min(_run_s(runner, inputs, 1) for _ in range(3))
    return 10 if took < 0.002 else 2 if took < 0.05 else 1


def pin(threads: int) -> None:
    """Keep this process on the last `threads` cores it may use; the first ones get more interrupts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def serve() -> None:
    """Answer requests until stdin ends. The last baseline stays loaded."""
    loaded: dict[tuple[Any, ...], _Loaded] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request, loaded)
        except Exception as error:  # whatever happens here belongs to the one who asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def _answer(request: dict[str, Any], loaded: dict[tuple[Any, ...], _Loaded]) -> dict[str, Any]:
    runtime, threads = request["runtime"], request["threads"]
    pin(threads)
    stat = os.stat(request["baseline"])
    key = (request["baseline"], stat.st_mtime_ns, stat.st_size, runtime, threads, request["batch"])
    if key not in loaded:
        loaded.clear()
        loaded[key] = (
            open_artifact(request["baseline"], runtime=runtime, threads=threads),
            input_arrays(request["baseline"], request["batch"]),
        )
    baseline, inputs = loaded[key]
    candidate = open_artifact(request["candidate"], runtime=runtime, threads=threads)
    seconds = request.get("seconds", SECONDS)
    if stream := request.get("stream"):
        with np.load(stream) as file:
            return asdict(time_over(baseline, candidate, [file[name] for name in file.files], seconds=seconds))
    return asdict(time_against(baseline, candidate, inputs, seconds=seconds))


if __name__ == "__main__":
    serve()
