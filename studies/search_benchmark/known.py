"""What a search could reach that knows its answer: the best plans of a run that is over, trained from the start.

    python studies/search_benchmark/run.py --contenders ours --seeds 0 --out results --keep
    python studies/search_benchmark/known.py --seeds 0 --budget 24s --plans 1 2 --out known

Of a kept run of `ours` those plans are taken that add most hypervolume on test data, one after another. A search of its
own then prepares as any other does, but for the profile that it has no use for, and divides what is left of the budget
among them; nothing is proposed and nothing trained twice. The plans were found with the same teacher and chosen on the
data they are judged on, so a search that must find them reaches less: this bounds what any choice of plans can win.
Rows are those of `run.py`, of contenders `known1`, `known2` and so on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import run
from contenders import CONTENDERS, OURS, Contender

from autocompress import cli
from autocompress.config import parse_duration
from autocompress.front.hypervolume import gain
from autocompress.plan import CompressionPlan
from autocompress.records import TrialRecord
from autocompress.study import run as starting
from autocompress.study.driver import Driver

_MARGIN_S = 0.5
_CHILD = "--train"  # how this script calls itself: the file of the plans and the arguments of a search follow


class KnownDriver(Driver):
    """A driver whose search is to train given plans, each for an equal share of the time."""

    plans: Sequence[CompressionPlan] = ()

    def _search(self) -> None:
        end = self.end - _MARGIN_S
        for index, plan in enumerate(self.plans):
            train_s = (end - time.monotonic()) / (len(self.plans) - index) - self.overhead_s()
            if train_s > 0:
                self.evaluate(plan, origin="anchor", anchor=True, train_s=train_s, deadline=end)


def main() -> int:
    """Run every number of plans on every task and seed."""
    arguments = _arguments()
    workspace, out = arguments.workspace.absolute(), arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for task in arguments.tasks:
            before = run.Job(task=task, contender=CONTENDERS[OURS], seed=seed, budget_s=arguments.known)
            plans = best_plans(run.folder_of(workspace, before), task, max(arguments.plans))
            weights, path = run.teacher(task, seed, workspace), workspace / "known.json"
            for count in arguments.plans:
                path.write_text(json.dumps([plan.to_dict() for plan in plans[:count]]), encoding="utf-8")
                job = run.Job(task=task, contender=contender(count), seed=seed, budget_s=arguments.budget)
                program = (str(Path(__file__).resolve()), _CHILD, str(path))
                row = run.run(job, weights, workspace=workspace, out=out, keep=False, program=program)
                print(f"{task} seed {seed}, {count} plans: {row['error'] or row['hv_100']}", file=sys.stderr)
    return 0


def contender(plans: int) -> Contender:
    """The settings of a search that trains so many known plans and looks for no others."""
    search = {"sampler": "sweep", "sweep": 0, "final_share": 0.0}
    return Contender(name=f"known{plans}", kind="helped", what=f"the {plans} best plans, known before", search=search)


def best_plans(folder: Path, task: str, count: int) -> list[CompressionPlan]:
    """The plans of a kept run that add most hypervolume on test data, one after another.

    Raises:
        SystemExit: the run was not kept.
    """
    study, trials = run.stored(folder)
    if study is None:
        sys.exit(f"no run is kept in {folder}; make it with run.py --contenders {OURS} --keep")
    tests, _ = run.judge(run.Outcome(study=study, trials=trials, wall_s=0, exit_code=0, error=""), folder, task)
    return most_together(trials, tests, count)


def most_together(trials: Sequence[TrialRecord], tests: Mapping[int, float], count: int) -> list[CompressionPlan]:
    """Plans of trained trials, one after another by the hypervolume they add to those before; at most `count`.

    Args:
        tests: value on test data of every trial that has one, the baseline's included.
    """
    dense = next(t for t in trials if t.origin == "baseline")
    left = {t.trial: t for t in trials if t.trial in tests and t.plan.trains}
    points = {number: _point(trial, dense, tests) for number, trial in left.items()}
    front, chosen = np.zeros((0, 3)), []
    while left and len(chosen) < count:
        best = max(left, key=lambda number: gain(points[number], front))
        front = np.vstack([front, points[best]])
        chosen.append(left.pop(best).plan)
    return chosen


def _point(trial: TrialRecord, dense: TrialRecord, tests: Mapping[int, float]) -> tuple[float, float, float]:
    assert trial.measurement is not None
    assert dense.measurement is not None
    size_ratio = trial.measurement.size_bytes / dense.measurement.size_bytes
    return max(0.0, tests[dense.trial] - tests[trial.trial]), size_ratio, trial.measurement.latency.ratio


def search_with(path: Path, arguments: list[str]) -> int:
    """`autocompress` with these arguments, whose search trains the plans of a file."""
    KnownDriver.plans = [CompressionPlan.from_dict(plan) for plan in json.loads(path.read_text(encoding="utf-8"))]
    starting.Driver = KnownDriver  # type: ignore[misc]
    return cli.run(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(run.STUDIES), default=list(run.SMALL), metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--plans", nargs="+", type=int, default=[1, 2], help="how many are trained, a run each")
    parser.add_argument("--budget", type=parse_duration, default=24.0, help="of one run: 24s, 48s")
    parser.add_argument("--known", type=parse_duration, default=120.0, help="budget of the run that was kept")
    parser.add_argument("--workspace", type=Path, default=Path("autocompress-bench"), help="where that one is")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs.csv and trials.csv")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(search_with(Path(sys.argv[2]), sys.argv[3:]) if sys.argv[1:2] == [_CHILD] else main())
