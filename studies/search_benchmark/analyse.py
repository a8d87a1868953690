"""Reads the rows of `run.py` and writes what they say: tables, intervals, and whether the criteria were met.

    python studies/search_benchmark/analyse.py
    python studies/search_benchmark/analyse.py --results my-results --out my-results/today.md

Every number comes from `runs.csv` and `trials.csv`; the criteria are those of PROTOCOL.md. What is missing is named
and left out. Nothing is run here.
"""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from contenders import CONTENDERS, OURS
from curve import DROP, SHARES
from paired import Interval, holm
from run import FOLDER, number, read_rows
from side_by_side import Comparison, Runs, best_baselines, collect, compare, kind_of, names_of, speed_ups, tasks_of

DROPS = (0.02, DROP, 0.10)
GAIN, SPEED_UP = 0.05, 5.0  # the criteria
_LATE = 1.05  # of the budget; a run that took longer did not keep it
_ENDS = ("complete", "ended before training", "ended while training", "no time left", "failed")
_BUSY = 0.2  # share of trials that were timed while something else had the core


def main() -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of runs.csv and trials.csv")
    parser.add_argument("--out", type=Path, help="file to write; <date>.md in --results by default")
    arguments = parser.parse_args()
    rows = read_rows(arguments.results / "runs.csv")
    if not rows:
        sys.exit(f"no rows in {arguments.results / 'runs.csv'}; run.py writes them")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    out = arguments.out or arguments.results / f"{today}.md"
    out.write_text(report(rows, read_rows(arguments.results / "trials.csv"), date=today), encoding="utf-8")
    print(out)
    return 0


def report(rows: Sequence[Mapping[str, str]], trial_rows: Iterable[Mapping[str, str]], *, date: str) -> str:
    """The whole report as Markdown: a chapter per budget, and one where ours had less time than a baseline."""
    trial_rows = list(trial_rows)
    parts = [f"# The search benchmark, {date}", "What was asked, and how: `PROTOCOL.md`. The rows: the CSV files here."]
    runs = {}
    for budget in sorted({float(row["budget_s"]) for row in rows}):
        own = [row for row in rows if float(row["budget_s"]) == budget]
        runs[budget] = collect(own, trial_rows)
        parts.append(_chapter(own, runs[budget], trial_rows, budget))
    parts += [text for pair in combinations(runs, 2) if (text := _shorter(runs, *pair))]
    return "\n\n".join(parts) + "\n"


def _chapter(
    rows: Sequence[Mapping[str, str]], runs: Runs, trial_rows: Sequence[Mapping[str, str]], budget_s: float
) -> str:
    tasks = sorted({task for task, _, _ in runs})
    parts = [f"## {number(budget_s)} s per run: {', '.join(tasks)}", _conditions(rows), _verdict(runs)]
    parts += ["### Hypervolume on test data at shares of the budget", _over_tasks(runs, tasks)]
    parts += [text for task in tasks for text in (f"#### {task}", _means(runs, [task]))]
    parts += ["### Ours against each", _pairs(runs), "### Other references", _references(runs)]
    parts += ["### Time to the best baseline's final value", _times(runs)]
    parts += ["### How the proposals ended", _ends({row["run"] for row in rows}, trial_rows)]
    notes = _warnings(rows, runs, trial_rows)
    parts += ["### What to know before believing this", "\n".join(f"- {n}" for n in notes) if notes else "Nothing odd."]
    return "\n\n".join(parts)


def _shorter(runs: Mapping[float, Runs], short_s: float, long_s: float) -> str:
    """What ours has that had less time than the baselines; empty where there is no such pair.

    A search ends as it would if that were all the time it had: nothing is cut out of a longer one.
    """
    both = {key: run for key, run in runs[short_s].items() if key[1] == OURS}
    both |= {key: run for key, run in runs[long_s].items() if kind_of(key[1]) == "baseline"}
    best = best_baselines(both)
    compared = compare(both, best)
    if compared.interval is None:
        return ""
    return "\n\n".join(
        [
            f"## Ours in {number(short_s)} s against the baselines in {number(long_s)} s",
            f"A search of {number(short_s)} s has {_percent(compared.interval.mean)} {_range(compared.interval)} more "
            f"hypervolume than the best baseline of each task has at the end of {number(long_s)} s, over "
            f"{compared.pairs} pairs, of which it is ahead in {compared.wins:.0%}. {_sooner(both, best)}",
            _final_values(both, best),
            _times(both),
        ]
    )


def _final_values(runs: Runs, best: Mapping[str, str]) -> str:
    lines = []
    for task, baseline in best.items():
        seeds = [s for t, c, s in runs if (t, c) == (task, OURS) and (task, baseline, s) in runs]
        ours, theirs = ([runs[task, name, s].final() for s in seeds] for name in (OURS, baseline))
        differences = compare(runs, {task: baseline})
        range_ = _range(differences.interval)
        lines.append([task, f"{_mean(ours):.3f}", baseline, f"{_mean(theirs):.3f}", range_, f"{differences.wins:.0%}"])
    return _table(["task", OURS, "baseline", "its hypervolume", "more, 95 %", "ours ahead"], lines)


def _conditions(rows: Sequence[Mapping[str, str]]) -> str:
    kinds = {name: sorted({row[name] for row in rows if row[name]}) for name in ("processor", "cores", "commit")}
    seeds = sorted({int(row["seed"]) for row in rows})
    data = sorted(
        {f"{row['task']} {row['train_samples']} images of {row['input']}" for row in rows if row["train_samples"]}
    )
    return (
        f"{len(rows)} runs, seeds {', '.join(map(str, seeds))}; {' / '.join(kinds['processor'])}, "
        f"{'/'.join(kinds['cores'])} cores; commit {', '.join(kinds['commit'])}. Training data: {'; '.join(data)}."
    )


def _verdict(runs: Runs) -> str:
    best = best_baselines(runs)
    compared = compare(runs, best)
    if compared.interval is None:
        return "Nothing to judge: `ours` and a baseline are not both there."
    best_of = ", ".join(f"{name} on {task}" for task, name in best.items())
    bare = compare(runs, best, who="no_inherit").interval
    own = f" Without inherited weights it is {_percent(bare.mean)} {_range(bare)}." if bare else ""
    return "\n".join(
        [
            f"The best baselines are {best_of}.",
            "",
            f"- At the full budget ours has {_percent(compared.interval.mean)} {_range(compared.interval)} more "
            f"hypervolume than the best baseline of each task; {_judged(compared)}.{own}",
            f"- {_sooner(runs, best)}",
            *_helped(runs),
        ]
    )


def _sooner(runs: Runs, best: Mapping[str, str]) -> str:
    ups = [up for values in speed_ups(runs, best).values() for up in values]
    median = statistics.median(ups) if ups else 0.0
    few = _too_few(compare(runs, best).interval)
    verdict = "too few pairs for a verdict" if few else f"**{_met(median >= SPEED_UP)}**"
    return (
        f"It had their final value {median:.1f} times sooner than they (median of {len(ups)} pairs); "
        f"{SPEED_UP:.0f} times was asked: {verdict}."
    )


def _helped(runs: Runs) -> list[str]:
    """The same where baselines with a part of the engine count, too: no criterion, but nothing to keep quiet about."""
    if not names_of(runs, "helped"):
        return []
    best = best_baselines(runs, helped=True)
    interval = compare(runs, best).interval
    assert interval is not None
    best_of = ", ".join(f"{name} on {task}" for task, name in best.items())
    return [
        f"- Beside the question: against the best of each task where those count that were given a part of the engine "
        f"({best_of}) it is {_percent(interval.mean)} {_range(interval)}."
    ]


def _judged(compared: Comparison) -> str:
    interval = compared.interval
    assert interval is not None
    if _too_few(interval):
        means = [_mean(values) for values in compared.differences.values() if values]
        return f"too few pairs for a verdict, ahead in the mean on {sum(m > 0 for m in means)} of {len(means)} tasks"
    gained = interval.mean >= GAIN and interval.low > 0
    return f"{_percent(GAIN)} with an interval above 0 was asked: **{_met(gained)}**"


def _over_tasks(runs: Runs, tasks: Sequence[str]) -> str:
    return (
        "Means over tasks of means over seeds; `val` is the front at the full budget on validation data.\n\n"
        + _means(runs, tasks)
    )


def _means(runs: Runs, tasks: Sequence[str]) -> str:
    """A line per contender, the best at the full budget first; a contender that lacks a task comes last, marked."""
    lines = []
    for name in names_of(runs):
        own = {task: [r for (t, c, _), r in runs.items() if (t, c) == (task, name)] for task in tasks}
        there = {task: found for task, found in own.items() if found}
        if not there:
            continue
        columns = [_mean(_mean(r.shares()[i] for r in found) for found in there.values()) for i in range(len(SHARES))]
        on_val = _mean(_mean(r.hv_val for r in found) for found in there.values())
        label = name if len(there) == len(tasks) else f"{name} (only {', '.join(there)})"
        count = sum(map(len, there.values()))
        lines.append((len(there), columns[-1], [label, str(count), *(f"{v:.3f}" for v in [*columns, on_val])]))
    head = ["contender", "runs", *(f"{share:.0%}" for share in SHARES), "val"]
    return _table(head, [cells for _, _, cells in sorted(lines, key=lambda line: (-line[0], -line[1]))])


def _pairs(runs: Runs) -> str:
    tasks = tasks_of(runs)
    compared = {name: compare(runs, dict.fromkeys(tasks, name)) for name in names_of(runs) if name != OURS}
    compared = {name: c for name, c in compared.items() if c.pairs}
    if not compared:
        return "No pairs."
    baselines = {name: c.p for name, c in compared.items() if kind_of(name) == "baseline"}
    corrected = holm(baselines)
    lines = []
    for name, c in sorted(compared.items(), key=lambda item: (kind_of(item[0]) == "ablation", _mean_of(item[1]))):
        by_task = [f"{_percent(_mean(c.differences[t]))}" if c.differences[t] else "" for t in tasks]
        p = f"{c.p:.3g}" + (f" ({corrected[name]:.3g})" if name in corrected else "")
        lines.append([name, str(c.pairs), _percent(_mean_of(c)), _range(c.interval), f"{c.wins:.0%}", p, *by_task])
    head = ["against", "pairs", "more hypervolume", "95 %", "ours ahead", "p (Holm)", *tasks]
    return (
        "Paired by task and seed, relative to the other's mean. Baselines first, those with a part of the engine among "
        "them, then ours without one part: there a value above 0 is what the part is worth.\n\n" + _table(head, lines)
    )


def _references(runs: Runs) -> str:
    lines = []
    for drop in DROPS:
        best = best_baselines(runs, drop=drop)
        c = compare(runs, best, drop=drop)
        if c.interval is not None:
            names = ", ".join(f"{name} ({task})" for task, name in best.items())
            lines.append([f"{drop:.2f}", _percent(c.interval.mean), _range(c.interval), f"{c.wins:.0%}", names])
    if not lines:
        return "No pairs."
    return (
        "Against the best baseline of each task, where the reference point is at another accuracy drop.\n\n"
        + _table(["drop", "more hypervolume", "95 %", "ours ahead", "best baselines"], lines)
    )


def _times(runs: Runs) -> str:
    best = best_baselines(runs)
    ups = speed_ups(runs, best)
    lines = []
    for task, values in ups.items():
        reached = sum(v > 0 for v in values)
        lines.append([task, best[task], f"{statistics.median(values):.1f}", f"{reached} of {len(values)}"])
    if not lines:
        return "No pairs."
    return "How many times sooner ours got there than the baseline itself, median over the seeds.\n\n" + _table(
        ["task", "baseline", "times sooner", "pairs in which ours got there"], lines
    )


def _ends(runs: Collection[str], trial_rows: Iterable[Mapping[str, str]]) -> str:
    """What became of the plans that a sampler proposed; anchors and the last stage are not its choice."""
    counts: dict[str, Counter[str]] = {}
    for row in trial_rows:
        if row["run"] in runs and row["origin"] == "search":
            counts.setdefault(row["contender"], Counter())[_end(row)] += 1
    if not counts:
        return "No proposals."
    ordered = [*(n for n in CONTENDERS if n in counts), *sorted(set(counts) - set(CONTENDERS))]
    lines = [[n, str(counts[n].total()), *(str(counts[n][end]) for end in _ENDS)] for n in ordered]
    return (
        "Ended before training: size and latency said that the plan cannot enter the front. Ended while training: the "
        "rung did.\n\n" + _table(["contender", "proposals", *_ENDS], lines)
    )


def _end(row: Mapping[str, str]) -> str:
    if row["state"] not in ("stopped", "infeasible"):
        return row["state"]
    if "too little time" in row["reason"]:
        return "no time left"
    return "ended while training" if float(row["train_s"] or 0) > 0 else "ended before training"


def _warnings(rows: Sequence[Mapping[str, str]], runs: Runs, trial_rows: Sequence[Mapping[str, str]]) -> list[str]:
    found = [f"{len(rows) - len(runs)} runs were done twice; the later counts."] if len(rows) > len(runs) else []
    for name in ("processor", "cores", "commit", "versions", "omp_threads"):
        # "omp_threads" may be empty in all rows; the versions of a run that crashed at once are not known.
        if len(kinds := {row[name] for row in rows if name == "omp_threads" or row[name]}) > 1:
            found.append(f"The runs differ in {name}: {', '.join(sorted(kinds))[:300]}.")
    for task in sorted({row["task"] for row in rows}):
        own = [row for row in rows if row["task"] == task and row["input"]]
        if len({(row["input"], row["train_samples"]) for row in own}) > 1:
            found.append(f"The runs of {task} are not on the same data.")
        if len({(row["seed"], row["teacher"]) for row in own}) > len({row["seed"] for row in own}):
            found.append(f"The runs of {task} do not share one teacher per seed.")
    if missing := [f"{t} {c} {s}" for t, c, s in _expected(runs) if (t, c, s) not in runs]:
        found.append(
            f"{len(missing)} runs are missing: {', '.join(missing[:10])}{' ...' if len(missing) > 10 else ''}."
        )
    found += [f"{t} {c} seed {s} counts as 0: {r.error}" for (t, c, s), r in sorted(runs.items()) if r.error]
    late = [row for row in rows if row["spent_s"] and float(row["spent_s"]) > _LATE * float(row["budget_s"])]
    found += [f"{r['task']} {r['contender']} seed {r['seed']} took {r['spent_s']} s." for r in late]
    found += [f"{r['task']} {r['contender']} seed {r['seed']}: {r['message']}." for r in rows if r["message"]]
    names = {row["run"] for row in rows}
    timed = [row for row in trial_rows if row["run"] in names and row["contended"]]
    busy = sum(row["contended"] == "1" for row in timed)
    if timed and busy > _BUSY * len(timed):
        found.append(f"{busy / len(timed):.0%} of the timings were disturbed by other programs.")
    return found


def _expected(runs: Runs) -> list[tuple[str, str, int]]:
    tasks, seeds = {t for t, _, _ in runs}, {s for _, _, s in runs}
    return sorted((t, c, s) for t in tasks for c in names_of(runs) for s in seeds)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _mean_of(compared: Comparison) -> float:
    return compared.interval.mean if compared.interval else math.nan


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _range(interval: Interval | None) -> str:
    if interval is None or _too_few(interval):
        return "[too few pairs]"
    return f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _too_few(interval: Interval | None) -> bool:
    return interval is None or math.isnan(interval.low)


def _met(yes: bool) -> str:
    return "met" if yes else "not met"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    sys.exit(main())
