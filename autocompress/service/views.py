"""What the server shows of a study: read once per change of it, kept, and turned into plain JSON values.

Everything comes from the store and from `front/`, like the answers of the command line.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autocompress.api import front_trials
from autocompress.errors import AutocompressError, NotFoundError
from autocompress.front.beliefs import belief_facts, belief_lines
from autocompress.front.choose import bounds_of, pick
from autocompress.front.explain import words
from autocompress.front.summary import front_document, front_points, metric_direction
from autocompress.records import FrontPoint, StudyRecord, StudyState, TrialRecord, TrialState, finite
from autocompress.service.jobs import Job, JobState, JobStore
from autocompress.study.store import StudyStatus, StudyStore

_RULES = ("knee", "small", "fast")
_KEPT_STUDIES = 8  # whose trials are kept parsed
_FEW_POINTS = 0.01  # loss up to which "small" and "fast" are told, where the study says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """A study as it stood at one revision.

    Attributes:
        version: equal when nothing was written in between and the server is the same; heartbeats do not count.
        front: the non-dominated points, smallest file first.
    """

    version: str
    record: StudyRecord
    counts: dict[TrialState, int]
    front: tuple[FrontPoint, ...]
    document: dict[str, Any]
    best: tuple[str, ...]


@dataclass(slots=True)
class _Trials:
    version: str
    place: int
    by_number: dict[int, TrialRecord]
    texts: dict[int, str]


def study_id(name: str) -> str:
    """What a study is called in addresses: says nothing, and can be no path."""
    return f"s{hashlib.sha256(f'study:{name}'.encode()).hexdigest()[:16]}"


class Views:
    """The studies of a workspace for many readers; threads may use it."""

    def __init__(self, workspace: Path, jobs: JobStore) -> None:
        self.store = StudyStore(workspace, readonly=True)
        self._jobs = jobs
        self._opened = secrets.token_hex(4)  # a later server may have more to say of what has not changed
        self._lock = threading.RLock()
        self._views: dict[str, StudyView] = {}
        self._names: dict[str, str] = {}
        self._made: dict[tuple[str, str], tuple[str, str]] = {}
        self._making = threading.RLock()
        self._trials: dict[tuple[str, str], _Trials] = {}  # by name and day of creation: a name can come again
        self._snapshot: tuple[int, float, dict[str, StudyStatus], dict[str, Job]] | None = None

    def close(self) -> None:
        """Close the connection."""
        self.store.close()

    def name_of(self, identifier: str) -> str:
        """Name of the study with this id.

        Raises:
            NotFoundError: there is none.
        """
        statuses, jobs = self.snapshot()
        with self._lock:
            known = self._names.get(identifier)
            if known is None or (known not in statuses and known not in jobs):
                self._names = {study_id(name): name for name in {*statuses, *jobs}}
            if (name := self._names.get(identifier)) is None:
                raise NotFoundError(f"no study {identifier!r}; GET /api/v1/studies lists them")
        return name

    def snapshot(self) -> tuple[dict[str, StudyStatus], dict[str, Job]]:
        """Where every study and its latest job stand, read again when anything was written."""
        with self._lock:
            version, now = self.store.data_version(), time.monotonic()
            # A study whose process died writes nothing: look at the locks now and then as well.
            if self._snapshot is None or self._snapshot[0] != version or now - self._snapshot[1] > 1.0:
                statuses = {status.name: status for status in self.store.statuses()}
                self._snapshot = (version, now, statuses, self._jobs.latest())
                self._forget(set(self._views) - set(statuses))
            return self._snapshot[2], self._snapshot[3]

    def _forget(self, deleted: set[str]) -> None:
        for name in deleted:
            del self._views[name]
        for key in [key for key in self._made if key[0] in deleted]:
            del self._made[key]

    def view(self, name: str) -> StudyView | None:
        """A study as it stands, or None for one that is only queued so far."""
        status = self.snapshot()[0].get(name)
        if status is None:
            return None
        version = f"{self._opened}-{status.created}-{status.revision}-{status.state}"
        with self._lock:
            kept = self._views.get(name)
            if kept is None or kept.version != version:
                try:
                    kept = self._views[name] = self._read(name, version)
                except NotFoundError:  # discarded in between: it never got a baseline
                    return None
        return kept

    def version(self, name: str) -> str:
        """Changes with everything that `summary` and `detail` say, time apart."""
        statuses, jobs = self.snapshot()
        status, job = statuses.get(name), jobs.get(name)
        ours = f"{status.created}-{status.revision}-{status.state}-{status.stage}" if status else "-"
        if job is None:
            return ours
        return f"{ours}-{job.id}-{job.state}-{job.attempt}-{int(job.cancel_requested)}-{self._position(job) or 0}"

    def trials(self, name: str) -> list[TrialRecord]:
        """All trials of a study in the order of their numbers; only what was written since is read."""
        return list(self._kept_trials(name).by_number.values())

    def trial_page(self, name: str, *, after: int, limit: int, state: TrialState | None) -> tuple[str, int | None]:
        """Rows of at most `limit` trials behind number `after`, as a JSON list, and where the next page begins."""
        kept = self._kept_trials(name)
        behind = [t for t in kept.by_number.values() if t.trial > after and state in (None, t.state)]
        for trial in behind[:limit]:
            if trial.trial not in kept.texts:
                kept.texts[trial.trial] = as_json(trial_row(trial))
        page = ",".join(kept.texts[trial.trial] for trial in behind[:limit])
        return f"[{page}]", behind[limit - 1].trial if len(behind) > limit else None

    def _kept_trials(self, name: str) -> _Trials:
        view = self.view(name)
        version = view.version if view else ""
        key = (name, view.record.created if view else "")
        with self._making:
            kept = self._trials.pop(key, None) or _Trials(version="", place=0, by_number={}, texts={})
            if kept.version != version:
                kept = self._newer(name, version, kept)
            self._trials[key] = kept  # now the one that was used last
            for oldest in list(self._trials)[:-_KEPT_STUDIES]:
                del self._trials[oldest]
            return kept

    def _newer(self, name: str, version: str, kept: _Trials) -> _Trials:
        """The same with what was written since; a new object, for others may be reading the old one."""
        trials, place = dict(kept.by_number), kept.place
        texts = dict(kept.texts)
        while rows := self.store.written_since(place, name=name):
            trials |= {trial.trial: trial for _, _, trial in rows}
            for _, _, trial in rows:
                texts.pop(trial.trial, None)
            place = rows[-1][0]
        return _Trials(version=version, place=place, by_number=dict(sorted(trials.items())), texts=texts)

    def kept(self, name: str, what: str, make: Callable[[], str]) -> str:
        """Something that is made from all trials of a study, made once per version of it."""
        view = self.view(name)
        version = view.version if view else ""
        with self._lock:
            found = self._made.get((name, what))
        if found is None or found[0] != version:
            with self._making:  # one at a time: many clients ask for the same at the same moment
                found = self._made.get((name, what))
                if found is None or found[0] != version:
                    found = self._made[name, what] = (version, make())
        return found[1]

    # -- JSON

    def summaries(self) -> list[dict[str, Any]]:
        """All studies, newest first."""
        return [self.summary(name) for name in self.names()]

    def names(self) -> list[str]:
        """Names of all studies, those that wait included, newest first."""
        statuses, jobs = self.snapshot()
        keys = [(_seconds(status.created), name) for name, status in statuses.items()]
        keys += [(job.created, name) for name, job in jobs.items() if name not in statuses]
        return [name for _, name in sorted(keys, reverse=True)]

    def taken(self) -> set[str]:
        """Names that no new study can have: not those of searches that failed before there was a study."""
        statuses, jobs = self.snapshot()
        return {*statuses, *(name for name, job in jobs.items() if job.state is not JobState.FAILED)}

    def summary(self, name: str) -> dict[str, Any]:
        """One line of the list of studies.

        Raises:
            NotFoundError: no such study.
        """
        statuses, jobs = self.snapshot()
        status, job, view = statuses.get(name), jobs.get(name), self.view(name)
        if view is None and job is None:
            raise NotFoundError(f"no study {name!r}")
        now = time.time()
        state = _state(status, job)
        budget_s = view.record.budget_s if view else float(job.spec["config"]["search"]["budget"])  # type: ignore[union-attr]
        spent_s = _spent(status, state, now)
        ends = now + max(0.0, budget_s - spent_s) if state in ("running", "finalising") else None
        document = view.document if view else None
        failed = job if job and state == "failed" else None
        error = failed.error if failed else None
        return {
            "id": study_id(name),
            "study": name,
            "state": state,
            "stage": status.stage if status else None,
            "job": self._job(job),
            "budget_s": budget_s,
            "spent_s": round(spent_s, 2),
            "deadline": iso_time(ends),
            "now": iso_time(now),
            "device": view.record.device.name if view else job.device if job else None,
            "created": view.record.created if view else iso_time(job.created if job else now),
            "trials": _counted(view.counts if view else {}),
            "hypervolume": document["hypervolume"]["val"] if document else None,
            "best": list(view.best) if view else [],
            "error": error or (view.record.message or None if view and state == "failed" else None),
            "exit_code": failed.exit_code if failed else None,
        }

    def detail(self, name: str) -> str:
        """A study with its configuration, what the search knows of the network, and where the time went; JSON."""
        summary, view = self.summary(name), self.view(name)
        if view is None:
            job = self.snapshot()[1][name]
            rest = {"config": _shown(job.spec["config"]), "facts": None, "time": {}, "record": None}
            return as_json({**summary, **rest, "beliefs": {"lines": []}})
        # Most of it changes with the trials only, and takes milliseconds to say.
        return f"{as_json(summary)[:-1]},{self.kept(name, 'detail', lambda: self._lasting(name, view))[1:]}"

    def _lasting(self, name: str, view: StudyView) -> str:
        record = {**view.record.to_dict(), "base": None}  # where files lie on the server is nobody's business
        record["config"] = _shown(record["config"])
        return as_json(
            {
                **{key: record[key] for key in ("config", "facts", "baseline", "message")},
                "time": record["durations_s"],
                "record": record,
                "beliefs": self._beliefs(name, view),
            }
        )

    def _beliefs(self, name: str, view: StudyView) -> dict[str, Any]:
        if view.record.baseline is None:
            return {"lines": []}
        record, direction = view.record, metric_direction(view.record)
        facts = belief_facts(self.trials(name), record.baseline, direction=direction, objectives=record.objectives)
        numbers = ("rank_correlation", "within", "size_error", "latency_error")
        return {"lines": belief_lines(facts), **{number: getattr(facts, number) for number in numbers}}

    def _job(self, job: Job | None) -> dict[str, Any] | None:
        if job is None:
            return None
        return {
            "id": job.id,
            "state": job.state.value,
            "priority": job.priority,
            "position": self._position(job),
            "attempt": job.attempt,
            "cancel_requested": job.cancel_requested,
            "actor": job.actor,
        }

    def _position(self, job: Job) -> int | None:
        """Place of a waiting job in the queue, from 1."""
        if job.state is not JobState.QUEUED:
            return None
        waiting = [j for j in self.snapshot()[1].values() if j.state is JobState.QUEUED]
        return 1 + sum((-j.priority, j.seq) < (-job.priority, job.seq) for j in waiting)

    def _read(self, name: str, version: str) -> StudyView:
        record = self.store.study(name)
        trials = front_trials(self.store, record)
        counts = self.store.counts(name)
        document = front_document(record, trials)
        document["trials"] |= _counted(counts)
        front = tuple(front_points(record, trials))
        return StudyView(
            version=version,
            record=record,
            counts=counts,
            front=front,
            document=finite(document),
            best=_best(record, front),
        )


def as_json(content: Any) -> str:
    """JSON without NaN and without blanks."""
    return json.dumps(finite(content), separators=(",", ":"), allow_nan=False)


def trial_row(trial: TrialRecord) -> dict[str, Any]:
    """A trial without its curve: what a table and the pictures need."""
    row: dict[str, Any] = finite(trial.to_dict())
    del row["learning_curve"]
    return row


def _best(record: StudyRecord, front: tuple[FrontPoint, ...]) -> tuple[str, ...]:
    """The points that somebody would take first, a sentence each."""
    base = record.baseline
    others = [point for point in front if point.origin != "baseline"]
    if base is None or not others:
        return ()
    direction = metric_direction(record)
    found: dict[int, str] = {}
    for rule in _RULES:
        usual = {} if rule == "knee" else {"max_drop": _FEW_POINTS}  # the knee weighs the loss itself
        try:
            kept: dict[str, Any] = {**usual, **bounds_of(record)}
            point = pick(others, base, rule, direction=direction, objectives=record.objectives, **kept)
        except AutocompressError:
            continue
        found.setdefault(point.trial, f"{words(point, base, direction=direction)} (trial {point.trial})")
    return tuple(found.values())


def _state(status: StudyStatus | None, job: Job | None) -> str:
    if job is not None and job.state is JobState.QUEUED:
        return "queued"
    if status is not None and status.state is StudyState.RUNNING:
        return "finalising" if status.stage == "final" else "running"
    if job is not None and job.state is JobState.RUNNING:
        return "running"  # its process is starting, or has just ended
    if status is not None and status.state is StudyState.FINISHED:
        return "finished"
    if job is not None and job.state in (JobState.CANCELLED, JobState.FAILED):
        return job.state.value
    return status.state.value if status else job.state.value if job else "failed"


def _spent(status: StudyStatus | None, state: str, now: float) -> float:
    """Seconds of the budget spent: what was recorded, and the time since if the study runs."""
    if status is None:
        return 0.0
    since = now - status.heartbeat if status.heartbeat and state in ("running", "finalising") else 0.0
    return status.spent_s + min(max(since, 0.0), 5.0)


def _counted(counts: Mapping[TrialState, int]) -> dict[str, int]:
    return {"total": sum(counts.values())} | {state.value: counts.get(state, 0) for state in TrialState}


def _shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the paths of this machine."""
    teacher = dict(config.get("teacher", {}))
    if teacher.get("networks"):
        teacher["networks"] = [_without_folder(network) for network in teacher["networks"]]
    shown = {**config, "model": _without_folder(config.get("model", {}))}
    return {**shown, "teacher": teacher} if teacher else shown


def _without_folder(network: Mapping[str, Any]) -> dict[str, Any]:
    weights = network.get("weights")
    return {**network, "weights": Path(weights).name} if weights else dict(network)


def iso_time(seconds: float | None) -> str | None:
    """Unix seconds as text, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds is not None else None


def _seconds(iso: str) -> float:
    try:
        return datetime.fromisoformat(iso).timestamp()
    except ValueError:
        return 0.0
