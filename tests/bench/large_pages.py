"""What 10,000 trials cost the browser that shows them: opening the study, moving a slider, sorting, and new trials.

    python tests/bench/large_pages.py --trials 10000 --out large_pages.json

Needs Playwright and Chromium (`pip install .[browser]`, `apt install chromium`). A made-up study is served and opened,
headless, so figures are drawn by the processor; with a graphics card it is faster. Told per action: milliseconds of
processor time of the page's main thread (another program on the machine does not change them much) and milliseconds
until the next frame was on the screen (which it does change). A reader takes up to 100 ms for immediate, and a slider
that follows within 50 ms for smooth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "browser"), str(TESTS / "service"), str(TESTS), str(TESTS.parent)]

# Runs an action again and again; milliseconds of each until the frame that shows it was drawn.
TIMED = """async ([action, count]) => {
  const act = new Function("i", action), took = [];
  for (let i = 0; i < count; i += 1) {
    const start = performance.now();
    act(i);
    await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
    took.push(performance.now() - start);
  }
  return took;
}"""
SLIDER = """const slider = document.getElementById("limit-%s");
slider.value = String(95 - i); slider.dispatchEvent(new Event("input", { bubbles: true }));"""
SORT = """document.querySelectorAll(".trials .sort")[i %% 6].click();""".replace("%%", "%")
PAGE = """[...document.querySelectorAll(".pager button")].at(-1).click();"""
ACTIONS = {
    "move the slider of the loss": (SLIDER % "maxDrop", 60),
    "move the slider of the size": (SLIDER % "maxSize", 60),
    "sort the table": (SORT, 20),
    "turn a page of the table": (PAGE, 20),
}


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--width", type=int, action="append", help="of the window in pixels; 1280 and 390 by default")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    from seed import seed
    from served import serving

    with tempfile.TemporaryDirectory(prefix="autocompress-bench-") as folder:
        workspace = Path(folder) / "runs"
        seed(workspace, many=options.trials)
        with serving(workspace) as server:
            found = browse(server, options.width or [1280, 390], options.trials)
    report = {"machine": _machine(), "trials": options.trials, "widths": found}
    for width, actions in found.items():
        print(f"{options.trials:,} trials, {width} pixels wide")
        for action, entry in actions.items():
            told = f"{entry['cpu_ms']:7.1f} ms of the main thread"
            if "p50_ms" in entry:
                told += f"; on the screen after {entry['p50_ms']:.1f} ms (p95 {entry['p95_ms']:.1f}), n = {entry['n']}"
            print(f"  {action:28} {told}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def browse(server: Any, widths: list[int], trials: int) -> dict[int, dict[str, Any]]:
    """All actions at all widths, each in a window of its own."""
    from conftest import ARGUMENTS
    from playwright.sync_api import sync_playwright
    from served import TOKEN

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    found: dict[int, dict[str, Any]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        context = browser.new_context(bypass_csp=True)  # the actions are compiled from text
        context.set_default_timeout(600_000)
        context.new_page().goto(f"{server.url}/login?token={TOKEN}&next=/static/favicon.svg")
        (study,) = server.get("/api/v1/studies?name=large").json["items"]
        for width in widths:
            page = context.new_page()
            page.set_viewport_size({"width": width, "height": 900})
            found[width] = _measured(page, f"{server.url}/studies/{study['id']}", server.workspace, trials)
            page.close()
        browser.close()
    return found


def _measured(page: Any, url: str, workspace: Path, trials: int) -> dict[str, Any]:
    from front_factories import make_trials

    from autocompress.study.store import StudyStore

    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_s() -> float:
        metrics = {m["name"]: m["value"] for m in devtools.send("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    page.goto(url)
    page.locator("body[data-ready]").wait_for(state="attached")
    page.locator("#trials-shown").select_option("all")
    actions: dict[str, Any] = {"open the study": {"cpu_ms": 1000 * cpu_s()}}
    for name, (action, count) in ACTIONS.items():
        before = cpu_s()
        took = sorted(page.evaluate(TIMED, [action, count]))
        quantiles = {f"p{q}_ms": took[min(count - 1, count * q // 100)] for q in (50, 95)}
        actions[name] = {"cpu_ms": 1000 * (cpu_s() - before) / count, **quantiles, "n": count}
    page.locator("#sliders button", has_text="No limits").click()
    with StudyStore(workspace) as store:
        now = len(store.trials("large"))
        before = cpu_s()
        store.add_trials("large", make_trials(now + 1, 3)[now:])
    page.locator(".count", has_text=f"of {now + 1:,}").wait_for()
    actions["a new trial comes"] = {"cpu_ms": 1000 * (cpu_s() - before)}
    return actions


def _machine() -> dict[str, Any]:
    return {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "load": os.getloadavg()}


if __name__ == "__main__":
    sys.exit(main())
