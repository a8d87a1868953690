"""The arithmetic of the bench scripts, and that they see the processes and imports that they report on."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parent / "bench"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


def test_the_share_of_training_is_of_all_seconds_not_of_trials() -> None:
    share = load("trial_breakdown").share
    assert share([{"train": 8.0, "emit": 2.0}, {"train": 0.0, "emit": 10.0}]) == pytest.approx(0.4)
    assert share([]) is None


def test_the_stages_of_a_kind_are_medians_in_the_order_of_a_trial() -> None:
    row = load("trial_breakdown").summary([{"train": 4.0, "prune": 1.0}, {"train": 2.0}, {"train": 3.0, "other": 1.0}])
    assert list(row["stages_s"].items()) == [("prune", 0.0), ("train", 3.0), ("other", 0.0)]
    assert (row["n"], row["total_s"]) == (3, 4.0)


def test_a_spread_of_few_numbers_is_made_of_these_numbers() -> None:
    spread = load("trial_breakdown").spread
    assert spread([3.0, 1.0, 2.0]) == {"p50": 2.0, "p95": 3.0, "max": 3.0, "n": 3}
    assert spread([]) is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is not here")
def test_the_memory_of_grandchildren_is_seen() -> None:
    bench = load("trial_breakdown")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = b\"1\" * 200_000_000; input()'])"
    process = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE)
    try:
        with bench.MemoryWatch(process.pid) as watch:
            deadline = time.monotonic() + 60
            while (watch.report() or {"peak_rss_bytes": 0})["peak_rss_bytes"] < 200_000_000:
                assert time.monotonic() < deadline, "the memory of the grandchild was never seen"
                time.sleep(0.05)
            assert process.pid in bench.descendants(os.getpid())
    finally:
        process.communicate(b"\n")
    assert bench.resident(process.pid) == 0


def test_an_import_of_torch_would_be_seen(tmp_path: Path) -> None:
    imports_torch = load("start_up").imports_torch
    (tmp_path / "torch.py").touch()
    assert imports_torch(["-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch"])
    assert not imports_torch(["-c", "import json"])


def test_a_trial_counts_in_the_phase_that_it_lies_in_whole() -> None:
    bench = load("service_load")
    phases = [bench.Phase(block=0, loaded=of, begin=b, end=b + 10.0) for of, b in ((False, 100.0), (True, 115.0))]
    rows = [
        {"spent_s": at, "origin": origin, "state": "complete", "trained_samples": 640, "durations_s": {"train": 1.5}}
        for at, origin in (
            (9.0, "anchor"), (12.0, "search"), (14.0, "search"), (21.0, "search"), (23.0, "search"), (26.0, "search"),
        )
    ]  # fmt: skip
    alone, loaded = bench.within(rows, phases, zero=97.0)
    assert (alone["trials"], alone["seconds"]) == (1, 3.0), "one was begun before, one ended after"
    assert (loaded["trials"], loaded["seconds"], loaded["steps"], loaded["trained_s"]) == (2, 5.0, 20.0, 3.0)


def test_the_cost_of_clients_is_told_both_ways_with_the_interval_of_the_blocks() -> None:
    bench = load("service_load")
    entries = [
        {"block": block, "loaded": loaded, "trials": trials, "seconds": 10.0}
        for block, (without, having) in enumerate(((20, 19), (10, 9.5)))
        for loaded, trials in ((False, without), (True, having))
    ]
    found = bench.compare(entries, "trials", "seconds")
    assert (found["alone_per_s"], found["loaded_per_s"]) == pytest.approx((1.5, 1.425))
    assert (found["loaded_to_alone"], found["alone_to_loaded"]) == pytest.approx((0.95, 20 / 19))
    assert found["loaded_to_alone_ci"] == pytest.approx([0.95, 0.95]), "both blocks say the same"
    entries[1]["trials"] = 18  # ratios 0.9 and 0.95 of two blocks: 12.7 standard errors either way
    low, high = bench.compare(entries, "trials", "seconds")["loaded_to_alone_ci"]
    assert (low, high) == pytest.approx((0.65585, 1.30365), rel=1e-4)


def test_the_clients_of_the_bench_see_every_answer_that_fails(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "service"))
    from example_study import write_example
    from served import TOKEN, serving

    write_example(tmp_path)
    bench = load("service_load")
    with serving(tmp_path) as server:
        (study,) = server.get("/api/v1/studies").json["items"]

        async def press(path: str) -> object:
            seen, reader = bench.Load(), bench.Reader(server.port, TOKEN)
            for _ in range(3):
                await bench.read_once(reader, path, seen)
            await reader.close()
            return seen

        # in a thread: a browser of an earlier test keeps an event loop running in this one
        with ThreadPoolExecutor(1) as thread:
            paths = (f"/studies/{study['id']}/table", "/studies/s0000000000000000/table")
            good, bad = thread.map(lambda path: asyncio.run(press(path)), paths)
    assert (good.answers, good.not_changed, good.failed) == (3, 2, [])
    assert [text.partition("{")[0] for text in bad.failed] == ["/studies/s0000000000000000/table: 404 b'"] * 3
