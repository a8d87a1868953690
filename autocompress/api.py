"""autocompress from Python: start a search on objects in memory, and read what any study found.

The command line stands on the same functions. Nothing is searched here: the engine is in
`study/run.py`, the choice of a point in `front/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autocompress.errors import UsageError
from autocompress.records import FrontPoint, Progress, StudyRecord, TrialRecord

if TYPE_CHECKING:
    from autocompress.study.store import StudyStore

Listener = Callable[[Progress | TrialRecord], None]
Goal = Literal["size", "latency", "accuracy"]
DEFAULT_WORKSPACE = "autocompress-runs"
_RULES = {"accuracy": "accurate", "size": "small", "latency": "fast"}


def default_workspace() -> Path:
    """`AUTOCOMPRESS_WORKSPACE`, or `./autocompress-runs`."""
    return Path(os.environ.get("AUTOCOMPRESS_WORKSPACE") or DEFAULT_WORKSPACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One point of a study's front, ready to take away."""

    point: FrontPoint
    study: StudyRecord
    workspace: Path

    def export(self, out: str | Path) -> Path:
        """Write the bundle of this point: the measured file, its card and a way to run it.

        Args:
            out: folder to write.
        Raises:
            UsageError: the folder cannot be written.
            NotFoundError: the artifact is gone.
        """
        from autocompress.bundle import check_target, write_bundle

        check_target(Path(out))  # making the file again may take minutes
        self._ensure_artifact()
        write_bundle(self.point, self.study, workspace=self.workspace, out=Path(out))
        return Path(out)

    def _ensure_artifact(self) -> None:
        """Make the file again if the workspace holds the trial's weights and not its file, as a copied one may.

        Raises:
            NotFoundError: what comes out has another size than what was measured.
        """
        point, path = self.point, self.workspace / self.point.artifact
        dense = [path.parent.with_name(n) for n in ("teacher.safetensors", "source.pkl")] if point.trial == 0 else []
        weights = [path.with_name("weights.safetensors"), *dense]
        if path.is_file() or not (point.cascade or any(p.is_file() for p in weights)):
            return
        from autocompress.study.rebuild import rebuild_artifact, rebuild_cascade

        workspace, size = self.workspace.absolute(), point.size_bytes
        if point.cascade is not None:
            data = rebuild_cascade(self.study, point.cascade, point.plan, workspace, size_bytes=size)
        else:
            data = rebuild_artifact(self.study, point.plan, path.parent, workspace, size_bytes=size)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        unfinished.write_bytes(data)
        unfinished.replace(path)


class StudyResult:
    """A study of a workspace as it stands now; every property is read once, on first use."""

    def __init__(self, name: str, workspace: str | Path | None = None) -> None:
        self.name = name
        self.workspace = Path(workspace) if workspace is not None else default_workspace()

    def __repr__(self) -> str:
        return f"StudyResult({self.name!r}, workspace={str(self.workspace)!r})"

    @cached_property
    def record(self) -> StudyRecord:
        """Configuration, baseline, budget and state."""
        with self._store() as store:
            return store.study(self.name)

    @cached_property
    def trials(self) -> list[TrialRecord]:
        """Every trial in the order of the numbers."""
        with self._store() as store:
            return store.trials(self.name)

    @cached_property
    def front_trials(self) -> list[TrialRecord]:
        """The non-dominated trials, in the order of their numbers."""
        with self._store() as store:
            return front_trials(store, self.record)

    @cached_property
    def front(self) -> list[FrontPoint]:
        """The non-dominated artifacts, smallest file first."""
        from autocompress.front.summary import front_points

        return front_points(self.record, self.front_trials)

    def document(self) -> dict[str, Any]:
        """What `autocompress front STUDY --json` prints."""
        from autocompress.front.summary import front_document

        with self._store() as store:
            counts = store.counts(self.name)
        document = front_document(self.record, self.front_trials)
        # Only the front was read: 100,000 trials are counted by the database, not parsed.
        document["trials"] |= {"total": sum(counts.values())} | {str(s): n for s, n in counts.items()}
        return document

    def best(
        self,
        *,
        max_drop: float | None = None,
        max_size: int | str | None = None,
        max_latency: float | None = None,
        minimize: Goal | None = None,
        pick: str | None = None,
    ) -> Choice:
        """Take one point of the front.

        Args:
            max_drop: largest loss of the metric, 0.01 is one point of accuracy.
            max_size: bytes, or a text such as "50kB".
            max_latency: milliseconds.
            minimize: what to make best within the limits; "accuracy" stands for the metric, whatever it is.
            pick: "knee" (the default), "accurate", "small", "fast" or "trial:N", instead of `minimize`.
        Raises:
            ConstraintError: no point keeps the limits; the text names the nearest.
            UsageError: an unknown rule, or the study has no baseline yet.
        """
        from autocompress.config import parse_size
        from autocompress.front.choose import pick as pick_point
        from autocompress.front.summary import metric_direction

        if minimize is not None and minimize not in _RULES:
            raise UsageError(f"minimize must be one of {', '.join(_RULES)}, got {minimize!r}")
        if minimize is not None and pick is not None:
            raise UsageError(f"give minimize or pick, not both; got {minimize!r} and {pick!r}")
        if self.record.baseline is None:
            raise UsageError(
                f"study {self.name!r} has no baseline yet; wait, or continue it with `autocompress resume {self.name}`"
            )
        try:
            size = parse_size(max_size)
        except ValueError as error:
            raise UsageError(f"max_size: {error}") from error
        point = pick_point(
            self.front,
            self.record.baseline,
            pick if minimize is None else _RULES[minimize],
            direction=metric_direction(self.record),
            objectives=self.record.objectives,
            max_drop=max_drop,
            max_size=size,
            max_latency=max_latency,
        )
        return Choice(point=point, study=self.record, workspace=self.workspace)

    def _store(self) -> StudyStore:
        from autocompress.study.store import StudyStore

        return StudyStore(self.workspace, readonly=True)


def open_study(name: str, workspace: str | Path | None = None) -> StudyResult:
    """A study of a workspace, running or not.

    Raises:
        NotFoundError: no such study; the text names the nearest one.
    """
    result = StudyResult(name, workspace)
    _ = result.record
    return result


def search(
    model: Any,
    data: Any,
    *,
    budget: float | str | None = None,
    name: str | None = None,
    workspace: str | Path | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    max_size: int | str | None = None,
    max_latency: float | None = None,
    max_trials: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    listener: Listener | None = None,
) -> StudyResult:
    """Search compressed versions of a trained model until the budget ends.

    Args:
        model: an `nn.Module`; it is not changed.
        data: mapping with "train", optionally "val" and "test": datasets of (input, target) or pairs of tensors.
        budget: wall-clock for everything, seconds or "90s", "10m", "2h"; ten minutes if omitted.
        name: of the study; the first free one of "search", "search-2", ... if omitted.
        workspace: folder of the results; `AUTOCOMPRESS_WORKSPACE` or `./autocompress-runs` if omitted.
        metric: "accuracy" or another of the study file's metrics.
        max_drop, max_size, max_latency: what a result must keep: share of the metric, bytes, milliseconds.
        max_trials: end after so many trials.
        seed: of everything random.
        settings: tables of a study file, for example {"space": {"weight_bits": [4, 8]}}; other arguments win.
        listener: called with `Progress` and with every `TrialRecord`.
    Raises:
        UsageError: a wrong setting, model or data set.
        BudgetError: the budget ended before the baseline was measured.
    """
    from autocompress.config import load_config

    folder = Path(workspace) if workspace is not None else default_workspace()
    tables: dict[str, dict[str, Any]] = {table: dict(values) for table, values in (settings or {}).items()}
    limits = {"max_drop": max_drop, "max_size": max_size, "max_latency": max_latency, "max_trials": max_trials}
    _set_given(tables, "search", {"budget": budget, "seed": seed, **limits})
    _set_given(tables, "task", {"metric": metric})
    config = load_config(tables, name=name or _free_name(folder), origin="search()")
    # Only now: the engine brings torch, and a wrong setting should not wait for it.
    from autocompress.study.run import search_study_object

    record = search_study_object(
        config, model=model, data=data, workspace=folder, listener=listener or (lambda _event: None)
    )
    return StudyResult(record.name, folder)


def front_trials(store: StudyStore, study: StudyRecord) -> list[TrialRecord]:
    """The non-dominated complete trials, found from the stored columns: the other records are never parsed."""
    import numpy as np

    from autocompress.front.pareto import non_dominated
    from autocompress.front.summary import metric_direction

    rows = store.front_rows(study.name, compressed="compressed" in study.objectives)
    if not len(rows.trial):
        return []
    loss = rows.val if metric_direction(study) == "minimize" else -rows.val
    columns = {"accuracy": loss, "size": rows.size_bytes, "compressed": rows.size_bytes, "latency": rows.latency_ms}
    used = [column for name, column in columns.items() if name in study.objectives]
    chosen = rows.trial[non_dominated(np.column_stack(used).astype(np.float64))]
    return store.trials(study.name, [int(number) for number in chosen])


def study_names(workspace: Path) -> list[str]:
    """Names of the studies of a workspace, oldest first; empty if there is no workspace yet."""
    from autocompress.study.database import DATABASE
    from autocompress.study.store import StudyStore

    if not (workspace / DATABASE).is_file():
        return []
    with StudyStore(workspace, readonly=True) as store:
        return store.names()


def _set_given(tables: dict[str, dict[str, Any]], table: str, values: Mapping[str, Any]) -> None:
    given = {key: value for key, value in values.items() if value is not None}
    tables[table] = {**tables.get(table, {}), **given}


def _free_name(workspace: Path) -> str:
    taken = set(study_names(workspace))
    return next(n for i in range(1, len(taken) + 2) if (n := f"search-{i}" if i > 1 else "search") not in taken)
