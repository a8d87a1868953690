"""Drives a study from its baseline to its front, within its budget.

It asks the sampler, hands plans to the worker, and is the only one that writes. It needs no torch;
what does runs in `worker.py`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.config import SpaceConfig, StudyConfig
from autocompress.errors import BudgetError, StageError, UsageError, first_line
from autocompress.front.hypervolume import metric_drop
from autocompress.plan import Activations, CompressionPlan
from autocompress.records import (
    Baseline,
    Progress,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
    cheap_ratios,
    weighed_bytes,
)
from autocompress.search.files import Reference
from autocompress.search.inherit import choose_parent
from autocompress.search.sampler import make_sampler
from autocompress.search.stopping import Constraints, Rival, Rung, learn_rung
from autocompress.search.surrogate import trained_on, training_factor
from autocompress.space.search_space import SearchSpace
from autocompress.study.baseline import baseline_trial, drop_noise
from autocompress.study.executors import LocalWorker, WorkerBug, WorkerDied
from autocompress.study.failures import repeated_failure
from autocompress.study.finalise import finalise, is_time, to_train_longer
from autocompress.study.ledger import Ledger
from autocompress.study.requests import TEACHER_CUT, Member, Prepared, Request, Source
from autocompress.study.schedule import schedule
from autocompress.study.store import StudyStore

Listener = Callable[[Progress | TrialRecord], None]
_TICK_S = 1.0
_OVERHEAD_S = 3.0  # of a trial beside its training, before any was measured
_GRACE_S = 2.0
_STAGES = ("search", "final", "resumed")  # what comes after preparing
_STARTS = 3  # of a worker that dies while it prepares
_PROPOSALS_A_TURN = 2  # between two plans of the uniform sweep
_FINALISTS = 5  # trials that the last stage is about enough for, where a front is asked for


class Cancelled(Exception):
    """Somebody asked for the end of the study."""


class Driver:
    """One run of one study; everything it learns goes to the store at once."""

    def __init__(
        self, store: StudyStore, config: StudyConfig, base: Path | None, pickled: Path | None, listener: Listener
    ) -> None:
        self.store, self.config, self.listener = store, config, listener
        self.source = Source(
            config=config, workspace=store.workspace, budget_s=config.search.budget, base=base, pickled=pickled
        )
        self.schedule = schedule(config, is_goal=self.constraints.is_goal)
        self.before_s = store.study(config.name).spent_s
        self.start = time.monotonic()
        self.stage, self._ticked = "setup", 0.0
        self.worker = LocalWorker(on_progress=self.say, tick=self._tick)
        self.trials: list[TrialRecord] = store.trials(config.name)

    # -- the order of things

    def run(self) -> StudyRecord:
        """Everything until the study is finished; an interruption is recorded and raised again."""
        try:
            if self._ready():
                self._open_ledger()
                with self.timed("search"):
                    self._search()
                with self.timed("final"):
                    finalise(self)
            state, message = StudyState.FINISHED, repeated_failure(self.trials) or self._warning()
            self.say("finished")
        except KeyboardInterrupt:
            self._close(StudyState.INTERRUPTED, "interrupted")
            raise
        except Cancelled:
            state, message = StudyState.INTERRUPTED, "cancelled"
        except Exception as error:
            self._close(StudyState.FAILED, first_line(error))
            raise
        finally:
            self.worker.close()
        return self._close(state, message)

    def _close(self, state: StudyState, message: str) -> StudyRecord:
        return self.store.update(self.config.name, state=state, message=message, spent_s=self.spent_s)

    def _ready(self) -> bool:
        """Prepare; False if a study that is taken up again has no time left for it."""
        try:
            self._prepare()
        except WorkerDied as error:
            if time.monotonic() < self.end:
                raise UsageError(f"the worker could not prepare the study: {error}") from error
            return False
        return True

    def _prepare(self) -> None:
        """Start the worker; the first time, record what it found out and the baseline as trial 0."""
        record = self.store.study(self.config.name)
        self.say("starting the worker")
        try:
            prepared = self._prepared(record.baseline)
        except WorkerDied as error:
            if record.baseline is not None:
                raise
            if time.monotonic() >= self.end:
                raise BudgetError(
                    f"the budget of {self.config.search.budget:.0f} s ended before the baseline was measured; "
                    "give more with --budget, or a trained teacher with model.weights"
                ) from error
            raise UsageError(f"the worker could not prepare the study: {error}") from error
        except WorkerBug as error:
            raise RuntimeError(str(error)) from error
        self.baseline, self.direction = prepared.baseline, prepared.direction
        self.data_sizes: dict[str, int] = prepared.data_sizes
        self.sensitivity = prepared.sensitivity
        self.space = SearchSpace(config=self._space_config(), facts=prepared.facts)
        durations_s = record.durations_s or prepared.durations_s
        preparing_s = sum(s for stage, s in durations_s.items() if stage not in _STAGES)
        self.schedule = schedule(self.config, preparing_s=preparing_s, is_goal=self.constraints.is_goal)
        if record.baseline is not None:
            if self.stage == "setup":  # else it is the search that waits for a worker that died
                self._add_duration("resumed", sum(prepared.durations_s.values()))
            return
        self.store.update(
            self.config.name,
            baseline=prepared.baseline,
            facts=prepared.facts,
            data_sizes=prepared.data_sizes,
            durations_s=prepared.durations_s,
            device=replace(record.device, description=prepared.device_description),
            spent_s=self.spent_s,
        )

    def _prepared(self, baseline: Baseline | None) -> Prepared:
        """What the worker found out; one that dies on the way, by whatever hand, is started again a few times."""
        for left in range(_STARTS - 1, -1, -1):
            try:
                prepared: Prepared = self.worker.call("prepare", self.source, baseline, deadline=self.end)
                break
            except WorkerDied as error:
                if not left or time.monotonic() >= self.end:
                    raise
                self.say(f"starting the worker again: {error}")
        return prepared

    def _space_config(self) -> SpaceConfig:
        """Without dynamic integers where the runtime does not know their operators, and without what is left out."""
        space = self.config.space
        if self._leaves_out("blocks"):
            space = space.model_copy(update={"remove_blocks": False})
        if self.config.device.runtime == "onnxruntime":
            return space
        return space.model_copy(
            update={"activations": tuple(a for a in space.activations if a != "dynamic") or ("float",)}
        )

    def _open_ledger(self) -> None:
        known = self.trials
        self.ledger = Ledger(
            self.store, self.config, self.space, known, direction=self.direction, sampler=self._sampler(len(known))
        )
        for lost in self.ledger.reconcile(known):
            self.store.add_trial(self.config.name, lost)
            self.trials.append(lost)
        if not known:
            facts = self.space.facts
            self.finish(baseline_trial(self.baseline, facts))

    def _sampler(self, known: int) -> Any:
        search, baseline = self.config.search, self.baseline
        reference = Reference(
            metric=baseline.val,
            size_bytes=weighed_bytes(baseline, search.objectives),
            latency_ms=baseline.latency_ms,
            direction=self.direction,
            objectives=search.objectives,
            noise=self.drop_noise,
            latency_noise=baseline.latency_sd or 0.0,
            train_s=self.schedule.train_s,
            later=self.schedule.final_s / (self._finalists * self.schedule.train_s),
        )
        return make_sampler(
            search.sampler,
            self.space,
            sensitivity=self.sensitivity,
            reference=reference,
            constraints=self.constraints,
            seed=search.seed + 1000 * known,  # a resumed study draws from another stream, or it would repeat itself
            without=search.without,
            timer=self._probe,
        )

    @property
    def _finalists(self) -> int:
        """Trials that the last stage is about enough for; a goal is best met by one that has all of it."""
        return 1 if self.constraints.is_goal else _FINALISTS

    def _search(self) -> None:
        """What everybody would try, and what the sampler proposes.

        Most samplers learn from the whole uniform sweep before they propose anything. The front sampler knows enough
        after one of its plans: the others have their turn between proposals, if they may enter the front.
        """
        uniform = self._sweep()
        first = itertools.islice(uniform, 1 if self.config.search.sampler == "front" else None)
        for obvious in (iter(self.space.references()), first):
            while self._try_next(obvious, anchor=True):
                pass
        for count in itertools.count(1):
            if is_time(self) or not self._take_turn():
                break
            if count % _PROPOSALS_A_TURN == 0:
                self._try_next(uniform, anchor=False)
        while self._try_next(uniform, anchor=False):
            pass

    def _try_next(self, obvious: Iterator[tuple[str, CompressionPlan]], *, anchor: bool) -> bool:
        """Try the next of these plans if it was not tried before; False if there is none, or no time."""
        if not self._has_time(self.search_end) or (found := next(obvious, None)) is None:
            return False
        title, plan = found
        if not any(t.plan == plan and t.origin == "anchor" for t in self.trials):
            self.say(title)
            self.evaluate(plan, origin="anchor", anchor=anchor, parent=self._parent(plan))
        return True

    def _take_turn(self) -> bool:
        """Train a trial longer or try another plan, whatever promises more; False if there is no plan or no time."""
        trial = to_train_longer(self)
        if trial is None or not self._has_time(self.search_end):
            return self.propose(self.search_end)
        self.say(f"training trial {trial.trial} for another {self.trial_s:.0f} s")
        self.evaluate(trial.plan, origin="longer", anchor=True, parent=trial)
        return True

    def propose(self, until: float) -> bool:
        """Try the plan that the sampler asks for; False if it asks for none or there is no time for a trial.

        Args:
            until: monotonic seconds at which the trial must have ended.
        """
        if self.config.search.sampler == "sweep" or not self._has_time(until):
            return False
        asked = self.ledger.ask()
        plan = self.space.decode(asked.params)
        self.evaluate(plan, origin="search", asked=asked, parent=self._parent(plan), deadline=until)
        return True

    def _parent(self, plan: CompressionPlan) -> TrialRecord | None:
        networks = [t for t in self.trials if t.cascade is None]
        return None if self._leaves_out("inherit") else choose_parent(plan, networks)

    def _rung(self) -> Rung | None:
        if self._leaves_out("ladder"):
            return None
        drops = {r.trial: r.drop for r in self.rivals()}
        looked = [(t, t.rung_drop) for t in self.trials if t.rung_drop is not None]
        proposed = [t for t, _ in looked if t.origin == "search"]
        rung = learn_rung(
            [(at_rung, drops[t.trial]) for t, at_rung in looked if t.trial in drops],
            tried=len(proposed),
            stopped=sum(t.state is TrialState.STOPPED for t in proposed),
        )
        grown = training_factor(self.schedule.train_s / self.trial_s)  # what a training of full length would leave
        return rung and replace(rung, hope=rung.hope * grown)

    def _leaves_out(self, part: str) -> bool:
        return part in self.config.search.without

    def _sweep(self) -> Iterator[tuple[str, CompressionPlan]]:
        """The uniform sweep, each prune ratio with the activations that are faster on the device.

        On some processors a pruned network is slower in integers than in floats, so this is not guessed.
        """
        faster: dict[tuple[float, ...], str] = {}
        count = self.config.search.sweep
        kinds: tuple[Activations, ...] = ("float", "uint8", *[a for a in self.space.activations if a == "dynamic"])
        for plans in zip(*(self.space.sweep(kind, count) for kind in kinds), strict=True):
            widths = tuple(plans[0][1].prune_ratio.values())
            if widths not in faster:
                if not self._has_time(self.search_end):
                    return
                took = {plan.activations: self._probe(plan) for _, plan in plans}
                faster[widths] = min(took, key=lambda kind: took[kind])
                for _, plan in plans:
                    if plan.activations != faster[widths]:
                        self.ledger.learn_latency(plan, took[plan.activations])
            yield next(p for p in plans if p[1].activations == faster[widths])

    def _probe(self, plan: CompressionPlan) -> float:
        """Latency of a plan's untrained artifact in milliseconds; infinite if it cannot be made."""
        name, key = self.config.name, plan.structure_key()
        known = self.store.latency(name, key)
        if known is None:
            self.say(f"timing {plan.activations} activations")
            try:
                self.ensure_worker()
                known = self.worker.call("probe", plan, deadline=self.end)
            except (WorkerDied, WorkerBug, StageError):
                return float("inf")
            assert known is not None
            self.store.remember_latency(name, key, known)
        return known.latency_ms

    @property
    def at_limit(self) -> bool:
        """Whether the study has as many trials as it may have; cascades do not count."""
        limit = self.config.search.max_trials
        return limit is not None and sum(t.origin != "cascade" for t in self.trials) >= limit

    def _has_time(self, until: float) -> bool:
        if self.at_limit or repeated_failure(self.trials):
            return False
        return time.monotonic() + self.trial_s / 2 + self.overhead_s() < until

    # -- one trial

    def evaluate(
        self,
        plan: CompressionPlan,
        *,
        origin: str,
        anchor: bool = False,
        asked: Any = None,
        train_s: float | None = None,
        deadline: float | None = None,
        parent: TrialRecord | None = None,
        soup: Sequence[TrialRecord] = (),
        teachers: Sequence[TrialRecord] = (),
    ) -> TrialRecord:
        """Have the worker run one plan and store what came of it."""
        number = self.ledger.next_number if asked is None else asked.number
        train_s = train_s or self.trial_s
        deadline = deadline or self.search_end
        request = Request(
            trial=number, plan=plan, origin=origin, train_s=train_s, deadline=deadline, beside_s=self.overhead_s(),
            rivals=tuple(self.believed_rivals()), constraints=self.constraints,
            anchor=anchor or self._leaves_out("stop"), rung=self._rung(),
            parent=parent.trial if parent else None, parent_plan=parent.plan if parent else None,
            seen=parent.trained_samples if parent else 0,
            latency=self.store.latency(self.config.name, plan.structure_key()),
            soup=_members(soup), teachers=_members(teachers),
        )  # fmt: skip
        failed = TrialRecord(trial=number, state=TrialState.FAILED, plan=plan, origin=origin, parent=request.parent)
        try:
            self.ensure_worker()
            kill_at = min(self.end + _GRACE_S, time.monotonic() + 3 * train_s + 60)
            record: TrialRecord = self.worker.call("evaluate", request, deadline=kill_at)
        except WorkerDied as error:
            record = replace(failed, reason=str(error))
        except WorkerBug as error:
            record = replace(failed, reason=f"internal error: {str(error).strip().splitlines()[-1]}")
        if record.state is TrialState.COMPLETE:
            own = record.durations_s.get("train", 0.0)
            before, worth = (parent.trained_s, parent.equivalent_s) if parent else (0.0, 0.0)
            record = replace(record, trained_s=before + own, equivalent_s=trained_on(worth, own))
        return self.finish(record, asked)

    def ensure_worker(self) -> None:
        """Start and prepare the worker again if it is gone."""
        if not self.worker.alive:
            self._prepare()

    def finish(self, record: TrialRecord, asked: Any = None) -> TrialRecord:
        """Write a trial that ended: our record first, then Optuna's (`asked`: the one it was asked for as)."""
        belief = self.ledger.belief(asked) if asked is not None else {}
        record = replace(record, spent_s=self.spent_s, belief=belief)
        name, measured = self.config.name, record.measurement
        self.store.add_trial(name, record)
        if measured is not None and record.origin != "baseline":
            key = record.structure_key()
            self.store.remember_latency(name, key, measured.latency, size_bytes=measured.size_bytes)
        self.ledger.tell(record, asked)
        self.trials.append(record)
        self.listener(record)
        return record

    # -- what trials are judged against

    @property
    def constraints(self) -> Constraints:
        """The bounds of the study file."""
        search = self.config.search
        return Constraints(max_drop=search.max_drop, max_size=search.max_size, max_latency=search.max_latency)

    @property
    def drop_noise(self) -> float:
        """Standard deviation of a drop as it is measured on the validation data."""
        return drop_noise(self.baseline, min(self.data_sizes["val"], self.config.data.max_val), self.direction)

    def rivals(self) -> Iterator[Rival]:
        """Every trained trial as measured; an objective that the study does not have counts as equal for all."""
        objectives = self.config.search.objectives
        for record in self.trials:
            measured = record.measurement
            if record.state is not TrialState.COMPLETE or measured is None or measured.val is None:
                continue
            size_ratio, latency_ratio = cheap_ratios(measured, self.baseline, objectives)
            yield Rival(
                trial=record.trial,
                plan=record.plan,
                drop=metric_drop(measured.val, self.baseline.val, direction=self.direction),
                size_ratio=size_ratio,
                latency_ratio=latency_ratio,
            )

    def believed_rivals(self) -> list[Rival]:
        """The same with the drops that the sampler believes in, if it does: the luckiest of many look too good."""
        believed = self.ledger.believed_drops()
        return [replace(r, drop=believed.get(r.trial, r.drop)) for r in self.rivals()]

    def _warning(self) -> str:
        """What the numbers are to be read with, before anything else."""
        facts = self.store.study(self.config.name).facts
        return next((note for note in (facts.notes if facts else ()) if note.startswith(TEACHER_CUT)), "")

    # -- time

    @property
    def spent_s(self) -> float:
        """Seconds of the budget spent, earlier runs included; a pause between runs does not count."""
        return self.before_s + time.monotonic() - self.start

    @property
    def end(self) -> float:
        """Monotonic seconds at which the budget ends."""
        return self.start - self.before_s + self.config.search.budget

    @property
    def search_end(self) -> float:
        """Monotonic seconds at which the final stage begins."""
        return self.end - self.schedule.final_s

    @property
    def trial_s(self) -> float:
        """Seconds of training of a trial that begins now."""
        return self.schedule.trial_s(self.spent_s)

    def overhead_s(self) -> float:
        """Seconds of a trial beside its training, at the 90th percentile of those that were trained."""
        others = sorted(
            sum(s for stage, s in t.durations_s.items() if stage != "train")
            for t in self.trials
            if t.state is TrialState.COMPLETE and t.durations_s
        )
        return others[int(0.9 * (len(others) - 1))] if others else _OVERHEAD_S

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Charge what runs inside to a stage of the study, also if it is interrupted."""
        self.stage, start = stage, time.monotonic()
        try:
            yield
        finally:
            self._add_duration(stage, time.monotonic() - start)

    def _add_duration(self, stage: str, seconds: float) -> None:
        durations = dict(self.store.study(self.config.name).durations_s)
        durations[stage] = durations.get(stage, 0.0) + seconds
        self.store.update(self.config.name, durations_s=durations, spent_s=self.spent_s)

    def say(self, message: str) -> None:
        """Tell the listener what is going on."""
        self.listener(
            Progress(stage=self.stage, message=message, spent_s=self.spent_s, budget_s=self.config.search.budget)
        )

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._ticked < _TICK_S:
            return
        self._ticked = now
        self.store.tick(self.config.name, self.spent_s, self.stage)
        if self.store.cancel_requested(self.config.name):
            raise Cancelled


def _members(trials: Sequence[TrialRecord]) -> tuple[Member, ...]:
    return tuple(Member(trial=t.trial, plan=t.plan) for t in trials)
