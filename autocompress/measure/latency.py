"""Times a candidate against the baseline in a process of its own, pinned and without spinning.

Run as `python -m autocompress.measure.latency`: one JSON request a line on stdin, one JSON answer a
line on stdout. The two files are run in turn, block by block, so whatever slows the machine slows
both; the result is the median over blocks of their ratio, with a bootstrap interval.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autocompress.measure.runtime import Runner, input_arrays, open_artifact

SECONDS = 0.4
MIN_BLOCKS = 20
_WARM_UP_S = 0.05
_CONTENDED = 1.15  # median over 10th percentile of the baseline's blocks; a quiet pinned core stays below 1.05
_ATTEMPTS = 2
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTiming:
    """Candidate over baseline: the median ratio, its 95 % interval, and the baseline's own median in milliseconds."""

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
    attempts = []
    for _ in range(_ATTEMPTS):
        attempts.append(_attempt(baseline, candidate, inputs, block, seconds))
        if not attempts[-1].contended:
            break
    return min(attempts, key=lambda t: (t.contended, t.ratio_ci[1] - t.ratio_ci[0]))


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
        took = [_block_s(runner, inputs, block) for runner in pair]
        times.append((took[0], took[1]) if len(times) % 2 else (took[1], took[0]))
    seconds_each = np.array(times)  # [blocks, (baseline, candidate)]
    ratios = seconds_each[:, 1] / seconds_each[:, 0]
    own = seconds_each[:, 0]
    return RatioTiming(
        ratio=float(np.median(ratios)),
        ratio_ci=bootstrap_median(ratios),
        baseline_ms=float(np.median(own)) * 1e3 / block,
        blocks=len(times),
        contended=bool(np.median(own) / np.percentile(own, 10) > _CONTENDED),
    )


def _block_s(runner: Runner, inputs: Sequence[np.ndarray], block: int) -> float:
    start = time.perf_counter()
    for _ in range(block):
        runner(inputs)
    return time.perf_counter() - start


def _warm_up(runner: Runner, inputs: Sequence[np.ndarray]) -> None:
    end = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < end:
        runner(inputs)


def _runs_per_block(runner: Runner, inputs: Sequence[np.ndarray]) -> int:
    runner(inputs)
    took = min(_block_s(runner, inputs, 1) for _ in range(3))
    return 10 if took < 0.002 else 2 if took < 0.05 else 1


def pin(threads: int) -> None:
    """Keep this process on the last `threads` cores it may use; the first ones get more interrupts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def serve() -> None:
    """Answer requests until stdin ends. The last baseline stays loaded."""
    loaded: dict[tuple[Any, ...], Runner] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request, loaded)
        except Exception as error:  # whatever happens here belongs to the one who asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def _answer(request: dict[str, Any], loaded: dict[tuple[Any, ...], Runner]) -> dict[str, Any]:
    runtime, threads = request["runtime"], request["threads"]
    pin(threads)
    stat = os.stat(request["baseline"])
    key = (request["baseline"], stat.st_mtime_ns, stat.st_size, runtime, threads)
    if key not in loaded:
        loaded.clear()
        loaded[key] = open_artifact(request["baseline"], runtime=runtime, threads=threads)
    candidate = open_artifact(request["candidate"], runtime=runtime, threads=threads)
    inputs = input_arrays(request["baseline"], request["batch"])
    return asdict(time_against(loaded[key], candidate, inputs, seconds=request.get("seconds", SECONDS)))


if __name__ == "__main__":
    serve()
