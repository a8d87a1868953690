"""What a person sees in a terminal: a search while it runs, and tables of what it found.

Progress goes to stderr, as a live view on a terminal and as plain lines otherwise; tables go to stdout.
Text only: the facts come from `records.py` and `front/`.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autocompress.front.beliefs import BeliefFacts, belief_facts, belief_lines, why
from autocompress.front.explain import (
    format_bytes,
    format_drop,
    format_duration,
    latency_kind,
    made_of,
    metric_name,
    words,
)
from autocompress.front.pareto import non_dominated
from autocompress.front.summary import loses_much, metric_direction
from autocompress.records import (
    OBJECTIVES,
    FrontPoint,
    Measurement,
    Progress,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
)

_LIVE_TRIALS = 12
_LIVE_FRONT = 10
# Names of layers and paths may hold [brackets] and :colons:, which rich would take for style.
_LITERAL: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
_WIDE = 160  # columns that the table of the front needs with its files
_KINDS = {"median": "p50", "mean": "mean"}
_PLAIN_WIDTH = 240  # of a table in a pipe or file: nothing is cut or wrapped


class View(Protocol):
    """Something that is told what a search does."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __call__(self, event: Progress | TrialRecord) -> None: ...


class RunningFront:
    """The front among the trials seen so far."""

    def __init__(
        self, *, minimize: bool = False, trials: Iterable[TrialRecord] = (), objectives: Collection[str] = OBJECTIVES
    ) -> None:
        self._sign, self._objectives = 1.0 if minimize else -1.0, objectives
        self._best: list[tuple[tuple[float, ...], TrialRecord]] = []
        for trial in trials:
            self.add(trial)

    @property
    def trials(self) -> list[TrialRecord]:
        """The front's trials, smallest file first."""
        return sorted((t for _, t in self._best), key=lambda t: t.measurement.size_bytes if t.measurement else 0)

    def add(self, trial: TrialRecord) -> bool:
        """Take a trial in; whether it is on the front now."""
        measured = trial.measurement
        if trial.state != TrialState.COMPLETE or measured is None or measured.val is None:
            return False
        known = {
            "accuracy": self._sign * measured.val,
            "size": float(measured.size_bytes),
            "compressed": float(measured.compressed_bytes),
            "latency": measured.latency.latency_ms,
        }
        axes = tuple(known[name] for name in self._objectives)
        candidates = [*(entry for entry in self._best if entry[1].trial != trial.trial), (axes, trial)]
        mask = non_dominated([entry[0] for entry in candidates])
        self._best = [entry for entry, kept in zip(candidates, mask, strict=True) if kept]
        return bool(mask[-1])


class PlainView:
    """One line per stage and per trial, for logs and pipes."""

    def __init__(self, front: RunningFront, *, metric: str, stream: TextIO | None = None) -> None:
        self._front, self._metric = front, metric
        self._stream = stream if stream is not None else sys.stderr
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def __call__(self, event: Progress | TrialRecord) -> None:
        if isinstance(event, TrialRecord):
            line = trial_line(event, on_front=self._front.add(event), metric=self._metric)
        elif event.stage != self._stage:
            self._stage = event.stage
            line = f"{event.stage}: {event.message} ({_spent(event.spent_s, event.budget_s)})"
        else:
            return
        print(line, file=self._stream, flush=True)


class LiveView:
    """Budget, latest trials and current front, redrawn when something happened.

    Nothing is redrawn in between: a refresh thread would take the core while latency is measured.
    """

    def __init__(self, front: RunningFront, *, metric: str, title: str, console: Console | None = None) -> None:
        self._front, self._metric, self._title = front, metric, title
        self._console = console or Console(stderr=True, **_LITERAL)
        self._latest: dict[int, tuple[TrialRecord, bool]] = {}
        self._states: dict[int, TrialState] = {}
        self._progress = Progress(stage="setup", message="starting", spent_s=0.0, budget_s=0.0)
        self._drawn = 0.0
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.update(self.render(), refresh=True)
        self._live.stop()

    def __call__(self, event: Progress | TrialRecord) -> None:
        if isinstance(event, Progress):
            self._progress = event
        else:
            # A trial may be told of twice, when it starts and when it ends.
            self._latest.pop(event.trial, None)
            self._latest[event.trial] = (event, self._front.add(event))
            if len(self._latest) > _LIVE_TRIALS:
                del self._latest[next(iter(self._latest))]
            self._states[event.trial] = event.state
        now = time.monotonic()
        if now - self._drawn > 0.1:
            self._drawn = now
            self._live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        """The whole view as it stands."""
        progress = self._progress
        share = min(progress.spent_s / progress.budget_s, 1.0) if progress.budget_s else 0.0
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=1.0, completed=share, width=30),
            Text(_spent(progress.spent_s, progress.budget_s)),
            Text(progress.stage, style="cyan"),
            Text(progress.message, style="dim", overflow="ellipsis", no_wrap=True),
        )
        parts: list[RenderableType] = [head]
        if self._latest:
            parts.append(self._trials_table())
        if front := self._front.trials:
            points = f"{len(front)} point{'' if len(front) == 1 else 's'}"
            parts.append(Text(f"front: {points}, {counts_text(Counter(self._states.values()))}", style="bold"))
            parts.extend(self._front_line(trial) for trial in front[:_LIVE_FRONT])
            if len(front) > _LIVE_FRONT:
                parts.append(Text(f"  and {len(front) - _LIVE_FRONT} more", style="dim"))
        return Group(*parts)

    def _trials_table(self) -> Table:
        table = _table("trial", "origin", "state", metric_name(self._metric), "size", "latency", "front")
        table.columns[-1].no_wrap, table.columns[-1].overflow = True, "ellipsis"  # one line a trial
        for trial, was_on_front in self._latest.values():
            on_front = was_on_front and any(t.trial == trial.trial for t in self._front.trials)
            style = "green" if on_front else "" if trial.state == TrialState.COMPLETE else "dim"
            table.add_row(
                str(trial.trial),
                trial.origin,
                trial.state.value,
                *_measured_cells(trial.measurement),
                "on front" if on_front else trial.reason,
                style=style,
            )
        return table

    def _front_line(self, trial: TrialRecord) -> Text:
        cells = _measured_cells(trial.measurement)
        return Text(f"  {trial.trial:>4}  {cells[0]:>7}  {cells[1]:>8}  {cells[2]}", style="green")


def open_view(
    *,
    name: str,
    metric: str,
    minimize: bool,
    trials: Iterable[TrialRecord] = (),
    objectives: Collection[str] = OBJECTIVES,
    live: bool | None = None,
) -> View:
    """The view that fits stderr: live on a terminal, lines in a pipe."""
    front = RunningFront(minimize=minimize, trials=trials, objectives=objectives)
    console = Console(stderr=True, **_LITERAL)
    if console.is_terminal if live is None else live:
        return LiveView(front, metric=metric, title=name, console=console)
    return PlainView(front, metric=metric)


def trial_line(trial: TrialRecord, *, on_front: bool, metric: str) -> str:
    """A trial as one line: number, state, metric, bytes, milliseconds, and what is to be said of it."""
    metric_text, size, latency = _measured_cells(trial.measurement)
    remark = "on front" if on_front else trial.reason
    parts = [f"trial {trial.trial:>4}", f"{trial.origin:<8}", f"{trial.state.value:<10}"]
    parts += [
        f"{metric_name(metric)} {metric_text}",
        size,
        f"{_KINDS[latency_kind(trial)]} {latency}" if trial.measurement else "",
        remark,
    ]
    return "  ".join(part for part in parts if part).rstrip()


def print_front(
    study: StudyRecord,
    front: Sequence[FrontPoint],
    *,
    flags: str = "",
    local: bool = True,
    stream: TextIO | None = None,
) -> None:
    """The front with, in words, what each point won, and what to do next.

    Args:
        flags: with which the commands to type next find the study.
        local: whether it is in a workspace of this machine.
    """
    console = _stdout(stream)
    base, direction = study.baseline, metric_direction(study)
    console.print(headline(study))
    if base is None:
        console.print("no baseline was measured, so there is no front")
        return
    has_test = any(point.test is not None for point in front)
    wide = console.width >= _WIDE  # else two-line heads, and the files are told below the table
    name = metric_name(base.metric) + (" " if wide else "\n")
    zipped = ["zipped"] if "compressed" in study.objectives else []
    columns = [
        "trial",
        f"{name}val",
        *([f"{name}test"] if has_test else []),
        "size",
        *zipped,
        "latency",
        "what was won",
    ]
    table = _table(*columns, *(["artifact"] if wide else []))
    for point in front:
        test = [_metric(point.test)] if has_test else []
        latency = _latency(point.latency_ms, point.latency_ratio, point.latency_ratio_ci)
        won, much = words(point, base, direction=direction), loses_much(point, base, direction=direction)
        sizes = [format_bytes(point.size_bytes), *([format_bytes(point.compressed_bytes)] if zipped else [])]
        cells = [str(point.trial), _metric(point.val), *test, *sizes, latency]
        cells += [f"large loss: {won}" if much else won, *([point.artifact] if wide else [])]
        table.add_row(*cells, style="dim" if much else "")
    console.print(table)
    if not wide and front:
        console.print(f"files: artifacts/{study.name}/trial-N/model.onnx in the workspace")
    if study.message:
        console.print(study.message)
    for command in next_commands(study, local=local):
        console.print(f"next: {command}{flags}", soft_wrap=True)


def headline(study: StudyRecord) -> str:
    """One line: where the study stands, what it spent, and the baseline."""
    text = f"{study.name}: {study.state.value}, {_spent(study.spent_s, study.budget_s)}, seed {study.seed}"
    if base := study.baseline:
        text += (
            f"; baseline {metric_name(base.metric)} {_metric(base.val)}, {format_bytes(base.size_bytes)},"
            f" {_milliseconds(base.latency_ms)}"
        )
    return text


def next_commands(study: StudyRecord, *, local: bool = True) -> list[str]:
    """What one would type next; a report is made on the machine of the workspace alone."""
    if study.state in (StudyState.INTERRUPTED, StudyState.FAILED):
        return [f"autocompress resume {study.name}"]
    if study.state is StudyState.RUNNING:
        return [f"autocompress front {study.name}", f"autocompress cancel {study.name}"]
    return [
        f"autocompress export {study.name} --pick knee --out {study.name}-bundle",
        *([f"autocompress report {study.name}"] if local else []),
    ]


def print_studies(rows: Sequence[Mapping[str, Any]], *, stream: TextIO | None = None) -> None:
    """The studies of a workspace, one line each."""
    table = _table("study", "state", "budget", "trials", "complete", "created")
    for row in rows:
        spent = _spent(row["spent_s"], row["budget_s"])
        counts = (str(row["trials"]["total"]), str(row["trials"]["complete"]))
        table.add_row(row["study"], row["state"], spent, *counts, row["created"])
    _stdout(stream).print(table)


def print_study(study: StudyRecord, trials: Sequence[TrialRecord], *, stream: TextIO | None = None) -> None:
    """Configuration in short, groups, blocks, what was left alone, how the trials ended, where the budget went."""
    console = _stdout(stream)
    console.print(headline(study))
    device = study.device
    console.print(f"device: {device.name}, {device.runtime}, {device.threads} thread(s), batch {device.batch}")
    for table, values in study.config.items():
        if isinstance(values, Mapping) and not table.startswith("_"):  # "_source" is for resuming
            shown = ", ".join(f"{k}={v}" for k, v in values.items() if v not in (None, "", {}, []))
            console.print(f"{table}: {shown}")
    if study.facts:
        groups = _table("group", "channels", "granule", "layers")
        for group in study.facts.groups:
            groups.add_row(group.name, str(group.channels), str(group.granule), ", ".join(group.layers))
        console.print(groups)
        if study.facts.blocks:
            console.print("blocks that may be removed: " + ", ".join(block.name for block in study.facts.blocks))
        for skip in study.facts.skips:
            console.print(f"left alone ({skip.what}): {skip.name}: {skip.reason}")
        for note in study.facts.notes:
            console.print(f"note: {note}")
    console.print(counts_text(Counter(t.state for t in trials)))
    reasons = Counter((t.state.value, t.reason) for t in trials if t.state != TrialState.COMPLETE and t.reason)
    for (state, reason), count in reasons.most_common(8):
        console.print(f"  {count} {state}: {reason}")
    if study.durations_s:
        console.print(f"budget: {_durations(study.durations_s)}")
    for line in belief_lines(_beliefs(study, trials)):
        console.print(line)
    if study.message:
        console.print(study.message)


def print_trial(study: StudyRecord, trial: TrialRecord, *, stream: TextIO | None = None) -> None:
    """One trial: plan, widths, measurement, durations and reason."""
    console = _stdout(stream)
    metric = study.baseline.metric if study.baseline else "metric"
    console.print(trial_line(trial, on_front=False, metric=metric))
    if measured := trial.measurement:
        if measured.test is not None:
            console.print(f"test {metric_name(metric)}: {_metric(measured.test)}")
        console.print(f"params: {measured.params:,}, MACs per sample: {measured.macs:,}")
        console.print(f"zipped: {format_bytes(measured.compressed_bytes)}")
    for line in made_of(trial):
        console.print(line)
    rows = _table("group", "prune ratio", "channels kept")
    for group in dict.fromkeys([*trial.plan.prune_ratio, *trial.widths]):
        ratio = trial.plan.prune_ratio.get(group, 0.0)
        gone = trial.widths.get(group) == 0
        rows.add_row(group, "removed" if gone else f"{ratio:.1%}", str(trial.widths.get(group, "")))
    if rows.row_count:
        console.print(rows)
    if bits := trial.plan.weight_bits:
        console.print("weight bits: " + ", ".join(f"{layer} {b}" for layer, b in bits.items()))
    if factored := {layer: ratio for layer, ratio in trial.plan.rank_ratio.items() if ratio > 0}:
        console.print("saved by low rank: " + ", ".join(f"{layer} {ratio:.0%}" for layer, ratio in factored.items()))
    if reason := why(trial, direction=metric_direction(study)):
        console.print(f"why: {reason}")
    if trial.parent is not None:
        console.print(f"weights: cut from those of trial {trial.parent}; {trial.trained_s:.0f} s of training in them")
    if trial.rung_drop is not None and trial.rung_s is not None:
        lost = format_drop(trial.rung_drop, direction=metric_direction(study))
        console.print(f"rung: {lost} lost after {format_duration(trial.rung_s)}, on a part of the validation data")
    if trial.durations_s:
        console.print(f"time: {_durations(trial.durations_s)}")
    if trial.artifact:
        console.print(f"artifact: {trial.artifact}")


def _beliefs(study: StudyRecord, trials: Sequence[TrialRecord]) -> BeliefFacts:
    return belief_facts(trials, study.baseline, direction=metric_direction(study), objectives=study.objectives)


def counts_text(counts: Mapping[TrialState, int]) -> str:
    """ "84 trials: 31 complete, 50 stopped, 3 failed"."""
    parts = [f"{counts[state]} {state.value}" for state in TrialState if counts.get(state)]
    total = sum(counts.values())
    return f"{total} trial{'' if total == 1 else 's'}" + (f": {', '.join(parts)}" if parts else "")


def _stdout(stream: TextIO | None) -> Console:
    file = stream or sys.stdout
    width = None if file.isatty() else _PLAIN_WIDTH
    return Console(file=file, width=width, **_LITERAL)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _measured_cells(measured: Measurement | None) -> tuple[str, str, str]:
    if measured is None:
        return "-", "-", "-"
    latency = measured.latency
    text = _latency(latency.latency_ms, latency.ratio, latency.ratio_ci)
    return (
        _metric(measured.val),
        format_bytes(measured.size_bytes),
        text + (" noisy" if latency.contended else ""),
    )


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def _latency(latency_ms: float, ratio: float, interval: tuple[float, float]) -> str:
    """Milliseconds with the half width of the ratio's interval: no more digits than that supports."""
    half = latency_ms * (interval[1] - interval[0]) / 2 / ratio if ratio > 0 else 0.0
    if half <= 0:
        return _milliseconds(latency_ms)
    mantissa, _, exponent = f"{half:e}".partition("e")
    digits = max(0, min(6, -int(exponent) + mantissa.startswith("1")))
    return f"{latency_ms:.{digits}f} ±{half:.{digits}f} ms"


def _milliseconds(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") + " ms"


def _spent(spent_s: float, budget_s: float) -> str:
    return f"{format_duration(spent_s)} of {format_duration(budget_s)}"


def _durations(durations_s: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {format_duration(seconds)}" for stage, seconds in durations_s.items())
