"""Runs side by side: what their rows hold, by task, contender and seed, and how ours compares with the others.

Numbers only; `analyse.py` writes the sentences and tables.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from contenders import CONTENDERS, OURS, Kind
from curve import DROP, SHARES, Point, at_shares, first_reach, over_time
from paired import Interval, bootstrap, relative_differences, signed_rank_p


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: its row, and its complete trials as points. `error`: why it counts as 0."""

    task: str
    contender: str
    seed: int
    budget_s: float
    error: str
    base_test: float
    hv_val: float
    points: tuple[Point, ...]

    def shares(self, drop: float = DROP) -> tuple[float, ...]:
        """Test hypervolume at each share of the budget; 0 for a run that crashed."""
        return _shares(self, drop)

    def final(self, drop: float = DROP) -> float:
        """Test hypervolume at the full budget."""
        return self.shares(drop)[-1]

    def curve(self) -> list[tuple[float, float]]:
        """(seconds, test hypervolume) after every trial; empty for a run that crashed."""
        return _curve(self)


# Runs are frozen and every table asks for the same ones, so their curves are computed once.
@cache
def _curve(run: Run) -> list[tuple[float, float]]:
    return [] if run.error else over_time(run.points, run.base_test, budget_s=run.budget_s)


@cache
def _shares(run: Run, drop: float) -> tuple[float, ...]:
    if run.error:
        return (0.0,) * len(SHARES)
    return tuple(at_shares(run.points, run.base_test, budget_s=run.budget_s, drop=drop))


Runs = Mapping[tuple[str, str, int], Run]  # by task, contender and seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours against one contender, or against the best baseline of each task.

    Attributes:
        differences: by task, relative to the other's mean there.
        interval: of their mean over tasks.
        wins: share of the pairs in which ours is ahead.
    """

    differences: Mapping[str, tuple[float, ...]]
    interval: Interval | None
    p: float
    wins: float

    @property
    def pairs(self) -> int:
        """How many pairs of runs were compared."""
        return sum(map(len, self.differences.values()))


def collect(
    rows: Iterable[Mapping[str, str]], trial_rows: Iterable[Mapping[str, str]]
) -> dict[tuple[str, str, int], Run]:
    """Runs by task, contender and seed; trials of no run are dropped, and of two equal runs the later one counts."""
    points: dict[str, list[Point]] = {}
    for row in trial_rows:
        if row["state"] == "complete" and row["test"] and row["val"]:
            names = ("spent_s", "val", "test", "size_ratio", "latency_ratio")
            points.setdefault(row["run"], []).append(Point(**{name: float(row[name]) for name in names}))
    found = {}
    for row in rows:
        own = tuple(points.get(row["run"], ()))
        missing = "" if own and row["base_test"] else "no complete trial"
        run = Run(
            task=row["task"],
            contender=row["contender"],
            seed=int(row["seed"]),
            budget_s=float(row["budget_s"]),
            error=row["error"] or missing,
            base_test=float(row["base_test"] or 0),
            hv_val=float(row["hv_val"] or 0),
            points=own,
        )
        found[run.task, run.contender, run.seed] = run
    return found


def compare(runs: Runs, others: Mapping[str, str], *, who: str = OURS, drop: float = DROP) -> Comparison:
    """`who` against `others`, the name of a contender for each task, over the seeds that both have."""
    found: dict[str, tuple[float, ...]] = {}
    for task, other in others.items():
        seeds = [s for t, c, s in runs if t == task and c == who and (task, other, s) in runs]
        ours = [runs[task, who, s].final(drop) for s in seeds]
        theirs = [runs[task, other, s].final(drop) for s in seeds]
        found[task] = tuple(float(d) for d in relative_differences(ours, theirs))
    pooled = [d for values in found.values() for d in values]
    return Comparison(
        differences=found,
        interval=bootstrap(list(found.values())),
        p=signed_rank_p(pooled),
        wins=sum(d > 0 for d in pooled) / len(pooled) if pooled else math.nan,
    )


def best_baselines(runs: Runs, *, drop: float = DROP, helped: bool = False) -> dict[str, str]:
    """For each task that ours has: the baseline of the highest mean at the full budget, over the seeds of ours.

    Args:
        helped: among those that were given a part of the engine, too.
    """
    found = {}
    names = [*names_of(runs, "baseline"), *(names_of(runs, "helped") if helped else [])]
    for task in tasks_of(runs):
        means = {
            name: statistics.fmean(values)
            for name in names
            if (
                values := [
                    runs[t, c, s].final(drop) for t, c, s in runs if (t, c) == (task, name) and (t, OURS, s) in runs
                ]
            )
        }
        if means:
            found[task] = max(means, key=lambda name: means[name])
    return found


def speed_ups(runs: Runs, others: Mapping[str, str]) -> dict[str, list[float]]:
    """By task and pair: how many times sooner ours reached the other's final value than the other did; 0 is never."""
    found: dict[str, list[float]] = {}
    for task, other in others.items():
        for t, c, seed in runs:
            if (t, c) != (task, OURS) or (task, other, seed) not in runs:
                continue
            theirs = runs[task, other, seed]
            own = first_reach(theirs.curve(), theirs.final())
            if math.isfinite(own):
                found.setdefault(task, []).append(own / first_reach(runs[t, c, seed].curve(), theirs.final()))
    return found


def tasks_of(runs: Runs) -> list[str]:
    """Tasks that ours was run on."""
    return sorted({task for task, contender, _ in runs if contender == OURS})


def names_of(runs: Runs, kind: Kind | None = None) -> list[str]:
    """Contenders that there are runs of, in the order of the table; unknown ones last."""
    there = {contender for _, contender, _ in runs}
    ordered = [*(n for n in CONTENDERS if n in there), *sorted(there - set(CONTENDERS))]
    return [name for name in ordered if kind is None or kind_of(name) == kind]


def kind_of(name: str) -> Kind:
    """What a contender is; one that the table does not know is an ablation of its time."""
    return CONTENDERS[name].kind if name in CONTENDERS else "ablation"
