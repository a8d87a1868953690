"""What the time of a trained trial goes to, what a stopped one costs, and how much memory the worker needs.

    python tests/bench/trial_breakdown.py --study fashion_mnist_resnet20 --weights teacher.safetensors --budget 5m
    python tests/bench/trial_breakdown.py --study digits --workspace autocompress-runs --finished

The first runs a new study in a temporary workspace and watches the memory of its processes; the second reads a study
that is there. Trials of the final stage continue from weights that are known, and are shown by themselves.
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
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STAGES = ("prune", "emit", "latency", "train", "check", "quality")
TARGETS = {"train_share": 0.80, "beside_training_s": 2.0, "stopped_s": 1.5, "peak_rss_bytes": 2 * 1024**3}
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_S = 0.1
_TRAINED_S = 0.05  # of training that makes a trial a trained one


def main() -> int:
    """Run or read a study, print where its time went, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="digits", help="a built-in study, a study file, or with --finished a name")
    parser.add_argument("--weights", type=Path, help="of the teacher; without, it is trained within the budget")
    parser.add_argument("--budget", default="2m", help="of a study that is run")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="passed to the search")
    parser.add_argument("--finished", action="store_true", help="run nothing, read the study of --workspace")
    parser.add_argument("--workspace", type=Path, help="where the study is, or is written; a temporary one if omitted")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.finished:
        report = breakdown(arguments.study, arguments.workspace or Path("autocompress-runs"))
    else:
        with tempfile.TemporaryDirectory(prefix="autocompress-bench-") as folder:
            report = run(arguments, arguments.workspace or Path(folder))
    show(report)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def run(arguments: argparse.Namespace, workspace: Path) -> dict[str, Any]:
    """Run a new study as a user would, and watch the memory of its processes."""
    settings = list(arguments.set)
    if arguments.weights:
        settings.append(f"model.weights={arguments.weights.absolute()}")
    command = [sys.executable, "-m", "autocompress", "search", arguments.study, "--name", "bench", "--json"]
    command += ["--budget", arguments.budget, "--workspace", str(workspace)]
    command += [part for setting in settings for part in ("--set", setting)]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, MemoryWatch(process.pid) as memory:
        code = process.wait()
    if code not in (0, 3):
        sys.exit(f"the search ended with exit code {code}")
    report = breakdown("bench", workspace)
    report |= {"study": arguments.study, "memory": memory.report(), "wall_s": time.monotonic() - start}
    return report


def breakdown(study: str, workspace: Path) -> dict[str, Any]:
    """Seconds per stage over the trials of a study."""
    from autocompress.api import open_study
    from autocompress.errors import AutocompressError
    from autocompress.records import TrialState

    try:
        result = open_study(study, workspace)
    except AutocompressError as error:
        sys.exit(f"error: {error}")
    record, trials = result.record, [t for t in result.trials if t.durations_s]
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    search = [t.durations_s for t in complete if t.origin != "final"]
    ended = [t.durations_s for t in trials if t.state in (TrialState.STOPPED, TrialState.INFEASIBLE)]
    kinds = {
        "search": [d for d in search if _trained(d)],
        "untrained": [d for d in search if not _trained(d)],
        "final": [t.durations_s for t in complete if t.origin == "final"],
        "stopped": [d for d in ended if not _trained(d)],
        "at the rung": [d for d in ended if _trained(d)],
        "failed": [t.durations_s for t in trials if t.state is TrialState.FAILED],
    }
    beside = [sum(d.values()) - d["train"] for d in kinds["search"]]
    stopped = [sum(d.values()) for d in kinds["stopped"]]
    return {
        "study": study,
        "network": record.config.get("model", {}).get("factory"),
        "budget_s": record.budget_s,
        "spent_s": record.spent_s,
        "study_s": record.durations_s,
        "trials": {kind: summary(durations) for kind, durations in kinds.items() if durations},
        "train_share": share(kinds["search"]),
        "train_share_with_final": share([t.durations_s for t in complete if _trained(t.durations_s)]),
        "beside_training_s": spread(beside),
        "stopped_s": spread(stopped),
        "memory": None,
        "targets": TARGETS,
        "machine": machine(),
        "device": record.device.to_dict(),
        "versions": record.versions,
    }


def _trained(durations: dict[str, float]) -> bool:
    return durations.get("train", 0.0) > _TRAINED_S


def summary(durations: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Number of trials, and median seconds per stage and in all."""
    stages = [s for s in STAGES if any(s in d for d in durations)]
    stages += sorted({s for d in durations for s in d} - set(STAGES))
    return {
        "n": len(durations),
        "total_s": statistics.median(sum(d.values()) for d in durations),
        "stages_s": {stage: statistics.median(d.get(stage, 0.0) for d in durations) for stage in stages},
    }


def share(durations: Sequence[dict[str, float]]) -> float | None:
    """Seconds of training by seconds of everything."""
    total = sum(sum(d.values()) for d in durations)
    return sum(d.get("train", 0.0) for d in durations) / total if total else None


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th percentile, largest and number."""
    kept = sorted(seconds)
    if not kept:
        return None
    return {"p50": statistics.median(kept), "p95": kept[round(0.95 * (len(kept) - 1))], "max": kept[-1], "n": len(kept)}


class MemoryWatch:
    """Samples the resident memory of a process and all of its descendants, ten times a second.

    Pages that processes share are counted in each, so the sum is an upper bound.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._done = pid, threading.Event()
        self._peaks: dict[str, int] = {}
        self._total = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def report(self) -> dict[str, Any] | None:
        """Peak bytes of each kind of process and of all together; None where there is no /proc."""
        if not self._peaks:
            return None
        return {"peak_rss_bytes": self._total, "by_process": self._peaks, "every_s": _SAMPLE_S}

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            sizes = [(self._role(pid), resident(pid)) for pid in (self._pid, *descendants(self._pid))]
            self._total = max(self._total, sum(size for _, size in sizes))
            for role, size in sizes:
                self._peaks[role] = max(self._peaks.get(role, 0), size)

    def _role(self, pid: int) -> str:
        if pid == self._pid:
            return "driver"
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return "ended"
        return (
            "worker"
            if "autocompress.study.worker" in command
            else "timing"
            if "autocompress.measure" in command
            else "other"
        )


def descendants(pid: int) -> list[int]:
    """Process ids of all that a process started and that they started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, left = [], [pid]
    while left:
        started = children.get(left.pop(), [])
        found += started
        left += started
    return found


def resident(pid: int) -> int:
    """Bytes of memory a process has in use; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * _PAGE
    except OSError:
        return 0


def machine() -> dict[str, Any]:
    """Processor, cores, memory, and what else the cores were doing."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), model)
    memory = os.sysconf("SC_PHYS_PAGES") * _PAGE
    return {"processor": model, "cores": os.cpu_count(), "memory_bytes": memory, "load_1min": os.getloadavg()[0]}


def show(report: dict[str, Any]) -> None:
    """Tables for people, each figure beside what it should be."""
    print(f"{report['study']}: {report['spent_s']:.0f} s of {report['budget_s']:.0f} s, {report['network']}")
    print(f"machine: {report['machine']}\ndevice: {report['device']}\nversions: {report['versions']}")
    print("stages of the study: " + ", ".join(f"{k} {v:.1f} s" for k, v in report["study_s"].items()))
    print(f"\n{'median seconds':<12}{'n':>5}{'all':>8}" + "".join(f"{stage:>9}" for stage in STAGES))
    for kind, row in report["trials"].items():
        stages = "".join(f"{row['stages_s'].get(stage, 0.0):>9.2f}" for stage in STAGES)
        print(f"{kind:<14}{row['n']:>5}{row['total_s']:>8.2f}{stages}")
    print()
    if report["train_share"] is not None:
        target = TARGETS["train_share"]
        print(f"training, share of a trained trial: {report['train_share']:.1%} (at least {target:.0%})")
    for key, text in (("beside_training_s", "beside training, per trial"), ("stopped_s", "stopped before training")):
        if row := report[key]:
            print(f"{text}: p50 {row['p50']:.2f} s, p95 {row['p95']:.2f} s, n {row['n']} (at most {TARGETS[key]} s)")
    if memory := report["memory"]:
        by = ", ".join(f"{role} {size / 1024**2:.0f}" for role, size in sorted(memory["by_process"].items()))
        print(f"peak memory: {memory['peak_rss_bytes'] / 1024**2:.0f} MiB in all ({by}; below 2048 MiB)")


if __name__ == "__main__":
    sys.exit(main())
