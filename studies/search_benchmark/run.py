"""Runs the benchmark: every contender on every task with every seed, one after the other, each in a process of its own.

    python studies/search_benchmark/run.py --seeds 0 1 2 3 4 --budget 2m
    python studies/search_benchmark/run.py --tasks resnet20 mobilenetv2 --contenders ours sweep7 --seeds 0 --budget 10m

Rows are appended to `runs.csv` and `trials.csv` in --out as soon as a run has ended; what is there already is not run
again, so the same command goes on after an interruption. Nothing is decided here: `analyse.py` reads the rows. The
machine must do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Contender, toml
from curve import SHARES, Point, at_shares, hypervolume_on_val
from numpy.typing import NDArray

from autocompress.config import StudyConfig, load_config, parse_duration
from autocompress.errors import AutocompressError, UsageError
from autocompress.front.hypervolume import REFERENCE
from autocompress.records import StudyRecord, StudyState, TrialRecord, TrialState

FOLDER = Path(__file__).resolve().parent
STUDIES: Mapping[str, str] = {
    **{name: str(FOLDER / f"{name}.toml") for name in ("residual", "depthwise", "plain")},
    "resnet20": "fashion_mnist_resnet20",
    "mobilenetv2": "fashion_mnist_mobilenetv2",
}
SMALL = ("residual", "depthwise", "plain")
# The built-in studies ask for one point at most; what is measured is the hypervolume up to its reference.
ASKED: Mapping[str, Mapping[str, Any]] = {name: {"max_drop": REFERENCE["drop"]} for name in ("resnet20", "mobilenetv2")}
STUDY = "run"  # its name in the workspace that each run has for itself
PROGRAM = ("-m", "autocompress")
_TEACHER_BUDGET = "1h"  # more than any needs; a teacher that was cut is refused
_HANGS_AFTER = (1.25, 120.0)  # times the budget, plus seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run to do."""

    task: str
    contender: Contender
    seed: int
    budget_s: float

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same run as a row of `runs.csv`."""
        return (self.task, self.contender.name, str(self.seed), number(self.budget_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search left behind. `error`: why it counts for nothing; empty if it ended as it should."""

    study: StudyRecord | None
    trials: tuple[TrialRecord, ...]
    wall_s: float
    exit_code: int | None
    error: str


def main() -> int:
    """Run what is missing and append its rows."""
    arguments = _arguments()
    out, workspace = arguments.out.absolute(), arguments.workspace.absolute()
    out.mkdir(parents=True, exist_ok=True)
    wanted = jobs(arguments.tasks, arguments.contenders, arguments.seeds, arguments.budget)
    check(wanted)
    done = {tuple(row[name] for name in KEY) for row in read_rows(out / "runs.csv")}
    left = [job for job in wanted if job.key not in done]
    print(f"{len(left)} of {len(wanted)} runs of {number(arguments.budget)} s are left", file=sys.stderr)
    for index, job in enumerate(left, start=1):
        weights = teacher(job.task, job.seed, workspace)
        row = run(job, weights, workspace=workspace, out=out, keep=arguments.keep)
        what = row["error"] or f"hypervolume {row['hv_100']} on test, {row['complete']} complete trials"
        print(f"[{index}/{len(left)}] {job.task} {job.contender.name} seed {job.seed}: {what}", file=sys.stderr)
    return 0


def jobs(tasks: Sequence[str], contenders: Sequence[str], seeds: Sequence[int], budget_s: float) -> list[Job]:
    """Seed by seed and task by task, all contenders of a pair side by side in an order of its own.

    So a slow hour of the machine hits all contenders of the same pairs, and none of them always comes first.
    """
    found = []
    for seed in seeds:
        for task in tasks:
            order = list(contenders)
            random.Random(f"{task} {seed}").shuffle(order)
            found += [Job(task=task, contender=CONTENDERS[name], seed=seed, budget_s=budget_s) for name in order]
    return found


def check(wanted: Iterable[Job]) -> None:
    """Refuse settings that this version does not know: they would count as runs that crashed.

    Raises:
        SystemExit: naming the contender and the setting.
    """
    for job in wanted:
        try:
            load_config({"search": job.contender.settings(job.budget_s)}, name=STUDY, origin=job.contender.name)
        except UsageError as error:
            sys.exit(f"this version cannot run {error}")


def teacher(task: str, seed: int, workspace: Path) -> Path:
    """Weights of the dense network, trained by the tool itself the first time they are asked for.

    A study that ends after its baseline is the tool's own way to a teacher.
    """
    path = workspace / "teachers" / f"{task}-{seed}.safetensors"
    if path.exists():
        return path
    own = workspace / "teachers" / f"{task}-{seed}"
    shutil.rmtree(own, ignore_errors=True)
    print(f"training the teacher of {task}, seed {seed}", file=sys.stderr)
    settings = ["--max-trials", "1", "--set", 'search.sampler="random"']
    outcome = _search(STUDIES[task], own, seed=seed, budget=_TEACHER_BUDGET, settings=settings, timeout_s=4000)
    notes = outcome.study.facts.notes if outcome.study and outcome.study.facts else ()
    if outcome.error or any("was cut" in note for note in notes):
        sys.exit(f"the teacher of {task} was not trained: {outcome.error or '; '.join(notes)}")
    part = path.with_suffix(".part")
    shutil.copyfile(own / "artifacts" / STUDY / "teacher.safetensors", part)
    part.replace(path)
    shutil.rmtree(own)
    return path


def run(
    job: Job, weights: Path, *, workspace: Path, out: Path, keep: bool, program: Sequence[str] = PROGRAM
) -> dict[str, str]:
    """Do one run in a fresh workspace, judge it on test data, and append its rows; the row of the run is returned."""
    folder = folder_of(workspace, job)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted: its time is not known
    started, load = datetime.now(UTC), os.getloadavg()[0]
    chosen = {**ASKED.get(job.task, {}), **job.contender.settings(job.budget_s)}
    settings = [part for key, value in chosen.items() for part in ("--set", f"search.{key}={toml(value)}")]
    settings += ["--set", f"model.weights={toml(str(weights))}"]
    scale, extra = _HANGS_AFTER
    outcome = _search(
        STUDIES[job.task], folder, seed=job.seed, budget=f"{number(job.budget_s)}s", settings=settings,
        timeout_s=scale * job.budget_s + extra, program=program,
    )  # fmt: skip
    tests, facts = judge(outcome, folder, job.task)
    name = f"{started:%Y%m%dT%H%M%S}-{job.task}-{job.contender.name}-{job.seed}"
    row = {
        **dict(zip(KEY, job.key, strict=True)), "run": name, "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "settings": json.dumps(chosen), "teacher": hashlib.sha256(weights.read_bytes()).hexdigest()[:12],
        "load_before": number(load), "commit": commit(),
        **facts, **_summary(outcome, tests, job.budget_s), **_machine(),
    }  # fmt: skip
    # The row of the run comes last: trials whose run has no row are of an interruption, and nobody reads them.
    append(out / "trials.csv", TRIAL_COLUMNS, _trial_rows(outcome, tests, {n: row[n] for n in ("run", *KEY)}))
    append(out / "runs.csv", RUN_COLUMNS, [row])
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def folder_of(workspace: Path, job: Job) -> Path:
    """Where a run has its workspace."""
    return workspace / "runs" / f"{job.task}-{number(job.budget_s)}s" / f"{job.contender.name}-{job.seed}"


def judge(outcome: Outcome, workspace: Path, task: str) -> tuple[dict[int, float], dict[str, str]]:
    """Test accuracy of every complete trial by the runtime that ships, and what the data were.

    Outside of the budget. An artifact that does not run is worth nothing: accuracy 0.
    """
    study = outcome.study
    if study is None or not outcome.trials:
        return {}, {}
    from autocompress.measure.machine import cores
    from autocompress.measure.quality import metric_for, predict

    config = StudyConfig.model_validate(study.config)
    metric = metric_for(config.task.metric, config.task.direction)
    inputs, targets = _test_data(task, config)
    tests = {}
    for trial in outcome.trials:
        if trial.state is not TrialState.COMPLETE or trial.artifact is None:
            continue
        try:
            outputs = predict(
                workspace / trial.artifact,
                inputs,
                threads=cores(),
                device_batch=study.device.batch,
                runtime=study.device.runtime,
            )
            tests[trial.trial] = metric(outputs, targets)
        except ValueError as error:
            print(f"trial {trial.trial} does not run: {error}", file=sys.stderr)
            tests[trial.trial] = 0.0
    samples = {**study.data_sizes, "test": len(targets)}
    facts = {"input": "x".join(str(n) for n in inputs[0].shape[1:])}
    return tests, facts | {f"{name}_samples": str(count) for name, count in samples.items()}


def _test_data(task: str, config: StudyConfig) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Inputs and targets that no contender has seen: the task's own where it has them, else the study's test split."""
    if task in SMALL:
        from tasks import judged_images

        inputs, targets = judged_images()
        return [inputs.numpy()], targets.numpy()
    from autocompress.recover.data import split_data
    from autocompress.zoo.factory import load_data

    raw = load_data(config.data, base=None, seed=config.search.seed)
    test = split_data(raw, config=config.data, metric=config.task.metric, seed=config.search.seed).test
    return [t.numpy() for t in test.inputs], test.targets.numpy()


def points_of(trials: Iterable[TrialRecord], tests: Mapping[int, float]) -> tuple[list[Point], TrialRecord | None]:
    """The complete trials as points of the curve, and the baseline among them."""
    points, dense = [], None
    known = [t for t in trials if t.trial in tests and t.measurement is not None and t.measurement.val is not None]
    dense = next((t for t in known if t.origin == "baseline"), None)
    if dense is None or dense.measurement is None:
        return [], None
    for trial in known:
        measured = trial.measurement
        assert measured is not None
        assert measured.val is not None
        points.append(
            Point(
                spent_s=trial.spent_s,
                val=measured.val,
                test=tests[trial.trial],
                size_ratio=measured.size_bytes / dense.measurement.size_bytes,
                latency_ratio=measured.latency.ratio,
            )
        )
    return points, dense


# -- rows

KEY = ("task", "contender", "seed", "budget_s")
HV_COLUMNS = tuple(f"hv_{round(100 * share):03d}" for share in SHARES)
RUN_COLUMNS = (
    *("run", *KEY, "started", "error", "message", "spent_s", "wall_s", "exit_code"),
    *("complete", "stopped", "infeasible", "failed", "front_size", "hv_val", *HV_COLUMNS),
    *("base_val", "base_test", "base_bytes", "base_ms", "teacher", "input", "train_samples", "val_samples"),
    *("test_samples", "settings", "processor", "cores", "omp_threads", "load_before", "versions", "commit"),
)
TRIAL_COLUMNS = (
    *("run", *KEY, "trial", "origin", "parent", "state", "spent_s", "val", "test", "size_ratio", "latency_ratio"),
    *("size_bytes", "latency_ms", "contended", "train_s", "duration_s", "structure", "reason"),
)


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Add rows to a CSV file, and its header if it is new.

    Raises:
        SystemExit: the file has other columns, from another version of this script.
    """
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            if next(csv.reader(file), []) != list(columns):
                sys.exit(f"{path} has other columns than this version writes; give another --out")
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, restval="", extrasaction="raise", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number(value: float | int | None) -> str:
    """Six significant digits, and nothing for what was not measured; 120.0 is 120."""
    return "" if value is None else f"{value:.6g}"


def _summary(outcome: Outcome, tests: Mapping[int, float], budget_s: float) -> dict[str, str]:
    """The columns that say how a run went; one that crashed has a hypervolume of 0 throughout."""
    counts = Counter(trial.state for trial in outcome.trials)
    points, dense = points_of(outcome.trials, tests)
    volumes, on_val = [0.0] * len(SHARES), 0.0
    if dense is not None and dense.measurement is not None and not outcome.error:
        assert dense.measurement.val is not None
        volumes = at_shares(points, tests[dense.trial], budget_s=budget_s)
        on_val = hypervolume_on_val([p for p in points if p.spent_s <= budget_s], dense.measurement.val)
    found = {
        "error": outcome.error,
        "wall_s": number(outcome.wall_s),
        "exit_code": number(outcome.exit_code),
        **{str(s): str(counts[s]) for s in TrialState if s is not TrialState.RUNNING},
        "hv_val": number(on_val),
        **dict(zip(HV_COLUMNS, map(number, volumes), strict=True)),
    }
    return found | (_study_columns(outcome.study, outcome.trials, tests) if outcome.study else {})


def _study_columns(study: StudyRecord, trials: Sequence[TrialRecord], tests: Mapping[int, float]) -> dict[str, str]:
    from autocompress.front.summary import front_points

    base = study.baseline
    dense = next((t.trial for t in trials if t.origin == "baseline"), -1)
    return {
        "message": study.message,
        "spent_s": number(study.spent_s),
        "front_size": str(len(front_points(study, trials))),
        "base_val": number(base.val if base else None),
        "base_test": number(tests.get(dense)),
        "base_bytes": number(base.size_bytes if base else None),
        "base_ms": number(base.latency_ms if base else None),
        "versions": json.dumps(study.versions),
    }


def _trial_rows(outcome: Outcome, tests: Mapping[int, float], same: Mapping[str, str]) -> list[dict[str, str]]:
    base = outcome.study.baseline if outcome.study else None
    rows = []
    for trial in outcome.trials:
        measured = trial.measurement
        row = {
            **same,
            "trial": str(trial.trial),
            "origin": trial.origin,
            "parent": number(trial.parent),
            "state": str(trial.state),
            "spent_s": number(trial.spent_s),
            "test": number(tests.get(trial.trial)),
            "train_s": number(trial.durations_s.get("train", 0.0)),
            "duration_s": number(sum(trial.durations_s.values())),
            "structure": trial.plan.structure_key(),
            "reason": trial.reason,
        }
        if measured is not None and base is not None:
            row |= {
                "val": number(measured.val),
                "size_bytes": str(measured.size_bytes),
                "size_ratio": number(measured.size_bytes / base.size_bytes),
                "latency_ms": number(measured.latency.latency_ms),
                "latency_ratio": number(measured.latency.ratio),
                "contended": str(int(measured.latency.contended)),
            }
        rows.append(row)
    return rows


# -- the process that searches


def _search(
    study: str,
    workspace: Path,
    *,
    seed: int,
    budget: str,
    settings: Sequence[str],
    timeout_s: float,
    program: Sequence[str] = PROGRAM,
) -> Outcome:
    """Search as a user would, in a fresh process and a fresh workspace, and read what came of it."""
    workspace.mkdir(parents=True)
    command = [sys.executable, *program, "search", study, "--name", STUDY, "--seed", str(seed)]
    command += ["--budget", budget, "--workspace", str(workspace), "--json", *settings]
    # Settings in the environment would be silently part of one machine's results.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AUTOCOMPRESS_") or k == "AUTOCOMPRESS_DATA"}
    log = workspace / "stderr.txt"
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as errors:
        try:
            done = subprocess.run(
                command,
                cwd=workspace,
                env=clean,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=timeout_s,
                check=False,
            )
            code: int | None = done.returncode
        except subprocess.TimeoutExpired:
            code = None
    wall_s = time.monotonic() - start
    study_record, trials = stored(workspace)
    cleaned = tuple(replace(t, reason=_without_paths(t.reason, workspace)) for t in trials)
    error = _without_paths(_error(code, study_record, log), workspace)
    return Outcome(study=study_record, trials=cleaned, wall_s=wall_s, exit_code=code, error=error)


def _without_paths(text: str, workspace: Path) -> str:
    """What is published does not say where on a machine the benchmark ran."""
    places = {str(workspace): "WORKSPACE", str(FOLDER.parents[1]): "CHECKOUT", sys.prefix: "PYTHON"}
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def stored(workspace: Path) -> tuple[StudyRecord | None, tuple[TrialRecord, ...]]:
    """The study of a run and its trials; None and nothing where there is none."""
    from autocompress.api import open_study

    try:
        result = open_study(STUDY, workspace)
        return result.record, tuple(result.trials)
    except AutocompressError:
        return None, ()


def _error(code: int | None, study: StudyRecord | None, log: Path) -> str:
    """Why a run counts for nothing, in one line; empty if it does not."""
    if code is None:
        return "it did not end long after its budget, and was killed"
    if code in (0, 3) and study is not None and study.state is StudyState.FINISHED:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1][:300] if lines else 'nothing on stderr'}"


def _machine() -> dict[str, str]:
    from autocompress.measure.machine import cores, processor

    return {
        "processor": processor(),
        "cores": str(cores()),
        "omp_threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def commit() -> str:
    """Commit of the checkout, with "-changed" where files of it were; "unknown" outside of one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(FOLDER), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(FOLDER.parents[1] / "autocompress"))
    except OSError:  # no git on this machine
        return "unknown"
    return f"{head}{'-changed' if changed else ''}" if head else "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(STUDIES), default=list(SMALL), metavar="TASK")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--budget", type=parse_duration, default=120.0, help="of one run: 2m, 10m")
    parser.add_argument(
        "--workspace", type=Path, default=Path("autocompress-bench"), help="teachers and running studies"
    )
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="folder of runs.csv and trials.csv")
    parser.add_argument("--keep", action="store_true", help="keep the workspace of every run: gigabytes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
