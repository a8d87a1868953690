"""Times the page of a study with 10,000 trials in headless Chromium: until it is ready, and per move of a slider.

`python tests/bench/large_study.py --out large_study.json`; needs the extra `browser` and Chromium. Software rendering
and a busy machine make it slower than what a reader sees; the figures are an upper bound.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "browser"), str(TESTS / "service")]

MOVES = 40
# One move: set the slider as an input event does, and wait until the frame after the answer was painted.
MOVE = """async (step) => {
  const slider = document.getElementById('limit-maxSize'), start = performance.now();
  slider.value = String(step);
  slider.dispatchEvent(new Event('input'));
  await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)));
  return performance.now() - start;
}"""


def main() -> None:
    """Seed, serve, open, move, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.trials)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def measure(trials: int) -> dict[str, Any]:
    """Milliseconds, bytes and elements of one page."""
    from conftest import ARGUMENTS
    from playwright.sync_api import sync_playwright
    from seed import seed
    from served import TOKEN, serving

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        workspace = Path(folder) / "runs"
        seed(workspace, many=trials)
        with serving(workspace) as server:
            (study,) = server.get("/api/v1/studies?name=large").json["items"]
            started = time.perf_counter()
            table = server.get(f"/api/v1/studies/{study['id']}/table")
            first_table_s = time.perf_counter() - started
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGUMENTS))
            page = chromium.new_page()
            page.set_default_timeout(120_000)
            page.goto(f"{server.url}/login?token={TOKEN}")
            started = time.perf_counter()
            page.goto(f"{server.url}/studies/{study['id']}")
            page.locator("body[data-ready]").wait_for(state="attached")
            ready_s = time.perf_counter() - started
            moves = [page.evaluate(MOVE, 100 - 2 * i) for i in range(MOVES)]
            elements = page.evaluate("document.querySelectorAll('*').length")
            chromium.close()
    return {
        "trials": trials,
        "table_bytes": len(table.body),
        "first_table_s": round(first_table_s, 2),
        "ready_s": round(ready_s, 2),
        "slider_ms": {"p50": round(statistics.median(moves), 1), "p95": round(sorted(moves)[int(0.95 * MOVES)], 1)},
        "elements": elements,
    }


if __name__ == "__main__":
    main()
