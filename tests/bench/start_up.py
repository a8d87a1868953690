"""How long `autocompress --help` and `front` take to answer, against an interpreter that does nothing.

    python tests/bench/start_up.py --runs 10 --out start_up.json

Every run is a new process, with the file cache warm. Says as well whether torch was imported: it must not be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

LIMIT_S = 0.7  # of --help and front, on two cores
_EMPTY = "import autocompress.study.store as s, pathlib, sys; s.StudyStore(pathlib.Path(sys.argv[1])).close()"


def main() -> int:
    """Time the commands, print a table, and say with the exit code whether they keep the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="timed runs per command, after one that is not counted")
    parser.add_argument("--study", help="a study for `front`; without one its refusal is timed, on an empty workspace")
    parser.add_argument("--workspace", type=Path, help="where the study is")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = arguments.workspace or Path(folder)
        if arguments.workspace is None:
            subprocess.run([sys.executable, "-c", _EMPTY, str(workspace)], check=True)
        front = ["-m", "autocompress", "front", arguments.study or "none", "--workspace", str(workspace)]
        results = {
            "python -c pass": measure(["-c", "pass"], runs=arguments.runs),
            "autocompress --help": measure(["-m", "autocompress", "--help"], runs=arguments.runs),
            "autocompress front": measure(front, runs=arguments.runs),
        }
    report = {"machine": machine(), "versions": versions(), "limit_s": LIMIT_S, "commands": results}
    show(report)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    ours = [r for name, r in results.items() if name.startswith("autocompress")]
    return 0 if all(r["p50_s"] <= LIMIT_S and not r["imports_torch"] for r in ours) else 1


def measure(command: list[str], *, runs: int) -> dict[str, Any]:
    """Seconds of a command in new processes, and whether it imports torch."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=False)
        seconds.append(time.perf_counter() - start)
    kept = sorted(seconds[1:])
    return {
        "p50_s": statistics.median(kept),
        "p95_s": kept[min(len(kept) - 1, round(0.95 * (len(kept) - 1)))],
        "n": len(kept),
        "imports_torch": imports_torch(command),
    }


def imports_torch(command: list[str]) -> bool:
    """Whether the interpreter's own account of its imports names torch."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return "torch" in names


def machine() -> dict[str, Any]:
    """Processor, cores, and what else they were doing."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "python": sys.version.split()[0],
    }


def versions() -> dict[str, str]:
    """Of what a start imports."""
    return {name: metadata.version(name) for name in ("typer", "pydantic", "sqlalchemy", "numpy", "rich")}


def show(report: dict[str, Any]) -> None:
    """A table for people."""
    print(f"{report['machine']}\n{report['versions']}")
    for name, result in report["commands"].items():
        torch = "imports torch" if result["imports_torch"] else "no torch"
        print(f"{name:<22} p50 {result['p50_s']:.3f} s  p95 {result['p95_s']:.3f} s  n {result['n']}  {torch}")


if __name__ == "__main__":
    sys.exit(main())
